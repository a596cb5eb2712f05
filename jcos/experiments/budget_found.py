"""What follows from runs under every schedule: the table of `budget.py`."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from jcos.experiments.experiment import Row, row
from jcos.experiments.samples import Samples
from jcos.lab.measures import GAINS, POSITIVE, Estimate, estimate


class Case(NamedTuple):
    """A schedule. kind: "steps" for the model's own spacing, "shift" for another shift (value),
    "middle" for half of the steps above the noise level `value`. frames: of the video, where they
    differ from the clips' own."""

    kind: str
    steps: int
    value: float | None = None
    frames: int | None = None

    def __str__(self) -> str:
        words = {"steps": "", "shift": ", shift {:g}", "middle": ", half above σ {:g}"}
        spacing = words[self.kind].format(self.value)
        frames = "" if self.frames is None else f", {self.frames} frames"
        return f"{self.steps} step{'s' * (self.steps > 1)}{spacing}{frames}"


@dataclasses.dataclass
class Found:
    """Readings [cases, P, K] by name ("score", "solved", and "ideal …"). forwards: passes of each
    case's run. own: the model's own shift."""

    cases: list[Case]
    samples: Samples
    forwards: list[int]
    own: float
    readings: dict[str, Shaped[np.ndarray, "Q P K"]]

    @property
    def parts(self) -> dict[str, Int[np.ndarray, " n"]]:
        """Puzzles by task, and by whether they have several right answers where that differs: the
        ideal denoiser needs one step for those that have not."""
        found, several = {}, self.samples.several
        for task, p in self.samples.groups.items():
            found[task] = p
            if several[p].any() and not several[p].all():
                found[f"{task}, several answers"] = p[several[p]]
                found[f"{task}, one answer"] = p[~several[p]]
        return found

    def where(self, kind: str, steps: int | None = None) -> list[int]:
        """Numbers of the cases of a kind, by value."""
        found = [i for i, c in enumerate(self.cases) if c.kind == kind and steps in (None, c.steps)]
        return sorted(found, key=lambda i: (self.cases[i].steps, self.cases[i].value or 0))

    @property
    def lengths(self) -> list[int]:
        """Numbers of steps at which shift and spacing are tried."""
        return sorted({c.steps for c in self.cases if c.kind != "steps"})

    def plain(self, steps: int) -> int:
        """The case of the model's own spacing."""
        return self.cases.index(Case("steps", steps))

    def more(self, case: int, p: Int[np.ndarray, " n"], than: int) -> Float[np.ndarray, "n K"]:
        """Score of a case above that of another, paired by puzzle and seed."""
        score = self.readings["score"]
        return score[case, p] - score[than, p]

    def estimate(self, reading: str, cases: list[int], p: Int[np.ndarray, " n"]) -> list[Estimate]:
        return [estimate(self.readings[reading][i, p]) for i in cases]

    def arrays(self) -> dict[str, np.ndarray]:
        return {
            "case": np.array([str(c) for c in self.cases]),
            "kind": np.array([c.kind for c in self.cases]),
            "steps": np.array([c.steps for c in self.cases]),
            "value": np.array([np.nan if c.value is None else c.value for c in self.cases]),
            "forwards": np.array(self.forwards),
            "task": np.array(self.samples.tasks),
            "several": self.samples.several,
            **{name.replace(" ", "_"): values for name, values in self.readings.items()},
        }

    def rows(self) -> Iterator[Row]:
        baselines = self.samples.baselines(self.parts)
        for part, p in self.parts.items():
            for i, (case, cost) in enumerate(zip(self.cases, self.forwards, strict=True)):
                for name in ("score", "solved"):
                    base = baselines[part, name]
                    yield row(part, name, case, self.readings[name][i, p], cost, base)
                    ideal = self.readings[f"ideal {name}"][i, p]
                    yield row(part, name, f"{case}, ideal denoiser", ideal, 0)
            yield from self._paired(part, p)
        if len(self.samples.groups) > 1:
            yield from self._paired("all tasks", np.arange(len(self.samples)))

    def _paired(self, part: str, p: Int[np.ndarray, " n"]) -> Iterator[Row]:
        most = max(c.steps for c in self.cases)
        for i, (case, cost) in enumerate(zip(self.cases, self.forwards, strict=True)):
            if case.kind != "steps":
                than, name = self.plain(case.steps), "the model's own spacing"
            elif case.steps < most:
                than, name = self.plain(most), f"{most} steps"
            else:
                continue
            more = self.more(i, p, than)
            yield row(part, f"score, more than with {name}", case, more, cost, span=GAINS)


def clip_rows(
    cases: list[Case],
    distances: dict[str, Float[np.ndarray, "P K"]],
    forwards: list[int],
    seeds: Float[np.ndarray, "P K"] | None,
) -> Iterator[Row]:
    """Of clips: distances from the run to compare with, by case; seeds: of a seed from the next, at
    that run."""
    measure = "distance of the end"
    for case, cost in zip(cases, forwards, strict=True):
        yield row("clips", measure, case, distances[str(case)], cost, span=POSITIVE)
    if seeds is not None:
        yield row("clips", measure, "another seed", seeds, max(forwards), span=POSITIVE)
