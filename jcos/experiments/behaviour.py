"""Working memory, self-correction, perception before action: how much of each, in numbers. (Paper,
section 4, which shows examples.)

Any good denoiser corrects itself where early estimates blend several answers, and settles first
what all answers share. So every number is measured of the ideal denoiser (`ideal.py`) too; what it
also does is no behaviour of the model. It never shows a wrong answer.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Array, Bool, Float, UInt8

from jcos.config import WanConfig
from jcos.experiments import plots, watching
from jcos.experiments.answers import Answers, answers_of
from jcos.experiments.behaviour_memory import check_tiles, memory_figures, remembering
from jcos.experiments.experiment import Experiment, Picture, Progress, looked_at
from jcos.experiments.parameters import Count, NonNegative, Positive
from jcos.experiments.samples import Samples
from jcos.experiments.sweeps import once
from jcos.lab import results
from jcos.lab.measures import POSITIVE, UNBOUNDED, commitment_step
from jcos.lab.results import DENOISERS, Variable, measure
from jcos.lab.tasks import TASKS, Puzzle
from jcos.lab.tasks.marks import OPAQUE, apart
from jcos.sampling import flow
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan

SETTLED = 0.1
"""A part of a clip has settled when it is this near to its end, relative to the end's norm."""
SHOWN = 0.5
"""An estimate shows a candidate that makes up more than this of it."""
COMMON = 64
"""Random legal answers of a puzzle that tell which pixels no answer changes."""
STRAY = 0.01
"""Of a frame, so many pixels may be wrong where the scene is right: half of what the smallest
object covers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Behaviour(Experiment):
    """Paper, section 4, of every puzzle and seed.

    Self-correction: wrong at a step and right at the end, how many and when; and its converse.
    Apart from what is merely undecided: estimates that show one wrong answer clearly.
    Perception before action: the step from which on the scene is right (all of the first frame
    that no answer changes) against the step from which on the answer is, judged alone. A model
    whose input is the first frame in every frame, as the small one's is, has most of the scene for
    nothing.
    Working memory, of the task `returns`: see `behaviour_memory`.
    Of clips only perception before action, as distances: when the parts of the video that stay as
    they are in the first frame settle, and when those that change.

    wrong: how many wrong answers a puzzle with a single right one is compared with. learned,
    remembered: puzzles of the train split that memory's probes are fitted on, and held-out ones
    that they read; learned = 0 leaves memory out. penalty: of the regression.
    """

    question = "Does the model remember, correct itself, and see before it acts?"

    tasks: tuple[str, ...] = ("maze", "tictactoe", "pattern", "rotation", "returns", "bounce")
    wrong: NonNegative = 6
    learned: NonNegative = 256
    remembered: Count = 128
    penalty: Positive = 0.1

    def check(self, config: WanConfig) -> None:
        super().check(config)
        if self.clips is None and self.learned:
            check_tiles(config)

    def measure(self, model: Wan, progress: Progress) -> xr.Dataset:
        samples, plan = self.samples(model), self.plan(model.config)
        if not samples.judged:
            return self._clips(model, samples, progress)
        answers = answers_of(model, samples.puzzles, wrong=self.wrong)
        watched = watching.watch(self, model, samples, watching.watch_answers, progress, answers)
        videos, masses = (watched.video, watched.ideal_video), (watched.on, watched.ideal_run_on)
        judged = Judged(*np.stack([judge_parts(samples.puzzles, video) for video in videos], 1))
        wrong = np.stack([shows_wrong(on, answers) for on in masses])
        variables = samples.levels({name: name for name in Judged._fields}, judge_parts)
        variables |= step_measures(judged) | run_measures(judged, wrong)
        variables |= self.costs(model.config)
        labels = {"denoiser": list(DENOISERS), "step": range(plan.steps)}
        data = self.dataset(variables, samples, **labels)
        if self.learned:
            read = remembering(self, model, looked_at(plan.steps, 5), progress)
            data = data.merge(read, join="outer")
        return data

    def _clips(self, model: Wan, samples: Samples, progress: Progress) -> xr.Dataset:
        parts = np.stack(watching.watch(self, model, samples, watch_parts, progress))
        settled = commitment_step(parts <= SETTLED).astype(float)
        words, later = ("step of settling", SETTLING), settled[1:] - settled[:1]
        about: dict[str, Any] = {"units": "step", "forwards": "all_forwards"}
        name, dims = "distance to the end", "part clip seed"
        variables = self.costs(model.config) | {
            "distance": measure(f"{dims} step", parts, name, DISTANCE, span=POSITIVE),
            "settled": measure(dims, settled, *words, span=POSITIVE, **about),
            "settled_later": measure(
                "difference clip seed", later, *words, span=UNBOUNDED, **about
            ),
        }
        labels = {"part": ["what stays", "what changes"], "step": range(parts.shape[-1])}
        labels["difference"] = ["what changes less what stays"]
        return self.dataset(variables, samples, **labels)

    def table(self, data: xr.Dataset) -> pd.DataFrame:
        return results.table(data, {"step": looked_at(data.sizes["step"], 5)})

    def figures(self, data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
        if "distance" in data:
            yield "distance", Picture(plots.lines(data, "distance", hue="part"), DISTANCE)
            return
        names = ("corrected_later", "spoiled_later")
        x, y = "denoising step", "share of runs"
        figure = plots.lines(data, names, hue="denoiser", xlabel=x, ylabel=y)
        yield "correction", Picture(figure, CORRECTION)
        yield from memory_figures(data)


CORRECTION = (
    "Runs whose estimate at a step is wrong although the end is right, and the reverse. Undecided "
    "counts as wrong here, so the ideal denoiser has some of it too; it never ends wrong."
)
SCENE = "All of the first frame that no answer changes is there."
ORDER = "First step from which on scene, or answer, stays right; of runs that end with both."
TURNED = "A wrong answer makes up more than half of an estimate. The ideal denoiser shows none."
DISTANCE = "Distance of estimates from the last, over its norm, of the frames after the first."
SETTLING = f"First step from which on the part is within {SETTLED} of its end, over the end's norm."


class Judged(NamedTuple):
    """Of each video: solved; answer: that alone, at the task's bar, whatever the scene. scene: all
    of the first frame that no answer changes is there, in every frame."""

    solved: Bool[np.ndarray, "P *axes"]
    answer: Bool[np.ndarray, "P *axes"]
    scene: Bool[np.ndarray, "P *axes"]


def judge_parts(puzzles: Sequence[Puzzle], videos: UInt8[np.ndarray, "P *axes F H W 3"]) -> Judged:
    """Return `Judged` of videos, each by its puzzle's task."""
    rows = videos.reshape(len(puzzles), -1, *videos.shape[-4:])
    verdicts = []
    for puzzle, of_puzzle in zip(puzzles, rows, strict=True):
        verdicts += once(partial(_parts, puzzle, common(puzzle)), of_puzzle)
    return Judged(*np.moveaxis(np.array(verdicts, bool).reshape(*videos.shape[:-4], 3), -1, 0))


