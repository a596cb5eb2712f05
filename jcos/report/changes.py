"""What was changed in a run, on the axes step × layer × frame: read off the probes themselves."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from jcos.sampling.probes import Chain, EstimateEnsemble, InWorlds, Noise, Probe, SeedEnsemble, Swap

Cell = tuple[int, int]


class Change(NamedTuple):
    """what: in words. axis, size: of which frames or layers, and how many there are. steps: of the
    run. cells: which (step, frame or layer)."""

    what: str
    axis: str
    size: int
    steps: int
    cells: Sequence[Cell]

    @classmethod
    def at(cls, what: str, axis: str, mask: Bool[np.ndarray, "S N"]) -> "Change":
        cells = [(int(step), int(place)) for step, place in np.argwhere(mask)]
        return cls(what, axis, mask.shape[1], mask.shape[0], cells)

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Change":
        """What `told` says, in JSON."""
        cells = [(int(step), int(place)) for step, place in told["cells"]]
        return cls(told["what"], told["axis"], told["size"], told["steps"], cells)

    def told(self) -> dict[str, Any]:
        """As JSON has it; `text`: in a sentence."""
        return self._asdict() | {"text": str(self)}

    def __str__(self) -> str:
        steps, places = (sorted(set(side)) for side in zip(*self.cells, strict=True))
        word = "after layer" if self.axis == "layer" else f"in {self.axis}"
        if len(self.cells) < len(steps) * len(places):
            return f"{self.what} at {len(self.cells)} pairs of step and {self.axis}"
        told = [self.what]
        if len(places) < self.size or self.axis == "layer":
            told.append(f"{word} {_numbers(places)}")
        if len(steps) < self.steps:
            told.append(f"at step {_numbers(steps)}")
        return " ".join(told)


def _numbers(found: Sequence[int]) -> str:
    """1, 2, 3, 7 as `1–3, 7`."""
    parts: list[list[int]] = []
    for number in found:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    told = (f"{p[0]}–{p[-1]}" if len(p) > 2 else ", ".join(map(str, p)) for p in parts)
    return ", ".join(told)


def changes_of(probe: Probe, world: int = 0) -> list[Change]:
    """What the probes of the paper do to the run of a world; of other probes nothing is known, and
    a `Change` is made by hand. Of those alone that do something."""
    return [change for change in _changes(probe, world) if change.cells]


def _changes(probe: Probe, world: int) -> Iterable[Change]:
    match probe:
        case Chain(probes=probes):
            for one in probes:
                yield from _changes(one, world)
        case InWorlds(probe=inner, worlds=worlds):
            if np.asarray(worlds)[world]:
                yield from _changes(inner, world)
        case Noise(mask=mask):
            yield Change.at("noise", "frame", np.asarray(mask) > 0)
        case SeedEnsemble(mask=mask):
            yield Change.at("seeds averaged", "layer", np.asarray(mask))
        case EstimateEnsemble(mask=mask):
            yield Change.at("estimates averaged", "frame", np.asarray(mask)[:, None])
        case Swap(mask=mask):
            yield Change.at("tokens of another run", "layer", np.asarray(mask)[world])


def asked(
    interventions: Mapping[str, Sequence[int]], steps: int, frames: int, layers: int
) -> list[Change]:
    """From what a command was asked for, as `run.json` has it."""

    def of(name: str) -> Sequence[int]:
        return interventions.get(name, ())

    averaged = of("ensemble_layers")
    layers = layers or max(averaged, default=0) + 1  # of a run that does not tell
    probes = (
        Noise.at_steps(steps, frames, of("noise_steps")),
        Noise.at_frames(steps, frames, of("noise_frames")),
        SeedEnsemble.window(steps, layers, of("ensemble_steps") if averaged else (), averaged),
    )
    return [change for probe in probes for change in changes_of(probe)]
