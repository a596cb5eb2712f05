"""One labelled dataset per experiment: its measures, their estimates over puzzles, table and file.

Dimensions have names. Runs are counted over `RUNS`, and averaged over `REPEATS` first; all others
are what a measure depends on. A measure carries in its attributes what it means and how it is
counted (`measure`), so that tables, figures and pages need nothing else.
"""

import io
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import xarray as xr

from jcos import files
from jcos.lab.measures import SCORES, Estimate, Span, estimate, median_step

RUNS = ("puzzle", "pair", "clip", "sample")
"""Dimensions over whose places intervals are taken."""
REPEATS = ("seed", "direction", "group", "member")
"""Dimensions that a run is averaged over first."""
MODEL, IDEAL = DENOISERS = ("model", "ideal denoiser")
"""Labels of the dimension `denoiser`."""
TRUE_LABELS, SHUFFLED_LABELS = LABELS = ("true labels", "shuffled labels")
"""Labels of the dimension `labels`: what a linear probe was fitted to."""
UNSAID = {"denoiser": MODEL, "labels": TRUE_LABELS}
"""Labels that go without saying in the name of a case."""
VERSION = 1
"""Of the layout of a results file; another one is not read."""
Variable = tuple[tuple[str, ...], Any, dict[str, Any]]


class Row(NamedTuple):
    """One line of an experiment's table: a measure, where or how, its value with a 95 % interval
    over n puzzles.

    chance, still: the same of random legal answers, and of the first frame held; None where that
    has no meaning. forwards: passes through the transformer behind one value.
    """

    task: str
    measure: str
    case: str
    value: float
    low: float
    high: float
    n: int
    chance: float | None = None
    still: float | None = None
    forwards: int = 0


def measure(dims: str, values: Any, name: str, comment: str = "", **more: Any) -> Variable:
    """Return a variable of a dataset. dims: blank-separated. more: as in `described`."""
    return tuple(dims.split()), np.asarray(values), described(name, comment, **more)


def described(
    name: str,
    comment: str = "",
    *,
    units: str = "1",
    span: Span = SCORES,
    median: bool = False,
    by: str = "task",
    cluster: str | None = None,
    forwards: str = "forwards",
    tabled: bool = True,
) -> dict[str, Any]:
    """Return the attributes that describe a measure.

    name, comment: the title of its chart, and its meaning in one sentence. span: the least and the
    largest possible value. median: counted as the median of steps, not as a mean; nan is a run
    without such a step. by: coordinate along the runs whose values are estimated apart. cluster:
    coordinate along the runs whose equal values are no independent evidence. forwards: variable
    that says the passes behind a value. tabled: whether `table` lists it.
    """
    attributes = {"long_name": name, "units": units, "grouped_by": by, "forwards": forwards}
    attributes |= {"statistic": "median" if median else "mean", "tabled": int(tabled)}
    attributes |= {"comment": comment} if comment else {}
    attributes |= {"clusters": cluster} if cluster else {}
    limits = zip(("valid_min", "valid_max"), span, strict=True)
    return attributes | {key: float(end) for key, end in limits if np.isfinite(end)}


def span_of(array: xr.DataArray) -> Span:
    """Return the least and the largest possible value of a measure."""
    attributes = array.attrs
    return attributes.get("valid_min", -np.inf), attributes.get("valid_max", np.inf)


def run_dimension(array: xr.DataArray) -> str:
    """Return the dimension whose places are independent runs. Raises ValueError for none."""
    for name in RUNS:
        if name in array.dims:
            return name
    raise ValueError(f"{array.name} has no dimension of runs ({', '.join(RUNS)}): {array.dims}")


def groups_of(array: xr.DataArray) -> dict[str, np.ndarray]:
    """Return which runs belong to each value of the coordinate that a measure is grouped by, in
    order of appearance. Runs whose value is empty belong to none."""
    by, over = array.attrs.get("grouped_by", "task"), run_dimension(array)
    if by not in array.coords or array.coords[by].dims != (over,):
        return {"": np.arange(array.sizes[over])}
    names = array.coords[by].values.astype(str)
    return {name: np.flatnonzero(names == name) for name in dict.fromkeys(names) if name}


