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
        """Of the ideal denoiser: the right answers are equally likely, nothing else is possible."""
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
    """Candidates of puzzles of one canvas. wrong: how many wrong ones at most, for puzzles with a
    single right answer (a puzzle with several has its alternatives in those). room: K, the most
    that any puzzle has by default; a fixed one lets several calls share a program."""
    right = [list(TASKS[p.task].routes(p)) for p in puzzles]
    others = [
        wrong_answers(p, wrong, i) if len(drawn) == 1 else []
        for i, (p, drawn) in enumerate(zip(puzzles, right, strict=True))
    ]
    most = max(len(a) + len(b) for a, b in zip(right, others, strict=True))
    room = most if room is None else room
    if room < most:
        raise ValueError(f"there is room for {room} answers; one puzzle has {most}")
    rows = []
    for a, b in zip(right, others, strict=True):
        still = np.repeat(a[0][:1], len(a[0]), axis=0)
        rows.append(np.stack([*a, *b, *[still] * (room - len(a) - len(b))]))
    latents = np.stack([np.stack([np.asarray(model.encode(v)) for v in row]) for row in rows])
    number = np.arange(room)
    ends = np.array([[len(a), len(a) + len(b)] for a, b in zip(right, others, strict=True)])
    is_right, known = number < ends[:, :1], number < ends[:, 1:]
    return Answers(latents, is_right, known & ~is_right)


def wrong_answers(puzzle: Puzzle, n: int, seed: int = 0) -> list[Video]:
    """Up to n different legal answers that are not right, as videos: other sizes, angles, ways."""
    task, rng = TASKS[puzzle.task], np.random.default_rng((seed, 0))
    known = {video.tobytes() for video in task.routes(puzzle)}
    found: list[Video] = []
    for _ in range(TRIES * n):
        video = task.draw(puzzle, task.guess(puzzle, rng))
        if len(found) < n and video.tobytes() not in known:
            known.add(video.tobytes())
            if not task.score(puzzle, video).solved:
                found.append(video)
    return found


def blend(x0: Float[Array, "*S F h w C"], answers: Answers) -> Mass:
    """How much of each clean estimate is each candidate (`measures.answer_mass`): on [*S, K], off
    [*S]."""
    flat = x0.reshape(-1, *x0.shape[-4:])
    latents = jnp.asarray(answers.latents)
    mass = jax.vmap(answer_mass, in_axes=(0, None, None))(flat, latents, answers.still)
    axes = x0.shape[:-4]
    return Mass(mass.on.reshape(*axes, -1), mass.off.reshape(axes))


class Shares(NamedTuple):
    """Mass [*axes]: on the answer that has most at the end, on other right answers, on wrong
    ones."""

    taken: Float[np.ndarray, "*axes"]
    others: Float[np.ndarray, "*axes"]
    wrong: Float[np.ndarray, "*axes"]


def shares(
    on: Float[np.ndarray, "P K S A"], answers: Answers, taken: np.ndarray | None = None
) -> Shares:
    """Where the mass is. on: of P puzzles, K seeds, S steps, A candidates. taken [P, K]: the right
    answer that counts as taken, by default the one with most mass at the last step."""
    right = np.asarray(answers.right)[:, None, None]
    if taken is None:
        taken = chosen(on[:, :, -1], answers)
    own = np.take_along_axis(on, taken[:, :, None, None], -1)[..., 0]
    others = np.where(right, on, 0).sum(-1) - own
    wrong = np.where(np.asarray(answers.wrong)[:, None, None], on, 0).sum(-1)
    return Shares(own, others, wrong)


def chosen(on: Float[np.ndarray, "P *axes A"], answers: Answers) -> np.ndarray:
    """The right answer with most mass [P, *axes]."""
    right = np.asarray(answers.right)
    right = right.reshape(len(right), *[1] * (on.ndim - 2), -1)
    return np.where(right, on, -np.inf).argmax(-1)
