"""Results for talks and papers, without a browser: charts, the step × frame plane, and the clean
estimates along the steps as films."""

import csv
import io
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from jaxtyping import UInt8
from matplotlib.figure import Figure

from jcos import files
from jcos.experiments import plots
from jcos.media import formats
from jcos.report.charts import ESTIMATE, Chart, axis_of, by_task
from jcos.report.explorer import most_telling
from jcos.report.plane import Plane
from jcos.report.reading import Results

IDEAL = 7
"""The grey of `plots.COLOURS`."""
SIDE, GAP, WIDE = 160, 8, 3840
"""About how many pixels a frame of a film is wide, how many lie between frames, and how wide a film
is at most: more frames go on below."""
EVERY = 5
"""Of a long run, every so many steps are shown on the picture of the plane."""
FPS = 8


def plane_of(results: Results, run: int | None = None) -> Plane:
    """Return a run of a folder with its pictures, the most telling one by default. Raises
    IndexError where there is no such run, ValueError where there is none."""
    runs = results.runs
    if not runs:
        raise ValueError(f"{results.folder} holds no runs to look into; give --svg or --csv")
    if run is not None and not 0 <= run < len(runs):
        raise IndexError(f"run {run} is asked for; {results.folder} has {len(runs)}, from 0")
    return runs[most_telling(runs) if run is None else run].load()


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
    """Frames side by side, in several rows if need be, with white between and around them."""
    edge = GAP // 2
    room = ((0, 0), (edge, edge), (edge, edge), (0, 0))
    wide = np.pad(formats.upscale(frames, scale), room, constant_values=255)
    columns = min(len(wide), max(1, WIDE // wide.shape[2]))
    empty = np.full_like(wide[:1], 255).repeat(-len(wide) % columns, 0)
    cells = np.concatenate([wide, empty]).reshape(-1, columns, *wide.shape[1:])
    return np.concatenate([formats.film_strip(row) for row in cells])


def write_film(plane: Plane, file: Path, frame: int | None = None) -> None:
    """Write `steps_film` as an MP4 or, by the file's name, a GIF."""
    video = steps_film(plane, frame)
    if file.suffix == ".gif":
        files.write(file, formats.gif(video, frame_ms=1000 // FPS))
    else:
        formats.write_mp4(file, video, FPS)


# ---- charts


def write_charts(charts: Sequence[Chart], folder: Path, kind: str) -> list[Path]:
    """Write every chart as a file of this kind: svg, png or csv; of maps a picture of each task."""
    written = []
    for i, chart in enumerate(charts):
        parts = by_task(chart) if chart.is_map and kind != "csv" else {}
        for task, one in (parts or {"": chart}).items():
            name = "-".join(filter(None, (f"{i:02}", _slug(chart.title), _slug(task))))
            content = _csv(one) if kind == "csv" else _drawn(one, kind, task)
            files.write(folder / f"{name}.{kind}", content)
            written.append(folder / f"{name}.{kind}")
    return written


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text.lower())[:60].strip("-")


def _csv(chart: Chart) -> str:
    """Return what a chart shows, in long format."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    if chart.is_map:
        dims = [*chart.labels, *chart.moving]
        places = list(itertools.product(*(axis_of(chart.array, d) for d in dims)))
        table.writerow(["task", *dims, "mean"])
        for task, one in {"all": chart, **by_task(chart)}.items():
            for place, value in zip(places, one.runs().mean("run").values.flat, strict=True):
                table.writerow([task, *place, f"{value:.6g}"])
    else:
        drawn = chart.drawn()
        table.writerow(["task", "line", drawn["x"], drawn["statistic"], *ESTIMATE[1:]])
        for panel in drawn["panels"]:
            for line in panel["lines"]:
                for label, *point in zip(drawn["labels"], *map(line.get, ESTIMATE), strict=True):
                    table.writerow([panel["task"], line["label"], label, *point])
            for level in panel["levels"]:
                table.writerow([panel["task"], level["label"], "", level["value"], "", ""])
    return out.getvalue()


def _drawn(chart: Chart, kind: str, task: str) -> bytes:
    """Return a chart as SVG or PNG."""
    figure = (_map if chart.is_map else _curves)(chart)
    figure.suptitle(f"{chart.title}: {task}" if task else chart.title, fontsize=9)
    if kind == "svg":
        return plots.to_svg(figure)
    figure.savefig(out := io.BytesIO(), dpi=200, facecolor="white")
    return out.getvalue()


@plots.styled
def _curves(chart: Chart) -> Figure:
    drawn = chart.drawn()
    x, panels = drawn["x"], drawn["panels"]
    figure = plots.panels(max(1, len(panels)))
    for axes, panel in zip(figure.axes, panels, strict=False):
        for line in panel["lines"]:
            points = {field: (x, np.array(line[field], float)) for field in ESTIMATE}
            cells = xr.Dataset(points, {x: drawn["labels"]})
            cells = cells.isel({x: line.get("places", slice(None))})
            name = line["label"] or chart.title
            plots.band(axes, cells, x, name, IDEAL if line["ideal"] else line["hue"])
        for i, level in enumerate(panel["levels"]):
            plots.level_line(axes, level["value"], level["label"], i)
        about = {"ylim": drawn["range"]} if drawn["range"] else {}
        label = "denoising step" if x == "step" else x
        axes.set(xlabel=label, ylabel=drawn["units"], title=panel["task"], **about)
    return plots.shared_legend(figure)


def _map(chart: Chart) -> Figure:
    """Draw two axes of a map, as the page opens it: the mean over all others that are numbers, of
    words the first."""
    array, dims = chart.array.drop_vars("task", errors="ignore"), [*chart.labels, *chart.moving]
    columns = "step" if "step" in dims else dims[-1]
    rows = next(d for d in ("layer", "frame", *reversed(dims)) if d in dims and d != columns)
    for dim in {*dims} - {rows, columns}:
        words = isinstance(axis_of(array, dim)[0], str)
        array = array.isel({dim: 0}) if words else array.mean(dim, keep_attrs=True)
    return plots.heat(array, columns, rows)
