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
from jcos.tasks import Puzzle, Task
from jcos.trajectory import Condition, Trace
from jcos.wan import Wan, generate_worlds, seed_keys

CHUNK = 32
"""Puzzles computed at a time: enough to keep the matrix units busy, small enough for a laptop's
memory."""


def held_out(task: Task, n: int, seed: int = 0) -> list[Puzzle]:
    """n puzzles of the test split; the same for every model and experiment of this seed."""
    return [task.sample((seed, i), "test") for i in range(n)]


def conditions(model: Wan, task: Task, puzzles: Sequence[Puzzle]) -> Condition:
    """Conditions of all puzzles, stacked [P, …]."""
    frames = [task.first_frame(puzzle) for puzzle in puzzles]
    given = [
        model.condition(f, p.prompt, task.frames) for f, p in zip(frames, puzzles, strict=True)
    ]
    return trajectory.stack(given)


@partial(jax.jit, static_argnames=("chunk",))
def _play(
    model: Wan,
    plan: flow.Plan,
    given: Condition,
    keys: Key[Array, "P K"],
    probes: Probe,
    keep: Int[Array, " kept"],
    which: Int[Array, "I 2"],
    chunk: int,
) -> Trace:
    def one(pair: Int[Array, " 2"]) -> Trace:
        probe = jax.tree.map(lambda a: a[pair[0]], probes)
        world = jax.tree.map(lambda a: a[pair[1]][None], given)
        trace = generate_worlds(model, plan, world, keys[pair[1]], probe)
        trace = jax.tree.map(lambda a: a[0], trace)
        return trace._replace(x0=trace.x0[:, keep])

    return jax.lax.map(one, which, batch_size=chunk)


def play(
    model: Wan,
    task: Task,
    puzzles: Sequence[Puzzle],
    seeds: Sequence[int] = (0,),
    *,
    probes: Sequence[Probe] = (Probe(),),
    sampling: Sampling | None = None,
    keep: Sequence[int] = (-1,),
) -> Trace:
    """Every probe on every puzzle with every seed: leaves [Q, P, K, …]; x0 of the steps in `keep`
    only (the last by default).

    A seed's noise depends on the puzzle's number and the seed, not on what runs beside it: runs
    that differ in their probe are paired. All probes are of one kind and run in one compiled
    program.
    """
    plan = flow.plan(sampling or model.config.sampling, model.config.boundary)
    number = jnp.arange(len(puzzles))
    keys = jax.vmap(lambda i: jax.vmap(lambda key: jax.random.fold_in(key, i))(seed_keys(seeds)))(
        number
    )
    which = np.stack(
        np.meshgrid(np.arange(len(probes)), np.arange(len(puzzles)), indexing="ij"), -1
    )
    trace = _play(
        model,
        plan,
        conditions(model, task, puzzles),
        keys,
        trajectory.stack(probes),
        jnp.asarray(np.array(keep, np.int32)),
        jnp.asarray(which.reshape(-1, 2)),
        min(CHUNK, which.size // 2),
    )
    shape = which.shape[:2]
    return trajectory.check_finite(jax.tree.map(lambda a: a.reshape(*shape, *a.shape[1:]), trace))


def score(
    model: Wan, task: Task, puzzles: Sequence[Puzzle], latents: Float[Array, "P *axes F h w C"]
) -> tuple[Float[np.ndarray, "P *axes"], Bool[np.ndarray, "P *axes"]]:
    """Scores of decoded latents, and whether they are solved. The puzzles' axis comes first."""
    videos = model.decode(latents).reshape(
        len(puzzles), -1, task.frames, task.height, task.width, 3
    )
    found = [[task.score(p, v) for v in row] for p, row in zip(puzzles, videos, strict=True)]
    scores, solved = (np.array([[s[i] for s in row] for row in found]) for i in (0, 1))
    return scores.reshape(latents.shape[:-4]), solved.reshape(latents.shape[:-4]).astype(bool)
