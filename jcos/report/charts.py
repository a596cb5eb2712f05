"""Charts of a dataset of results, chosen by the names of its dimensions.

A variable with a `long_name` that is measured along steps, layers or frames is a chart: along one
of them curves, along several a map. Means are over runs; other dimensions are the labels of lines.
Cases that change something at one step, layer or frame each (coordinates `at_step`, `at_layer`,
`at_frame`) are spread along these. Values are read when a chart is asked for.
"""

import base64
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float

from jcos.lab.results import IDEAL, LEVELS, REPEATS, RUNS, estimates, groups_of, span_of
from jcos.report.templates import finite

MOVING = ("step", "layer", "frame")
"""Dimensions that a chart runs along."""
PLACES = ("at_step", "at_layer", "at_frame", "strength")
"""Coordinates of cases that say where, or how strongly, each changes something."""
LINES = 8
"""Most lines of one panel; more are the rows of a map."""
RUN_CELLS = 400_000
"""Most numbers of the single runs behind a map; more are in the dataset alone."""
ESTIMATE = ("mean", "low", "high")
FLAT = 0.01
"""A panel whose lines all stay within this part of the range shows nothing."""


class Chart(NamedTuple):
    """A chart that can be drawn: `drawn` reads its values.

    name: of the variable. array: with the dimensions that are drawn. levels: baselines along fewer
    dimensions. moving: dimensions that it runs along, one for curves. compared: the same curves of
    several folders, each with the folder's title.
    """

    name: str
    title: str
    array: xr.DataArray
    levels: tuple[xr.DataArray, ...]
    moving: tuple[str, ...]
    compared: tuple[tuple[str, "Chart"], ...] = ()

    @property
    def is_map(self) -> bool:
        labels = [self.array.sizes[d] for d in self.labels if d != "denoiser"]
        return len(self.moving) > 1 or int(np.prod(labels)) > LINES

    @property
    def labels(self) -> list[str]:
        """Dimensions whose places are lines of their own."""
        return [str(d) for d in self.array.dims if d not in (*self.moving, *RUNS, *REPEATS)]

    def about(self) -> dict[str, Any]:
        """Return what is known without reading values."""
        attributes = self.array.attrs
        return {
            "name": self.name,
            "title": self.title,
            "units": "" if attributes.get("units") in (None, "1") else str(attributes["units"]),
            "comment": str(attributes.get("comment", "")),
            "statistic": str(attributes.get("statistic", "mean")),
            "kind": "map" if self.is_map else "curves",
        }

    def drawn(self) -> dict[str, Any]:
        """Return all that the page draws."""
        drawn = map_of(self) if self.is_map else curves_of(self.compared or [("", self)])
        return self.about() | drawn

    def runs(self) -> xr.DataArray:
        """Return the values of a map along its axes, and of all runs along a last one, `run`."""
        over = [d for d in self.array.dims if d in (*RUNS, *REPEATS)]
        numbered = self.array.assign_coords({d: axis_of(self.array, str(d)) for d in over})
        runs = numbered.astype(np.float64).stack(run=over, create_index=False)
        return runs.transpose(*self.labels, *self.moving, "run")


def charts_of(data: xr.Dataset) -> tuple[list[Chart], list[str]]:
    """Return the charts of a dataset, and a sentence for each variable that makes none but should:
    it has a title and lacks a dimension of runs."""
    charts: list[Chart] = []
    missing = []
    for name, array in data.data_vars.items():
        if "long_name" not in array.attrs or array.dtype.kind not in "bfiu":
            continue
        moves = {*MOVING} & {*array.dims} or any(c in array.coords for c in PLACES)
        if not moves:
            continue
        if not {*RUNS} & {*array.dims}:
            missing.append(
                f"{name}: it has no dimension of runs ({', '.join(map(str, array.dims))})."
            )
            continue
        named = str(array.attrs.get("ancillary_variables", "")).split()
        absent = [n for n in named if n not in data]
        missing += [f"{name}: its baseline {n} is missing." for n in absent]
        levels = [data[n] for n in named if n in data]
        for title, part, plain in spread(array):
            moving = tuple(
                d for d in (*map(str, part.dims),) if d.removeprefix("changed ") in MOVING
            )
            if moving and all(part.sizes[d] for d in part.dims):
                charts.append(Chart(str(name), title, part, (*levels, *plain), moving))
    return charts, missing


