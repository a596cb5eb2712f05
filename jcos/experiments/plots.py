"""Figures for a paper: labelled, legible at column width, told apart without colour."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Shaped, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jcos.lab.measures import SCORES, Estimate, Span, estimate

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
"""Okabe and Ito's, which the colour-blind can tell apart."""
DASHES = ("-", "--", "-.", ":", (0, (3, 1, 1, 1, 1, 1)), (0, (5, 1)), (0, (1, 1)), (0, (5, 5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
FEW = 12
"""Up to so many points a curve has markers."""

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "legend.fontsize": 7,
}


styled = mpl.rc_context(STYLE)
"""Decorates what draws: matplotlib reads its style when a part is made."""


@styled
def panels(columns: int, rows: int = 1, *, size: tuple[float, float] = (3.2, 2.3)) -> Figure:
    """A figure of panels, `size` inches each; they are `figure.axes`, row by row."""
    figure = Figure(figsize=(columns * size[0], rows * size[1]), layout="constrained")
    figure.subplots(rows, columns)
    return figure


@styled
def shared(figure: Figure, used: int) -> Figure:
    """The first `used` panels, with one legend below for all of them; each name has one style."""
    for axes in figure.axes[used:]:
        axes.remove()
    known: dict[str, Any] = {}
    for axes in figure.axes:
        handles, names = axes.get_legend_handles_labels()
        known = dict(zip(names, handles, strict=True)) | known
        if legend := axes.get_legend():
            legend.remove()
    columns = max(1, min(4, len(known), int(figure.get_figwidth() / 1.6)))  # a name needs its room
    figure.legend(known.values(), known, loc="outside lower center", ncols=columns)
    return figure


@styled
def label(
    axes: Axes,
    x: str,
    y: str,
    title: str = "",
    *,
    legend: bool = True,
    y_range: tuple[float, float] | None = None,
) -> None:
    """Names of the axes, and a legend where more than one thing is drawn."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title)
    if y_range is not None:
        room = 0.04 * (y_range[1] - y_range[0])
        axes.set_ylim(y_range[0] - room, y_range[1] + room)
    if legend and len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(handlelength=2.6)


@styled
def curve(
    axes: Axes,
    x: Sequence[float] | np.ndarray,
    points: Sequence[Estimate] | Shaped[np.ndarray, "P x *seeds"],
    name: str,
    style: int = 0,
    *,
    faint: bool = False,
    span: Span = SCORES,
) -> None:
    """A line with its 95 % band, of estimates or of values per puzzle, within a span, at each x.
    Points that are nan leave a hole."""
    if isinstance(points, np.ndarray):
        points = [estimate(values, span) for values in np.moveaxis(points, 1, 0)]
    mean, low, high = np.array([e[:3] for e in points], np.float64).reshape(-1, 3).T
    if all(float(at).is_integer() for at in x):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    look: dict[str, Any] = {"color": COLOURS[style % 8], "linestyle": DASHES[style % 8]}
    if len(mean) <= FEW:
        look["marker"] = MARKERS[style % 8]
    axes.plot(x, mean, label=name, alpha=0.55 if faint else 1.0, **look)
    axes.fill_between(x, low, high, color=look["color"], alpha=0.08 if faint else 0.16, linewidth=0)


@styled
def level(axes: Axes, height: float, name: str) -> None:
    """A horizontal line to compare with: chance, the plain run."""
    axes.axhline(height, color="#555555", linestyle=(0, (1, 2)), linewidth=1.0, label=name)


@styled
def bars(axes: Axes, names: Sequence[str], points: Sequence[Estimate], style: int = 0) -> None:
    """A dot with its interval for each name, from top to bottom."""
    at = np.arange(len(names))[::-1]
    mean, low, high = np.array([e[:3] for e in points], np.float64).reshape(-1, 3).T
    error = np.maximum(np.stack([mean - low, high - mean]), 0)
    axes.errorbar(mean, at, xerr=error, fmt=MARKERS[style % 8], color=COLOURS[style % 8], capsize=2)
    axes.set_yticks(at, names)
    axes.set_ylim(-0.6, len(names) - 0.4)


@styled
def heat(
    axes: Axes,
    values: Float[np.ndarray, "rows columns"],
    name: str,
    *,
    limits: tuple[float, float] | None = None,
    x: Sequence[Any] | None = None,
    y: Sequence[Any] | None = None,
) -> None:
    """A map with its colour scale (one that also rises in grey), first row at the bottom; x and y:
    what stands at columns and rows."""
    low, high = limits if limits is not None else (float(np.nanmin(values)), np.nanmax(values))
    shown = axes.imshow(values, origin="lower", aspect="auto", cmap="cividis", vmin=low, vmax=high)
    axes.grid(False)
    for axis, names in ((axes.xaxis, x), (axes.yaxis, y)):
        if names is not None:
            every = -(-len(names) // FEW)
            axis.set_ticks(range(0, len(names), every), [str(n) for n in names[::every]])
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.colorbar(shown, ax=axes, label=name)


FILM = "Clean estimates; rows are denoising steps, columns are frames."
"""The caption of a film of estimates."""


@styled
def film_grid(
    videos: UInt8[np.ndarray, "rows F H W 3"], rows: Sequence[str], *, frames: int = 8
) -> Figure:
    """The paper's figure 1: a row for each video, a column for each frame (at most `frames` of
    them)."""
    shown = np.unique(np.linspace(0, videos.shape[1] - 1, frames).round().astype(int))
    height, width = videos.shape[2:4]
    side = 0.62
    figure = Figure(
        figsize=(0.7 + side * len(shown) * width / height, side * len(videos) + 0.3),
        layout="constrained",
    )
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)  # type: ignore[union-attr]
    grid = figure.subplots(len(videos), len(shown), squeeze=False)
    for i, (video, name) in enumerate(zip(videos, rows, strict=True)):
        for j, frame in enumerate(shown):
            axes: Axes = grid[i, j]
            axes.imshow(video[frame], interpolation="nearest")
            axes.grid(False)
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_visible(False)
            if i == 0:
                axes.set_title(f"frame {frame}" if j == 0 else str(frame), pad=2)
            if j == 0:
                axes.set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


@styled
def to_png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=180)
    return file.getvalue()
