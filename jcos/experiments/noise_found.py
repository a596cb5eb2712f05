"""What follows from noise at every position: the table of `noise.py`."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from jcos.experiments.experiment import Row, row
from jcos.experiments.samples import Samples
from jcos.lab.measures import GAINS, POSITIVE, SCORES, UNBOUNDED, Estimate, Span, estimate

IDEAL = "ideal "
"""Before the names of the ideal denoiser's readings."""
AS_IT_ENDS = ("score", "solved", "score of the other frames")
"""Readings of a run without clean-up."""


class Case(NamedTuple):
    """Where noise is put: at a step or at all (None), in a frame or in all, how strongly; own: at
    the step's own level (`probes.Noise`)."""

    kind: str
    step: int | None = None
    frame: int | None = None
    strength: float = 1.0
    own: bool = False

    def __str__(self) -> str:
        if self.kind == "none":
            return "no noise"
        step = "all steps" if self.step is None else f"step {self.step}"
        frame = "all frames" if self.frame is None else f"frame {self.frame}"
        strength = "" if self.strength == 1 else f", strength {self.strength:.2f}"
        own = ", at its own level" if self.own else ""
        matched = ", energy of one step" if self.kind == "matched" else ""
        return f"{step}, {frame}{strength}{own}{matched}"


@dataclasses.dataclass
class Found:
    """Readings [cases, P, K] by name, those of the ideal denoiser `IDEAL` before it; nan where a
    run
    cannot tell.

    forwards, more_forwards: passes of a run, and of one with clean-up.
    """

    cases: list[Case]
    samples: Samples
    forwards: int
    more_forwards: int
    steps: int
    readings: dict[str, Shaped[np.ndarray, "Q P K"]]

    @property
    def judged(self) -> bool:
        return self.samples.judged

    def where(self, kind: str, *, own: bool = False) -> list[int]:
        """Numbers of the cases of a kind."""
        return [i for i, c in enumerate(self.cases) if c.kind == kind and c.own is own]

    def estimate(self, reading: str, cases: list[int]) -> list[Estimate]:
        """The mean of each case over puzzles."""
        return [estimate(self.readings[reading][i], span_of(reading)) for i in cases]

    def mean(self, reading: str, cases: list[int]) -> Shaped[np.ndarray, "P K"]:
        """The mean over several cases, of each puzzle and seed."""
        return self.readings[reading][cases].astype(np.float64).mean(0)

    def arrays(self) -> dict[str, np.ndarray]:
        def number(place: int | None) -> int:
            return -1 if place is None else place

        return {
            "case": np.array([str(c) for c in self.cases]),
            "kind": np.array([c.kind for c in self.cases]),
            "step": np.array([number(c.step) for c in self.cases]),
            "frame": np.array([number(c.frame) for c in self.cases]),
            "strength": np.array([c.strength for c in self.cases]),
            "own": np.array([c.own for c in self.cases]),
            "several": self.samples.several,
            **{name.replace(" ", "_"): values for name, values in self.readings.items()},
        }

    def rows(self) -> Iterator[Row]:
        baselines = self.samples.baselines()
        for task, p in self.samples.groups.items():
            for name, values in self.readings.items():
                measure, whose = name.removeprefix(IDEAL), _whose(name)
                base = baselines.get((task, measure.split()[0]))
                cost = self._cost(name)
                for case, found in zip(self.cases, values[:, p], strict=True):
                    about, span = f"{case}{whose}", span_of(name)
                    yield row(task, measure, about, found, cost, base, span)
            for name in self.compared if self.where("step") and self.where("frame") else ():
                yield from self._comparisons(task, name, p)

    def _cost(self, name: str) -> int:
        """Passes behind a reading; the ideal denoiser makes none."""
        if name.startswith(IDEAL):
            return 0
        return self.forwards if name in AS_IT_ENDS else self.more_forwards

    @property
    def compared(self) -> list[str]:
        """The readings by which steps and frames are compared."""
        names = ("score", "score of the other frames", "score after clean-up")
        found = [f"{whose}{name}" for whose in ("", IDEAL) for name in names]
        return [name for name in found if name in self.readings] or ["distance"]

    def _comparisons(self, task: str, name: str, p: np.ndarray) -> Iterator[Row]:
        """Noise at a frame less noise at a step, each averaged over its positions, puzzle by
        puzzle."""
        step, measure = self.mean(name, self.where("step"))[p], name.removeprefix(IDEAL)
        for kind, case in (("frame", "full strength"), ("matched", "same energy")):
            less = self.mean(name, self.where(kind))[p] - step
            about, cost = f"{case}{_whose(name)}", self._cost(name)
            span = UNBOUNDED if measure == "distance" else GAINS
            yield row(task, f"{measure}, at a frame less at a step", about, less, cost, span=span)


def span_of(reading: str) -> Span:
    """What values of a reading lie within."""
    return POSITIVE if reading.endswith("distance") else SCORES


def _whose(name: str) -> str:
    """What a reading's case says behind it."""
    return ", ideal denoiser" if name.startswith(IDEAL) else ""
