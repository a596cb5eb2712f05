"""What a device that ran out of memory was asked for, in one sentence with what would help."""

import contextlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax

GIB = 2**30
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Run(NamedTuple):
    """What a run that may be too large consists of."""

    seeds: int
    worlds: int
    guided: bool
    probed: bool
    float32: bool
    devices: int


def knobs(run: Run) -> list[str]:
    """What this run can be changed in, that which changes least about its results first."""
    many = run.devices > 1
    table = [
        (run.seeds > 1, f"fewer than {run.seeds} seeds at a time: the same videos, in turns"),
        (run.worlds > 1, f"fewer than {run.worlds} worlds at a time"),
        (many and run.guided, "a mesh with branch=2: a device makes one pass of a step's two"),
        (many, "a mesh with a larger fsdp: weights in thinner slices, fewer tokens per device"),
        (many, "a mesh with a larger context: fewer tokens per device"),
        (run.probed, "a probe that observes fewer layers or tokens"),
        (run.float32, "weights in bfloat16: profile 'official'"),
        (not many, "more devices (`jcos plan` says how many)"),
        (True, "a smaller or shorter video"),
    ]
    return [knob for helps, knob in table if helps]


@contextlib.contextmanager
def explained(what: str, run: Run) -> Iterator[None]:
    """Turns XLA's report of exhausted memory into a MemoryError: what was asked for (by `what`),
    what there is, what would help."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(sentence(str(error), what, run, device_memory())) from None


def sentence(report: str, what: str, run: Run, limit: int | None) -> str:
    """limit: bytes of a device, where it tells."""
    asked = _bytes(_ASKED, report)
    limit = _bytes(_LIMIT, report) or limit
    size = "more memory than there is" if asked is None else f"{asked / GIB:.1f} GiB"
    there = "" if limit is None else f" of its {limit / GIB:.1f} GiB"
    turn = "; ".join(f"({i}) {knob}" for i, knob in enumerate(knobs(run), 1))
    return f"{what} asked a device for {size}{there}. What helps, the least change first: {turn}"


_SIZE = r"([\d.]*\d) ?([KMGT]?)"
_ASKED = rf"(?:allocate|allocating|Used) {_SIZE}"
_LIMIT = rf"Used \S+ of {_SIZE}"


def _bytes(pattern: str, report: str) -> int | None:
    found = re.search(pattern, report)
    return int(float(found[1]) * _UNITS[found[2]]) if found else None


def device_memory() -> int | None:
    """Bytes that programs may use of the first device here; None where it does not tell (CPU)."""
    stats = jax.local_devices()[0].memory_stats()
    return None if not stats else stats.get("bytes_limit")