def _parts(
    puzzle: Puzzle, same: Bool[np.ndarray, "F H W"], video: UInt8[np.ndarray, "F H W 3"]
) -> tuple[bool, bool, bool]:
    task = TASKS[puzzle.task]
    score, away = task.score(puzzle, video), apart(video, task.first_frame(puzzle)[None])
    stray = ((away > OPAQUE) & same).mean((1, 2)).max()
    return bool(score.solved), bool(score.answer >= task.solved_at), bool(stray <= STRAY)


def common(puzzle: Puzzle) -> Bool[np.ndarray, "F H W"]:
    """Return the pixels that stay as in the first frame whatever the answer, right or wrong."""
    task, rng = TASKS[puzzle.task], np.random.default_rng(0)
    drawn = [task.draw(puzzle, task.guess(puzzle, rng)) for _ in range(COMMON)]
    videos = np.stack([*task.routes(puzzle), *drawn])
    return (videos == videos[:1, :1]).all((0, -1))


def shows_wrong(on: Float[np.ndarray, "P K S A"], answers: Answers) -> Bool[np.ndarray, "P K S"]:
    """Return whether a wrong answer makes up more than half of an estimate, of blends."""
    leads = np.take_along_axis(
        np.asarray(answers.wrong)[:, None, None], on.argmax(-1)[..., None], -1
    )
    return (on.max(-1) > SHOWN) & leads[..., 0]


