"""A search under way, in one file: one that was killed goes on after its last step."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as from_bytes

from jcos import loop
from jcos.lab.outcome import Generation, as_json
from jcos.sampling.trajectory import Condition

if TYPE_CHECKING:
    from jcos.lab.search import _Run

FILE = "search.safetensors"
"""A state of the loop (`State.save`), and beside it what else the search needs to go on."""
PROMPT = ("context", "grid", "negative")
"""What no restart changes in a condition."""
GIVEN = tuple(f.name for f in dataclasses.fields(Condition) if f.name not in PROMPT)
KINDS = {"seeds": object, "scores": float, "log_weights": float, "parents": int, "alive": bool}
"""Of the arrays of a generation."""
At = tuple[loop.State, int, np.ndarray | None]
"""The state, the number of the row that comes next, its scores if it is asked for fresh seeds."""


def save(
    folder: Path, run: "_Run", state: loop.State, number: int, scores: np.ndarray | None
) -> None:
    """Write all that the search needs to go on."""
    people, given = run.population, {}
    if any(row.copy in ("prefix", "chain") for row in run.method.rows[:number]):
        given = {f"given.{name}": getattr(run.conditions, name) for name in GIVEN}
    known = {f"people.{n}": a for n, a in vars(people).items() if isinstance(a, np.ndarray)}
    known |= {f"clip.{i}": clip for i, clip in enumerate(run.clips)}
    known |= {f"x0.{i}": made.x0 for i, made in enumerate(run.tree)}
    known |= given | {"counts": run.counts, "scores": scores}
    about = {
        "search": _identity(run),
        "row": number,
        "rngs": [rng.bit_generator.state for rng in people.rngs],
        "tree": [as_json(generation) for generation in run.tree],
    }
    known["search"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    state.save(folder / FILE, {name: a for name, a in known.items() if a is not None})


def load(folder: Path, run: "_Run") -> At | None:
    """Return where a search was; None where nothing is kept. Raises ValueError where what is kept
    is damaged, or of another search."""
    file = folder / FILE
    try:
        arrays = from_bytes(file.read_bytes())
        about = json.loads(arrays["search"].tobytes())
    except FileNotFoundError:
        return None
    except (SafetensorError, KeyError):
        raise ValueError(f"{file} is damaged; remove it, and the search begins anew") from None
    if about["search"] != _identity(run):
        raise ValueError(f"{file} is of another search; remove it, or keep this one elsewhere")

    def part(name: str) -> dict[str, np.ndarray]:
        return {n.removeprefix(name): a for n, a in arrays.items() if n.startswith(name)}

    people, clips, x0 = run.population, part("clip."), part("x0.")
    vars(people).update(part("people."))
    for rng, at in zip(people.rngs, about["rngs"], strict=True):
        rng.bit_generator.state = at
    run.counts = arrays["counts"]
    run.clips = [clips[str(i)] for i in range(len(clips))]
    for row, each in enumerate(about["tree"]):
        known = {name: np.array(each[name], kind) for name, kind in KINDS.items()}
        run.tree.append(Generation(each["step"], each["judge"], **known, x0=x0.get(str(row))))
    given = {name: jnp.asarray(a) for name, a in part("given.").items()}
    run.conditions = run.conditions.replace(**given)
    state = run.runs(start=file).state
    assert state is not None
    return state, about["row"], arrays.get("scores")


def _identity(run: "_Run") -> list[Any]:
    """Return what parts this search from others of the same model, condition and sampling."""
    judges = {name: judge.identity for name, judge in run.judges.items()}
    return [repr(run.method), run.first, run.noise, repr(run.record), judges]
