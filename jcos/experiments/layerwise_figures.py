"""The figures of `layerwise.py`."""

from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from jcos.experiments import plots
from jcos.experiments.experiment import Picture
from jcos.experiments.layerwise_decoded import READINGS
from jcos.experiments.layerwise_found import IDEAL, NAMES, Found, Part

ENERGY = (
    "Mean L2 norm of the tokens after each block at each step (left), and how it is shared out "
    "among frames (right, over the mean of all frames of that layer)."
)
SPREAD = (
    "How variance over tokens is spread: over how many channels, as a share of all of them, and "
    "how much of it lies in the first three principal components. Bands are 95% intervals."
)
MAPS = "The first video, then token energy by step and layer (rows) and frame; brighter is more."
COMPONENTS = (
    "The first three principal components of the tokens as red, green and blue. Each row has its "
    "own; colours of different rows do not compare."
)
DECODED = {
    "foreground": (
        "How well a linear probe tells foreground from plain floor within a frame; 0.5 is chance."
    ),
    "answer": (
        "How well a linear probe tells, within a frame, the tokens whose patch will change in the "
        "answer that this run ends with; 0.5 is chance. Another puzzle's: fitted to the labels of "
        "another puzzle, so that it knows only where answers usually are."
    ),
    "choice": (
        "The same among contested tokens only, which some right answers change and others do not: "
        "whether a probe knows which of the right answers this run will take."
    ),
}
SIDE = 8
"""Pixels of a token in a map, where it has no pixels of its own."""


def figures(found: Found) -> Iterator[tuple[str, Picture]]:
    yield "energy", Picture(_energy(found), ENERGY)
    yield "spread", Picture(_spread(found), SPREAD)
    for label in READINGS:
        parts = {task: part for task, part in found.decoded.items() if part.tells(label)}
        if parts:
            yield label, Picture(_curves(found, parts, label), DECODED[label])
            told = f"By layer and step. {DECODED[label]}"
            yield f"{label}-map", Picture(_map(found, parts, label), told)
    for task, part in found.parts.items():
        yield f"maps-{task}", Picture(_film(found, part, energies(part)), f"{task}. {MAPS}")
        colours = components(part)
        yield f"components-{task}", Picture(_film(found, part, colours), f"{task}. {COMPONENTS}")


def _energy(found: Found) -> Figure:
    figure = plots.panels(2)
    energy = found.pooled(lambda part: part.energy_by_frame).mean((0, 1))
    plots.heat(figure.axes[0], energy.mean(-1).T, "energy")
    plots.label(figure.axes[0], "denoising step", "layer", "mean over tokens")
    shares = (energy / energy.mean(-1, keepdims=True)).mean(0)
    plots.heat(figure.axes[1], shares, "energy over the layer's mean")
    plots.label(figure.axes[1], "frame", "layer", "mean over steps")
    return figure


def _spread(found: Found) -> Figure:
    figure = plots.panels(2)
    drawn = {"share of channels that vary": "channels", "variance in three components": "three"}
    for axes, (name, field) in zip(figure.axes, drawn.items(), strict=True):
        values = found.pooled(lambda part, field=field: getattr(part.spread, field))
        for i, s in enumerate(found.few):
            at_step = np.moveaxis(values[:, :, s], 2, 1)
            plots.curve(axes, range(found.layers), at_step, f"step {s}", i)
        plots.label(axes, "layer", name)
    return plots.shared(figure, 2)


def _curves(found: Found, parts: dict[str, Part], label: str) -> Figure:
    """Over steps: a first, middle and last layer, x_s, x̂0, the control of the last layer and the
    ideal denoiser."""
    figure = plots.panels(*_shape(len(parts)))
    which, last = list(READINGS).index(label), found.layers - 1
    chosen = [*sorted({0, last // 2, last}), found.layers, found.layers + 1]
    for axes, (task, part) in zip(figure.axes, parts.items(), strict=False):
        assert part.decoded is not None
        for i, r in enumerate(chosen):
            points = [part.estimate(area) for area in part.decoded.own[which, r]]
            plots.curve(axes, found.looked, points, found.sources[r], i)
        control = [part.estimate(area) for area in part.decoded.control[which, last]]
        plots.curve(axes, found.looked, control, f"layer {last}, another puzzle's", 6, faint=True)
        if label in IDEAL:
            points = [part.estimate(area) for area in part.by_ideal(label)]
            plots.curve(axes, found.looked, points, "ideal denoiser at x_s", 5, faint=True)
        plots.level(axes, 0.5, "chance")
        plots.label(axes, "denoising step", f"AUROC of {label}", task, y_range=(0.3, 1))
    return plots.shared(figure, len(parts))


def _map(found: Found, parts: dict[str, Part], label: str) -> Figure:
    columns, rows = _shape(len(parts))
    figure = plots.panels(columns, rows)
    panels = list(figure.axes)
    for axes, (task, part) in zip(panels, parts.items(), strict=False):
        assert part.decoded is not None
        areas = part.decoded.own[list(READINGS).index(label), : found.layers]
        values = np.array([[part.estimate(area).mean for area in layer] for layer in areas])
        plots.heat(axes, values, "AUROC", limits=(0.5, 1), x=found.looked)
        plots.label(axes, "denoising step", "layer", f"{task}: {NAMES[label]}")
    for axes in panels[len(parts) :]:
        axes.remove()
    return figure


def energies(part: Part) -> Float[np.ndarray, "s L N 3"]:
    """The first run's energies as colours, each map from its least to its greatest."""
    return mpl.colormaps["cividis"](_stretched(part.energy[0, 0], (-1,)))[..., :3]


def components(part: Part) -> Float[np.ndarray, "s l N 3"]:
    """The first run's principal components as colours."""
    return _stretched(part.components[0, 0], (-2,))


def _stretched(values: Float[np.ndarray, "..."], axes: tuple[int, ...]) -> np.ndarray:
    """To 0..1 along some axes."""
    low, high = values.min(axes, keepdims=True), values.max(axes, keepdims=True)
    return (values - low) / np.maximum(high - low, 1e-12)


def _film(found: Found, part: Part, colours: Float[np.ndarray, "s layers N 3"]) -> Figure:
    """Rows: the video where there is one of pixels, then steps × shown layers."""
    rows, videos, side = [], [], SIDE
    if part.video is not None:
        rows, videos, side = ["video"], [part.video], part.video.shape[1] // found.grid[1]
    every = colours.shape[1] == found.layers
    for s in found.few:
        for i, layer in enumerate(found.shown):
            tokens = colours[found.looked.index(s), layer if every else i]
            videos.append(_pixels(tokens, found.grid, side))
            rows.append(f"step {s}, layer {layer}")
    return plots.film_grid(np.stack(videos), rows)


def _pixels(
    tokens: Float[np.ndarray, "N 3"], grid: tuple[int, int, int], side: int
) -> UInt8[np.ndarray, "F H W 3"]:
    picture = np.round(255 * tokens).astype(np.uint8).reshape(*grid, 3)
    return picture.repeat(side, 1).repeat(side, 2)


def _shape(n: int) -> tuple[int, int]:
    """Columns and rows of n panels."""
    columns = min(3, n)
    return columns, -(-n // columns)
