"""Charts of a dataset of results, chosen by the names of its dimensions.

A variable with a `long_name` that is measured along steps, layers or frames is a chart: along one
of them curves, along several a map. Means are over runs; other dimensions are the labels of lines.
Cases that change something at one step, layer or frame each (coordinates `at_step`, `at_layer`,
`at_frame`) are spread along these. Values are read when a chart is asked for.
"""

import base64
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float

from jcos.lab.results import DENOISERS, LEVELS, REPEATS, RUNS, estimates, groups_of
from jcos.report.templates import finite

MOVING = ("step", "layer", "frame")
"""Dimensions that a chart runs along."""
PLACES = ("at_step", "at_layer", "at_frame", "strength")
"""Coordinates of cases that say where, or how strongly, each changes something."""
LINES = 8
"""Most lines of one panel; more are the rows of a map."""
MISSING = 65535
"""The code of no number in a packed map."""
CELLS, RUN_CELLS = 400_000, 200_000
"""Most numbers of a map, and of the single runs behind it; more are averaged beforehand."""
FLAT = 0.01
"""A panel whose lines all stay within this part of the range shows nothing."""


class Chart(NamedTuple):
    """A chart that can be drawn: `drawn` reads its values.

    name: of the variable. array: with the dimensions that are drawn. levels: baselines along fewer
    dimensions. moving: dimensions that it runs along, one for curves.
    """

    name: str
    title: str
    array: xr.DataArray
    levels: tuple[xr.DataArray, ...]
    moving: tuple[str, ...]

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
            "kind": "map" if self.is_map else "curves",
        }

    def drawn(self) -> dict[str, Any]:
        """Return all that the page draws."""
        return self.about() | (map_of(self) if self.is_map else curves_of(self))


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
    places = [c for c in PLACES if c in array.coords and array.coords[c].dims == ("case",)]
    if "case" not in array.dims or not places:
        yield title, array, []
        return
    where = np.stack([array.coords[c].values.astype(float) for c in places], -1)
    kinds = array.coords["kind"].values if "kind" in array.coords else [""] * len(where)
    members: dict[tuple[Any, ...], list[int]] = {}
    for i, row in enumerate(where):
        members.setdefault((str(kinds[i]), *np.isfinite(row)), []).append(i)
    apart = {key: _apart(where[cases], places) for key, cases in members.items()}
    alone = [i for key, cases in members.items() if not apart[key] for i in cases]
    moves = any(d in MOVING for d in array.dims)
    levels = []
    if alone and moves:
        yield title, array.isel(case=alone).drop_vars(places), []
    elif alone:
        levels = [array.isel(case=i).drop_vars(places) for i in alone[:3]]
    several = sum(map(bool, apart.values())) > 1
    for (kind, *_), cases in members.items():
        axes = apart[(kind, *_)]
        if not axes:
            continue
        names = {c: _axis(c, array.dims) for c in axes}
        part = _unstacked(array.isel(case=cases), names)
        if not np.isfinite(part.values).any():  # of these cases nothing is measured
            continue
        name = kind or " and ".join(names.values())
        yield f"{title}: {name}" if several or moves else title, part, levels


def _apart(where: Float[np.ndarray, "cases places"], places: Sequence[str]) -> list[str]:
    """Return the places in which cases of one kind differ."""
    return [p for p, column in zip(places, where.T, strict=True) if len(np.unique(column)) > 1]


def _axis(place: str, dims: tuple[Any, ...]) -> str:
    name = place.removeprefix("at_")
    return f"changed {name}" if name in dims else name


def _unstacked(array: xr.DataArray, names: dict[str, str]) -> xr.DataArray:
    """Return cases along the axes where they lie, nan where there is none."""
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


def curves_of(chart: Chart) -> dict[str, Any]:
    """Return panels, one for each task, of lines with their bands."""
    array, (x,) = chart.array, chart.moving
    cells = estimates(array)
    task, labels, groups = str(cells["mean"].dims[0]), chart.labels, groups_of(array)
    span = range_of(array)
    panels = []
    for name in cells[task].values.tolist():
        here = cells.sel({task: name})
        lines = []
        for spot in itertools.product(*(range(array.sizes[d]) for d in labels)):
            one = here.isel(dict(zip(labels, spot, strict=True)))
            if int(one["n"].max()):
                words = _words(array, labels, spot)
                lines.append(words | {f: listed(one[f].values) for f in ("mean", "low", "high")})
        levels = [level for one in chart.levels if (level := _level(one, groups, name))]
        n = int(here["n"].max())
        panels.append({"task": name, "n": n, "lines": lines, "levels": levels})
    panels = [panel for panel in panels if panel["lines"]]
    for panel in panels:
        panel["flat"] = _is_flat(panel, span)
    return {"x": x, "labels": axis_of(array, x), "range": span, "panels": panels}


def _words(array: xr.DataArray, labels: Sequence[str], spot: Sequence[int]) -> dict[str, Any]:
    """Return what a line is called, its colour's number, and whether it is the ideal denoiser's."""
    words, hue, ideal = [], 0, False
    for dim, i in zip(labels, spot, strict=True):
        label = axis_of(array, dim)[i]
        if dim == "denoiser":
            ideal = label == DENOISERS[1]
        else:
            hue = hue * array.sizes[dim] + i
        words.append(label if isinstance(label, str) else f"{dim} {label:g}")
    return {"label": ", ".join(words), "hue": hue, "ideal": ideal}


