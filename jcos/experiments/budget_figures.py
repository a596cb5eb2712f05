"""The figures of `budget.py`."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from jcos.experiments import plots
from jcos.experiments.budget_found import Case, Found
from jcos.experiments.experiment import Picture
from jcos.lab.measures import GAINS, POSITIVE, estimate

STEPS = (
    "Score against what a video costs, from one step on, with the model's own spacing; the ideal "
    "denoiser runs under the same schedules from the same noise."
)
SHIFT = (
    "Score by the shift of the schedule, at a few steps: a larger one spends more of them at high "
    "noise."
)
MIDDLE = (
    "Score by where the steps are: half of them lie above this noise level, evenly spaced, half "
    "below it. Right: early; left: late; 0.5: evenly."
)
COMPARED = (
    "Score above that of the model's own spacing with as many steps, paired by puzzle and seed, "
    "over all tasks."
)
CLIPS = (
    "How far a run ends from the one with most steps and the model's own spacing (frames: from the "
    "one with most frames, at the frames that they share in time), relative, from the same noise."
)


def figures(found: Found) -> Iterator[tuple[str, Picture]]:
    yield "steps", Picture(_steps(found), STEPS)
    for kind, x, caption in (
        ("shift", "shift", SHIFT),
        ("middle", "σ above which half the steps lie", MIDDLE),
    ):
        if found.where(kind):
            yield kind, Picture(_spacing(found, kind, x), caption)
    if found.lengths:
        yield "compared", Picture(_compared(found), COMPARED)


def clip_figures(
    cases: list[Case], distances: dict[str, Float[np.ndarray, "P K"]], seeds: float | None
) -> Iterator[tuple[str, Picture]]:
    """seeds: the distance of a seed from another."""
    figure = plots.panels(1, size=(4.0, 0.8 + 0.18 * len(cases)))
    names = [str(c) for c in cases]
    points = [estimate(distances[name], POSITIVE) for name in names]
    plots.bars(figure.axes[0], names, points)
    if seeds is not None:
        axes = figure.axes[0]
        axes.axvline(seeds, color="#555555", linestyle=":", linewidth=1.0, label="another seed")
        axes.legend(fontsize=7)
    plots.label(figure.axes[0], "distance of the end, relative", "", legend=False)
    yield "distance", Picture(figure, CLIPS)


def _steps(found: Found) -> Figure:
    figure = _panels(len(found.parts))
    cases, baselines = found.where("steps"), found.samples.baselines()
    x = [found.forwards[i] for i in cases]
    for axes, (part, p) in zip(figure.axes, found.parts.items(), strict=False):
        plots.curve(axes, x, found.estimate("score", cases, p), "model")
        ideal = found.estimate("ideal score", cases, p)
        plots.curve(axes, x, ideal, "ideal denoiser", 1, faint=True)
        if part in found.samples.groups:
            plots.level(axes, baselines[part, "score"].chance, "chance")
        _logarithmic(axes, x)
        plots.label(axes, "forwards per video", "score", part, y_range=(0, 1))
    return plots.shared(figure, len(found.parts))


def _spacing(found: Found, kind: str, name: str) -> Figure:
    groups = found.samples.groups
    figure = _panels(len(groups))
    for axes, (task, p) in zip(figure.axes, groups.items(), strict=False):
        for i, steps in enumerate(found.lengths):
            cases = found.where(kind, steps)
            x = [found.cases[c].value or 0.0 for c in cases]
            said = f"{steps} steps"
            plots.curve(axes, x, found.estimate("score", cases, p), said, 2 * i)
            ideal = found.estimate("ideal score", cases, p)
            plots.curve(axes, x, ideal, f"{said}, ideal", 2 * i + 1, faint=True)
        if kind == "shift":
            axes.axvline(found.own, color="#555555", linestyle=":", linewidth=1.0)
            _logarithmic(axes, [c.value for c in found.cases if c.kind == kind and c.value])
        plots.label(axes, name, "score", task, y_range=(0, 1))
    return plots.shared(figure, len(groups))


def _compared(found: Found) -> Figure:
    lengths, everyone = found.lengths, np.arange(len(found.samples))
    cases = {n: found.where("shift", n) + found.where("middle", n) for n in lengths}
    rows = max(map(len, cases.values()))
    figure = plots.panels(len(lengths), size=(3.2, 0.7 + 0.17 * rows))
    for axes, steps in zip(figure.axes, lengths, strict=True):
        more = [found.more(i, everyone, found.plain(steps)) for i in cases[steps]]
        names = [str(found.cases[i]).partition(", ")[2] for i in cases[steps]]
        plots.bars(axes, names, [estimate(values, GAINS) for values in more])
        axes.axvline(0, color="#555555", linestyle=":", linewidth=1.0)
        plots.label(axes, "score, paired difference", "", f"{steps} steps")
    return figure


def _panels(n: int) -> Figure:
    columns = min(3, n)
    return plots.panels(columns, -(-n // columns))


def _logarithmic(axes: Axes, x: Sequence[float]) -> None:
    """Powers of two are equally far apart; each point has its number."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(x))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda at, _: f"{at:g}")
