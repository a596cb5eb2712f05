"""The figures of `noise.py`."""

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jcos.experiments import plots
from jcos.experiments.experiment import Picture
from jcos.experiments.noise_found import IDEAL, Found, span_of
from jcos.lab.measures import estimate

STEP = (
    "Noise at one step in all frames. Replaced: x ← N(0, I). Own level: the estimate is kept and "
    "its noise drawn anew at the step's level. Clean-up: judged after a few more steps, which take "
    "out what is mere pixel noise. Faint: the ideal denoiser, replaced, after clean-up."
)
FRAME = (
    "Noise in one frame at every step. The other frames: the noised one, which ends as noise, is "
    "taken from the right answer that suits the others best. Same energy: weakened until all steps "
    "together inject as much as one step in all frames."
)
MAP = "Score lost by noise in a single frame at a single step, judged after clean-up."
STRENGTH = "Noise of lesser strength at one step: x ← √(1 − r²) x + r ε."
AGREEMENT = (
    "How often the perturbed run takes the same right answer as the unperturbed one, of puzzles "
    "with several that both solve. Noise at step 0 is a fresh seed. Faint: the ideal denoiser."
)
COMPARED = "All positions together: noise at a step, at a frame, and at a frame with equal energy."


def figures(found: Found) -> Iterator[tuple[str, Picture]]:
    main = "score after clean-up" if found.judged else "distance"
    for name, (kind, draw, caption) in BY_KIND.items():
        if found.where(kind):
            yield name, Picture(draw(found, main), caption)
    if found.where("step") and found.where("frame"):
        yield "compared", Picture(_compared(found, main), COMPARED)
    agreement = found.readings.get("agreement", np.array([]))
    if found.where("step") and np.isfinite(agreement[1:]).any():
        yield "agreement", Picture(_agreement(found), AGREEMENT)


def _curves(found: Found, kind: str, main: str) -> Figure:
    figure = plots.panels(1)
    axes = figure.axes[0]
    raw = {"step": "score", "frame": "score of the other frames"}[kind]
    shown = [(main, False, "replaced, after clean-up" if found.judged else "replaced")]
    if found.judged:
        shown += [(raw, False, "replaced, as it ends" if kind == "step" else "the other frames")]
    shown += [(main, True, "own level")]
    for i, (reading, own, name) in enumerate(shown):
        cases = found.where(kind, own=own)
        x = [getattr(found.cases[c], kind) for c in cases]
        plots.curve(axes, x, found.estimate(reading, cases), name, i)
    if kind == "frame":
        cases = found.where("matched")
        x = [found.cases[c].frame or 0 for c in cases]
        plots.curve(axes, x, found.estimate(main, cases), "same energy as a step", len(shown))
    if found.judged:
        _ideal(axes, found, kind, main)
    plain = found.estimate(main, [0])[0].mean
    plots.level(axes, plain, "no noise")
    limits = (0.0, 1.0) if found.judged else None
    plots.label(axes, f"{kind} with noise", "score" if found.judged else main, y_range=limits)
    return figure


def _ideal(axes: Axes, found: Found, kind: str, reading: str, style: int = 5) -> None:
    """The ideal denoiser under the same noise."""
    cases = found.where(kind)
    x = [getattr(found.cases[c], kind) for c in cases]
    points = found.estimate(f"{IDEAL}{reading}", cases)
    plots.curve(axes, x, points, "ideal denoiser", style, faint=True)


def _step(found: Found, main: str) -> Figure:
    return _curves(found, "step", main)


def _frame(found: Found, main: str) -> Figure:
    return _curves(found, "frame", main)


def _map(found: Found, main: str) -> Figure:
    cells = found.where("cell")
    steps = sorted({found.cases[c].step or 0 for c in cells})
    frames = sorted({found.cases[c].frame or 0 for c in cells})
    change = found.mean(main, [0]) - np.float64(found.readings[main][cells])
    lost = (change if found.judged else -change).mean((1, 2)).reshape(len(steps), len(frames))
    figure = plots.panels(1)
    name = "score lost" if found.judged else main
    plots.heat(figure.axes[0], lost, name, x=frames, y=steps)
    plots.label(figure.axes[0], "frame", "denoising step")
    return figure


def _strength(found: Found, main: str) -> Figure:
    figure = plots.panels(1)
    axes = figure.axes[0]
    cases = found.where("strength")
    for i, step in enumerate(sorted({found.cases[c].step or 0 for c in cases})):
        full = [c for c in found.where("step") if found.cases[c].step == step]
        here = [0, *(c for c in cases if found.cases[c].step == step), *full]
        x = [0.0, *(found.cases[c].strength for c in here[1:])]
        plots.curve(axes, x, found.estimate(main, here), f"step {step}", i)
    limits = (0.0, 1.0) if found.judged else None
    plots.label(axes, "strength of noise", main, y_range=limits)
    return figure


def _compared(found: Found, main: str) -> Figure:
    figure = plots.panels(1, size=(4.0, 1.6))
    groups = {
        "no noise": [0],
        "at a step": found.where("step"),
        "at a step, own level": found.where("step", own=True),
        "at a frame": found.where("frame"),
        "at a frame, same energy": found.where("matched"),
    }
    points = [estimate(found.mean(main, c), span_of(main)) for c in groups.values()]
    plots.bars(figure.axes[0], list(groups), points)
    plots.label(figure.axes[0], main, "")
    return figure


def _agreement(found: Found) -> Figure:
    figure = plots.panels(1)
    for i, (own, name) in enumerate(((False, "replaced"), (True, "own level"))):
        cases = found.where("step", own=own)
        x = [found.cases[c].step or 0 for c in cases]
        plots.curve(figure.axes[0], x, found.estimate("agreement", cases), name, i)
    _ideal(figure.axes[0], found, "step", "agreement")
    plots.label(figure.axes[0], "step with noise", "agreement", y_range=(0, 1))
    return figure


BY_KIND = {
    "step": ("step", _step, STEP),
    "frame": ("frame", _frame, FRAME),
    "map": ("cell", _map, MAP),
    "strength": ("strength", _strength, STRENGTH),
}
"""Figures of the cases of one kind, which may be left out."""
