"""What arrays of an experiment say along the denoising steps: curves, and maps of more axes.

Read are the arrays whose axes are named: by the experiment (`Experiment.axes`, which `config.json`
holds), or by their form: [puzzles, seeds, steps], and [cases, puzzles, seeds] beside an array
`step` of one number for each case. Axes of runs are averaged, and cases are spread over the steps,
layers and frames at which they change something (−1: at none).
"""

import fnmatch
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from jcos.lab.measures import GAINS, SCORES, UNBOUNDED, Span, estimate
from jcos.report.maps import Axis, Map, of_runs
from jcos.report.markup import finite
from jcos.report.plane import Line

RUN_AXES = ("puzzle", "pair", "clip", "direction", "seed")
PLACES = ("step", "layer", "frame")
DEGREES = ("strength",)
"""What cases of one kind may differ in besides."""
WORDS = {"own": "at its own level"}
"""What a case is called that an array of yes and no says something of."""
Arrays = Mapping[str, Shaped[np.ndarray, "..."]]


class Trends(NamedTuple):
    lines: list[Line]
    maps: list[Map]


class Field(NamedTuple):
    """An array with named axes; labels of those that do not count from 0."""

    name: str
    values: Shaped[np.ndarray, "..."]
    axes: tuple[str, ...]
    labels: Mapping[str, Sequence[float | str]]
    tasks: Sequence[str] = ()

    def axis(self, name: str) -> Axis:
        size = self.values.shape[self.axes.index(name)]
        return Axis(name, self.labels.get(name, range(size)))


def trends(
    arrays: Arrays, manifest: Mapping[str, Any], tell: Callable[[str], None] = lambda _: None
) -> Trends:
    """All curves and maps that the arrays hold; `tell` hears of arrays that are not as declared."""
    found = Trends([], [])
    steps = int((manifest.get("sampling") or {}).get("steps") or 0)
    if "puzzles" in manifest or not steps:  # of `jcos sample`, whose arrays are runs
        return found
    told = dict(manifest.get("axes") or {})
    fields = [*declared(arrays, told, tell), *implied(arrays, told, steps)]
    for field in fields:
        for part in spread(field, arrays, told) if "case" in field.axes else [field]:
            _draw(found, part, cases=part is not field)
    return found


def declared(
    arrays: Arrays, told: Mapping[str, str], tell: Callable[[str], None]
) -> Iterator[Field]:
    """`"*_energy": "puzzle seed step@looked layer: token energy"`: axes and title of all arrays of
    such a name, one task after the other; the numbers of the steps are in the array `looked`."""
    for pattern, line in told.items():
        words, _, title = line.partition(": ")
        names = fnmatch.filter(arrays, pattern)
        axes, _, sources = zip(*(word.partition("@") for word in words.split()), strict=True)
        if len(axes) < 2 or not names:
            continue
        wrong = [n for n in names if not _fits(arrays[n], len(axes))]
        if wrong:
            tell(f"{wrong[0]}: its axes are to be {words}, its shape is {arrays[wrong[0]].shape}.")
            continue
        labels: dict[str, list[Any]] = {}
        for axis, source, size in zip(axes, sources, arrays[names[0]].shape, strict=True):
            numbers = arrays.get(source or (axis if told.get(axis) == axis else ""))
            if numbers is not None and numbers.shape == (size,):
                labels[axis] = numbers.tolist()
        first = next((i for i, axis in enumerate(axes) if axis in RUN_AXES), 0)
        values = np.concatenate([arrays[name] for name in names], first)
        if "*" in pattern:
            sizes = {_matched(name, pattern): arrays[name].shape[first] for name in names}
            labels[axes[first]] = [i for size in sizes.values() for i in range(size)]
            tasks = [task for task, size in sizes.items() for _ in range(size)]
        else:
            along = next((n for n, words in told.items() if words == axes[first]), "")
            tasks = _tasks(arrays, along, values.shape[first])
        yield Field(title or pattern.replace("*", "").strip("_"), values, axes, labels, tasks)


def _matched(name: str, pattern: str) -> str:
    """What `*` stands for."""
    before, _, after = pattern.partition("*")
    return name.removeprefix(before).removesuffix(after)


def _fits(values: Shaped[np.ndarray, "..."], axes: int) -> bool:
    return values.ndim == axes and values.dtype.kind in "fb"


def implied(arrays: Arrays, told: Mapping[str, str], steps: int) -> Iterator[Field]:
    """Arrays that nobody declared, by their form."""
    at = arrays.get("step")
    for name, values in arrays.items():
        known = any(fnmatch.fnmatch(name, pattern) for pattern in told)
        if known or not _fits(values, 3):
            continue
        if at is not None and len(values) == len(at):
            yield Field(name, values, ("case", "puzzle", "seed"), {})
        elif values.shape[-1] == steps:
            tasks = _tasks(arrays, "task", len(values))
            yield Field(name, values, ("puzzle", "seed", "step"), {}, tasks)


def _tasks(arrays: Arrays, name: str, size: int) -> list[str]:
    """What each run is of, in the words of an array along its axis."""
    found = arrays.get(name)
    return [] if found is None or found.shape != (size,) else [str(t) for t in found.tolist()]


