"""Runs of small puzzles in batches of one size: two programs serve a whole demo, one of single
seeds and one of several."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from jcos.config import PixelCodec
from jcos.experiments.sweeps import conditions_of, one_world, pixels, sweep
from jcos.lab.tasks import Puzzle
from jcos.sampling import flow
from jcos.sampling.probe import Probe
from jcos.sampling.trajectory import Trace, tree_stack
from jcos.wan import Wan

BATCH = 8
"""Runs of one call of a program."""


class Runs(NamedTuple):
    """What is kept of N runs: x0 [N, K, S, F, h, w, C] as latents, and as video."""

    latents: Float[Any, "*N S F h w C"]
    video: UInt8[Any, "*N S F H W 3"]


class Row(NamedTuple):
    """One run: a puzzle, its noise seeds, and what is done to it."""

    puzzle: Puzzle
    seeds: tuple[int, ...]
    probe: Probe


class Batches:
    """Plays rows in equal batches, and counts the time of that."""

    def __init__(self, model: Wan) -> None:
        if not isinstance(model.codec, PixelCodec):
            raise ValueError(f"{model.config.name} is no model of the small puzzles: it has a VAE")
        self.model = model
        self._seconds: dict[Any, list[float]] = {}

    @property
    def sampling(self) -> float:
        """Seconds in calls: passes of the model, decoding, and in a search its judge. The first
        call of a program also compiles it, so it counts as long as the others on average."""
        calls = self._seconds.values()
        return sum(len(each) * float(np.mean(each[1:] or each)) for each in calls)

    @contextmanager
    def timed(self, *kind: Any) -> Iterator[None]:
        """Count what is done here as a call of a program."""
        start = time.monotonic()
        yield
        self._seconds.setdefault(kind, []).append(time.monotonic() - start)

    def play(self, rows: Sequence[Row]) -> Runs:
        """Return all runs, in order."""
        parts = []
        for first in range(0, len(rows), BATCH):
            batch = [rows[min(first + i, len(rows) - 1)] for i in range(BATCH)]
            puzzles, seeds, probes = zip(*batch, strict=True)
            conditions = one_world(conditions_of(self.model, puzzles))
            about = {"item_probe": tree_stack(probes), "chunk": BATCH, "alike": True}
            with self.timed(type(probes[0]), len(seeds[0]), conditions.grid):
                played = sweep(self.model, conditions, seeds, readout=read_runs, **about)
            parts.append([leaf[0] for leaf in played])
        joined = (np.concatenate(leaves)[: len(rows)] for leaves in zip(*parts, strict=True))
        return Runs(*joined)


def read_runs(model: Wan, plan: flow.Plan, trace: Trace, aux: tuple[()]) -> Runs:
    """Return all clean estimates of world 0."""
    return Runs(trace.x0[0], pixels(model, trace.x0[0]))
