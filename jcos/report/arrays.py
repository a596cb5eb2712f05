"""What arrays of an experiment say along the denoising steps: curves, and heat maps of steps.

Two layouts are known, by which the experiments keep their numbers. Arrays [puzzles, seeds, steps]
are curves, one for each task. Readings [cases, puzzles, seeds], beside arrays `step` and `layer` or
`frame` of one number for each case (−1: all of them), are curves or heat maps of the cases.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Shaped

from jcos.measures import over_puzzles
from jcos.report.markup import finite
from jcos.report.plane import Heat, Line

MANY = 60_000
"""Values of single runs behind a heat map; of larger ones the means alone are shown."""
AXES = ("layer", "frame")


class Trends(NamedTuple):
    lines: list[Line]
    heats: list[Heat]


def trends(arrays: Mapping[str, Shaped[np.ndarray, "..."]], manifest: Mapping[str, Any]) -> Trends:
    """All curves and heat maps that the arrays hold."""
    found = Trends([], [])
    steps = int((manifest.get("sampling") or {}).get("steps") or 0)
    if "puzzles" in manifest or not steps:  # of `jcos sample`, whose arrays are runs
        return found
    task = arrays.get("task")
    at = arrays.get("step")
    for name, values in arrays.items():
        if values.dtype.kind not in "fb" or values.ndim < 2:
            continue
        if at is not None and len(values) == len(at) and values.ndim == 3:
            _add_cases(found, arrays, name.replace("_", " "), values)
        elif values.ndim == 3 and values.shape[-1] == steps:
            found.lines.extend(_courses(name.replace("_", " "), values, task))
    return found


def _courses(
    name: str, values: Shaped[np.ndarray, "P K S"], task: Shaped[np.ndarray, " P"] | None
) -> Iterator[Line]:
    """A curve for each task, with its intervals over puzzles."""
    if task is None or len(task) != len(values):
        task = np.full(len(values), name)
    for one in dict.fromkeys(task.tolist()):
        columns = np.moveaxis(values[task == one], 2, 0)
        yield _line(name, str(one), range(values.shape[2]), list(columns))


def _line(chart: str, label: str, steps: Any, columns: list[np.ndarray]) -> Line:
    """Means of values [P, K] at each step, with intervals over the puzzles that have a number."""
    points = []
    for column in columns:
        known = column[np.isfinite(column).all(1)]
        points.append(over_puzzles(known) if len(known) else (None, None, None))
    mean, low, high = ([_short(p[i]) for p in points] for i in range(3))
    return Line(chart, label, list(steps), mean, low, high)


def _add_cases(
    found: Trends, arrays: Mapping[str, np.ndarray], name: str, values: Shaped[np.ndarray, "Q P K"]
) -> None:
    """The cases of each kind: a heat map where they lie on a plane, a curve where on a line."""
    for kind, cases in _kinds(arrays, len(values)):
        step = arrays["step"][cases]
        if len(set(step[step >= 0].tolist())) < 2:
            continue
        told = f"{name} ({kind})" if kind else name
        rows_are = next(
            (a for a in AXES if a in arrays and len(set(arrays[a][cases].tolist())) > 1), None
        )
        if rows_are is None:
            cases = cases[np.argsort(step, kind="stable")]
            columns = [values[i] for i in cases]
            found.lines.append(_line(told, told, arrays["step"][cases].tolist(), columns))
        else:
            found.heats.append(_heat(told, rows_are, step, arrays[rows_are][cases], values[cases]))


def _kinds(arrays: Mapping[str, np.ndarray], cases: int) -> Iterator[tuple[str, np.ndarray]]:
    kind = arrays.get("kind", np.full(cases, ""))
    own = arrays.get("own", np.zeros(cases, bool))
    for name in dict.fromkeys(kind.tolist()):
        for flag in (False, True):
            here = np.flatnonzero((kind == name) & (own == flag))
            if len(here):
                yield f"{name}, at its own level" if flag else name, here


def _heat(
    title: str,
    rows_are: str,
    step: Int[np.ndarray, " Q"],
    row: Int[np.ndarray, " Q"],
    values: Shaped[np.ndarray, "Q P K"],
) -> Heat:
    steps, rows = sorted({*step.tolist()} - {-1}), sorted({*row.tolist()} - {-1})
    case = {(r, s): i for i, (r, s) in enumerate(zip(row.tolist(), step.tolist(), strict=True))}
    grid: list[list[float | None]] = []
    behind: list[list[list[float | None]]] = []
    for r in rows:
        runs = [values[case[r, s]].ravel() if (r, s) in case else np.zeros(0) for s in steps]
        grid.append([_short(_mean(a)) for a in runs])
        behind.append([[_short(v) for v in a.tolist()] for a in runs])
    puzzles, seeds = values.shape[1:]
    names = [f"puzzle {p}, seed {k}" for p in range(puzzles) for k in range(seeds)]
    few = values.size <= MANY
    return Heat(title, rows_are, rows, steps, grid, behind if few else None, names if few else ())


def _mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)] if values.size else values
    return float(known.mean()) if known.size else None


def _short(value: Any) -> float | None:
    known = finite(value)
    return None if known is None else float(f"{known:.3g}")