def spread(array: xr.DataArray) -> Iterator[tuple[str, xr.DataArray, list[xr.DataArray]]]:
    """Yield the parts of an array that have a chart of their own: title, values, level lines.

    Cases of one kind that differ in where they change something lie along those places. A case
    that changes nothing is a level line, or a line of its own where the array has steps itself.
    """
    title = str(array.attrs["long_name"])
    coords = {c: array.coords[c] for c in PLACES if c in array.coords}
    places = {c: v.values.astype(float) for c, v in coords.items() if v.dims == ("case",)}
    if not places:
        yield title, array, []
        return
    known = np.isfinite([*places.values()]).T.tolist()
    kinds = array.coords["kind"].values.astype(str) if "kind" in array.coords else [""] * len(known)
    members: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for i, (kind, finite_at) in enumerate(zip(kinds, known, strict=True)):
        members[(kind, *finite_at)].append(i)
    apart = {}  # by the places in which cases of one kind differ, the axes along which they lie
    for key, cases in members.items():
        differ = [c for c, at in places.items() if len(np.unique(at[cases])) > 1]
        names = [c.removeprefix("at_") for c in differ]
        names = [f"changed {name}" if name in array.dims else name for name in names]
        apart[key] = dict(zip(differ, names, strict=True))
    alone = [i for key, cases in members.items() if not apart[key] for i in cases]
    moves = any(d in MOVING for d in array.dims)
    levels = []
    if alone and moves:
        yield title, array.isel(case=alone).drop_vars(places), []
    elif alone:
        levels = [array.isel(case=i).drop_vars(places) for i in alone[:3]]
    several = sum(map(bool, apart.values())) > 1
    for key, cases in members.items():
        if not (names := apart[key]):
            continue
        part = _unstacked(array.isel(case=cases), names)
        if not np.isfinite(part.values).any():  # of these cases nothing is measured
            continue
        name = key[0] or " and ".join(names.values())
        yield f"{title}: {name}" if several or moves else title, part, levels


def compared(charts: Sequence[tuple[str, Sequence[Chart]]]) -> list[Chart]:
    """Return the charts of folders, each with its title: curves of the same measure share a chart,
    whose lines are named after the folders; maps stand one after the other."""
    shared: dict[tuple[Any, ...], list[tuple[str, Chart]]] = defaultdict(list)
    maps = []
    for title, several in charts:
        for chart in several:
            if chart.is_map:
                maps.append(chart._replace(title=f"{title}: {chart.title}"))
            else:
                shared[chart.name, chart.title, chart.moving].append((title, chart))
    return [same[0][1]._replace(compared=tuple(same)) for same in shared.values()] + maps


def _unstacked(array: xr.DataArray, names: dict[str, str]) -> xr.DataArray:
    """Return cases along the axes where they lie, nan where there is none; of several at one place
    the last."""
    at = [np.unique(array.coords[c].values, return_inverse=True) for c in names]
    values = np.moveaxis(array.values.astype(np.float32), array.dims.index("case"), 0)
    grid = np.full((*(len(v) for v, _ in at), *values.shape[1:]), np.nan, np.float32)
    grid[tuple(i for _, i in at)] = values
    rest = [d for d in array.dims if d != "case"]
    coordinates = {n: c for n, c in array.coords.items() if "case" not in c.dims and n not in names}
    coordinates |= {n: v for n, (v, _) in zip(names.values(), at, strict=True)}
    return xr.DataArray(grid, coordinates, [*names.values(), *rest], array.name, array.attrs)


def axis_of(array: xr.DataArray, dim: str) -> list[float | str]:
    """Return the labels along a dimension: words, or numbers, from 0 where there are none."""
    if dim not in array.coords:
        return list(range(array.sizes[dim]))
    return [v if isinstance(v, str) else _number(v) for v in array.coords[dim].values.tolist()]


def _number(value: float) -> float:
    return int(value) if float(value).is_integer() else float(f"{value:g}")


# ---- curves


def curves_of(charts: Sequence[tuple[str, Chart]]) -> dict[str, Any]:
    """Return panels, one for each task, of lines with their bands.

    charts: of one measure, each with the words that its lines begin with. A line that has not all
    places of the axis names those that it has (`places`).
    """
    first = charts[0][1]
    (x,), span = first.moving, range_of(first.array)
    places: list[Any] = [*dict.fromkeys(p for _, c in charts for p in axis_of(c.array, x))]
    if not any(isinstance(p, str) for p in places):
        places.sort()
    hues, panels = 0, {}
    for title, chart in charts:
        array, labels, groups = chart.array, chart.labels, groups_of(chart.array)
        mine = axis_of(array, x)
        cells = estimates(array).assign_coords({x: mine})
        cells = cells.reindex({x: places}, fill_value={"n": 0})
        at_places = {} if mine == places else {"places": [places.index(p) for p in mine]}
        for task, rows in groups.items():
            here = cells.sel({cells["mean"].dims[0]: task})
            if task not in panels:
                levels = [level for one in chart.levels if (level := _level(one, rows))]
                n = int(here["n"].max())
                panels[task] = {"task": str(task), "n": n, "lines": [], "levels": levels}
            for spot in np.ndindex(*(array.sizes[d] for d in labels)):
                at = dict(zip(labels, spot, strict=True))
                if int((one := here.isel(at))["n"].max()):
                    line, points = _words(array, at), {f: listed(one[f].values) for f in ESTIMATE}
                    label = ", ".join(filter(None, (title, line["label"])))
                    more = at_places | {"label": label, "hue": hues + line["hue"]}
                    panels[task]["lines"].append(line | points | more)
        hues = 1 + max((line["hue"] for p in panels.values() for line in p["lines"]), default=-1)
    known = [panel for panel in panels.values() if panel["lines"]]
    for panel in known:
        panel["flat"] = _is_flat(panel, span)
    return {"x": x, "labels": places, "range": span, "panels": known}


