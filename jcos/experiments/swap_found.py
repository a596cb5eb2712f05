"""What follows from swaps at every layer: the table of `swap.py`."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8

from jcos.experiments.experiment import Row, row
from jcos.experiments.puzzles import judge
from jcos.experiments.samples import Baseline, Samples
from jcos.experiments.swap_pairs import Pair
from jcos.lab.measures import GAINS, SCORES, UNBOUNDED, Estimate, Span, estimate
from jcos.sampling.trajectory import Condition

VELOCITY = "velocity"
"""What is swapped of the ideal denoiser, which has no tokens."""
TOKENS = {"all": "", "object": ", object only", "rest": ", all but the object", VELOCITY: ""}


class Case(NamedTuple):
    """After which layer tokens are swapped (None: not at all), from step `first` to `last`, and
    which: all, those of the object, or the rest; or, without a layer, the `VELOCITY`."""

    layer: int | None = None
    first: int = 0
    last: int = 0
    tokens: str = "all"

    @property
    def both(self) -> bool:
        """Whether it is run in both directions at once, which only single steps can be."""
        return self.first == self.last

    @property
    def during(self) -> str:
        """What cases have in common that differ in layer and last step."""
        steps = "in one step" if self.both else f"from step {self.first} on"
        return f"{steps}{TOKENS[self.tokens]}"

    def __str__(self) -> str:
        steps = f"step {self.first}" if self.both else f"steps {self.first} to {self.last}"
        if self.layer is None:
            return f"{VELOCITY}, {steps}" if self.tokens == VELOCITY else "no swap"
        return f"layer {self.layer}, {steps}{TOKENS[self.tokens]}"


class Ends(NamedTuple):
    """How two runs ended, by world and seed. shown: videos of puzzles, else latents. own, other:
    shares of the own answers and of the other's in every estimate, of puzzles."""

    shown: UInt8[Any, "*worlds K F H W 3"] | Float[Any, "*worlds K F h w C"]
    own: Float[Any, "*worlds K S"] | None
    other: Float[Any, "*worlds K S"] | None


NEITHER = "neither solved"
YES_OR_NO = (
    "own answer solved",
    "donor's answer solved",
    NEITHER,
    "flipped to the donor's answer",
    "own answer kept",
)
AT_ONCE = "share of the donor's answer at once"
WAY = "way to the donor's end"


AXES = {
    "flipped_to_the_donors_answer": "case pair direction seed: flipped to the donor's answer",
    "share_of_the_donors_answer_at_once": "case pair direction seed: donor's share at once",
    "way_to_the_donors_end": "case pair direction seed: way to the donor's end",
    "share_other": "case pair direction seed step: donor's share at each step",
    "layer": "case",
    "step": "case",
    "during": "case",
    "kind": "pair",
}
"""Of the arrays below (`Experiment.axes`)."""


