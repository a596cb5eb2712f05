"""Runs of small puzzles in batches of one size: two programs serve a whole demo, one of single
seeds and one of several."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8

from jcos.config import PixelCodec
from jcos.generation import generate_worlds
from jcos.lab.tasks import TASKS, Puzzle
from jcos.model.vae import pixel_videos
from jcos.sampling import flow
from jcos.sampling.probe import Probe
from jcos.sampling.trajectory import Condition, tree_stack
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
    """Plays rows in equal batches, and counts the time of their forward passes."""

    def __init__(self, model: Wan) -> None:
        if not isinstance(model.codec, PixelCodec):
            raise ValueError(f"{model.config.name} is no model of the small puzzles: it has a VAE")
        self.model = model
        self.plan = flow.plan(model.config.sampling, model.config.boundary)
        self._conditions: dict[Puzzle, Condition] = {}
        self._seconds: dict[Any, list[float]] = {}

    @property
    def forward(self) -> float:
        """Seconds in forward passes. The first call of a program also compiles it, so it counts as
        long as the others on average."""
        calls = self._seconds.values()
        return sum(len(each) * float(np.mean(each[1:] or each)) for each in calls)

    def play(self, rows: Sequence[Row]) -> Runs:
        """Return all runs, in order."""
        parts = []
        for first in range(0, len(rows), BATCH):
            batch = [rows[min(first + i, len(rows) - 1)] for i in range(BATCH)]
            conditions = tree_stack([self._condition(row.puzzle) for row in batch])
            keys = jnp.stack([jax.vmap(jax.random.key)(np.array(row.seeds)) for row in batch])
            inputs = (
                self.model,
                self.plan,
                conditions,
                keys,
                tree_stack([row.probe for row in batch]),
            )
            start = time.monotonic()
            parts.append(jax.device_get(_batch(*inputs)))
            kind = type(batch[0].probe), keys.shape
            self._seconds.setdefault(kind, []).append(time.monotonic() - start)
        joined = (np.concatenate(leaves)[: len(rows)] for leaves in zip(*parts, strict=True))
        return Runs(*joined)

    def _condition(self, puzzle: Puzzle) -> Condition:
        if puzzle not in self._conditions:
            task = TASKS[puzzle.task]
            condition = self.model.condition(task.first_frame(puzzle), puzzle.prompt, task.frames)
            self._conditions[puzzle] = jax.tree.map(np.asarray, condition)
        return self._conditions[puzzle]


@jax.jit
def _batch(
    model: Wan, plan: flow.Plan, conditions: Condition, keys: Key[Array, "N K"], probes: Probe
) -> Runs:
    codec = model.codec
    assert isinstance(codec, PixelCodec)  # small puzzles have no other

    def one(condition: Condition, keys: Key[Array, " K"], probe: Probe) -> Runs:
        world = jax.tree.map(lambda a: a[None], condition)
        x0 = generate_worlds(model, plan, world, keys, probe).x0[0]
        return Runs(x0, pixel_videos(codec, x0))

    return jax.vmap(one)(conditions, keys, probes)
