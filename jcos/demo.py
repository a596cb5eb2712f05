"""`jcos demo`: the phenomena of the paper on the shipped model, as one page, in about a minute.

Deterministic: the puzzles, the noise and therefore every number follow from fixed seeds.
"""

import datetime
import platform
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from jcos.experiments.ensemble import ensemble_solved
from jcos.experiments.noise import noise_scores
from jcos.experiments.puzzles import held_out
from jcos.experiments.steps import masses, routes, watch
from jcos.measures import bootstrap, proportion
from jcos.probes import SeedEnsemble
from jcos.report.demo import Comparison, Curve, Demo, Example
from jcos.report.page import write_demo
from jcos.tasks import TASKS, Puzzle, Task
from jcos.wan import Wan

SHOWN = (0, 2, 5, 8, 12, 16, 20, 25, 30, 40, 49)
"""Denoising steps of 50 whose clean estimates are shown and judged."""
ROUTES = 4
"""The maze at the top has at most this many shortest routes, so that its chart can be read."""


class Plan:
    """Sizes of the demo: puzzles behind each figure."""

    per_curve = 24
    mazes_with_routes = 24
    noise = 12
    noise_steps = (0, 5, 10, 15, 20, 25, 30, 35, 40, 45)
    ensemble = 32


def run(model: Wan, folder: Path, command: str) -> Iterator[str]:
    """Runs all parts, saying before each what it is; the page is `folder/index.html` when it ends."""
    start = time.monotonic()
    yield "one puzzle of each task"
    examples = [_example(model, task, _puzzle(task)) for task in TASKS.values()]
    yield "when x̂0 is solved"
    solved_by_step = [_solved_by_step(model, TASKS[name], Plan.per_curve) for name in ("maze", "maze7", "tictactoe")]
    yield "routes in x̂0"
    route_mass = _route_mass(model, TASKS["maze"], Plan.mazes_with_routes)
    yield "noise at a step, noise in a frame"
    at_step, at_frame, baseline = _noise(model, TASKS["maze"], Plan.noise)
    yield "averaging seeds"
    ensemble = _ensemble(model, TASKS["maze7"], Plan.ensemble)
    yield "the page"
    write_demo(
        folder,
        Demo(
            examples=examples,
            solved_by_step=solved_by_step,
            route_mass=route_mass,
            noise_steps=at_step,
            noise_frames=at_frame,
            noise_baseline=baseline,
            ensemble=ensemble,
            settings=_settings(model, time.monotonic() - start),
            command=command,
        ),
    )


def _several(task: Task, puzzle: Puzzle) -> bool:
    del task
    return 2 <= len(puzzle.answers) <= ROUTES


def _puzzle(task: Task) -> tuple[Puzzle, str]:
    """The first held-out puzzle, or the first with two to four right answers where the task has such."""
    puzzles = held_out(task, 64)
    for i, puzzle in enumerate(puzzles):
        if _several(task, puzzle):
            return puzzle, f"held-out puzzle {i}: the first with 2 to {ROUTES} right answers; noise seed 0"
    return puzzles[0], "held-out puzzle 0; noise seed 0"


def _example(model: Wan, task: Task, chosen: tuple[Puzzle, str]) -> Example:
    puzzle, why = chosen
    watched = watch(model, task, [puzzle], range(model.config.sampling.steps))
    shown = list(SHOWN)
    answers = task.routes(puzzle)
    on, off = masses(model, task, puzzle, watched.x0[0], room=ROUTES) if len(answers) > 1 else (None, None)
    videos = model.decode(watched.x0[0])
    return Example(
        task=task.name,
        about=task.about,
        prompt=puzzle.prompt,
        seed=why,
        steps=shown,
        x0=videos[shown],
        video=model.decode(watched.latents[0]),
        reference=answers[0],
        scores=watched.scores[0, shown].tolist(),
        solved=bool(watched.solved[0, -1]),
        mass=None if on is None else np.asarray(on, np.float32),
        off=None if off is None else np.asarray(off, np.float32),
        answers=None if on is None else answers,
    )


def _curve(label: str, x: Sequence[int], values: np.ndarray) -> Curve:
    """Means over puzzles of values [P, x], with intervals: Wilson's for what is solved, else bootstrap."""
    points = [proportion(v) if v.dtype == bool else bootstrap(v) for v in values.T]
    y, low, high = ([getattr(p, field) for p in points] for field in ("mean", "low", "high"))
    return Curve(label=label, x=list(x), y=y, low=low, high=high, n=len(values))


def _solved_by_step(model: Wan, task: Task, n: int) -> Curve:
    return _curve(task.name, SHOWN, watch(model, task, held_out(task, n), SHOWN).solved)


def _route_mass(model: Wan, task: Task, n: int) -> list[Curve]:
    puzzles = [p for p in held_out(task, 12 * n) if len(p.answers) > 1][:n]
    found = routes(model, task, puzzles, watch(model, task, puzzles, SHOWN))
    labels = ("route taken", "other shortest routes", "no route")
    return [_curve(label, SHOWN, values) for label, values in zip(labels, found, strict=True)]


def _noise(model: Wan, task: Task, n: int) -> tuple[Curve, Curve, float]:
    found = noise_scores(model, task, held_out(task, n), Plan.noise_steps)
    at_step = _curve("noise at one step, all frames", Plan.noise_steps, found.at_step)
    at_frame = _curve("noise in one frame, all steps", range(task.frames), found.at_frame)
    return at_step, at_frame, float(found.plain.mean())


def _ensemble(model: Wan, task: Task, n: int) -> list[Comparison]:
    steps, layers = model.config.sampling.steps, model.config.dit.layers
    off = SeedEnsemble.window(steps, layers, at_steps=())
    on = SeedEnsemble.window(steps, layers)
    plain, mean = ensemble_solved(model, task, held_out(task, n), (0, 1, 2), (off, on))[:, :, 0].T
    gain = bootstrap(mean.astype(float) - plain)
    rows = []
    for label, solved in (("one seed", plain), ("mean of three seeds, first step, middle layers", mean)):
        p = proportion(solved)
        rows.append(Comparison(label=label, solved=p.mean, low=p.low, high=p.high, n=n))
    rows[1] = Comparison(
        label=rows[1].label,
        solved=rows[1].solved,
        low=rows[1].low,
        high=rows[1].high,
        n=n,
        difference=gain.mean,
        difference_low=gain.low,
        difference_high=gain.high,
    )
    return rows


def _settings(model: Wan, seconds: float) -> dict[str, str]:
    sampling = model.config.sampling
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jcos", "jax", "flax"))
    return {
        "model": model.config.name,
        "steps": str(sampling.steps),
        "solver": sampling.solver,
        "shift": str(sampling.shift),
        "guidance": "none" if sampling.guidance is None else str(sampling.guidance),
        "versions": versions,
        "machine": f"{platform.machine()}, {platform.system()}",
        "date": datetime.date.today().isoformat(),
        "seconds": f"{seconds:.0f}",
    }
