"""Machines that runs are planned for, by the names that clouds sell them under or by shape."""

import dataclasses
import difflib
import math
import re

GIB = 2**30
HOST = 8
"""GPUs of one host, joined by NVLink."""
NETWORK = 50e9
"""Bytes per second that a GPU can send to other hosts: 400 Gbit/s, as is usual with Hopper."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as its maker describes it.

    flops: dense bfloat16 multiplications and additions per second. memory: bytes. bandwidth: of
    that memory, bytes per second. link: bytes per second that a device can send to the others of
    its machine in one collective (on a TPU the two links of one torus axis, on a GPU NVLink in one
    direction). reached: share of `flops` that the fastest published run of Wan gets out of this
    kind of chip; by: whose run that is. copies: how much of `costs.run_bytes` XLA holds at
    once: on GPUs and v6e the most of any compilation at true size; v5e and v5p lay weights out
    anew as well, which is not counted. axes: of the torus, 0 for a GPU.
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
        Chip("v5e", 197e12, 16 * GIB, 819e9, 100e9, 0.28, _V6E, 2.0, axes=2),
        Chip("v5p", 459e12, 95 * GIB, 2765e9, 200e9, 0.28, _V6E, 2.0, axes=3),
        Chip("v6e", 918e12, 32 * GIB, 1638e9, 200e9, 0.28, _V6E, 2.0, axes=2),
        Chip("h100", 989e12, 79 * GIB, 3350e9, 450e9, 0.66, _H100, 0.8),
        Chip("h200", 989e12, 139 * GIB, 4800e9, 450e9, 0.66, _H100, 0.8),
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
        """Bytes per second that a device sends to others; of several hosts of GPUs, between
        hosts."""
        return self.chip.link if self.chip.axes or self.devices <= HOST else NETWORK

    @property
    def name(self) -> str:
        kind = "" if self.chip.axes else "gpu:"
        return f"{kind}{self.chip.name}:{'x'.join(map(str, self.shape))}"


_SLICES: dict[str, tuple[int, ...]] = {
    f"{kind}-{2**n}": (2 ** (n // 2), 2 ** ((n + 1) // 2))
    for kind in ("v5e", "v6e")
    for n in (0, *range(2, 9))
}
_SLICES |= {"v5p-8": (2, 2, 1), "v5p-16": (2, 2, 2), "v5p-32": (2, 2, 4), "v5p-64": (2, 4, 4)}
_SLICES |= {  # up to 96 cubes of 4 × 4 × 4; of one number the last shape counts, the roundest
    f"v5p-{128 * a * b * c}": (4 * a, 4 * b, 4 * c)
    for a in range(1, 5)
    for b in range(a, 10)
    for c in range(b, min(64, 96 // (a * b)) + 1)
}
"""Shapes of slices that are sold by their number of chips (v5p: cores, two per chip)."""
_SOLD = [
    *(f"{kind}:{n}" for kind in ("h100", "h200") for n in (1, 2, 4, 8, 16)),
    *("v5e-8", "v5p-32", "v6e-8"),
]
"""Names to propose where one is none, and no kind of TPU is named."""


def machine(name: str) -> Machine:
    """Return the machine of a name: `v5p:2x2x4` (a torus of chips), `v5p-32`, `v6e-8`, `h200:8`.

    Raises ValueError where there is none, naming the nearest, or its hosts would not be whole.
    """
    asked = name.strip().lower().removeprefix("tpu-").replace("litepod", "e").removeprefix("gpu:")
    kind = re.split("[:-]", asked)[0]
    chip, shape = CHIPS.get(kind), _SLICES.get(asked, ())
    size = r":\d+(x\d+)+" if chip and chip.axes else r"([:-]\d+)?"
    if re.fullmatch(size, asked.removeprefix(kind)):
        shape = tuple(map(int, re.findall(r"\d+", asked.removeprefix(kind)))) or (1,)
    if not chip or not shape or ("gpu:" in name.lower() and chip.axes):
        sizes = {s: int(s.partition("-")[2]) for s in _SLICES if s.startswith(f"{kind}-")}
        number = int((re.findall(r"\d+$", asked) or [0])[0])
        near = sorted(sizes, key=lambda sold: abs(sizes[sold] - number))[:3]
        near.sort(key=sizes.__getitem__)
        near = near or difflib.get_close_matches(asked, _SOLD, 3, 0.0)
        raise ValueError(f"there is no machine {name!r}; the nearest are {', '.join(near)}")
    # Four chips share a host, 2 × 2; single chips are rented out of such hosts.
    odd = chip.axes and math.prod(shape) > 1 and any(n % 2 for n in shape[:2])
    if len(shape) != max(chip.axes, 1) or min(shape) < 1 or odd:
        want = f"{chip.axes} axes, the first two even" if chip.axes else "at least 1 device"
        raise ValueError(f"{name} is not made of whole hosts of {kind}: give {want}")
    return Machine(chip, shape)
