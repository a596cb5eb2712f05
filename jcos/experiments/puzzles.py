"""Many puzzles of a task through a model, as one compiled program."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jcos import flow, trajectory
from jcos.config import Sampling
from jcos.probes import Probe
from jcos.tasks import Puzzle, Score, Task
from jcos.trajectory import Condition, Trace
from jcos.wan import Wan, generate_worlds, seed_keys

CHUNK = 32
"""Puzzles computed at a time: enough to keep the matrix units busy, small enough for a laptop's memory."""


def held_out(task: Task, n: int, seed: int = 0) -> list[Puzzle]:
    """n puzzles of the test split; the same for every model and experiment of this seed."""
    return [task.sample((seed, i), "test") for i in range(n)]


def conditions(model: Wan, task: Task, puzzles: Sequence[Puzzle]) -> Condition:
    """Conditions of all puzzles, stacked [P, …]."""
    frames = [task.draw(puzzle, puzzle.answers[0])[0] for puzzle in puzzles]
    given = [model.condition(f, p.prompt, task.frames) for f, p in zip(frames, puzzles, strict=True)]
    return trajectory.stack(given)


@partial(jax.jit, static_argnames=("chunk",))
def _play(
    model: Wan,
    plan: flow.Schedule,
    given: Condition,
    keys: Key[Array, "P K"],
    probe: Probe,
    keep: Int[Array, " kept"],
    chunk: int,
) -> Trace:
    def one(inputs: tuple[Condition, Array]) -> Trace:
        condition, seeds = inputs
        worlds = jax.tree.map(lambda a: a[None], condition)
        trace = jax.tree.map(lambda a: a[0], generate_worlds(model, plan, worlds, seeds, probe))
        return trace._replace(x0=trace.x0[:, keep])

    return jax.lax.map(one, (given, keys), batch_size=chunk)


def play(
    model: Wan,
    task: Task,
    puzzles: Sequence[Puzzle],
    seeds: Sequence[int] = (0,),
    *,
    sampling: Sampling | None = None,
    probe: Probe | None = None,
    keep: Sequence[int] = (),
) -> Trace:
    """Every puzzle with every seed: leaves [P, K, …]; x0 of the steps in `keep` only.

    Seeds are numbered per puzzle (seed k of puzzle i is one noise, whatever else runs), so runs that differ in
    their probe are paired.
    """
    plan = flow.schedule(sampling or model.config.sampling)
    keys = jnp.stack([jax.vmap(partial(_fold, i))(seed_keys(seeds)) for i in range(len(puzzles))])
    given = conditions(model, task, puzzles)
    kept = jnp.asarray(np.array(keep, np.int32))
    chunk = min(CHUNK, len(puzzles))
    return trajectory.check_finite(_play(model, plan, given, keys, probe or Probe(), kept, chunk))


def _fold(puzzle: int, key: Key[Array, ""]) -> Key[Array, ""]:
    return jax.random.fold_in(key, puzzle)


def score(
    model: Wan, task: Task, puzzles: Sequence[Puzzle], latents: Float[Array, "P *axes F h w C"]
) -> list[list[Score]]:
    """Scores of decoded latents, [P][all further axes flattened]."""
    videos = model.decode(latents).reshape(len(puzzles), -1, task.frames, task.height, task.width, 3)
    return [[task.score(p, v) for v in row] for p, row in zip(puzzles, videos, strict=True)]


def solved(
    model: Wan, task: Task, puzzles: Sequence[Puzzle], latents: Float[Array, "P *axes F h w C"]
) -> Bool[np.ndarray, "P *axes"]:
    """Whether each latent decodes to a solved puzzle."""
    found = np.array([[s.solved for s in row] for row in score(model, task, puzzles, latents)])
    return found.reshape(latents.shape[:-4])