def step_measures(judged: Judged) -> dict[str, Variable]:
    """Return the measures of every step of D denoisers."""
    now, end = judged.solved, judged.solved[..., -1:]
    measures = {
        "solved": ("solved", "The estimate is solved.", now),
        "scene": ("scene right", SCENE, judged.scene),
        "answer": ("answer right", "The answer alone, whatever the scene.", judged.answer),
        "corrected_later": ("wrong now, right at the end", CORRECTION, ~now & end),
        "spoiled_later": ("right now, wrong at the end", CORRECTION, now & ~end),
    }
    return {
        name: measure("denoiser puzzle seed step", values, title, comment)
        for name, (title, comment, values) in measures.items()
    }


def run_measures(judged: Judged, wrong: Bool[np.ndarray, "D P K S"]) -> dict[str, Variable]:
    """Return the measures of whole runs of D denoisers, nan where a run cannot tell. wrong: where
    an estimate shows a wrong answer."""
    solved, steps = judged.solved, judged.solved.shape[-1]
    start, good = solved[..., 0], solved[..., -1]
    scene, answer = commitment_step(judged.scene), commitment_step(judged.answer)
    both, later = (scene < steps) & (answer < steps), answer - scene
    corrected, spoiled = ~start & good, solved.any(-1) & ~good
    share, turning, order = ({"comment": words} for words in (CORRECTION, TURNED, ORDER))
    median: dict[str, Any] = {"median": True, "span": (0, steps), "units": "step"}
    turned, settled = wrong.any(-1) & good, commitment_step(solved)
    measures = {
        "corrected": ("corrected: wrong at step 0, right at the end", share, True, corrected),
        "spoiled": ("spoiled: right at any step, wrong at the end", share, True, spoiled),
        "turned": ("shows a wrong answer at any step, right at the end", turning, True, turned),
        "correction_step": ("step of correction", share | median, corrected, settled),
        "scene_step": ("step of the scene", order | median, both, scene),
        "answer_step": ("step of the answer", order | median, both, answer),
        "scene_first": ("scene first", order, both, later > 0),
        "at_once": ("scene and answer at once", order, both, later == 0),
        "answer_first": ("answer first", order, both, later < 0),
    }
    dims, about = "denoiser puzzle seed", {"forwards": "all_forwards"}
    return {
        name: measure(dims, np.where(known, values, np.nan), title, **about, **options)
        for name, (title, options, known, values) in measures.items()
    }


def watch_parts(
    model: Wan, plan: flow.Plan, trace: Trace, aux: Any
) -> tuple[Float[Array, "K S"], Float[Array, "K S"]]:
    """Return the distance of each estimate to the last, over the norm of the last, in the half of
    the cells that ends nearest to the first frame and in the tenth that ends farthest from it.
    Frame 0 is left out."""
    x0 = trace.x0[0]
    end = x0[:, -1]
    motion = jnp.square(end[:, 1:] - end[:, :1]).sum(-1)
    low, high = jnp.quantile(motion.reshape(len(x0), -1), jnp.array([0.5, 0.9]), axis=1)

    def distance(part: Array) -> Array:
        """part [K, F − 1, h, w]: the cells that count."""
        off = jnp.square(x0[:, :, 1:] - x0[:, -1:, 1:]).sum(-1) * part[:, None]
        size = jnp.square(end[:, 1:]).sum(-1) * part
        return jnp.sqrt(off.sum((2, 3, 4)) / size.sum((1, 2, 3))[:, None])

    shape = (-1, 1, 1, 1)
    return distance(motion <= low.reshape(shape)), distance(motion >= high.reshape(shape))
