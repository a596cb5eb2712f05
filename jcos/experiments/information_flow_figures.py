"""The figures of `information_flow.py`."""

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from jcos.experiments import plots
from jcos.experiments.experiment import Picture
from jcos.experiments.information_flow_found import AT, END, ON, Found
from jcos.lab.measures import UNBOUNDED, estimate

TRIANGLE = (
    "How much a run differs at each step from the clean one (columns) after noise at one step in "
    "all frames (rows); 1 − CKA, mean over layers and puzzles. Replaced: x ← N(0, I). Own level: "
    "the estimate is kept and its noise drawn anew. x̂0: of clean estimates in patches, of the "
    "model and of the ideal denoiser into which the same noise was put."
)
SENSITIVITY = (
    "How far noise at each step reaches, mean over layers, with 95% intervals over puzzles: at "
    "that very step, from there on, and at the end of the run. Noise at step 0 is a fresh seed."
)
ESTIMATES = (
    "The same of clean estimates at the end of the run, beside the ideal denoiser under the same "
    "noise: what it shows too is choosing again among right answers."
)
LAYERS = (
    "By layer, mean over noised steps: at each observed step (of the noise that is in by then), "
    "and for each noised step from there on."
)
FRAMES = (
    "Noise in one frame at every step, seen by the tokens of all other frames (left), and beside "
    "noise at one step seen by the same tokens (right, all positions together)."
)
AGREEMENT = (
    "How often the perturbed run ends with the clean run's answer, of puzzles with several that "
    "both solve."
)


def figures(found: Found) -> Iterator[tuple[str, Picture]]:
    if found.where("step"):
        yield "triangle", Picture(_triangle(found), TRIANGLE)
        yield "sensitivity", Picture(_sensitivity(found), SENSITIVITY)
        yield "estimates", Picture(_estimates(found), ESTIMATES)
        yield "layers", Picture(_layers(found), LAYERS)
    if found.where("frame"):
        yield "frames", Picture(_frames(found), FRAMES)
    if found.agreed is not None and np.isfinite(found.agreed).any():
        yield "agreement", Picture(_agreement(found), AGREEMENT)


def _triangle(found: Found) -> Figure:
    replaced, own = found.where("step"), found.where("step", own=True)
    drawn = [
        ("tokens, replaced", "tokens", replaced),
        ("tokens, own level", "tokens", own),
        ("x̂0, replaced", "x0", replaced),
    ]
    if found.ideal is not None:
        drawn.append(("x̂0 of the ideal, replaced", "ideal", replaced))
    figure = plots.panels(2, 2)
    maps = [found.triangle(source, cases) for _, source, cases in drawn]
    panels = list(figure.axes)
    for axes, (title, _, cases), values in zip(panels, drawn, maps, strict=False):
        plots.heat(axes, values, "1 − CKA", limits=_scale(maps), y=found.steps(cases))
        plots.label(axes, "observed step", "noised step", title)
    for axes in panels[len(drawn) :]:
        axes.remove()
    return figure


def _scale(maps: list[np.ndarray]) -> tuple[float, float]:
    """One for all maps."""
    return 0.0, max(float(np.nanmax(values)) for values in maps)


def _sensitivity(found: Found) -> Figure:
    figure = plots.panels(2)
    for axes, own in zip(figure.axes, (False, True), strict=True):
        cases = found.where("step", own=own)
        for i, when in enumerate((AT, ON, END)):
            points = [estimate(found.reading("tokens", c, when), UNBOUNDED) for c in cases]
            plots.curve(axes, found.steps(cases), points, when, i)
        title = "noise at its own level" if own else "replaced by noise"
        plots.label(axes, "noised step", "1 − CKA of tokens", title, y_range=(0, 1))
    return plots.shared(figure, 2)


def _estimates(found: Found) -> Figure:
    figure = plots.panels(2)
    names = {"x0": "model", "ideal": "ideal denoiser"}
    for axes, own in zip(figure.axes, (False, True), strict=True):
        cases = found.where("step", own=own)
        for i, source in enumerate(s for s in names if s in found.sources):
            points = [estimate(found.reading(source, c, END), UNBOUNDED) for c in cases]
            plots.curve(axes, found.steps(cases), points, names[source], i, faint=bool(i))
        title = "noise at its own level" if own else "replaced by noise"
        plots.label(axes, "noised step", "1 − CKA of the last x̂0", title)
    return plots.shared(figure, 2)


def _layers(found: Found) -> Figure:
    figure = plots.panels(3)
    cases, own = found.where("step"), found.where("step", own=True)
    maps = [
        found.layers_over_steps(cases),
        *(found.by_layer(c, ON).mean((1, 2)).T for c in (cases, own)),
    ]
    panels, steps = list(figure.axes), [None, found.steps(cases), found.steps(own)]
    titles = ("replaced at any earlier step", f"replaced, {ON}", f"own level, {ON}")
    for i, axes in enumerate(panels):
        plots.heat(axes, maps[i], "1 − CKA", limits=_scale(maps), x=steps[i])
        plots.label(axes, "noised step" if i else "observed step", "layer", titles[i])
    return figure


def _frames(found: Found) -> Figure:
    figure = plots.panels(2)
    left, right = figure.axes[:2]
    cases = found.where("frame")
    values = np.stack([found.seen("tokens", c).mean((0, 1)) for c in cases])
    plots.heat(left, values, "1 − CKA", y=[found.cases[c].frame for c in cases])
    plots.label(left, "observed step", "noised frame")
    groups = {
        f"{name}, {when}": estimate(found.compared("tokens", chosen, when), UNBOUNDED)
        for name, chosen in (
            ("at a step", found.where("step")),
            ("own level", found.where("step", own=True)),
            ("at a frame", cases),
        )
        for when in (ON, END)
        if chosen
    }
    plots.bars(right, list(groups), list(groups.values()))
    plots.label(right, "1 − CKA, other frames", "")
    return figure


def _agreement(found: Found) -> Figure:
    assert found.agreed is not None
    figure = plots.panels(1)
    for i, (own, name) in enumerate(((False, "replaced"), (True, "own level"))):
        cases = found.where("step", own=own)
        points = [estimate(found.agreed[c]) for c in cases]
        plots.curve(figure.axes[0], found.steps(cases), points, name, i)
    plots.label(figure.axes[0], "noised step", "agreement", y_range=(0, 1))
    return figure
