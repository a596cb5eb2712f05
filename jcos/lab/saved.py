"""A search under way, on the disk: one that was killed goes on after its last step."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as as_bytes

from jcos import loop
from jcos.files import write
from jcos.lab.outcome import Generation, as_json
from jcos.sampling.trajectory import Condition

if TYPE_CHECKING:
    from jcos.lab.search import _Run

ABOUT, STATE, GIVEN = "search.json", "search-state-{}.safetensors", "search-given-{}.safetensors"
"""Where it is; the particles, and the frames that were given, each in two files in turn."""
RECORDED = "search-recorded-{}.safetensors"
"""The estimates that were judged in a row."""
PROMPT = ("context", "grid", "negative")
"""What no restart changes in a condition."""
CONDITION = tuple(f.name for f in dataclasses.fields(Condition) if f.name not in PROMPT)
KINDS = {"seeds": object, "scores": float, "log_weights": float, "parents": int, "alive": bool}
"""Of the arrays of a generation."""
At = tuple[loop.State, int, np.ndarray | None]
"""The state, the number of the row that comes next, its scores if it is asked for fresh seeds."""


def save(
    folder: Path, run: "_Run", state: loop.State, number: int, scores: np.ndarray | None
) -> None:
    """Write all that the search needs to go on; the last file that is written makes it hold."""
    people, turn = run.population, 1 - _read(folder).get("turn", 1)
    state.save(folder / STATE.format(turn))
    given = {name: getattr(run.conditions, name) for name in CONDITION}
    given |= {f"clip-{i}": clip for i, clip in enumerate(run.clips)}
    if _restarted(run, number):
        arrays = {name: np.ascontiguousarray(a) for name, a in given.items() if a is not None}
        write(folder / GIVEN.format(turn), as_bytes(arrays))
    about = {
        "search": _identity(run),
        "turn": turn,
        "row": number,
        "scores": None if scores is None else scores.tolist(),
        "people": {n: a.tolist() for n, a in vars(people).items() if isinstance(a, np.ndarray)},
        "rngs": [rng.bit_generator.state for rng in people.rngs],
        "counts": run.counts.tolist(),
        "tree": [as_json(generation) for generation in run.tree],
        "shared": run.shared,
    }
    write(folder / ABOUT, json.dumps(about))


def record(folder: Path, run: "_Run") -> None:
    """Write the estimates of the last row, if they are recorded."""
    if (x0 := run.tree[-1].x0) is not None:
        write(folder / RECORDED.format(len(run.tree) - 1), as_bytes({"x0": x0}))


def load(folder: Path, run: "_Run") -> At | None:
    """Return where a search was; None where nothing is kept. Raises ValueError where what is kept
    is damaged, or of another search."""
    if not (about := _read(folder)):
        return None
    if "search" not in about:
        raise ValueError(f"{folder / ABOUT} is of an older jcos; remove it: the search begins anew")
    if about["search"] != _identity(run):
        raise ValueError(
            f"{folder / ABOUT} is of another search; remove it, or keep this one elsewhere"
        )
    people, given = run.population, folder / GIVEN.format(about["turn"])
    for name, values in about["people"].items():
        setattr(people, name, np.array(values, getattr(people, name).dtype))
    for rng, state in zip(people.rngs, about["rngs"], strict=True):
        rng.bit_generator.state = state
    run.counts, run.shared = np.array(about["counts"]), about["shared"]
    for row, each in enumerate(about["tree"]):
        arrays = {name: np.array(each[name], kind) for name, kind in KINDS.items()}
        if run.record:
            arrays |= from_bytes((folder / RECORDED.format(row)).read_bytes())
        run.tree.append(Generation(each["step"], each["judge"], **arrays))
    if _restarted(run, about["row"]):
        arrays = from_bytes(given.read_bytes())
        run.clips = [arrays.pop(f"clip-{i}") for i in range(len(run.shared))]
        run.conditions = run.conditions.replace(**{n: jnp.asarray(a) for n, a in arrays.items()})
    state = run.runs(start=folder / STATE.format(about["turn"])).state
    assert state is not None
    scores = None if about["scores"] is None else np.array(about["scores"], float)
    return state, about["row"], scores


def remove(folder: Path) -> None:
    """Remove what is kept of a search."""
    for name in (ABOUT, STATE.format("*"), GIVEN.format("*"), RECORDED.format("*")):
        for file in folder.glob(name):
            file.unlink()


def _restarted(run: "_Run", number: int) -> bool:
    """Return whether a row before this one has given frames."""
    return any(row.copy in ("prefix", "chain") for row in run.method.rows[:number])


def _identity(run: "_Run") -> list[Any]:
    """Return what parts this search from others of the same model, condition and sampling."""
    judges = {name: judge.identity for name, judge in run.judges.items()}
    return [repr(run.method), run.first, run.noise, repr(run.record), judges]


def _read(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / ABOUT).read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        file = folder / ABOUT
        raise ValueError(f"{file} is damaged; remove it, and the search begins anew") from None
