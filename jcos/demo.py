"""`jcos demo`: the phenomena of the paper on the shipped model, as one page, in about a minute.

Deterministic: the puzzles, the noise and therefore every number follow from fixed seeds.
"""

import datetime as dt
import platform
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from jcos.experiments.ensemble import ensemble_solved
from jcos.experiments.noise import noise_scores
from jcos.experiments.sweeps import held_out
from jcos.experiments.watching import Watched, masses, routes, watch
from jcos.lab.measures import GAINS, estimate
from jcos.lab.tasks import TASKS, Puzzle, Task
from jcos.report.demo import Comparison, Curve, Demo, Example
from jcos.report.figures import layers_of, order_of
from jcos.report.page import write_demo
from jcos.report.plane import Line, Look, Plane, sigma_line
from jcos.sampling import flow
from jcos.sampling.probes import SeedEnsemble
from jcos.wan import Wan

SHOWN = (0, 2, 5, 8, 12, 16, 20, 25, 30, 40, 49)
"""Denoising steps of 50 whose clean estimates are shown and judged."""
NOISED = (0, 5, 10, 15, 20, 25, 30, 40)
"""Denoising steps at which noise is put in."""
ROUTES = 4
"""The maze at the top has at most this many shortest routes, so that its chart can be read."""


class Progress(NamedTuple):
    """What is going on, how many parts are done, and of how many."""

    what: str
    done: int
    total: int


PARTS = (
    "following routes",
    *(f"watching {name}" for name in TASKS),
    "noise at a step, noise in a frame",
    "averaging seeds",
    "the page",
)
"""What is done, in this order."""


class Sizes(NamedTuple):
    """Puzzles behind each figure; `make evaluate` takes hundreds. routes: mazes with several
    shortest ways."""

    task: int = 10
    routes: int = 16
    noise: int = 6
    ensemble: int = 12


SIZES = Sizes()


def run(model: Wan, folder: Path, command: str, sizes: Sizes = SIZES) -> Iterator[Progress]:
    """Runs all parts, telling each before it begins and the last when it is done; the page is
    `folder/index.html` then.

    Raises ValueError where the model does not take the 50 steps that the page is made for.
    """
    if model.config.sampling.steps <= SHOWN[-1]:
        steps = model.config.sampling.steps
        raise ValueError(f"the demo looks at step {SHOWN[-1]}; this model samples in {steps} steps")
    start = time.monotonic()
    maze = TASKS["maze"]
    yield _now("following routes")
    forked = [p for p in held_out(maze, 6 * sizes.routes) if len(p.answers) > 1][: sizes.routes]
    followed = watch(model, maze, forked, range(SHOWN[-1] + 1), judged=SHOWN)
    route_mass = _route_mass(model, forked, followed)
    examples, planes, solved_by_step = [], [], []
    for task in TASKS.values():
        yield _now(f"watching {task.name}")
        puzzles = held_out(task, sizes.task)
        watched = watch(model, task, puzzles, range(SHOWN[-1] + 1), judged=SHOWN)
        shown = (forked, followed) if task is maze else (puzzles, watched)
        example, plane = _example(model, task, *shown)
        examples.append(example)
        planes.append(plane)
        solved_by_step.append(_curve(task.name, SHOWN, watched.solved))
    yield _now("noise at a step, noise in a frame")
    at_step, at_frame, baseline = _noise(model, maze, sizes.noise)
    yield _now("averaging seeds")
    ensemble = _ensemble(model, maze, sizes.ensemble)
    yield _now("the page")
    settings = _settings(model, time.monotonic() - start)
    Look(planes).save(folder, command=command, **settings)
    write_demo(
        folder,
        Demo(
            examples=examples,
            planes=planes,
            solved_by_step=solved_by_step,
            route_mass=route_mass,
            noise_steps=at_step,
            noise_frames=at_frame,
            noise_baseline=baseline,
            ensemble=ensemble,
            settings=settings,
            command=command,
            interval="95% intervals over puzzles (Wilson's of what is solved, else Student's t)",
        ),
    )
    yield Progress(PARTS[-1], len(PARTS), len(PARTS))


def _now(part: str) -> Progress:
    return Progress(part, PARTS.index(part), len(PARTS))


