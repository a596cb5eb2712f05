"""When does the answer appear? Clean estimates at every step, solved or not, and which answers they
blend.

Paper, section 3.1: early estimates hold several answers at once, middle steps prune them, late ones
polish.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jcos.experiments.puzzles import play, score
from jcos.measures import Mass, answer_mass
from jcos.tasks import Puzzle, Task
from jcos.vae import encode_pixels
from jcos.wan import Wan


class Watched(NamedTuple):
    """Runs of P puzzles, looked at in S steps, J of them judged.

    x0 [P, S, F, h, w, C], latents [P, F, h, w, C]: clean estimates and the end. scores, solved
    [P, J]: of the judged estimates (the last step's estimate is the end itself).
    """

    x0: Float[Array, "P S F h w C"]
    latents: Float[Array, "P F h w C"]
    scores: Float[np.ndarray, "P J"]
    solved: Bool[np.ndarray, "P J"]


def watch(
    model: Wan, task: Task, puzzles: Sequence[Puzzle], looked: Sequence[int], judged: Sequence[int]
) -> Watched:
    """Plays the puzzles with seed 0; keeps the clean estimates of the steps `looked`, and scores
    those of `judged`, which are among them."""
    trace = play(model, task, puzzles, keep=looked)
    x0, latents = trace.x0[0, :, 0], trace.latents[0, :, 0]
    where = np.array([list(looked).index(step) for step in judged])
    return Watched(x0, latents, *score(model, task, puzzles, x0[:, where]))


def masses(
    model: Wan, task: Task, puzzle: Puzzle, x0: Float[Array, "S F h w C"], room: int
) -> Mass:
    """The blend of the puzzle's right answers in each clean estimate: on [S, K], off [S].

    room: the most answers that any puzzle of the experiment has, so that all share one compiled
    program.
    """
    answers = jax.vmap(partial(encode_pixels, model.codec))(jnp.asarray(task.routes(puzzle)))
    still = jnp.broadcast_to(answers[0, :1], answers[0].shape)
    # Room is filled with the still picture, whose change is zero and which therefore gets no mass.
    filled = jnp.concatenate(
        [answers, jnp.broadcast_to(still, (room - len(answers), *still.shape))]
    )
    on, off = _masses(x0, filled, still)
    return Mass(on[:, : len(answers)], off)


@jax.jit
def _masses(
    x0: Float[Array, "S F h w C"],
    answers: Float[Array, "K F h w C"],
    still: Float[Array, "F h w C"],
) -> Mass:
    return jax.vmap(answer_mass, in_axes=(0, None, None))(x0, answers, still)


class Routes(NamedTuple):
    """Mass per step [P, S]: on the answer finally taken, on all other right answers, on none."""

    taken: Float[np.ndarray, "P S"]
    others: Float[np.ndarray, "P S"]
    off: Float[np.ndarray, "P S"]


def routes(model: Wan, task: Task, puzzles: Sequence[Puzzle], watched: Watched) -> Routes:
    """Where the mass is, step by step. The answer taken is the one with most mass at the last
    looked-at step."""
    room = max(len(p.answers) for p in puzzles)
    rows = []
    for puzzle, x0 in zip(puzzles, watched.x0, strict=True):
        on, off = (np.asarray(a) for a in masses(model, task, puzzle, x0, room))
        taken = on[:, on[-1].argmax()]
        rows.append((taken, on.sum(1) - taken, off))
    return Routes(*(np.stack(part) for part in zip(*rows, strict=True)))