def _words(array: xr.DataArray, at: Mapping[str, int]) -> dict[str, Any]:
    """Return what a line is called, its colour's number, and whether it is the ideal denoiser's."""
    words, hue, ideal = [], 0, False
    for dim, i in at.items():
        label = axis_of(array, dim)[i]
        if dim == "denoiser":
            ideal = label == IDEAL
        else:
            hue = hue * array.sizes[dim] + i
        words.append(label if isinstance(label, str) else f"{dim} {label:g}")
    return {"label": ", ".join(words), "hue": hue, "ideal": ideal}


def _level(array: xr.DataArray, rows: np.ndarray) -> dict[str, Any] | None:
    """Return a baseline of a panel, which has these runs; None where it is no number."""
    if {*array.dims} - {*RUNS, *REPEATS}:
        return None
    here = array.isel({d: rows for d in array.dims if d in RUNS})
    value = finite(float(here.astype(float).mean()))
    return None if value is None else {"label": _level_name(array), "value": value}


def _level_name(array: xr.DataArray) -> str:
    if "case" in array.coords:
        return str(array.coords["case"].values)
    kind, _, _ = str(array.name).partition("_")
    return str(array.attrs.get("long_name") or LEVELS.get(f"{kind}_", array.name))


def _is_flat(panel: dict[str, Any], span: Sequence[float] | None) -> bool:
    known = [v for line in panel["lines"] for v in line["mean"] if v is not None]
    size = span[1] - span[0] if span else max(map(abs, known), default=0)
    return len(panel["lines"][0]["mean"]) > 1 and max(known) - min(known) <= FLAT * size


def range_of(array: xr.DataArray) -> list[float] | None:
    """Return what values lie within, where both ends are known."""
    ends = [float(end) for end in span_of(array)]
    return ends if np.isfinite(ends).all() else None


def listed(values: Any) -> list[float | None]:
    """Return numbers for JSON: four digits, None where there is no number."""
    known = map(finite, values)
    return [None if v is None else float(f"{v:.4g}") for v in known]


# ---- maps


def map_of(chart: Chart) -> dict[str, Any]:
    """Return means over runs along all axes, and the runs behind them where they are not too many.

    Several tasks are an axis of their own, the first.
    """
    runs, parts = chart.runs(), by_task(chart)
    axes = [{"name": d, "labels": axis_of(runs, str(d))} for d in runs.dims[:-1]]
    over = [str(d) for d in (*RUNS, *REPEATS) if d in chart.array.dims]
    places = zip(*(runs[d].values.tolist() for d in over), strict=True)
    names = [", ".join(f"{d} {i}" for d, i in zip(over, spot, strict=True)) for spot in places]
    tasks = runs["task"].values.astype(str).tolist() if parts else []
    means = runs.mean("run").values
    if parts:
        names = [f"{task}, {name}" for task, name in zip(tasks, names, strict=True)]
        means = np.stack([means, *(one.runs().mean("run") for one in parts.values())])
        axes = [{"name": "task", "labels": ["all", *parts]}, *axes]
    behind = pack(runs.values) if runs.size <= RUN_CELLS else None
    about = {"names": names, "tasks": tasks, "runs": behind}
    return {"axes": axes, "values": pack(means)} | about


def by_task(chart: Chart) -> dict[str, Chart]:
    """Return a chart of the runs of each task; none where there are not several tasks."""
    task = chart.array.coords.get("task")
    if task is None or not {*task.dims} & {*RUNS}:
        return {}
    (over,), names = task.dims, task.values.astype(str)
    rows = {name: np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())}
    parts = {n: chart._replace(array=chart.array.isel({over: at})) for n, at in rows.items()}
    return parts if len(parts) > 1 else {}


def pack(values: Float[np.ndarray, "*axes"]) -> str:
    """Return numbers row by row as 32-bit floats, low byte first, in base64; nan where there is
    none."""
    known = np.where(np.isfinite(values), values, np.nan)
    return base64.b64encode(known.astype("<f4").tobytes()).decode()