@dataclasses.dataclass
class Found:
    """All swaps of P pairs × W = 2 directions × K seeds.

    forwards: passes of the first so many steps. object_here: which tokens are the object's.
    readings [Q, P, W, K] by name; nan where a run cannot tell, and of the donor's side where it is
    no receiver. ideal: the ideal denoiser's runs, of puzzles.
    """

    cases: list[Case]
    pairs: Sequence[Pair]
    given: Condition
    forwards: Callable[[int], int]
    steps: int
    object_here: Bool[np.ndarray, "P N"]
    ends: Ends
    ideal: "Found | None" = None

    def __post_init__(self) -> None:
        found = {WAY: ways(self.ends.shown)}
        if self.pairs:
            found |= self._judged()
        one_way = [i for i, case in enumerate(self.cases) if not case.both]
        for values in found.values():
            values[one_way, :, 1] = np.nan
        self.readings: dict[str, Float[np.ndarray, "Q P W K"]] = found

    def _judged(self) -> dict[str, Float[np.ndarray, "Q P W K"]]:
        _, own, other = self.ends
        assert own is not None
        assert other is not None
        kept, taken = self._shows(mine=True), self._shows(mine=False)
        told = kept[:1].all(2, keepdims=True)  # both plain runs are right
        at = [case.last for case in self.cases]
        own_now, other_now = (
            np.stack([m[q, ..., s] for q, s in enumerate(at)]) for m in (own, other)
        )
        plain = np.stack([other[0, ..., s] for s in at])
        values = (
            kept,
            taken,
            ~kept & ~taken,
            np.where(told, taken, np.nan),
            np.where(told, kept, np.nan),
            other_now,
            own_now,
            other_now - plain,
            other[..., -1],
        )
        names = (
            *YES_OR_NO,
            AT_ONCE,
            "share of the own answer at once",
            f"{AT_ONCE}, more than without",
            "share of the donor's answer in the end",
        )
        return {k: v.astype(np.float64) for k, v in zip(names, values, strict=True)}

    def _shows(self, *, mine: bool) -> Bool[np.ndarray, "Q P W K"]:
        """Whether runs end with their own answer, or with the other's, in either picture."""
        found = np.zeros(self.ends.shown.shape[:4], bool)
        for i, pair in enumerate(self.pairs):
            for w in (0, 1):
                whose = w if mine else 1 - w
                asked = [pair.puzzles[whose], pair.crossed[1 - whose]]
                for puzzle in asked[: 1 if asked[0] == asked[1] else 2]:
                    found[:, i, w] |= judge([puzzle], self.ends.shown[None, :, i, w])[1][0]
        return found

    @property
    def main(self) -> str:
        """The reading that maps and curves show."""
        return YES_OR_NO[3] if self.pairs else WAY

    @property
    def groups(self) -> dict[str, Int[np.ndarray, " n"]]:
        """Which pairs are of each kind."""
        kinds = np.array([p.kind for p in self.pairs] or ["clips"] * self.object_here.shape[0])
        return {kind: np.flatnonzero(kinds == kind) for kind in dict.fromkeys(kinds.tolist())}

    def where(self, first: int, last: int, tokens: str = "all") -> list[int]:
        """Numbers of the cases of these steps and tokens, by layer."""
        return [
            i
            for i, case in enumerate(self.cases)
            if case.layer is not None and case[1:] == (first, last, tokens)
        ]

    @property
    def single(self) -> list[int]:
        """Steps with a swap in them alone."""
        return sorted({c.first for c in self.cases if c.layer is not None and c.both})

    @property
    def until(self) -> list[int]:
        """Last steps of swaps that are kept up."""
        return sorted({c.last for c in self.cases if not c.both})

    @property
    def layers(self) -> list[int]:
        return sorted({c.layer for c in self.cases if c.layer is not None})

    def estimate(self, name: str, cases: list[int], p: Int[np.ndarray, " n"]) -> list[Estimate]:
        """The mean of each case over pairs, directions and seeds together."""
        return [estimate(self.readings[name][i, p], span_of(name)) for i in cases]

    def arrays(self) -> dict[str, np.ndarray]:
        shares = {} if self.ends.own is None else {"own": self.ends.own, "other": self.ends.other}
        shares = {f"share_{name}": np.asarray(values) for name, values in shares.items()}
        readings = {k.replace("'", "").replace(" ", "_"): v for k, v in self.readings.items()}
        of_ideal = {} if self.ideal is None else self.ideal.arrays()
        return {
            "case": np.array([str(c) for c in self.cases]),
            "layer": np.array([-1 if c.layer is None else c.layer for c in self.cases]),
            "first": np.array([c.first for c in self.cases]),
            "last": np.array([c.last for c in self.cases]),
            "step": np.array([c.last for c in self.cases]),
            "during": np.array([c.during for c in self.cases]),
            "tokens": np.array([c.tokens for c in self.cases]),
            "kind": np.array([p.kind for p in self.pairs]),
            "object_here": self.object_here,
            **shares,
            **readings,
            **{f"ideal_{name}": of_ideal[name] for name in ("case", *readings) if of_ideal},
        }

    def rows(self) -> Iterator[Row]:
        for kind, p in self.groups.items():
            base = self._baseline(p) if self.pairs else None
            for name in self.readings:
                for i, case in enumerate(self.cases):
                    (found,) = self.estimate(name, [i], p)
                    judged = base if name in YES_OR_NO and name != NEITHER else None
                    yield row(kind, name, case, found, self._cost(case), judged)
            yield from self._compared(kind, p)
            if self.ideal is not None:
                for name in self.ideal.readings:
                    for i, case in enumerate(self.ideal.cases):
                        (found,) = self.ideal.estimate(name, [i], p)
                        yield row(kind, name, f"{case}, ideal denoiser", found, 0)

    def _compared(self, kind: str, p: Int[np.ndarray, " n"]) -> Iterator[Row]:
        """Each swap less none, pair by pair; and the two directions of a swap."""
        for name in YES_OR_NO[:2] if self.pairs else ():
            values = self.readings[name]
            for i, case in enumerate(self.cases[1:], 1):
                more = estimate(values[i, p] - values[0, p], GAINS)
                yield row(kind, f"{name}, more than without", case, more, self._cost(case))
        for i, case in enumerate(self.cases[1:], 1):
            for w, way in enumerate(("own from donor", "donor from own") if case.both else ()):
                one = estimate(self.readings[self.main][i, p, w : w + 1], span_of(self.main))
                yield row(kind, f"{self.main}, {way}", case, one, self._cost(case))

    def _cost(self, case: Case) -> int:
        """Passes of the run, and of the donor up to the last swap."""
        return self.forwards(self.steps) + (case.layer is not None) * self.forwards(case.last + 1)

    def _baseline(self, p: Int[np.ndarray, " n"]) -> Baseline:
        """Chance of the own answers of all these puzzles; the other's have the same."""
        own = tuple(puzzle for i in p for puzzle in self.pairs[i].puzzles)
        task = own[0].task
        return Samples(self.given, (task,) * len(own), own).baselines()[task, "solved"]


def span_of(reading: str) -> Span:
    """What values of a reading lie within."""
    if reading == WAY:
        return UNBOUNDED
    return GAINS if reading.endswith("more than without") else SCORES


def ways(shown: Shaped[np.ndarray, "Q P W K *video"]) -> Float[np.ndarray, "Q P W K"]:
    """How far each end lies along the way from the own plain end (0) to the other's (1), the plain
    ones being case 0; nan where those are alike."""
    plain = shown[0].astype(np.float64)
    axes = tuple(range(3, plain.ndim))
    apart = plain[:, ::-1] - plain
    size, least = np.sum(apart**2, axes), 1e-6 * np.sum(plain**2, axes)
    size = np.where(size > least, size, np.nan)
    return np.stack([np.sum((case - plain) * apart, axes) / size for case in shown])
