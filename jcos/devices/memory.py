"""A device's memory: weights offloaded to the host's, and what helps where it runs out."""

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, TypeVar

import jax
from jax.sharding import Sharding

from jcos.devices import mesh

GIB = 2**30
HOST = "pinned_host"
"""jax's name for host memory that a device reads by itself."""
ROOM = 0.55
"""Share of jax's memory on a device that weights may take and stay there; the rest is for the run.
A14B's two experts, 54 GiB, stay on an H200, even where jax has 75 % of it, and not on 80 GB."""
CLAIM = "0.92"
"""Share of a GPU's memory that a command takes, in place of jax's 75 %; `jcos plan` counts on 90 %.
The rest is for the libraries (cuDNN, cuBLAS)."""
_FRACTION = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
"""By its present and its old name; jax refuses to start where both are set."""
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

M = TypeVar("M")


def claim(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let jax have `CLAIM` of a GPU, unless the environment says how much. Call it first."""
    if not any(environment.get(name) for name in _FRACTION):
        environment[_FRACTION[0]] = CLAIM


# ---- where weights lie


def on_device(weights: M) -> M:
    """Bring those weights to the device that lie in host memory. In a jitted function the compiler
    chooses when, which may be early: where only one set of weights has room, call this before."""
    return jax.tree.map(
        lambda a: jax.device_put(a, jax.memory.Space.Device) if _in_host(a) else a, weights
    )


def waits(weights: Any) -> bool:
    """Return whether any of them lies in host memory."""
    return any(_in_host(leaf) for leaf in jax.tree.leaves(weights))


def _in_host(leaf: Any) -> bool:
    return jax.typeof(leaf).memory_space == jax.memory.Space.Host


def waiting(
    weights: Mapping[str, Any], shardings: Mapping[str, Sharding], resident: bool | None
) -> dict[str, Sharding]:
    """Return shardings in host memory for weights (or their shapes) that are to be offloaded; none
    where they stay on the device.

    shardings: on the device, by path; by default on the first. resident: whether they stay; None:
    on a mesh, which can slice them, and where they take at most `ROOM` of the device.
    """
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if resident is None:
        limit = None if mesh.in_use() else device_memory()
        total = sum(math.prod(a.shape) * a.dtype.itemsize for a in weights.values())
        resident = limit is None or total <= ROOM * limit
    if resident:
        return {}
    return {path: shardings.get(path, first).with_memory_kind(HOST) for path in weights}


# ---- when it runs out


_IN_TURNS = "one expert at a time: load(resident=False), --resident False"
_NARROW = "weights in bfloat16: profile 'official'"
_SMALLER = "a smaller or shorter video"


def run_knobs(
    model: Any, guided: bool, seeds: int, worlds: int = 1, probed: bool = False
) -> list[str]:
    """Return what would make a run of a `Wan` smaller, the least change first."""
    many = mesh.devices(*mesh.AXES) > 1
    resident = len(model.experts) > 1 and not waits(model.experts)
    float32 = model.config.numerics.linear == "float32"
    table = [
        (seeds > 1, f"fewer than {seeds} seeds at a time: the same videos, in turns"),
        (worlds > 1, f"fewer than {worlds} worlds at a time"),
        (resident, _IN_TURNS),
        (many and guided, "a mesh with branch=2: a device makes one pass of a step's two"),
        (many, "a mesh with a larger fsdp or context: fewer tokens per device"),
        (probed, "a probe that observes fewer layers or tokens"),
        (float32, _NARROW),
        (not many, "more devices (`jcos plan` says how many)"),
        (True, _SMALLER),
    ]
    return [knob for helps, knob in table if helps]


LOADING = (
    "no text encoder: embedded prompts, --text-cache",
    _IN_TURNS,
    _NARROW,
    "more devices and a mesh with fsdp (`jcos plan` says how many)",
)
CODING = (
    "tiles: encode and decode(tiles=…), --tiles 30 52",
    "a model loaded without its experts or text encoder",
    _SMALLER,
)
"""What helps where weights, or videos to be coded, are too large: the least change first."""


@contextlib.contextmanager
def explained(what: str, knobs: Sequence[str] | Callable[[], Sequence[str]]) -> Iterator[None]:
    """Turn XLA's report of exhausted memory into a MemoryError that says what would help: knobs, or
    what returns them."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        helps = knobs() if callable(knobs) else knobs
        raise MemoryError(sentence(str(error), what, helps, device_memory())) from None


def sentence(report: str, what: str, knobs: Sequence[str], limit: int | None) -> str:
    """Return the error of a report of XLA's. limit: bytes of a device, where known."""
    asked = _size("allocate|allocating|Used", report) or "more memory than there is"
    there = _size(r"Used \S+ of", report) or (limit and f"{limit / GIB:.1f} GiB")
    there = f" of its {there}" if there else ""
    turn = "; ".join(f"({i}) {knob}" for i, knob in enumerate(knobs, 1))
    return f"{what} asked a device for {asked}{there}. What helps, the least change first: {turn}"


def _size(behind: str, report: str) -> str | None:
    match = re.search(rf"(?:{behind}) ([\d.]*\d) ?([KMGT]?)", report)
    return match and f"{float(match[1]) * _UNITS[match[2]] / GIB:.1f} GiB"


def device_memory() -> int | None:
    """Return the bytes that programs may use of the first device; None where unknown (CPU)."""
    stats = jax.local_devices()[0].memory_stats()
    return None if not stats else stats.get("bytes_limit")
