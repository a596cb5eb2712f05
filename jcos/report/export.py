"""Results for talks and papers, without a browser: charts, the step × frame plane, and the clean
estimates along the steps as films."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jcos import files
from jcos.media import formats
from jcos.report.charts import Chart, axis_of, mean
from jcos.report.explorer import most_telling, views_of
from jcos.report.plane import Plane
from jcos.report.reading import Results

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Those of the page."""
DASHES = ("-", "--", "-.", ":")
STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "jcos", "font.size": 8}
SIDE, GAP = 160, 8
"""About how many pixels a frame of a film is wide, and how many lie between frames."""
EVERY = 5
"""Of a long run, every so many steps are shown on the picture of the plane."""
FPS = 8


def plane_of(results: Results, run: int | None = None) -> Plane:
    """Return a run of a folder with its pictures, the most telling one by default. Raises
    IndexError where there is no such run, ValueError where there is none."""
    views = views_of([results])
    if not views:
        raise ValueError(f"{results.folder} holds no runs to look into; give --svg or --csv")
    if run is not None and not 0 <= run < len(views):
        raise IndexError(f"run {run} is asked for; {results.folder} has {len(views)}, from 0")
    return views[most_telling(views) if run is None else run].run.load()


# ---- runs


def plane_png(plane: Plane) -> bytes:
    """Return the plane as PNG: a row for each step shown, the final video last; a column for each
    frame."""
    each = 1 if len(plane.x0) <= 12 else EVERY
    rows = plane.x0[[*range(0, len(plane.x0) - 1, each), -1]]
    if plane.video is not None:
        rows = np.concatenate([rows, plane.video[None]])
    scale = formats.factor_for(plane.x0.shape[3], SIDE // 2)
    return formats.png(formats.contact_sheet(rows, scale=scale, gap=GAP))


def steps_film(plane: Plane, frame: int | None = None) -> UInt8[np.ndarray, "S H W 3"]:
    """Return the clean estimates along the steps as a film, the final video beside them.

    frame: the one that is shown, −1 the last; all of them by default, the final video below.
    Raises IndexError where there is no such frame.
    """
    total = plane.x0.shape[1]
    if frame is not None and not -total <= frame < total:
        raise IndexError(f"frame {frame} is asked for; the run has {total}, from 0")
    end = plane.x0[-1] if plane.video is None else plane.video
    shown = range(total) if frame is None else [frame % total]
    scale = formats.factor_for(plane.x0.shape[3], SIDE if frame is not None else SIDE // 2)
    final = _strip(end[list(shown)], scale)
    film = []
    for x0 in plane.x0:
        parts = [_strip(x0[list(shown)], scale), final]
        film.append(np.concatenate(parts, axis=0 if frame is None else 1))
    video = np.stack(film)
    return video[:, : video.shape[1] // 2 * 2, : video.shape[2] // 2 * 2]


def _strip(frames: UInt8[np.ndarray, "F H W 3"], scale: int) -> UInt8[np.ndarray, "h w 3"]:
    """Frames side by side, with white between and around them."""
    edge = GAP // 2
    room = ((0, 0), (edge, edge), (edge, edge), (0, 0))
    wide = np.pad(formats.upscale(frames, scale), room, constant_values=255)
    return formats.film_strip(wide)


def write_film(plane: Plane, file: Path, frame: int | None = None) -> None:
    """Write `steps_film` as an MP4 or, by the file's name, a GIF."""
    video = steps_film(plane, frame)
    if file.suffix == ".gif":
        files.write(file, formats.gif(video, frame_ms=1000 // FPS))
    else:
        formats.write_mp4(file, video, FPS)


# ---- charts


def write_charts(charts: Sequence[Chart], folder: Path, kind: str) -> list[Path]:
    """Write every chart as a file of this kind: svg, png or csv."""
    written = []
    for i, chart in enumerate(charts):
        words = "".join(c if c.isalnum() else "-" for c in chart.title.lower())
        file = folder / f"{i:02}-{words[:60].strip('-')}.{kind}"
        content = _csv(chart) if kind == "csv" else _drawn(chart, kind)
        files.write(file, content)
        written.append(file)
    return written


def _csv(chart: Chart) -> str:
    """Return what a chart shows, in long format."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    if chart.is_map:
        array, dims = chart.array, [*chart.labels, *chart.moving]
        means = _means(chart)
        labels = [axis_of(array, d) for d in dims]
        table.writerow([*dims, "mean"])
        table.writerows(
            [*(axis[i] for axis, i in zip(labels, spot, strict=True)), f"{means[spot]:.6g}"]
            for spot in np.ndindex(*means.shape)
        )
    else:
        drawn = chart.drawn()
        table.writerow(["task", "line", drawn["x"], "mean", "low", "high"])
        for panel in drawn["panels"]:
            for line in panel["lines"]:
                for label, *point in zip(drawn["labels"], *_points(line), strict=True):
                    table.writerow([panel["task"], line["label"], label, *point])
            for level in panel["levels"]:
                table.writerow([panel["task"], level["label"], "", level["value"], "", ""])
    return out.getvalue()


def _means(chart: Chart) -> np.ndarray:
    """Return the means over runs along the axes of a map."""
    dims = [*chart.labels, *chart.moving]
    values = chart.array.transpose(*dims, ...).values.astype(np.float64)
    return mean(values.reshape(*values.shape[: len(dims)], -1))


def _points(line: dict[str, Any]) -> list[list[float | None]]:
    return [line[field] for field in ("mean", "low", "high")]


def _drawn(chart: Chart, kind: str) -> bytes:
    """Return a chart as SVG or PNG, drawn by matplotlib."""
    with mpl.rc_context(STYLE):
        figure = _map_figure(chart) if chart.is_map else _curves_figure(chart)
        out = io.BytesIO()
        about: Any = {"Date": None} if kind == "svg" else {}
        figure.savefig(out, format=kind, dpi=200, transparent=kind == "svg", metadata=about)
        return out.getvalue()


def _curves_figure(chart: Chart) -> Figure:
    drawn = chart.drawn()
    panels = drawn["panels"]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.3 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes, panel in zip(grid, panels, strict=False):
        _panel(axes, panel, drawn)
    names = {name: h for a in grid for h, name in zip(*a.get_legend_handles_labels(), strict=True)}
    if len(names) > 1:
        figure.legend(
            names.values(), names, loc="outside lower center", ncols=columns, frameon=False
        )
    figure.suptitle(chart.title)
    return figure


def _panel(axes: Axes, panel: dict[str, Any], drawn: dict[str, Any]) -> None:
    x = drawn["labels"]
    for line in panel["lines"]:
        y, low, high = (np.array(values, float) for values in _points(line))
        hue = line["hue"]
        colour = "#777777" if line["ideal"] else COLOURS[hue % len(COLOURS)]
        dash = "--" if line["ideal"] else DASHES[hue // len(COLOURS) % len(DASHES)]
        known = np.isfinite(y)
        at = np.array(x)[known]
        axes.plot(at, y[known], dash, color=colour, label=line["label"] or drawn["title"])
        axes.fill_between(at, low[known], high[known], color=colour, alpha=0.15, linewidth=0)
    for i, level in enumerate(panel["levels"]):
        look: Any = {"color": "#777777", "linestyle": (0, (1, 1 + i)), "linewidth": 1}
        axes.axhline(level["value"], label=level["label"], **look)
    if drawn["range"]:
        axes.set_ylim(*drawn["range"])
    axes.set_xlabel("denoising step" if drawn["x"] == "step" else drawn["x"])
    axes.set_ylabel(drawn["units"])
    axes.set_title(panel["task"])
    axes.spines[["top", "right"]].set_visible(False)


def _map_figure(chart: Chart) -> Figure:
    """Two axes of a map, as the page opens it: the mean over all others that are numbers, of words
    the first."""
    dims = [*chart.labels, *chart.moving]
    means = _means(chart)
    columns = "step" if "step" in dims else dims[-1]
    rows = next(d for d in ("layer", "frame", *reversed(dims)) if d in dims and d != columns)
    for axis in reversed(range(len(dims))):
        if dims[axis] not in (rows, columns):
            words = isinstance(axis_of(chart.array, dims[axis])[0], str)
            means = np.take(means, 0, axis) if words else mean(np.moveaxis(means, axis, -1))
    if dims.index(rows) > dims.index(columns):
        means = means.T
    figure = Figure(figsize=(4.4, 2.8), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(means, aspect="auto", cmap="cividis")
    for axis, dim in ((axes.xaxis, columns), (axes.yaxis, rows)):
        labels = axis_of(chart.array, dim)
        each = -(-len(labels) // 12)
        shown = [label if isinstance(label, str) else f"{label:g}" for label in labels[::each]]
        axis.set_ticks(range(0, len(labels), each), shown)
        axis.set_label_text(dim)
    figure.colorbar(image, ax=axes)
    axes.set_title(chart.title)
    return figure
