"""What clean estimates hold of a puzzle's answers, right and wrong, and what the ideal denoiser
would."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jcos.lab.ideal import IdealDenoiser
from jcos.lab.measures import Mass, answer_mass
from jcos.lab.tasks import TASKS, Puzzle, Video
from jcos.wan import Wan

TRIES = 20
"""Random answers drawn for each wrong one that is wanted."""


class Answers(NamedTuple):
    """Candidates of P puzzles as latents, K each: the right ones first, then wrong but legal ones
    where they are asked for; room that is left holds the still picture, which never gets any mass.

    right, wrong [P, K]: which are which; neither is room.
    """

    latents: Float[Any, "*P K F h w C"]
    right: Bool[Any, "*P K"]
    wrong: Bool[Any, "*P K"]

    @property
    def log_prior(self) -> Float[Array, "*P K"]:
        """Return the ideal denoiser's: right answers are equally likely, others impossible."""
        return jnp.where(jnp.asarray(self.right), 0.0, -jnp.inf)

    @property
    def ideal(self) -> IdealDenoiser:
        """The denoiser that knows these right answers and no others."""
        return IdealDenoiser(jnp.asarray(self.latents), self.log_prior)

    @property
    def still(self) -> Float[Array, "*P F h w C"]:
        first = jnp.asarray(self.latents)[..., 0, :1, :, :, :]
        return jnp.broadcast_to(first, (*first.shape[:-4], *self.latents.shape[-4:]))


def answers_of(
    model: Wan, puzzles: Sequence[Puzzle], *, wrong: int = 0, room: int | None = None
) -> Answers:
    """Return candidates of puzzles of one canvas. wrong: how many wrong ones at most, for puzzles
    with a single right answer (a puzzle with several has its alternatives in those). room: K, the
    most that any puzzle has by default; a fixed one lets several calls share a program."""
    right = [list(TASKS[p.task].routes(p)) for p in puzzles]
    drawn = [
        [*a, *(wrong_answers(p, wrong, i) if len(a) == 1 else [])]
        for i, (p, a) in enumerate(zip(puzzles, right, strict=True))
    ]
    most = max(map(len, drawn))
    room = most if room is None else room
    if room < most:
        raise ValueError(f"there is room for {room} answers; one puzzle has {most}")
    latents = []
    for videos in drawn:
        still = np.repeat(videos[0][:1], len(videos[0]), axis=0)
        filled = videos + [still] * (room - len(videos))
        latents.append(np.stack([np.asarray(model.encode(v)) for v in filled]))
    is_right, known = (
        np.arange(room) < np.array([[len(videos)] for videos in some]) for some in (right, drawn)
    )
    return Answers(np.stack(latents), is_right, known & ~is_right)


def wrong_answers(puzzle: Puzzle, n: int, seed: int = 0) -> list[Video]:
    """Return up to n different legal answers that are not right, as videos: other sizes, angles,
    ways."""
    task, rng = TASKS[puzzle.task], np.random.default_rng((seed, 0))
    known = {video.tobytes() for video in task.routes(puzzle)}
    wrong: list[Video] = []
    for _ in range(TRIES * n):
        video = task.draw(puzzle, task.guess(puzzle, rng))
        if len(wrong) < n and video.tobytes() not in known:
            known.add(video.tobytes())
            wrong += [video] * (not task.score(puzzle, video).solved)
    return wrong


def blend(x0: Float[Array, "*S F h w C"], answers: Answers) -> Mass:
    """Return how much of each clean estimate is each candidate: on [*S, K], off [*S]."""
    flat, latents = x0.reshape(-1, *x0.shape[-4:]), jnp.asarray(answers.latents)
    mass = jax.vmap(answer_mass, in_axes=(0, None, None))(flat, latents, answers.still)
    return jax.tree.map(lambda a: a.reshape(*x0.shape[:-4], *a.shape[1:]), mass)


@jax.jit
def _blends(x0: Float[Array, "N S F h w C"], answers: Answers) -> Float[Array, "N S K"]:
    return jax.vmap(blend)(x0, answers).on


def masses(
    x0: Float[np.ndarray, "N S F h w C"], answers: Answers, batch: int
) -> Float[np.ndarray, "N S K"]:
    """Return the mass on each candidate, of so many puzzles at a time (the last ones filled up), so
    that all numbers of puzzles share a program."""
    rows = np.arange(-(-len(x0) // batch) * batch).clip(max=len(x0) - 1).reshape(-1, batch)
    parts = [_blends(x0[part], Answers(*(a[part] for a in answers))) for part in rows]
    return np.concatenate(jax.device_get(parts))[: len(x0)]


class Shares(NamedTuple):
    """Mass of P puzzles, K seeds, S steps: on the answer taken, on other right ones, on wrong
    ones."""

    taken: Float[np.ndarray, "P K S"]
    others: Float[np.ndarray, "P K S"]
    wrong: Float[np.ndarray, "P K S"]


def shares(
    on: Float[np.ndarray, "P K S A"], answers: Answers, taken: np.ndarray | None = None
) -> Shares:
    """Return where the mass is, `on` each of A candidates. taken [P, K]: the right answer that
    counts as taken, by default the one with most mass at the last step."""
    taken = chosen(on[:, :, -1], answers) if taken is None else taken
    mass = np.take_along_axis(on, taken[:, :, None, None], -1)[..., 0]
    right, wrong = (
        np.where(np.asarray(which)[:, None, None], on, 0).sum(-1)
        for which in (answers.right, answers.wrong)
    )
    return Shares(mass, right - mass, wrong)


def chosen(on: Float[np.ndarray, "P *axes A"], answers: Answers) -> np.ndarray:
    """Return the right answer with most mass [P, *axes]."""
    right = np.asarray(answers.right)
    right = right.reshape(len(right), *[1] * (on.ndim - 2), -1)
    return np.where(right, on, -np.inf).argmax(-1)