def _level(
    array: xr.DataArray, groups: Mapping[str, np.ndarray], name: str
) -> dict[str, Any] | None:
    """Return a baseline's height in a panel: over the runs of the panel, or of its task."""
    over = [d for d in array.dims if d in (*RUNS, *REPEATS)]
    if "task" in array.dims:
        array = array.isel(task=[*groups].index(name))
    if over and over[0] in RUNS:
        array = array.isel({over[0]: groups[name]})
    if {*array.dims} - {*over}:
        return None
    value = finite(float(mean(array.values.astype(float).ravel())))
    label = str(array.attrs.get("level") or _level_name(array))
    return None if value is None else {"label": label, "value": value}


def _level_name(array: xr.DataArray) -> str:
    if "case" in array.coords:
        return str(array.coords["case"].values)
    words = str(array.name).split("_")
    return str(array.attrs.get("long_name") or LEVELS.get(f"{words[0]}_") or " ".join(words))


def _is_flat(panel: dict[str, Any], span: Sequence[float] | None) -> bool:
    known = [v for line in panel["lines"] for v in line["mean"] if v is not None]
    size = span[1] - span[0] if span else max(map(abs, known), default=0)
    return len(panel["lines"][0]["mean"]) > 1 and max(known) - min(known) <= FLAT * size


def range_of(array: xr.DataArray) -> list[float] | None:
    """Return what values lie within, where both ends are known."""
    ends = array.attrs.get("valid_range")
    if ends is None:
        ends = [array.attrs.get(f"valid_{end}") for end in ("min", "max")]
    known = [finite(end) for end in ends]
    return None if None in known or len(known) != 2 else known  # type: ignore[return-value]


def listed(values: Any) -> list[float | None]:
    """Return numbers for JSON: four digits, None where there is no number."""
    known = map(finite, values)
    return [None if v is None else float(f"{v:.4g}") for v in known]


# ---- maps


def map_of(chart: Chart) -> dict[str, Any]:
    """Return means over runs along all axes, and the runs behind them where they are not too many.

    Numbers are packed (`pack`). Several tasks are an axis of their own, the first.
    """
    array = chart.array
    dims = [*chart.labels, *chart.moving]
    over = [str(d) for d in array.dims if d not in dims]
    values = array.transpose(*dims, *over).values.astype(np.float32)
    runs = values.reshape(*values.shape[: len(dims)], -1)
    axes = [{"name": d, "labels": axis_of(array, d)} for d in dims]
    runs, axes = fitted(runs, axes, CELLS * runs.shape[-1], drop=True)
    names, tasks = _runs(array, over)
    kinds = list(dict.fromkeys(tasks))
    means = mean(runs)
    behind, _ = fitted(runs, axes, RUN_CELLS)
    if several := len(kinds) > 1:
        means = np.stack([means, *(mean(runs[..., np.array(tasks) == kind]) for kind in kinds)])
        axes = [{"name": "task", "labels": ["all", *kinds]}, *axes]
    drawn = {"axes": axes, "values": pack(means), "names": [], "tasks": [], "runs": None}
    if behind.size <= RUN_CELLS:
        drawn |= {"names": names, "tasks": tasks if several else []}
        drawn["runs"] = pack(behind) | {"shape": behind.shape[:-1]}
    return drawn


def _runs(array: xr.DataArray, over: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return what each run is called, and its task."""
    task = array.coords.get("task")
    names, tasks = [], []
    for spot in itertools.product(*(range(array.sizes[d]) for d in over)):
        at = dict(zip(over, spot, strict=True))
        tasks.append(
            "" if task is None else str(task.isel({d: at[str(d)] for d in task.dims}).item())
        )
        names.append(", ".join(f"{d} {axis_of(array, d)[i]}" for d, i in at.items()))
    if len(set(tasks)) > 1:
        names = [f"{kind}, {name}" for kind, name in zip(tasks, names, strict=True)]
    return names, tasks


def pack(values: Float[np.ndarray, "*axes"]) -> dict[str, Any]:
    """Return numbers as `data`: 16-bit codes from `low` to `high`, row by row, low byte first, as
    base64; `MISSING` where there is no number."""
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    scale = (MISSING - 1) / (high - low) if high > low else 0.0
    codes = np.where(np.isfinite(values), np.rint((np.nan_to_num(values) - low) * scale), MISSING)
    data = base64.b64encode(codes.astype("<u2").tobytes()).decode()
    return {"low": low, "high": high, "data": data}


def fitted(
    values: Float[np.ndarray, "*axes R"], axes: list[Any], most: int, *, drop: bool = False
) -> tuple[np.ndarray, list[Any]]:
    """Return no more than so many values if possible: words are cut to their first, then numbers
    averaged, the last axes first, until two are left. Such axes have length 1 then, or none with
    `drop`."""
    words = [isinstance(axis["labels"][0], str) for axis in axes]
    order = sorted(range(len(axes)), key=lambda i: (not words[i], axes[i]["name"] == "step", -i))
    for i in order[: max(0, len(axes) - 2)]:
        if values.size <= most:
            break
        part = np.take(values, [0], i)
        values = part if words[i] else np.expand_dims(mean(np.moveaxis(values, i, -1)), i)
    if drop:
        gone = [i for i, axis in enumerate(axes) if values.shape[i] < len(axis["labels"])]
        values = values.squeeze(tuple(gone))
        axes = [axis for i, axis in enumerate(axes) if i not in gone]
    return values, axes


def mean(values: Float[np.ndarray, "*axes R"]) -> Float[np.ndarray, "*axes"]:
    """Return the mean over the last axis of what is known; nan where nothing is."""
    known = np.isfinite(values)
    count = known.sum(-1)
    total = np.where(known, values, 0).sum(-1, dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
