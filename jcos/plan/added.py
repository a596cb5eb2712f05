"""What probes inside the blocks add to a run: operations and bytes of the compiled program.

One step of one block of the model, at its true width and length and with weights as shapes, is
compiled for this CPU with and without a probe; all blocks are alike. Operations are counted in a
program without loops, since a compiler counts a loop's body once. Bytes are those of the true
program: what attention and `AttentionMass` do block by block counts once. (A lens is not here: of a
single block it is the run's estimate, which XLA computes once for both.)
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from jcos.devices import sharding
from jcos.generation import generate_worlds
from jcos.model import attention
from jcos.plan import compiled
from jcos.plan.costs import Job
from jcos.sampling import maps
from jcos.sampling.inside import KnockOut
from jcos.sampling.maps import AttentionMass
from jcos.sampling.probes import Probe


def _mass(job: Job, every: int) -> Probe:
    grid, dtype = job.config.dit.tokens(*job.latent), job.config.numerics.linear
    return AttentionMass.by_frame(grid, [0], every=every, dtype=dtype)


PROBES: dict[str, Callable[[Job], Probe]] = {
    "heads": lambda job: KnockOut.at(job.config, "heads", [(0, 0), (0, 1)]),
    "heads-mean": lambda job: KnockOut.at(job.config, "heads", [(0, 0), (0, 1)], by="mean"),
    "neurons": lambda job: KnockOut.at(job.config, "mlp", [(0, n) for n in range(8)]),
    "mass": lambda job: _mass(job, 1),
    "mass-16": lambda job: _mass(job, 16),
}
"""By name: heads or neurons knocked out by zero or by the mean, attention by frame of every query
or of one in 16."""


class Added(NamedTuple):
    """What a probe adds to a layer where it acts, in one pass, and in times of a plain layer."""

    probe: str
    flops: float
    bytes: float
    times_flops: float
    times_bytes: float


def check(names: Sequence[str]) -> None:
    """Raise ValueError for a name that is none of `PROBES`."""
    if unknown := [name for name in names if name not in PROBES]:
        raise ValueError(f"there is no probe {unknown[0]!r}; known are {', '.join(PROBES)}")


def added(job: Job, names: Sequence[str]) -> Iterator[Added]:
    """Yield what these of `PROBES` add; ten seconds each at the size of A14B."""
    sampling = dataclasses.replace(job.config.sampling, steps=1, guidance=None)
    dit = dataclasses.replace(job.config.dit, layers=1)
    config = dataclasses.replace(job.config, dit=dit, sampling=sampling, boundary=None)
    block = dataclasses.replace(job, config=config, seeds=1)
    plain = _cost(block, Probe()) if names else (0.0, 0.0)
    for name in names:
        flops, moved = _cost(block, PROBES[name](block))
        yield Added(name, flops - plain[0], moved - plain[1], flops / plain[0], moved / plain[1])


def _cost(job: Job, probe: Probe) -> tuple[float, float]:
    """Return the operations of a run, and the bytes that its instructions read and write."""
    mesh = sharding.make_mesh({}, jax.devices()[:1])
    program: Any = generate_worlds
    taken = compiled.arguments(job, mesh, probe)

    def counted() -> Any:
        program.clear_cache()
        return program.lower(*taken).compile().cost_analysis()

    with compiled.uncached():
        with _whole():
            flops = counted()["flops"]
        return flops, counted()["bytes accessed"]


@contextlib.contextmanager
def _whole() -> Iterator[None]:
    """Let attention be one product, whatever memory that would take."""
    before = attention.SCORES, maps.WEIGHTS
    attention.SCORES = maps.WEIGHTS = 2**60
    try:
        yield
    finally:
        attention.SCORES, maps.WEIGHTS = before
