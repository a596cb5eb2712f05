"""What follows from watching tokens: the table of `layerwise.py`."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from jcos.experiments.experiment import Row, row
from jcos.experiments.layerwise_decoded import READINGS, Decoded, Labels, auroc_within
from jcos.lab.measures import GAINS, POSITIVE, SCORES, UNKNOWN, Estimate, Span, estimate

NAMES = {
    "foreground": "foreground",
    "answer": "what the answer changes",
    "choice": "which right answer is taken",
}

IDEAL = ("answer", "choice")
"""What the ideal denoiser is asked for too."""


class Spread(NamedTuple):
    """How a layer's variance over tokens is spread. channels: over how many it spreads evenly,
    (Σ v)² / Σ v², as a share of all. three: share of the first three principal components."""

    channels: Float[Any, "*S L"]
    three: Float[Any, "*S L"]


class Part(NamedTuple):
    """Runs of one task, P samples × K seeds (fields as in `layerwise.Seen`). Behind `spread` of
    puzzles only. ideal: as in `layerwise.Seen`. video: of the first run. identities: which one each
    puzzle has. decoded: None where there are too few puzzles to fit probes."""

    energy_by_frame: Float[np.ndarray, "P K S L F"]
    energy: Float[np.ndarray, "P K s L N"]
    components: Float[np.ndarray, "P K s l N 3"]
    spread: Spread
    ideal: Float[np.ndarray, "P K s n"] | None = None
    video: UInt8[np.ndarray, "F H W 3"] | None = None
    identities: Int[np.ndarray, " P"] | None = None
    labels: Labels | None = None
    decoded: Decoded | None = None

    def by_energy(self) -> Float[np.ndarray, "L s P K"]:
        """How well energy tells foreground, as `Decoded` says it."""
        assert self.labels is not None
        mask = self.labels.foreground
        values = self.energy[..., -mask[0, 0].size :]
        steps, layers = values.shape[2:4]
        found = [
            [
                auroc_within(values[:, :, s, layer].reshape(mask.shape), mask, ~mask)
                for s in range(steps)
            ]
            for layer in range(layers)
        ]
        return np.array(found)

    def by_ideal(self, label: str) -> Float[np.ndarray, "s P K"]:
        """How well the ideal denoiser tells a label, as `Decoded` says it; no probe is fitted."""
        assert self.labels is not None
        assert self.ideal is not None
        number, contested = READINGS[label]
        mask = self.labels[number]
        among = self.labels.contested if contested else np.ones_like(mask)
        values = np.moveaxis(self.ideal, 2, 0).reshape(-1, *mask.shape)
        return auroc_within(values, mask & among, ~mask & among)

    def tells(self, label: str) -> bool:
        """Whether there is anything to be told apart."""
        assert self.decoded is not None
        return bool(np.isfinite(self.decoded.own[list(READINGS).index(label)]).any())

    def estimate(self, values: Shaped[np.ndarray, "P K"], span: Span = SCORES) -> Estimate:
        """The mean over puzzles, those of one identity counted once; nan where none can tell."""
        kinds = np.arange(len(values)) if self.identities is None else self.identities
        finite = np.isfinite(values)
        number = finite.sum(1)
        known = number > 0
        if not known.any():
            return UNKNOWN
        means = np.where(finite, values, 0).sum(1)[known] / number[known]
        _, kinds = np.unique(kinds[known], return_inverse=True)
        return estimate(np.bincount(kinds, means) / np.bincount(kinds), span)


AXES = {
    "*_energy_by_frame": "puzzle seed step layer frame: token energy",
    "*_channels": "puzzle seed step layer: share of channels that vary",
    "*_three": "puzzle seed step layer: variance in three components",
    "*_decoded": "reading source step@looked puzzle seed: read off tokens (AUROC)",
    "*_control": "reading source step@looked puzzle seed: read off, other labels (AUROC)",
    "reading": "reading",
    "source": "source",
}
"""Of the arrays below (`Experiment.axes`)."""


@dataclasses.dataclass
class Found:
    """All that was seen, by task. looked: steps of maps and probes. shown: layers of maps. grid:
    frames, rows and columns of tokens. forwards: passes of the first so many steps."""

    parts: dict[str, Part]
    looked: list[int]
    shown: list[int]
    grid: tuple[int, int, int]
    forwards: Callable[[int], int]

    @property
    def layers(self) -> int:
        return next(iter(self.parts.values())).energy.shape[3]

    @property
    def few(self) -> list[int]:
        """The first, a middle and the last of the looked-at steps."""
        return sorted({self.looked[0], self.looked[len(self.looked) // 2], self.looked[-1]})

    @property
    def sources(self) -> list[str]:
        """What probes read, in the order of `Decoded`."""
        return [*(f"layer {layer}" for layer in range(self.layers)), "x_s", "x̂0"]

    @property
    def decoded(self) -> dict[str, Part]:
        return {task: part for task, part in self.parts.items() if part.decoded is not None}

    def pooled(self, values: Callable[[Part], Any]) -> np.ndarray:
        """Readings of all tasks, one after the other."""
        return np.concatenate(
            [np.asarray(values(part), np.float64) for part in self.parts.values()]
        )

    def arrays(self) -> dict[str, np.ndarray]:
        found = {
            "looked": np.array(self.looked),
            "shown": np.array(self.shown),
            "grid": np.array(self.grid),
            "reading": np.array([NAMES[name] for name in READINGS]),
            "source": np.array(self.sources),
        }
        for task, part in self.parts.items():
            found |= {
                f"{task}_energy_by_frame": part.energy_by_frame,
                f"{task}_energy": part.energy[0],
                f"{task}_components": part.components[0],
                f"{task}_channels": part.spread.channels,
                f"{task}_three": part.spread.three,
            }
            if part.labels is not None:
                found |= {f"{task}_{name}": mask for name, mask in part.labels._asdict().items()}
                found |= {f"{task}_ideal_{name}": part.by_ideal(name) for name in IDEAL}
            if part.decoded is not None:
                found |= {f"{task}_decoded": part.decoded.own}
                found |= {f"{task}_control": part.decoded.control}
        return found

    def rows(self) -> Iterator[Row]:
        for task, part in self.parts.items():
            yield from self._energies(task, part)
            if part.labels is not None:
                yield from self._told_by_energy(task, part)
                yield from self._by_ideal(task, part)
            if part.decoded is not None:
                yield from self._probes(task, part, part.decoded)

    def _energies(self, task: str, part: Part) -> Iterator[Row]:
        readings = {
            "token energy": part.energy_by_frame.mean(-1),
            "share of channels that vary": part.spread.channels,
            "variance in three components": part.spread.three,
        }
        for measure, values in readings.items():
            for s in self.few:
                for layer in range(self.layers):
                    case = f"step {s}, layer {layer}"
                    span = POSITIVE if measure == "token energy" else SCORES
                    yield self._row(task, measure, case, part, values[:, :, s, layer], s, span)
        total = part.energy_by_frame.mean(2)
        relative = total / total.mean(-1, keepdims=True)
        last = part.energy_by_frame.shape[2] - 1
        for layer in range(self.layers):
            for frame in range(self.grid[0]):
                about, values = f"layer {layer}, frame {frame}", relative[:, :, layer, frame]
                name = "energy of a frame over that of all"
                yield self._row(task, name, about, part, values, last, POSITIVE)

    def _row(
        self,
        task: str,
        measure: str,
        case: str,
        part: Part,
        values: Shaped[np.ndarray, "P K"],
        step: int,
        span: Span = SCORES,
    ) -> Row:
        return row(task, measure, case, part.estimate(values, span), self.forwards(step + 1))

    def _told_by_energy(self, task: str, part: Part) -> Iterator[Row]:
        areas = part.by_energy()
        for i, s in enumerate(self.looked):
            for layer in range(self.layers):
                name, case = "AUROC of foreground, by energy", f"step {s}, layer {layer}"
                yield self._area(task, name, case, part, areas[layer, i], s)

    def _probes(self, task: str, part: Part, decoded: Decoded) -> Iterator[Row]:
        """By each probe, by its control; and how much more the layers tell than x̂0 and the ideal
        denoiser do."""
        for i, label in enumerate(READINGS):
            name = f"AUROC of {NAMES[label]}"
            ideal = part.by_ideal(label) if label in IDEAL else ()
            for j, s in enumerate(self.looked if part.tells(label) else ()):
                for r, source in enumerate(self.sources):
                    case, own = f"step {s}, {source}", decoded.own[i, r, j]
                    about = f"{name}, fitted to another puzzle's"
                    yield self._area(task, name, case, part, own, s)
                    yield self._area(task, about, case, part, decoded.control[i, r, j], s)
                    if r < self.layers and label in IDEAL:
                        others = {"x̂0": decoded.own[i, -1, j], "the ideal denoiser": ideal[j]}
                        for other, values in others.items():
                            about = f"{name}, more than by {other}"
                            yield self._row(task, about, case, part, own - values, s, GAINS)

    def _by_ideal(self, task: str, part: Part) -> Iterator[Row]:
        for label in IDEAL:
            areas, name = part.by_ideal(label), f"AUROC of {NAMES[label]}"
            for i, s in enumerate(self.looked if np.isfinite(areas).any() else ()):
                case = f"step {s}, ideal denoiser at x_s"
                yield self._area(task, name, case, part, areas[i], s)._replace(forwards=0)

    def _area(
        self,
        task: str,
        measure: str,
        case: str,
        part: Part,
        values: Shaped[np.ndarray, "P K"],
        step: int,
    ) -> Row:
        return self._row(task, measure, case, part, values, step)._replace(chance=0.5)
