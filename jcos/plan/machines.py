"""Chips that runs are planned for, and machines made of them: `v5p:2x2x4`, `gpu:h200:1`."""

import dataclasses
import math
import re

GIB = 2**30
HOST = 8
"""GPUs of one host, joined by NVLink."""
NETWORK = 50e9
"""Bytes per second that a GPU can send to other hosts: 400 Gbit/s, as is usual beside Hopper's."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as its maker describes it.

    flops: dense bfloat16 multiplications and additions per second. memory: bytes. bandwidth: of
    that memory, bytes per second. link: bytes per second that a device can send to the others of
    its machine in one collective (on a TPU the two links of one torus axis, on a GPU NVLink in one
    direction).
    reached: share of `flops` that the fastest published run of Wan gets out of this kind of chip;
    by: whose run that is.
    copies: how many times the widest place of a block XLA holds at once there, by compilations at
    true size (GPUs 0.8 to 1.3; TPUs 0.8 to 2.9, beside weights that it lays out anew for v5p).
    axes: of the torus, 0 for a GPU.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    link: float
    reached: float
    by: str
    copies: float
    axes: int = 0


# Links: the documented sum of both directions of all links, divided by 2 directions and by the
# number of axes.
_H100 = "LightX2V, I2V-14B 480p on one H100"
_V6E = "maxdiffusion, I2V-A14B 720p on v6e-8"
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 197e12, 16 * GIB, 819e9, 100e9, 0.28, _V6E, 3.0, axes=2),
        Chip("v5p", 459e12, 95 * GIB, 2765e9, 200e9, 0.28, _V6E, 3.0, axes=3),
        Chip("v6e", 918e12, 32 * GIB, 1638e9, 200e9, 0.28, _V6E, 3.0, axes=2),
        Chip("h100", 989e12, 79 * GIB, 3350e9, 450e9, 0.66, _H100, 1.3),
        Chip("h200", 989e12, 139 * GIB, 4800e9, 450e9, 0.66, _H100, 1.3),
    )
}


@dataclasses.dataclass(frozen=True)
class Machine:
    """Equal chips joined by links. shape: of the torus, or the number of GPUs alone."""

    chip: Chip
    shape: tuple[int, ...]

    @property
    def devices(self) -> int:
        return math.prod(self.shape)

    @property
    def platform(self) -> str:
        return "tpu" if self.chip.axes else "gpu"

    @property
    def link(self) -> float:
        """Bytes per second that a device sends to others; between hosts of GPUs as if all went that
        way."""
        alone = self.platform == "tpu" or self.devices <= HOST
        return self.chip.link if alone else NETWORK

    @property
    def name(self) -> str:
        if self.platform == "gpu":
            return f"gpu:{self.chip.name}:{self.shape[0]}"
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"


def machine(name: str) -> Machine:
    """The machine of that name; ValueError where there is none."""
    examples = "known are v5e:2x4, v5p:2x2x4, v6e:2x4 (any slice) and gpu:h100:8, gpu:h200:1"
    found = re.fullmatch(r"gpu:(\w+):(\d+)|(\w+):(\d+(?:x\d+)+)", name)
    kind = found and (found[1] or found[3])
    if not found or kind not in CHIPS or bool(found[1]) == bool(CHIPS[kind].axes):
        raise ValueError(f"there is no machine {name!r}; {examples}")
    chip = CHIPS[kind]
    shape = tuple(int(n) for n in (found[2] or found[4]).split("x"))
    if min(shape) < 1:
        raise ValueError(f"{name} has no device")
    if not chip.axes:
        return Machine(chip, shape)
    if len(shape) != chip.axes:
        raise ValueError(f"a {kind} slice has {chip.axes} axes, {name} has {len(shape)}")
    # Four chips share a host, 2 × 2; single chips are rented out of such hosts.
    if math.prod(shape) > 1 and (shape[0] % 2 or shape[1] % 2):
        raise ValueError(f"{name} is not made of whole hosts: its first two sizes must be even")
    return Machine(chip, shape)
