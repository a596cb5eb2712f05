"""The figures of `steps.py`."""

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from jcos.experiments import plots
from jcos.experiments.experiment import Picture
from jcos.experiments.steps_found import UNCERTAIN, Found

SOLVED = (
    "Share of puzzles whose clean estimate is solved at each step, with 95% intervals over "
    "puzzles; the ideal denoiser runs from the same noise."
)
COMMITMENT = (
    "Share of puzzles that have committed by each step: from there on every estimate is solved."
)
BLEND = (
    "How much of the clean estimate is each answer. Ideal: the same of the ideal denoiser's "
    "estimate at the same noisy latent; it has nothing on wrong answers. No answer: the rest."
)
PREDICTION = (
    "How well a reading of the estimate at a step tells runs that will fail from those that will "
    "be solved; 0.5 tells nothing."
)


def figures(found: Found) -> Iterator[tuple[str, Picture]]:
    yield "solved", Picture(_solved(found), SOLVED)
    yield "commitment", Picture(_commitment(found), COMMITMENT)
    yield "blend", Picture(_blend(found), BLEND)
    if any(found.predictable(p) for p in found.samples.groups.values()):
        yield "prediction", Picture(_prediction(found), PREDICTION)
    for part, p in found.parts.items():
        i = int(next((i for i in p if found.solved[i, 0, -1]), p[0]))
        end = "solved" if found.solved[i, 0, -1] else "not solved"
        name = part.replace(", ", "-").replace(" ", "-")
        told = f"{part}: puzzle {i}, the first that is solved if any is; {end} in the end."
        yield f"film-{name}", Picture(_film(found, i), f"{told} {plots.FILM}")


def _solved(found: Found) -> Figure:
    figure = plots.panels(*_shape(len(found.samples.groups)))
    baselines, every = found.samples.baselines(), np.arange(found.steps)
    for axes, (task, p) in zip(figure.axes, found.samples.groups.items(), strict=False):
        plots.curve(axes, every, np.moveaxis(found.solved[p], 1, 2), "model")
        ideal = np.moveaxis(found.ideal_solved[p], 1, 2)
        plots.curve(axes, every, ideal, "ideal denoiser", 1, faint=True)
        plots.level(axes, baselines[task, "solved"].chance, "chance")
        plots.label(axes, "denoising step", "x̂0 solved", task, y_range=(0, 1))
    return plots.shared(figure, len(found.samples.groups))


def _commitment(found: Found) -> Figure:
    """The share of puzzles that is committed by each step."""
    figure = plots.panels(*_shape(len(found.parts)))
    every = np.arange(found.steps)
    for axes, (part, p) in zip(figure.axes, found.parts.items(), strict=False):
        for i, (name, steps) in enumerate(
            (("model", found.commitment), ("ideal denoiser", found.ideal_commitment))
        ):
            by = steps[p][:, None] <= every.reshape(1, -1, 1)
            plots.curve(axes, every, by, name, i, faint=bool(i))
        plots.label(axes, "denoising step", "committed", part, y_range=(0, 1))
    return plots.shared(figure, len(found.parts))


def _blend(found: Found) -> Figure:
    figure = plots.panels(*_shape(len(found.parts)))
    every = np.arange(found.steps)
    for axes, (part, p) in zip(figure.axes, found.parts.items(), strict=False):
        drawn = [("taken", "answer taken", 0), ("others", "other right answers", 2)]
        if not found.samples.several[p].all():
            drawn[1:] = [("wrong", "wrong answers", 4)]
        for field, name, style in drawn:
            model, ideal = (
                np.moveaxis(getattr(m, field)[p], 1, 2) for m in (found.mass, found.ideal_mass)
            )
            plots.curve(axes, every, model, name, style)
            if field != "wrong":  # on which the ideal denoiser never has any mass
                plots.curve(axes, every, ideal, f"{name}, ideal", style + 1, faint=True)
        off = np.moveaxis(found.seen.off[p], 1, 2)
        plots.curve(axes, every, off, "no answer", 6)
        plots.label(axes, "denoising step", "share of x̂0", part, y_range=(0, 1))
    return plots.shared(figure, len(found.parts))


def _prediction(found: Found) -> Figure:
    groups = {k: p for k, p in found.samples.groups.items() if found.predictable(p)}
    figure = plots.panels(*_shape(len(groups)))
    for axes, (task, p) in zip(figure.axes, groups.items(), strict=False):
        for i, (name, told) in enumerate(UNCERTAIN.items()):
            points = [found.auroc(name, p, s) for s in found.looked]
            plots.curve(axes, found.looked, points, told, i)
        plots.level(axes, 0.5, "chance")
        plots.label(axes, "denoising step", "AUROC of failure", task, y_range=(0, 1))
    return plots.shared(figure, len(groups))


def _film(found: Found, i: int) -> Figure:
    rows = [f"step {s}" for s in found.looked]
    return plots.film_grid(found.seen.video[i, 0, found.looked], rows)


def _shape(n: int) -> tuple[int, int]:
    """Columns and rows of n panels."""
    columns = min(3, n)
    return columns, -(-n // columns)