def spread(field: Field, arrays: Arrays, told: Mapping[str, str]) -> Iterator[Field]:
    """The cases of each kind over the places where they change something."""
    at = field.axes.index("case")
    values = np.moveaxis(field.values, at, 0).astype(np.float32)
    rest = field.axes[:at] + field.axes[at + 1 :]
    known = {n: a for n, a in arrays.items() if a.shape == (len(values),)}
    coordinates = {n: known[n] for n in (*PLACES, *DEGREES) if n in known}
    for kind, places, cases in _kinds(known, told, coordinates, len(values)):
        numbers = {p: coordinates[p][cases] for p in places}
        spots = {p: sorted(set(numbers[p].tolist())) for p in places}
        on_plane = "step" in (*places, *rest) or len(places) > 1
        if not on_plane or all(len(s) == 1 for s in spots.values()):
            continue
        grid = np.full((*map(len, spots.values()), *values.shape[1:]), np.nan, np.float32)
        grid[tuple(np.searchsorted(spots[p], numbers[p]) for p in places)] = values[cases]
        named = {p: f"changed {p}" if "step" in rest else p for p in places}
        if not kind and "step" in rest:
            kind = " and ".join(named.values())
        labels = {named[p]: spots[p] for p in places} | dict(field.labels)
        name = f"{field.name} ({kind})" if kind else field.name
        yield Field(name, grid, (*named.values(), *rest), labels, field.tasks)


def _kinds(
    arrays: Arrays, told: Mapping[str, str], coordinates: Arrays, count: int
) -> Iterator[tuple[str, list[str], np.ndarray]]:
    """Cases of one kind and the same sort of place: the kind, the places, the cases' numbers."""
    names = [n for n, words in told.items() if words == "case" and n not in coordinates]
    names = [n for n in names or ("kind", "own") if n in arrays]
    members: dict[tuple[Any, ...], list[int]] = {}
    for i in range(count):
        there = tuple(bool(c[i] >= 0) for c in coordinates.values())
        members.setdefault((*(arrays[n][i].item() for n in names), *there), []).append(i)
    for key, cases in members.items():
        words = [
            WORDS.get(name, name) if value is True else value
            for name, value in zip(names, key[: len(names)], strict=True)
            if value is not False and value != ""
        ]
        there = list(itertools.compress(coordinates, key[len(names) :]))
        there = [p for p in there if p in PLACES or len(np.unique(coordinates[p][cases])) > 1]
        yield ", ".join(map(str, words)), there, np.array(cases)


def _draw(found: Trends, field: Field, *, cases: bool) -> None:
    """A curve where there is nothing but steps (of each task, unless cases are compared); else a
    map."""
    places = [a for a in field.axes if a not in RUN_AXES]
    runs = [a for a in field.axes if a in RUN_AXES]
    values = np.transpose(field.values, [field.axes.index(a) for a in (*places, *runs)])
    title = field.name.replace("_", " ")
    if not places or not runs:
        return
    if places == ["step"]:
        steps, columns = field.axis("step").labels, values.reshape(*values.shape[:2], -1)
        tasks = [] if cases else list(dict.fromkeys(field.tasks))
        for task in tasks or [title]:
            mine = [t == task for t in field.tasks] if tasks else slice(None)
            found.lines.append(_line(title, task, steps, [column[mine] for column in columns]))
    elif "step" in places or len(places) > 1:
        names, tasks = _names(field, runs)
        flat = values.reshape(*values.shape[: len(places)], -1)
        axes = [field.axis(a) for a in places]
        found.maps.append(of_runs(title, axes, flat, names, tasks))


def _names(field: Field, runs: Sequence[str]) -> tuple[list[str], list[str]]:
    """What each run is called, and its task."""
    names, tasks = [], []
    several = len(set(field.tasks)) > 1
    for spot in itertools.product(*(enumerate(field.axis(a).labels) for a in runs)):
        told = ", ".join(f"{axis} {label}" for axis, (_, label) in zip(runs, spot, strict=True))
        task = field.tasks[spot[0][0]] if field.tasks else ""
        tasks.append(task)
        names.append(f"{task}, {told}" if several else told)
    return names, tasks


def _line(chart: str, label: str, steps: Sequence[Any], columns: list[np.ndarray]) -> Line:
    """Means of values [P, K] at each step, with intervals over the puzzles that have a number."""
    span = span_of(columns)
    points = [estimate(column, span) for column in columns]
    mean, low, high = ([_short(p[i]) for p in points] for i in range(3))
    return Line(chart, label, list(steps), mean, low, high)


def span_of(columns: Sequence[Shaped[np.ndarray, "P K"]]) -> Span:
    """What the values seem to lie within: 0..1, −1..1 or no bounds."""
    known = np.concatenate([column[np.isfinite(column)] for column in columns])
    for low, high in (SCORES, GAINS):
        if ((known >= low) & (known <= high)).all():
            return low, high
    return UNBOUNDED


def _short(value: Any) -> float | None:
    known = finite(value)
    return None if known is None else float(f"{known:.3g}")
