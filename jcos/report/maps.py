"""Values along two and more axes as the page has them: a map, which its reader turns and cuts.

Numbers are packed: 16 bits for each, evenly between the lowest and the highest, as base64.
"""

import base64
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

MISSING = 65535
"""The code of no number."""
CELLS = 400_000
"""Most numbers of a map; of a larger one some axes are averaged (or cut) beforehand."""
RUNS = 200_000
"""Most values of single runs behind a map; of larger ones those of fewer axes."""


class Axis(NamedTuple):
    """labels: numbers, of which a mean may be taken, or words, of which one is chosen."""

    name: str
    labels: Sequence[float | str]

    @property
    def numbered(self) -> bool:
        return not isinstance(self.labels[0], str)


class Map(NamedTuple):
    """Means over runs along axes, and the runs behind each: an axis that was too much for them has
    length 1 there. names: of the runs. tasks: of each run, where there are several; the first axis
    is then that of tasks."""

    title: str
    axes: Sequence[Axis]
    values: Float[np.ndarray, "*axes"]
    runs: Float[np.ndarray, "*axes R"] | None = None
    names: Sequence[str] = ()
    tasks: Sequence[str] = ()

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        runs = None
        if self.runs is not None:
            runs = pack(self.runs) | {"shape": self.runs.shape[:-1]}
        return {
            "title": self.title,
            "axes": [axis._asdict() for axis in self.axes],
            "values": pack(self.values),
            "runs": runs
            and runs | {"shape": self.runs.shape[:-1] if self.runs is not None else ()},
            "names": self.names,
            "tasks": self.tasks,
        }


def pack(values: Float[np.ndarray, "*axes"]) -> dict[str, Any]:
    """`data`: codes from `low` to `high`, row by row, low byte first; `MISSING` where there is no
    number."""
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    scale = (MISSING - 1) / (high - low) if high > low else 0.0
    codes = np.where(np.isfinite(values), np.rint((np.nan_to_num(values) - low) * scale), MISSING)
    data = base64.b64encode(codes.astype("<u2").tobytes()).decode()
    return {"low": low, "high": high, "data": data}


def unpack(packed: dict[str, Any]) -> Float[np.ndarray, " n"]:
    """What the page makes of it."""
    codes = np.frombuffer(base64.b64decode(packed["data"]), "<u2").astype(np.float64)
    step = (packed["high"] - packed["low"]) / (MISSING - 1)
    return np.where(codes == MISSING, np.nan, packed["low"] + codes * step)


def of_runs(
    title: str,
    axes: Sequence[Axis],
    runs: Float[np.ndarray, "*axes R"],
    names: Sequence[str],
    tasks: Sequence[str] = (),
) -> Map:
    """The map of single runs. tasks: of each of them; several make an axis of their own."""
    runs = np.asarray(runs, np.float32)
    kinds = list(dict.fromkeys(tasks))
    runs, axes = fitted(runs, axes, CELLS * runs.shape[-1], drop=True)
    values = mean(runs)
    if len(kinds) > 1:
        own = [mean(runs[..., np.array(tasks) == kind]) for kind in kinds]
        values = np.stack([values, *own])
    behind, _ = fitted(runs, axes, RUNS)
    whole = [Axis("task", ["all", *kinds]), *axes] if len(kinds) > 1 else list(axes)
    kept = behind if behind.size <= RUNS else None
    several = tasks if len(kinds) > 1 else ()
    return Map(title, whole, values, kept, names if kept is not None else (), several)


def fitted(
    values: Float[np.ndarray, "*axes R"], axes: Sequence[Axis], most: int, *, drop: bool = False
) -> tuple[np.ndarray, list[Axis]]:
    """No more than so many values if possible: words are cut to their first, then numbers averaged,
    the last axes first, until two are left. Such axes have length 1 then, or none with `drop`."""
    axes = list(axes)
    order = sorted(range(len(axes)), key=lambda i: (axes[i].numbered, axes[i].name == "step", -i))
    for i in order[: max(0, len(axes) - 2)]:
        if values.size <= most:
            break
        if axes[i].numbered:
            values = np.moveaxis(mean(np.moveaxis(values, i, -1))[None], 0, i)
        else:
            values = np.take(values, [0], i)
    if drop:
        gone = [i for i, axis in enumerate(axes) if values.shape[i] < len(axis.labels)]
        values = values.squeeze(tuple(gone))
        axes = [axis for i, axis in enumerate(axes) if i not in gone]
    return values, axes


def mean(values: Float[np.ndarray, "*axes R"]) -> Float[np.ndarray, "*axes"]:
    """Over the last axis, of what is known; nan where nothing is."""
    known = np.isfinite(values)
    count = known.sum(-1)
    total = np.where(known, values, 0).sum(-1, dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