def estimates(array: xr.DataArray, *, paired_with: xr.DataArray | None = None) -> xr.Dataset:
    """Return `mean low high n` of a measure over its runs, along all its other dimensions and the
    coordinate that it is grouped by. paired_with: another measure, subtracted run by run."""
    about, span = array.attrs, span_of(array)
    if paired_with is not None:
        least, most = span_of(paired_with)
        array, span = array.astype(float) - paired_with, (span[0] - most, span[1] - least)
        array.attrs = about
    name, over = about.get("grouped_by", "task"), run_dimension(array)
    repeats = [d for d in array.dims if d in REPEATS]
    rest = [d for d in array.dims if d not in (over, *repeats)]
    shape = [array.sizes[d] for d in rest]
    values = array.transpose(over, *repeats, *rest).values.astype(np.float64)
    values = values.reshape(len(values), -1, int(np.prod(shape)))
    cluster, groups = about.get("clusters"), groups_of(array)
    same = None if cluster is None else np.unique(array[cluster].values, return_inverse=True)[1]
    cells = np.array(
        [
            _cell(array, values[rows, :, i], span, None if same is None else same[rows])
            for rows in groups.values()
            for i in range(values.shape[2])
        ]
    ).reshape(len(groups), *shape, 4)
    fields = {f: ((name, *rest), cells[..., i]) for i, f in enumerate(Estimate._fields)}
    coordinates = {d: array.coords[d] for d in rest if d in array.coords}
    data = xr.Dataset(fields, coordinates | {name: list(groups)})
    return data.assign(n=data["n"].astype(int))


def _cell(array: xr.DataArray, values: np.ndarray, span: Span, same: np.ndarray | None) -> Estimate:
    if array.attrs.get("statistic") != "median":
        return estimate(values, span, groups=same)
    steps = [row[np.isfinite(row)] for row in values]
    middle = np.array([np.median(row) for row in steps if len(row)])
    if not len(middle):
        return estimate(values, span)
    return median_step(middle, int(span[1]))


def table(data: xr.Dataset, at: Mapping[str, Sequence[Any]] | None = None) -> pd.DataFrame:
    """Return one line for every measure, group of runs and place, as `Row` has them; lines of
    nothing known are left out. at: the places of a dimension that are listed, by default all."""
    return pd.DataFrame(rows(data, at), columns=pd.Index(Row._fields))


def rows(data: xr.Dataset, at: Mapping[str, Sequence[Any]] | None = None) -> Iterator[Row]:
    """Return the lines of `table`."""
    for name, array in data.data_vars.items():
        if not array.attrs.get("tabled"):
            continue
        array = array.sel({d: list(v) for d, v in (at or {}).items() if d in array.dims})
        cells = estimates(array)
        group, *dims = cells["mean"].dims
        labels = [list(cells[d].values) for d in dims]
        title = array.attrs["long_name"]
        if array.attrs["statistic"] == "median" and "median" not in title:
            title = f"{title}, median"
        columns = [cells[field].values for field in ("mean", "low", "high", "n")]
        others = (*(f"{kind}{name}" for kind in LEVELS), array.attrs["forwards"])
        chance, still, forwards = (level(data, other, array, cells) for other in others)
        for index in np.ndindex(*columns[0].shape):
            value, low, high, n = (column[index].item() for column in columns)
            if not n:
                continue
            place = {d: names[i] for d, names, i in zip(dims, labels, index[1:], strict=True)}
            case = case_of(place)
            known = [0.0 if IDEAL in case else a[index].item() for a in (chance, still, forwards)]
            random, first = (None if IDEAL in case or np.isnan(a) else a for a in known[:2])
            task, cost = str(cells[group].values[index[0]]), int(np.nan_to_num(known[2]))
            yield Row(task, title, case, value, low, high, n, random, first, cost)


LEVELS = {"chance_": "a random legal answer", "still_": "the first frame held"}
"""Before a measure's name: variables with the same measure of a baseline."""


