"""Figures of a dataset's measures: labelled, legible at column width, told apart without colour."""

import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from jcos.lab.results import LEVELS, case_of, estimates, groups_of, rows, run_dimension

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
"""Okabe and Ito's, which the colour-blind can tell apart."""
DASHES = ("-", "--", "-.", ":", (0, (3, 1, 1, 1, 1, 1)), (0, (5, 1)), (0, (1, 1)), (0, (5, 5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
FEW = 12
"""Up to so many points a curve has markers."""
STYLE: dict[str, Any] = {
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
    "svg.fonttype": "none",  # text stays text: pages give it their font and colour
    "svg.hashsalt": "jcos",  # the same figure is the same file
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
styled = mpl.rc_context(STYLE)  # pyright: ignore[reportArgumentType]
"""Decorates what draws: matplotlib reads its style when a part is made."""


@styled
def lines(
    data: xr.Dataset,
    names: str | Sequence[str] | None = None,
    x: str = "step",
    *,
    hue: str | None = None,
    xlabel: str = "",
    ylabel: str = "",
    log: bool = False,
) -> Figure:
    """Plot measures along a dimension, with 95 % bands, one panel for each group of runs.

    names: measures, all by default; each, and each place of the dimension `hue`, is a line, and the
    first one's baselines are levels. Lines are called by the titles of measures; of all, by their
    names. log: powers of two are equally far apart.
    """
    titled = names is not None
    names = [names] if isinstance(names, str) else list(map(str, names or data.data_vars))
    labels = [data[name].attrs["long_name"] if titled else name for name in names]
    cells = [estimates(data[name]) for name in names]
    group = str(cells[0]["mean"].dims[0])
    titles = list(dict.fromkeys(str(t) for c in cells for t in c[group].values))
    figure = panels(len(titles))
    for axes, title in zip(figure.axes, titles, strict=True):
        styles = itertools.count()
        for label, cell in zip(labels, cells, strict=True):
            if title not in cell[group].values:
                continue
            here = cell.sel({group: title})
            for place in here[hue].values if hue in here.dims else [None]:
                one = here if place is None else here.sel({hue: place})
                words = [label] * (len(names) > 1 or place is None)
                words += [] if place is None else [case_of({hue: place}) or str(place)]
                band(axes, one, x, ", ".join(words), next(styles))
        if title in cells[0][group].values:
            _levels(axes, data, names[0], title)
        about = data[names[0]].attrs
        axes.set(xlabel=xlabel or x, ylabel=ylabel or about["long_name"], title=title)
        if about.get("valid_min") == 0 and "valid_max" in about:
            axes.set_ylim(-0.04 * about["valid_max"], 1.04 * about["valid_max"])
        if log:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(FixedLocator(sorted({float(v) for v in data[x].values})))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return shared_legend(figure)


@styled
def band(axes: Axes, cells: xr.Dataset, x: str, name: str, style: int = 0) -> None:
    """Draw a line of estimates along a dimension, of numbers or texts, with its 95 % band; nan
    leaves a hole."""
    at = cells[x].values if x in cells.coords else np.arange(cells.sizes[x])
    mean, low, high = (cells[field].values for field in ("mean", "low", "high"))
    if at.dtype.kind in "UO":
        words, at = at, np.arange(len(at))
        axes.set_xticks(at, words, rotation=90)
    elif np.all(np.asarray(at, float) % 1 == 0):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    look: dict[str, Any] = {"color": COLOURS[style % 8], "linestyle": DASHES[style % 8]}
    if len(mean) <= FEW:
        look["marker"] = MARKERS[style % 8]
    axes.plot(at, mean, label=name, **look)
    axes.fill_between(at, low, high, color=look["color"], alpha=0.16, linewidth=0)


def _levels(axes: Axes, data: xr.Dataset, name: str, group: str) -> None:
    """Draw the baselines of a measure as level lines."""
    for i, (kind, words) in enumerate(LEVELS.items()):
        level = data.get(f"{kind}{name}")
        if level is not None and level.dims in ((), (over := run_dimension(data[name]),)):
            height = level[{over: groups_of(data[name])[group]}] if level.dims else level
            level_line(axes, float(height.mean()), level.attrs.get("long_name", words), i)


def level_line(axes: Axes, height: float, label: str, style: int = 0) -> None:
    """Draw a baseline of a panel."""
    look = {"color": "#777777", "linestyle": DASHES[3 + style % 5], "linewidth": 1}
    axes.axhline(height, label=label, **look)


@styled
def heat(
    data: xr.DataArray | Mapping[str, xr.DataArray],
    x: str,
    y: str,
    *,
    xlabel: str = "",
    ylabel: str = "",
) -> Figure:
    """Plot the mean of a measure on two of its dimensions as a map, one panel for each group of
    runs; the first row is at the bottom. data: one measure, or several by the titles of their
    panels, on one scale."""
    measures = {"": data} if isinstance(data, xr.DataArray) else data
    maps: dict[str, xr.DataArray] = {}
    for title, array in measures.items():
        mean = estimates(array)["mean"]
        group = str(mean.dims[0])
        for name in mean[group].values:
            words = [title] * bool(title) + [str(name)] * (not title or mean.sizes[group] > 1)
            one = mean.sel({group: name}, drop=True).transpose(y, x)
            maps[", ".join(words)] = one.assign_attrs(array.attrs)
    figure = panels(len(maps))
    shown = np.concatenate([one.values.ravel() for one in maps.values()])
    low, high = None, None
    if len(measures) > 1 and np.isfinite(shown).any():
        low, high = np.nanmin(shown), np.nanmax(shown)
    for axes, (title, values) in zip(figure.axes[:], maps.items(), strict=True):
        image = axes.imshow(
            values, origin="lower", aspect="auto", cmap="cividis", vmin=low, vmax=high
        )
        axes.grid(False)
        for axis, dim in ((axes.xaxis, x), (axes.yaxis, y)):
            marks = values[dim].values if dim in values.coords else np.arange(values.sizes[dim])
            every = -(-len(marks) // FEW)
            words = [m if isinstance(m, str) else f"{m:g}" for m in marks[::every]]
            axis.set_ticks(range(0, len(marks), every), words)
        axes.set(xlabel=xlabel or x, ylabel=ylabel or y, title=title)
        figure.colorbar(image, ax=axes, label=str(values.attrs.get("long_name", "")))
    return figure


@styled
def paired(array: xr.DataArray, label: str, *, zero: bool = True) -> Figure:
    """Plot the estimates of a measure as dots with their intervals, of every group and place, from
    top to bottom."""
    points = list(rows(xr.Dataset({"points": array})))
    several = len({point.task for point in points}) > 1
    figure = panels(1, size=(4.4, 0.5 + 0.19 * len(points)))
    (axes,) = figure.axes
    at = np.arange(len(points))[::-1]
    mean, low, high = np.array([[p.value, p.low, p.high] for p in points]).reshape(-1, 3).T
    error = np.maximum(np.stack([mean - low, high - mean]), 0)
    axes.errorbar(mean, at, xerr=error, fmt=MARKERS[0], color=COLOURS[0], capsize=2)
    if zero:
        axes.axvline(0, color="#777777", linewidth=0.8)
    axes.set_yticks(at, [f"{p.task}, {p.case}" if several else p.case for p in points])
    axes.set_ylim(-0.6, len(points) - 0.4)
    axes.set_xlabel(label)
    return figure


@styled
def panels(number: int, *, size: tuple[float, float] = (3.2, 2.3)) -> Figure:
    """Return a figure of so many panels, three in a row, `size` inches each."""
    columns = min(3, number)
    rows = -(-number // columns)
    figure = Figure(figsize=(columns * size[0], rows * size[1]), layout="constrained")
    for i in range(number):
        figure.add_subplot(rows, columns, i + 1)
    return figure


@styled
def shared_legend(figure: Figure) -> Figure:
    """Name every line once, below all panels."""
    known: dict[str, Any] = {}
    for axes in figure.axes:
        handles, names = axes.get_legend_handles_labels()
        known = dict(zip(names, handles, strict=True)) | known
    if len(known) > 1:
        inches = max(1.6, 0.5 + 0.055 * max(map(len, known)))  # of a handle and the longest name
        columns = max(1, min(4, len(known), int(figure.get_figwidth() / inches)))
        figure.legend(known.values(), known, loc="outside lower center", ncols=columns)
    return figure


@styled
def film_grid(videos: UInt8[np.ndarray, "rows F H W 3"], names: Sequence[str]) -> Figure:
    """Return the paper's figure 1: a row for each video, at most eight of its frames."""
    shown = np.unique(np.linspace(0, videos.shape[1] - 1, 8).round().astype(int))
    (height, width), side = videos.shape[2:4], 0.62
    size = (0.7 + side * len(shown) * width / height, side * len(videos) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)  # type: ignore[union-attr]
    grid = figure.subplots(len(videos), len(shown), squeeze=False)
    for i, (video, name) in enumerate(zip(videos, names, strict=True)):
        for j, frame in enumerate(shown):
            axes: Axes = grid[i, j]
            axes.imshow(video[frame], interpolation="nearest")
            axes.grid(False)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if i == 0:
                axes.set_title(f"frame {frame}" if j == 0 else str(frame), pad=2)
            if j == 0:
                axes.set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


@styled
def to_svg(figure: Figure) -> bytes:
    """Return a figure as a transparent SVG whose text is text."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()
