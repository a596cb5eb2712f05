"""Results for talks and papers, without a browser: charts, the step × frame plane, and the clean
estimates along the steps as films."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import UInt8
from matplotlib.figure import Figure

from jcos import files
from jcos.experiments import plots
from jcos.lab.results import load, span_of, table
from jcos.media import formats
from jcos.report.charts import ESTIMATE, Chart, axis_of, by_task
from jcos.report.explorer import most_telling
from jcos.report.plane import CELL, GAP, Plane
from jcos.report.reading import DATASET, Results

IDEAL = 7
"""The grey of `plots.COLOURS`."""
SIDE, WIDE = 160, 3840
"""About how many pixels a frame of a film is wide, and how wide a film is at most: more frames go
on below."""
FPS = 8


def plane_of(results: Results, run: int | None = None) -> Plane:
    """Return a run of a folder with its pictures, the most telling one by default. Raises
    IndexError where there is no such run, ValueError where there is none."""
    runs = results.runs
    if not runs:
        hint = "give --svg or --csv" if results.charts else "its videos are files there already"
        raise ValueError(f"{results.folder} holds no runs to look into; {hint}")
    if run is not None and not 0 <= run < len(runs):
        raise IndexError(f"run {run} is asked for; {results.folder} has {len(runs)}, from 0")
    return runs[most_telling(runs) if run is None else run].load()


# ---- runs


def steps_film(plane: Plane, frame: int | None = None) -> UInt8[np.ndarray, "S H W 3"]:
    """Return the clean estimates along the steps as a film, the final video beside them.

    frame: the one that is shown, −1 the last; all of them by default, the final video below.
    Raises IndexError where there is no such frame.
    """
    total, side = plane.x0.shape[1], plane.x0.shape[3]
    if frame is not None and not -total <= frame < total:
        raise IndexError(f"frame {frame} is asked for; the run has {total}, from 0")
    end = plane.x0[-1] if plane.video is None else plane.video
    scale = formats.factor_for(side, CELL if frame is None else SIDE)
    columns = min(total, max(1, WIDE // (scale * side + GAP)))
    room = ((0, 0), (0, -total % columns), (0, 0), (0, 0), (0, 0))
    film = []
    for x0 in plane.x0:
        both = np.stack([x0, end])
        if frame is None:
            rows = np.pad(both, room, constant_values=255).reshape(-1, columns, *x0.shape[1:])
        else:
            rows = both[None, :, frame]
        sheet = formats.contact_sheet(rows, scale=scale, gap=GAP)
        film.append(np.where(sheet[..., 3:], sheet[..., :3], 255))
    video = np.stack(film)
    return video[:, : video.shape[1] // 2 * 2, : video.shape[2] // 2 * 2]


def write_run(plane: Plane, file: Path, frame: int | None = None) -> None:
    """Write `steps_film` as an MP4 or a GIF, or `Plane.grid`, by the file's name."""
    if file.suffix == ".png":
        files.write(file, plane.grid())
    elif file.suffix == ".gif":
        files.write(file, formats.gif(steps_film(plane, frame), frame_ms=1000 // FPS))
    else:
        formats.write_mp4(file, steps_film(plane, frame), FPS)


# ---- charts


def write_charts(charts: Sequence[Chart], folder: Path, kind: str) -> list[Path]:
    """Write every chart as a file of this kind: svg, png or csv."""
    written = []
    for i, chart in enumerate(charts):
        written.append(folder / f"{i:02}-{_slug(chart.title)}.{kind}")
        files.write(written[-1], _csv(chart) if kind == "csv" else _drawn(chart, kind))
    return written


def write_others(results: Results, folder: Path, kind: str) -> list[Path]:
    """Write the measures that are no chart: dots with their intervals, or their lines of the
    table."""
    file, known = results.folder / DATASET, {chart.name for chart in results.charts}
    data = load(file, results.manifest.get("experiment")) if file.is_file() else xr.Dataset()
    listed = [a for name, a in data.items() if a.attrs.get("tabled") and name not in known]
    written = []
    for i, array in enumerate(listed, len(results.charts)):
        title, zero = array.attrs["long_name"], bool(span_of(array)[0] < 0)
        levels = array.attrs.get("ancillary_variables", "").split()
        about = {array.name, array.attrs["forwards"], *levels} & {*data}
        if kind == "csv":
            content: Any = table(data[sorted(about)]).to_csv(index=False, lineterminator="\n")
        else:
            content = _file(plots.paired(array, title, zero=zero), kind)
        written.append(folder / f"{i:02}-{_slug(title)}.{kind}")
        files.write(written[-1], content)
    return written


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text.lower())[:60].strip("-")


def _csv(chart: Chart) -> str:
    """Return what a chart shows, in long format."""
    if chart.is_map:
        means = {
            task: one.runs().mean("run").to_dataframe("mean")[["mean"]]
            for task, one in {"all": chart, **by_task(chart)}.items()
        }
        return pd.concat(means, names=["task"]).to_csv(float_format="%.6g", na_rep="nan")
    out = io.StringIO()
    lines, drawn = csv.writer(out, lineterminator="\n"), chart.drawn()
    lines.writerow(["task", "line", drawn["x"], drawn["statistic"], *ESTIMATE[1:]])
    for panel in drawn["panels"]:
        for line in panel["lines"]:
            for label, *point in zip(drawn["labels"], *map(line.get, ESTIMATE), strict=True):
                lines.writerow([panel["task"], line["label"], label, *point])
        for level in panel["levels"]:
            lines.writerow([panel["task"], level["label"], "", level["value"], "", ""])
    return out.getvalue()


def _drawn(chart: Chart, kind: str) -> bytes:
    """Return a picture of a chart as SVG or PNG."""
    figure = (_map if chart.is_map else _curves)(chart)
    figure.suptitle(chart.title, fontsize=9)
    return _file(figure, kind)


def _file(figure: Figure, kind: str) -> bytes:
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
    words the first. Each task has a panel."""
    array, dims = chart.array, [*chart.labels, *chart.moving]
    columns = "step" if "step" in dims else dims[-1]
    rows = next(d for d in ("layer", "frame", *reversed(dims)) if d in dims and d != columns)
    for dim in {*dims} - {rows, columns}:
        words = isinstance(axis_of(array, dim)[0], str)
        array = array.isel({dim: 0}) if words else array.mean(dim, keep_attrs=True)
    return plots.heat(array, columns, rows)