def level(data: xr.Dataset, name: str, array: xr.DataArray, cells: xr.Dataset) -> np.ndarray:
    """Return a variable with fewer dimensions than a measure, such as a baseline, at each of the
    measure's cells: averaged over each group of runs; nan where it is not known."""
    mean, known = cells["mean"], data.get(name)
    over = run_dimension(array)
    if known is None or not {over, *mean.dims} >= set(known.dims):
        return np.full(mean.shape, np.nan)
    if over in known.dims:
        groups = [known[{over: rows}].mean(over) for rows in groups_of(array).values()]
        known = xr.concat(groups, mean[mean.dims[0]])
    known = known.astype(float).reindex({d: mean[d] for d in known.dims if d in mean.dims})
    return known.broadcast_like(mean).transpose(*mean.dims).values


def case_of(place: Mapping[Hashable, Any]) -> str:
    """Return a place in words, the denoiser last: `step 20, layer 3, ideal denoiser`."""
    words = []
    for dim, label in sorted(place.items(), key=lambda item: item[0] == "denoiser"):
        if isinstance(label, str):
            words += [label] * (UNSAID.get(str(dim)) != label)
        else:
            words.append(f"{dim} {label:g}")
    return ", ".join(words) or (MODEL if "denoiser" in place else "")


def with_levels(data: xr.Dataset) -> xr.Dataset:
    """Return a dataset whose measures name their baselines, the variables `chance_NAME` and
    `still_NAME`, as lines of their charts."""
    for name, array in data.data_vars.items():
        levels = [f"{kind}{name}" for kind in LEVELS if f"{kind}{name}" in data]
        if levels:
            array.attrs["ancillary_variables"] = " ".join(levels)
    return data


Labelled = TypeVar("Labelled", xr.Dataset, xr.DataArray)


def of_kind(data: Labelled, kinds: str | Sequence[str], *along: str) -> Labelled:
    """Return the cases whose coordinate `kind` is one of these. along: coordinates of `case` that
    become dimensions in its place."""
    cases = data.isel(case=np.flatnonzero(np.isin(np.asarray(data.coords["kind"]), kinds)))
    if not along:
        return cases
    labels = [name for name, c in cases.coords.items() if "case" in c.dims and name not in along]
    cases = cases.drop_vars(labels)
    if len(along) == 1:
        return cases.swap_dims(case=along[0])
    return cases.set_index(case=list(along)).unstack("case")


def save(
    data: xr.Dataset, path: Path, chunks: Mapping[Hashable, tuple[int, ...]] | None = None
) -> None:
    """Write a dataset as one NetCDF file, whole or not at all. chunks: shapes of the pieces in
    which variables are read, by name."""
    packed: dict[Hashable, Any] = {
        name: {"zlib": True, "complevel": 4} for name, v in data.data_vars.items() if v.size > 1000
    }
    for name, shape in (chunks or {}).items():
        packed[name] = {"zlib": True, "complevel": 1, "shuffle": True, "chunksizes": shape}
    marked = data.assign_attrs(jcos_results=VERSION)
    out = io.BytesIO(marked.to_netcdf(engine="h5netcdf", encoding=packed))
    files.write(path, out.getvalue())


def load(path: Path, experiment: str | None = None) -> xr.Dataset:
    """Return a dataset that `save` wrote; its variables are read when they are used.

    Raises ValueError for a file that is damaged, of another version, or of another experiment.
    """
    try:
        if files.is_remote(path):  # all of it, once
            data = xr.load_dataset(io.BytesIO(path.read_bytes()), engine="h5netcdf")
        else:
            data = xr.open_dataset(path, engine="h5netcdf")
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except (OSError, ValueError, KeyError) as error:
        why = str(error).partition("\n")[0]
        raise ValueError(f"{path} is no whole file of results ({why}); make it again") from None
    version, made_by = (data.attrs.get(name) for name in ("jcos_results", "experiment"))
    if version == VERSION and experiment in (None, made_by):
        return data
    data.close()
    if version != VERSION:
        raise ValueError(f"{path} has layout {version}, not {VERSION}: make the results again")
    raise ValueError(f"{path} holds results of {made_by}, not of {experiment}")
