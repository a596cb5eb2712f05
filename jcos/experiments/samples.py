"""What experiments are run on: puzzles of small tasks, which can be judged, or prompts with
pictures."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int, UInt8

from jcos.experiments import sweeps
from jcos.experiments.clips import condition_of, read_clips
from jcos.experiments.sweeps import Scores, conditions_of, one_world
from jcos.lab.results import Variable
from jcos.lab.tasks import TASKS, Puzzle, get, still_of
from jcos.lab.tasks.base import Split
from jcos.sampling import trajectory
from jcos.sampling.trajectory import Condition
from jcos.variants import Profile
from jcos.wan import Wan

GUESSES = 500
"""About so many random answers are judged for the chance level of a task."""
SEARCHED = 50
"""Puzzles looked through for each one with several right answers."""


Judge = Callable[[Sequence[Puzzle], UInt8[np.ndarray, "P *axes F H W 3"]], Any]
"""What is judged of videos, as a named tuple of arrays [P, *axes]: `sweeps.judge`, for example."""


def baselines(
    puzzles: Sequence[Puzzle], rng: np.random.Generator, judge: Judge = sweeps.judge
) -> tuple[Any, Any]:
    """Return what random legal answers of puzzles of one task get, mean for each puzzle, and what
    its first frame held gets."""
    task, again = TASKS[puzzles[0].task], math.ceil(GUESSES / len(puzzles))
    guessed = [[task.draw(p, task.guess(p, rng)) for _ in range(again)] for p in puzzles]
    held = [[still_of(task.draw(p, p.answers[0]))] for p in puzzles]
    judged = (judge(puzzles, np.array(videos)) for videos in (guessed, held))
    chance, still = (jax.tree.map(lambda a: a.mean(1), each) for each in judged)
    return chance, still


@dataclasses.dataclass(frozen=True)
class Samples:
    """P samples of one size.

    conditions: [P, W = 1, …]. tasks [P]: what each belongs to, "clips" where it is no puzzle.
    puzzles: P of them, or none where there is no judge.
    """

    conditions: Condition
    tasks: tuple[str, ...]
    puzzles: tuple[Puzzle, ...]

    @classmethod
    def of_tasks(
        cls, model: Wan, tasks: Sequence[str], n: int, seed: int = 0, several: bool = False
    ) -> "Samples":
        """Return n held-out puzzles of each task. Raises ValueError where there are not so many
        with several right answers."""
        puzzles = tuple(p for name in tasks for p in puzzles_of(name, n, seed, several))
        tasks = tuple(p.task for p in puzzles)
        return cls(one_world(conditions_of(model, puzzles)), tasks, puzzles)

    @classmethod
    def of_clips(cls, model: Wan, file: Path, profile: Profile | None = None) -> "Samples":
        """Return the clips of a file (`read_clips`), pictures prepared as the profile does it."""
        clips = read_clips(file)
        rows = [condition_of(model, clips, clip, profile) for clip in clips.clips]
        return cls(one_world(trajectory.tree_stack(rows)), ("clips",) * len(rows), ())

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def judged(self) -> bool:
        """Return whether there are right answers to compare with."""
        return bool(self.puzzles)

    @property
    def runs(self) -> str:
        """Return the dimension of these in a dataset."""
        return "puzzle" if self.judged else "clip"

    @property
    def groups(self) -> dict[str, Int[np.ndarray, " n"]]:
        """Return which samples belong to each task, in the order of the tasks."""
        names = np.array(self.tasks)
        return {name: np.flatnonzero(names == name) for name in dict.fromkeys(self.tasks)}

    @property
    def several(self) -> Bool[np.ndarray, " P"]:
        """Return which puzzles have more than one right answer."""
        return np.array([len(p.answers) > 1 for p in self.puzzles], bool)

    @property
    def latent(self) -> tuple[int, int, int]:
        """Return frames, height and width of the latents."""
        return self.conditions.grid

    def judge(self, videos: UInt8[np.ndarray, "P *axes F H W 3"]) -> Scores:
        """Return scores, and whether solved."""
        return sweeps.judge(self.puzzles, videos)

    def coordinates(self) -> dict[str, Any]:
        """Return what a dataset says of its runs: their task, and whether they have several right
        answers. `part` is both in words."""
        runs = self.runs
        labels: dict[str, Any] = {"task": (runs, list(self.tasks))}
        if self.judged:
            several = self.several
            kinds = ["several answers" if s else "one answer" for s in several]
            parts = [f"{task}, {kind}" for task, kind in zip(self.tasks, kinds, strict=True)]
            labels |= {"several": (runs, several), "part": (runs, parts)}
        return labels

    def levels(self, names: Mapping[str, str], judge: Judge = sweeps.judge) -> dict[str, Variable]:
        """Return the baselines of measures of these very puzzles as variables, if there are any.
        names: of measures, with the one of what is judged ("score", "solved") that each is."""
        rng, groups = np.random.default_rng(0), list(self.groups.values())
        if not self.judged:
            return {}
        each = [baselines([self.puzzles[i] for i in rows], rng, judge) for rows in groups]
        order = np.argsort(np.concatenate(groups))
        levels = jax.tree.map(lambda *a: np.concatenate(a)[order], *each)
        return {
            f"{kind}_{name}": (("puzzle",), getattr(level, what), {})
            for name, what in names.items()
            for kind, level in zip(("chance", "still"), levels, strict=True)
        }


def others_of(kinds: Sequence[str]) -> Int[np.ndarray, " P"]:
    """Return another sample of the same kind for each; itself where there is no other."""
    other = np.arange(len(kinds))
    for kind in dict.fromkeys(kinds):
        rows = np.flatnonzero(np.array(kinds) == kind)
        other[rows] = np.roll(rows, 1)
    return other


def puzzles_of(
    name: str, n: int, seed: int | tuple[int, ...], several: bool, split: Split = "test"
) -> list[Puzzle]:
    """Return the first n puzzles of a task, with several right answers if need be."""
    task, seeds = get(name), seed if isinstance(seed, tuple) else (seed,)
    puzzles = (task.sample((*seeds, i), split) for i in range(SEARCHED * n if several else n))
    some = list(itertools.islice((p for p in puzzles if not several or len(p.answers) > 1), n))
    if len(some) == n:
        return some
    raise ValueError(
        f"{name} has {len(some)} puzzles with several right answers among {SEARCHED * n}; {n} "
        "are asked for: set several=false or choose maze or tictactoe"
    )
