"""`jcos demo`: the phenomena of the paper on the shipped model, as a folder of results with a page.

Deterministic: the puzzles, the noise and therefore every number follow from fixed seeds. The page
is written after each part, so that the first maze can be looked at while the rest is at work.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from jcos import files, runs
from jcos.experiments import plots
from jcos.experiments.answers import Answers, answers_of, masses, shares
from jcos.experiments.batches import BATCH, Batches, Row
from jcos.experiments.noise import score_others
from jcos.experiments.sweeps import conditions_of, held_out, judge
from jcos.lab import outcome, results, search
from jcos.lab.tasks import TASKS, Puzzle, get
from jcos.report import explorer, trees
from jcos.report.plane import MASS, Line, Look, Plane, puzzle_plane, telling
from jcos.sampling.probe import Probe
from jcos.sampling.probes import Noise, SeedEnsemble
from jcos.wan import Wan

SHOWN = (0, 2, 5, 8, 12, 16, 20, 25, 30, 40, 49)
"""Denoising steps of 50 whose clean estimates are judged."""
NOISED = (0, 5, 10, 15, 20, 25, 30, 40)
"""Denoising steps at which noise is put in."""
ROUTES = 8
"""The most right answers of a puzzle whose masses are measured, so that all share a program."""
SEARCHED = "maze7"
"""The task whose runs are searched: one run leaves room there."""
SEARCH_STEPS = 10
"""Denoising steps of a search."""
PARTS = (
    *("following routes", "watching tasks", "noise", "averaging seeds"),
    *("choosing among seeds", "the page"),
)
"""What is done, in this order."""
TITLE = "Watch a video model make up its mind"
SOLVED = "Fraction of mazes solved, with 95 % intervals."
LEAD = (
    "A small video diffusion model gets the first frame of a puzzle and one sentence, and draws "
    "the answer as a video in {steps} denoising steps. After each step it can be asked for its "
    "clean estimate x̂0, the video it would hand in if it had to stop there. The paper behind this "
    "page is “Demystifying Video Reasoning” (arXiv 2603.16870)."
)


class Sizes(NamedTuple):
    """Puzzles behind each figure; `make evaluate` takes hundreds. routes: mazes with several
    shortest ways. search: in `BATCH`es. noise and ensemble are at most those of a task."""

    task: int = 10
    routes: int = 16
    noise: int = 6
    ensemble: int = 10
    search: int = 16


class Done(NamedTuple):
    """Seconds of a demo: in all, in its sampling, and until the first page."""

    total: float
    sampling: float
    first: float


def run(
    model: Wan,
    folder: Path,
    command: str,
    sizes: Sizes = Sizes(),  # noqa: B008 (a constant)
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Done:
    """Run all parts; `folder` is a folder of results with a page after the first of them.

    progress: called with what is going on, how many parts are done, and of how many.
    Raises ValueError where the model does not take the 50 steps that the demo is made for.
    """
    steps = model.config.sampling.steps
    if steps != SHOWN[-1] + 1:
        raise ValueError(
            f"the demo is made for {SHOWN[-1] + 1} steps; this model samples in {steps}"
        )
    start, lab = time.monotonic(), Batches(model)
    story = Story(model, sizes, command)
    first = 0.0
    parts = (story.routes, story.tasks, story.noise, story.ensemble, story.search)
    for i, part in enumerate(parts):
        progress(PARTS[i], i, len(PARTS))
        part(lab)
        seconds = time.monotonic() - start
        story.write(folder, PARTS[i + 1] if i < len(parts) - 1 else None, seconds)
        first = first or time.monotonic() - start
    progress(PARTS[-1], len(PARTS), len(PARTS))
    return Done(time.monotonic() - start, lab.sampling, first)


class Story:
    """The folder as it grows: runs to look into, a dataset, sections of text."""

    def __init__(self, model: Wan, sizes: Sizes, command: str) -> None:
        self.model, self.sizes, self.command = model, sizes, command
        self.steps = model.config.sampling.steps
        self.hero = hero = next(iter(TASKS.values()))
        canvas = hero.frames, hero.height, hero.width
        self.watched = [t for t in TASKS.values() if (t.frames, t.height, t.width) == canvas]
        self.puzzles = {task.name: held_out(task, sizes.task) for task in self.watched}
        many = held_out(hero, 6 * sizes.routes)
        self.forked = [p for p in many if 1 < len(p.answers) <= ROUTES][: sizes.routes]
        self.searched = held_out(get(SEARCHED), sizes.search)
        watched = [p for one in self.puzzles.values() for p in one]
        self.rows = [*watched, *self.searched, *self.forked]
        self.plain = Noise.at_steps(self.steps, hero.frames, ())
        self.planes: list[Plane] = []
        self.sections: list[dict[str, Any]] = []
        self.figures: dict[str, Figure] = {}
        self.tree: tuple[bytes, dict[str, Any]] | None = None
        tasks = {"task": ("puzzle", [p.task for p in self.rows])}
        places = {"puzzle": np.arange(len(self.rows)), "step": np.arange(self.steps)}
        self.data = xr.Dataset({}, places | tasks, {"experiment": "demo"})

    def _row(self, puzzle: Puzzle, number: int, probe: Probe | None = None) -> Row:
        return Row(puzzle, (number,), self.plain if probe is None else probe)

    def _tell(self, title: str, text: str, **shown: Any) -> None:
        self.sections.append({"title": title, "text": text, **shown})

    def _add(
        self, name: str, dims: str, values: Any, title: str, comment: str, first: int = 0
    ) -> None:
        """Add a measure of some of the puzzles, those from `first` on."""
        at = dims.split()
        count = np.shape(values)[at.index("puzzle")]
        about = results.described(title, comment)
        rows = {"puzzle": np.arange(first, first + count)}
        self.data[name] = xr.DataArray(np.asarray(values, np.float32), rows, at, attrs=about)

    # ---- parts

    def routes(self, lab: Batches) -> None:
        """Mazes with several shortest ways: which of them the estimates hold."""
        played = lab.play([self._row(p, i) for i, p in enumerate(self.forked)])
        mass, answers = self._mass(self.forked, played.latents[:, 0])
        parts = shares(mass[:, None], answers)
        off = 1 - mass.sum(-1)
        on = np.stack([parts.taken[:, 0], parts.others[:, 0], off.clip(0, 1)])
        planes = [self._plane(p, i, played.video[i, 0], mass[i]) for i, p in enumerate(self.forked)]
        best = max(planes, key=lambda plane: telling(plane.lines, plane.solved))
        self.planes.append(best)
        self.data = self.data.assign_coords(
            route=["route taken", "other shortest routes", "no route"]
        )
        self._add(
            *("mass", "route puzzle step", on, "Mass on the routes"),
            "How much of the clean estimate lies on the route that the run takes in the end, on "
            "the other shortest routes, and on none of them.",
            first=len(self.rows) - len(self.forked),
        )
        count = len(best.answers)
        self._tell(
            f"One maze, {count} shortest routes",
            f"{_committed(best)} Each column is one step, from noise on the left to "
            "the answer on the right; only the last frame is shown here, all frames below.",
            runs=[best.group],
        )
        self._tell(
            "The same, averaged over mazes",
            "One maze may be an exception: this is the mean over mazes with several "
            "shortest routes. A word of caution: as long as noise hides which route it will "
            "be, a model trained on squared error has to show the average of all routes it "
            "holds possible. That routes overlap early is therefore expected; what counts "
            "is when the overlap ends.",
            charts=["mass"],
        )

    def tasks(self, lab: Batches) -> None:
        """When the answer is there, task by task."""
        rows = [self._row(p, i) for one in self.puzzles.values() for i, p in enumerate(one)]
        played = lab.play(rows)
        solved = np.full((len(rows), self.steps), np.nan)
        judged = judge([row.puzzle for row in rows], played.video[:, 0][:, SHOWN])
        solved[:, SHOWN] = judged.solved
        self.scores = judged.score[: self.sizes.noise, -1]
        self._add(
            *("solved", "puzzle step", solved, "Solved by the clean estimate"),
            "Fraction of puzzles that the clean estimate of each step solves, judged as if it were "
            "the final video.",
        )
        chosen = []
        for k in range(1, len(self.watched)):
            first, last = k * self.sizes.task, (k + 1) * self.sizes.task
            several = [1 < len(rows[i].puzzle.answers) <= ROUTES for i in range(first, last)]
            ends = solved[first:last, -1]
            chosen.append(first + max(range(len(ends)), key=lambda i: (ends[i], several[i], -i)))
        mass, _ = self._mass([rows[i].puzzle for i in chosen], played.latents[chosen, 0])
        for i, row_mass in zip(chosen, mass, strict=True):
            number = rows[i].seeds[0]
            self.planes.append(self._plane(rows[i].puzzle, number, played.video[i, 0], row_mass))
        self._tell(
            "When is the answer there?",
            "Each panel is one task: what the estimate of a step solves, from noise to the end.",
            charts=["solved"],
        )

    def noise(self, lab: Batches) -> None:
        """Noise in all frames at one step, and in one frame at all steps."""
        n, frames = self.sizes.noise, self.hero.frames
        probes = [Noise.at_steps(self.steps, frames, [s]) for s in NOISED]
        probes += [Noise.at_frames(self.steps, frames, [f]) for f in range(frames)]
        mazes = self.puzzles[self.hero.name][:n]
        rows = [self._row(p, i, probe) for probe in probes for i, p in enumerate(mazes)]
        videos = self._ends(lab, rows, n)
        at_step = judge(mazes, videos[: len(NOISED)].swapaxes(0, 1)).score.T
        at_frame = np.array(
            [
                [score_others(p, v, frame) for p, v in zip(mazes, row, strict=True)]
                for frame, row in enumerate(videos[len(NOISED) :])
            ]
        )
        cases = [("without noise", "without noise", np.nan, np.nan)]
        cases += [(f"step {s}", "all frames, at one step", s, np.nan) for s in NOISED]
        cases += [(f"frame {f}", "one frame, at all steps", np.nan, f) for f in range(frames)]
        named = zip(("case", "kind", "at_step", "at_frame"), zip(*cases, strict=True), strict=True)
        self.data = self.data.assign_coords({name: ("case", list(of)) for name, of in named})
        self._add(
            *("noise", "case puzzle", [self.scores, *at_step, *at_frame], "Score with noise"),
            "Score of the final video. A frame with noise up to the last step is nothing but "
            "noise, so the other frames are judged there.",
        )
        self._tell(
            "Noise at one step, noise in one frame",
            "If the model reasons along the denoising steps, wiping out all frames at "
            "a single step should cost more than wiping out a single frame at all steps. "
            "The level line is the score without noise. One caution: noise that is put in "
            "late leaves pixel noise that nothing later can remove, so a low score there is "
            "not always lost reasoning.",
            charts=["noise"],
        )

    def ensemble(self, lab: Batches) -> None:
        """Hidden states averaged over three seeds, against the same seeds alone."""
        n, layers = self.sizes.ensemble, self.model.config.dit.layers
        mazes = self.puzzles[self.hero.name][:n]
        off = SeedEnsemble.window(self.steps, layers, at_steps=())
        on = SeedEnsemble.window(self.steps, layers)
        rows = [
            Row(p, (3 * i, 3 * i + 1, 3 * i + 2), probe)
            for probe in (off, on)
            for i, p in enumerate(mazes)
        ]
        solved = judge(mazes, self._ends(lab, rows, n).swapaxes(0, 1)).solved.T
        words = ["one seed", "mean of three seeds"]
        gain = self._compare("ensemble", "run", words, solved, "with and without averaging")
        self._tell(
            "Averaging over seeds",
            "The paper averages the hidden states of three runs with different noise, "
            "in the middle layers of the first step, and reports 0.685 → 0.716 on its "
            "benchmark with a large model. The same is done to this one: the difference, "
            f"paired by maze, is {gain} (n = {n}).",
            figures=["ensemble"],
        )

    def search(self, lab: Batches) -> None:
        """Four seeds of few steps, of which the most decided goes on, against one long run."""
        task, puzzles, method = get(SEARCHED), self.searched, search.epbs(4, at=0.6)
        plain = Noise.at_steps(self.steps, task.frames, ())
        rows = [self._row(p, i, plain) for i, p in enumerate(puzzles)]
        videos = [self._ends(lab, rows, len(rows))[0]]
        sampling = self.model.config.sampling_with(steps=SEARCH_STEPS)
        parts: list[search.Result] = []
        for first in range(0, len(puzzles), BATCH):
            conditions = conditions_of(self.model, puzzles[first : first + BATCH])
            seeds = [4 * (first + i) for i in range(len(conditions.context))]
            about: dict[str, Any] = {"sampling": sampling, "record": True}
            with lab.timed("search", len(seeds)):
                parts.append(search.run(self.model, conditions, method, seeds, **about))
        latents = np.concatenate([part.latents for part in parts])
        videos.append(np.asarray(self.model.decode(latents)))
        solved = np.array([judge(puzzles, each)[1] for each in videos])
        words = [f"one run of {self.steps} steps", f"four seeds of {SEARCH_STEPS} steps"]
        first = len(self.rows) - len(self.forked) - len(puzzles)
        gain = self._compare("search", "way", words, solved, "with and without choosing", first)
        spread = np.concatenate([np.ptp(part.tree[0].scores, axis=1) for part in parts])
        best = int(np.argmax(np.where(solved[1], spread, -1)))
        result, number = parts[best // BATCH], best % BATCH
        right = task.routes(puzzles[best])[0][-1]
        rows = trees.estimates(self.model, result, number)
        pictures = outcome.pictures([rows], chosen=videos[1][best, -1][None], right=right[None])
        about = outcome.entries(result, method, [number], solved=solved[1, [best]])
        self.tree = pictures, about
        forwards = np.concatenate([part.cost.forwards for part in parts]).mean()
        self._tell(
            "Four seeds think, the most decided goes on",
            "If early estimates tell which run will fail, one need not finish it. "
            f"Larger mazes, {SEARCH_STEPS} steps instead of {self.steps}: four seeds run to "
            f"step {method.rows[0].at(SEARCH_STEPS)}, and the one whose estimate is nearest "
            "to the colours that a puzzle can have goes on alone; no right answer is looked "
            f"at. That takes {forwards:.0f} passes through the model, and one run of "
            f"{self.steps} steps takes {self.steps}. The difference, paired by maze, is "
            f"{gain} (n = {len(puzzles)}; jcos run search takes 512). Below is one "
            "maze: of those that are solved, the one whose four scores are farthest apart.",
            figures=["search"],
            tree=True,
        )
        self._tell(
            "The other tasks",
            "One run of each, the last frame along the steps. The model is small and "
            "its puzzles are simple: what is seen here is how to look, not how a large "
            "model does.",
            runs=[plane.group for plane in self.planes[1:]],
        )

    # ---- what they share

    def _compare(
        self, name: str, dim: str, words: list[str], solved: Any, how: str, first: int = 0
    ) -> str:
        """Add which puzzles are solved in two ways, with a figure; return in words what the second
        gains, paired by puzzle."""
        self.data = self.data.assign_coords({dim: words})
        about = f"Solved, {how}", "Fraction of mazes that are solved."
        self._add(name, f"{dim} puzzle", solved, *about, first=first)
        array = self.data[name]
        self.figures[name] = plots.paired(array, "fraction solved", zero=False)
        one, other = (array.sel({dim: word}, drop=True) for word in words)
        gain = results.estimates(other, paired_with=one).sel(task=self.rows[first].task)
        mean, low, high = (100 * float(gain[field]) for field in ("mean", "low", "high"))
        shows = "excludes 0" if low > 0 or high < 0 else "includes 0"
        return f"{mean:+.0f} points [{low:+.0f}, {high:+.0f}], and the interval {shows}"

    def _ends(
        self, lab: Batches, rows: Sequence[Row], each: int
    ) -> UInt8[np.ndarray, "N {each} F H W 3"]:
        """Return the final videos of rows, so many puzzles at a time."""
        videos = lab.play(rows).video[:, 0, -1]
        return videos.reshape(-1, each, *videos.shape[1:])

    def _mass(
        self, puzzles: Sequence[Puzzle], x0: Float[np.ndarray, "N S F h w C"]
    ) -> tuple[Float[np.ndarray, "N S K"], Answers]:
        """Return the mass on the right answers; of more than there is room for on the first."""
        short = [dataclasses.replace(p, answers=p.answers[:ROUTES]) for p in puzzles]
        answers = answers_of(self.model, short, room=ROUTES)
        return masses(x0, answers, BATCH), answers

    def _plane(
        self, puzzle: Puzzle, seed: int, video: UInt8[np.ndarray, "S F H W 3"], mass: np.ndarray
    ) -> Plane:
        """Return a run with every step, and what was measured of it."""
        judged = judge([puzzle], video[None, SHOWN])
        scores = Line("score of x̂0", "score of x̂0", SHOWN, judged.score[0].tolist())
        return puzzle_plane(
            puzzle,
            video,
            mass,
            label=f"seed {seed}",
            group=puzzle.task,
            video=video[-1],
            solved=bool(judged.solved[0, -1]),
            lines=[scores],
            sampling=self.model.config.sampling,
            kind="route" if puzzle.task == self.hero.name else "answer",
        )

    def write(self, folder: Path, unfinished: str | None, seconds: float) -> None:
        """Write the folder and its page as far as they are."""
        about: dict[str, Any] = {
            "title": TITLE,
            "lead": LEAD.format(steps=self.steps),
            "command": self.command,
            "model": self.model.config.name,
            "seconds": round(seconds),
            "sampling": dataclasses.asdict(self.model.config.sampling),
            "sizes": self.sizes._asdict(),
            "sections": self.sections,
            "figures": dict.fromkeys(self.figures, SOLVED),
        }
        about |= {"unfinished": unfinished} if unfinished else runs.made(self.command)
        for name, figure in self.figures.items():
            files.write(folder / "figures" / f"{name}.svg", plots.to_svg(figure))
        if self.tree is not None:
            files.write(folder / outcome.TREE, self.tree[0])
            about |= self.tree[1]
        results.save(self.data, folder / "results.nc")
        Look(self.planes).save(folder, **about)
        explorer.make(folder)


def _committed(plane: Plane) -> str:
    """What the lines of a run say of its routes."""
    mass = np.nan_to_num(
        np.array([line.values for line in plane.lines if line.chart == MASS], float)
    )
    step = telling(plane.lines, plane.solved)[2]
    decided = f"From step {step} on one route alone holds 90% of that."
    if step >= mass.shape[1]:
        decided = "No route alone holds 90% of that, even at the last step."
    return (
        f"At step 0, {mass[0, 0]:.0%} of the estimate lies on the route that is taken in the end "
        f"and {mass[1:, 0].sum():.0%} on the others. {decided}"
    )