def _example(
    model: Wan, task: Task, puzzles: Sequence[Puzzle], watched: Watched
) -> tuple[Example, Plane]:
    """A puzzle with a few right answers that the model solves and whose first estimate blends them
    most, or the nearest to that: some of its steps, and all of them."""
    solved = watched.solved[:, -1]
    blended = np.zeros(len(puzzles))
    for i, puzzle in enumerate(puzzles):
        if 2 <= len(puzzle.answers) <= ROUTES:
            first, _ = masses(model, puzzle, watched.x0[i, :1], room=ROUTES)
            blended[i] = np.sum(first) - np.max(first)
    # By preference: several answers and solved, several, solved, first.
    i = max(
        range(len(puzzles)), key=lambda i: (blended[i] > 0, bool(solved[i]), float(blended[i]), -i)
    )
    which = "solved " if solved[i] else ""
    why = f"held-out puzzle {i}, noise seed 0 (the first {which}one of {len(puzzles)})"
    if blended[i]:
        which += f"ones with 2 to {ROUTES} right answers"
        why = f"held-out puzzle {i}, noise seed 0 (of the {which}, the most mixed first estimate)"
    answers, shown = task.routes(puzzles[i]), list(SHOWN)
    mass = off = None
    if len(answers) > 1:
        room = max(ROUTES, len(answers))
        on, rest = masses(model, puzzles[i], watched.x0[i], room=room)
        mass, off = np.asarray(on, np.float32), np.asarray(rest, np.float32)
    example = Example(
        task=task.name,
        about=task.about,
        prompt=puzzles[i].prompt,
        seed=why,
        steps=shown,
        x0=model.decode(watched.x0[i, np.array(shown)]),
        video=model.decode(watched.latents[i]),
        reference=answers[0],
        scores=watched.scores[i].tolist(),
        solved=bool(watched.solved[i, -1]),
        mass=mass,
        off=off,
        answers=None if mass is None else answers,
    )
    return example, _plane(model, example, model.decode(watched.x0[i]))


def _plane(model: Wan, example: Example, x0: UInt8[np.ndarray, "S F H W 3"]) -> Plane:
    """Every step of an example, with what was measured of it."""
    steps = range(len(x0))
    lines = [sigma_line(flow.schedule(model.config.sampling).sigmas[:-1])]
    score = "score of x̂0"
    lines.append(Line(score, score, example.steps, example.scores))
    lines += [
        Line("mass on each right answer", layer.label, steps, layer.values)
        for layer in layers_of(example, order_of(example))
    ]
    return Plane(
        label="seed 0",
        group=example.task,
        prompt=example.prompt,
        steps=steps,
        x0=x0,
        video=example.video,
        reference=example.reference,
        solved=example.solved,
        lines=lines,
    )


def _curve(label: str, x: Sequence[int], values: np.ndarray) -> Curve:
    """Means over puzzles of values [P, x] with their intervals."""
    points = [estimate(v) for v in values.T]
    y, low, high = ([getattr(p, field) for p in points] for field in ("mean", "low", "high"))
    return Curve(label=label, x=list(x), y=y, low=low, high=high, n=len(values))


def _route_mass(model: Wan, puzzles: Sequence[Puzzle], watched: Watched) -> list[Curve]:
    found = routes(model, puzzles, watched)
    labels = ("route taken", "other shortest routes", "no route")
    steps = range(SHOWN[-1] + 1)
    return [_curve(label, steps, values) for label, values in zip(labels, found, strict=True)]


def _noise(model: Wan, task: Task, n: int) -> tuple[Curve, Curve, float]:
    found = noise_scores(model, task, held_out(task, n), NOISED)
    at_step = _curve("noise at one step, all frames", NOISED, found.at_step)
    at_frame = _curve("noise in one frame, all steps", range(task.frames), found.at_frame)
    return at_step, at_frame, float(found.plain.mean())


def _ensemble(model: Wan, task: Task, n: int) -> list[Comparison]:
    steps, layers = model.config.sampling.steps, model.config.dit.layers
    off = SeedEnsemble.window(steps, layers, at_steps=())
    on = SeedEnsemble.window(steps, layers)
    plain, mean = ensemble_solved(model, task, held_out(task, n), (0, 1, 2), (off, on))[:, :, 0].T
    gain = estimate(mean.astype(float) - plain, GAINS)
    p, q = estimate(plain), estimate(mean)
    return [
        Comparison(label="one seed", solved=p.mean, low=p.low, high=p.high, n=n),
        Comparison(
            label="mean of three seeds, first step, middle layers",
            solved=q.mean,
            low=q.low,
            high=q.high,
            n=n,
            difference=gain.mean,
            difference_low=gain.low,
            difference_high=gain.high,
        ),
    ]


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
        "date": dt.date.today().isoformat(),
        "seconds": f"{seconds:.0f}",
    }
