"""What follows from all steps of all runs: the table of `steps.py`."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jcos.experiments.answers import Answers, chosen, shares
from jcos.experiments.experiment import Row, looked_at, row
from jcos.experiments.samples import Baseline, Samples
from jcos.experiments.watching import Seen
from jcos.lab import measures
from jcos.lab.measures import (
    POSITIVE,
    SCORES,
    UNBOUNDED,
    Estimate,
    Span,
    commitment_step,
    held_at_once,
    median_step,
)

UNCERTAIN = {
    "change": "change from the step before",
    "blur": "distance from pure colours",
    "gap": "distance to the ideal denoiser",
}
"""What is tried as a sign of failure; all but the last can be read off any run."""
RARE = 5
"""Fewer failures, or successes, say nothing about what predicts them."""


@dataclasses.dataclass
class Found:
    """All that was seen of P puzzles × K seeds × S steps, and what follows from it.

    forwards: passes of the first so many steps.
    """

    forwards: Callable[[int], int]
    samples: Samples
    answers: Answers
    seen: Seen
    scores: Float[np.ndarray, "P K S"]
    solved: Bool[np.ndarray, "P K S"]
    ideal_solved: Bool[np.ndarray, "P K S"]

    def __post_init__(self) -> None:
        seen, right = self.seen, self.answers.right[:, None, None]
        self.steps = self.solved.shape[-1]
        self.looked = looked_at(self.steps)
        self.commitment = commitment_step(self.solved)
        self.ideal_commitment = commitment_step(self.ideal_solved)
        self.taken = chosen(seen.on[:, :, -1], self.answers)
        self.mass = shares(seen.on, self.answers, self.taken)
        self.ideal_mass = shares(seen.ideal_on, self.answers, self.taken)
        self.held = held_at_once(np.where(right, seen.on, 0))
        self.ideal_held = held_at_once(np.where(right, seen.ideal_on, 0))

    @property
    def parts(self) -> dict[str, Int[np.ndarray, " n"]]:
        """Puzzles by task and by whether they have several right answers."""
        several, found = self.samples.several, {}
        for task, rows in self.samples.groups.items():
            for kind, here in (("several answers", several[rows]), ("one answer", ~several[rows])):
                if here.any():
                    found[f"{task}, {kind}"] = rows[here]
        return found

    def arrays(self) -> dict[str, np.ndarray]:
        seen = {k: v for k, v in self.seen._asdict().items() if k not in ("video", "ideal_video")}
        return {
            "task": np.array(self.samples.tasks),
            "several": self.samples.several,
            "right": np.asarray(self.answers.right),
            "scores": self.scores,
            "solved": self.solved,
            "ideal_solved": self.ideal_solved,
            "commitment": self.commitment,
            "ideal_commitment": self.ideal_commitment,
            "taken": self.taken,
            **seen,
        }

    def rows(self) -> Iterator[Row]:
        baselines = self.samples.baselines()
        for task, p in self.samples.groups.items():
            for s in self.looked:
                for measure, values in (("solved", self.solved), ("score", self.scores)):
                    base = baselines[task, measure]
                    yield self._row(task, measure, s, values[p, :, s], baseline=base)
                yield self._row(task, "solved", s, self.ideal_solved[p, :, s], ideal=True)
            yield from self._commitments(task, p)
            yield from self._predictors(task, p)
        for part, p in self.parts.items():
            for s in self.looked:
                yield from self._blends(part, p, s)

    def _row(
        self,
        task: str,
        measure: str,
        step: int,
        values: Any,
        *,
        ideal: bool = False,
        baseline: Baseline | None = None,
        span: Span = SCORES,
    ) -> Row:
        case = f"step {step}, ideal denoiser" if ideal else f"step {step}"
        forwards = 0 if ideal else self.forwards(step + 1)
        return row(task, measure, case, values, forwards, baseline, span)

    def _commitments(self, task: str, p: Int[np.ndarray, " n"]) -> Iterator[Row]:
        """Of the runs that end solved; a puzzle's seeds count as their median."""
        forwards = self.forwards(self.steps)
        for case, steps, cost in (
            ("model", self.commitment, forwards),
            ("ideal denoiser", self.ideal_commitment, 0),
        ):
            values = _of_solved(steps[p], self.steps)
            if len(values):
                middle = median_step(values, self.steps)
                yield row(task, "commitment step, median", case, middle, cost)

    def _predictors(self, task: str, p: Int[np.ndarray, " n"]) -> Iterator[Row]:
        if self.predictable(p):
            for name, told in UNCERTAIN.items():
                for s in self.looked:
                    found = self.auroc(name, p, s)
                    yield self._row(task, f"AUROC of failure: {told}", s, found)._replace(
                        chance=0.5
                    )

    def predictable(self, p: Int[np.ndarray, " n"]) -> bool:
        good = self.solved[p, :, -1]
        return min(int(good.sum()), int((~good).sum())) >= RARE

    def auroc(self, name: str, p: Int[np.ndarray, " n"], step: int) -> Estimate:
        values = getattr(self.seen, name)[p, :, step]
        groups = np.repeat(np.arange(len(p)), values.shape[1])
        return measures.auroc(values.ravel(), ~self.solved[p, :, -1].ravel(), groups=groups)

    def _blends(self, part: str, p: Int[np.ndarray, " n"], s: int) -> Iterator[Row]:
        """The model's x̂0 and the ideal one at the same x_s."""
        for best, mass in ((False, self.mass), (True, self.ideal_mass)):
            yield self._row(part, "mass on the answer taken", s, mass.taken[p, :, s], ideal=best)
            if self.samples.several[p].all():
                others = mass.others[p, :, s]
                yield self._row(part, "mass on other right answers", s, others, ideal=best)
                held = (self.ideal_held if best else self.held)[p, :, s]
                name = "answers held at once"
                yield self._row(part, name, s, held, ideal=best, span=(1.0, np.inf))
            elif self.answers.wrong[p].any():
                yield self._row(part, "mass on wrong answers", s, mass.wrong[p, :, s], ideal=best)
        yield self._row(part, "mass on no answer", s, self.seen.off[p, :, s])
        gap = self.seen.gap[p, :, s]
        yield self._row(part, "distance to the ideal denoiser", s, gap, span=POSITIVE)
        if self.samples.several[p].all():
            more, name = self.held - self.ideal_held, "answers held at once, more than ideal"
            yield self._row(part, name, s, more[p, :, s], span=UNBOUNDED)


def _of_solved(steps: Int[np.ndarray, "P K"], never: int) -> Float[np.ndarray, " n"]:
    """The median over seeds of the runs that commit; puzzles without any are left out."""
    rows = [values[values < never] for values in steps]
    return np.array([float(np.median(values)) for values in rows if len(values)])
