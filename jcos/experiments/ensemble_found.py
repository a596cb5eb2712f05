"""What follows from averaging over seeds in many ways: the table of `ensemble.py`."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8

from jcos.experiments.experiment import Row, row
from jcos.experiments.samples import Samples
from jcos.lab.measures import GAINS, POSITIVE, Estimate, estimate


class Arm(NamedTuple):
    """What is averaged (tokens, estimates, velocities, or nothing), over how many seeds, after
    which layers, in which steps."""

    kind: str = "nothing"
    members: int = 1
    layers: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.kind == "nothing":
            return "plain"
        layers = f", {_range('layer', self.layers)}" if self.layers else ""
        return f"mean {self.kind} of {self.members}{layers}, {_range('step', self.steps)}"


def _range(what: str, numbers: tuple[int, ...]) -> str:
    first, last = numbers[0], numbers[-1]
    if len(numbers) == 1:
        return f"{what} {first}"
    if last - first + 1 == len(numbers):
        return f"{what}s {first} to {last}"
    return f"{what}s {' '.join(map(str, numbers))}"


def groups_of(seeds: int, members: int) -> Int[np.ndarray, " K"]:
    """Which group each seed belongs to: groups of so many in their order; a seed that is left over
    is alone."""
    number = np.arange(seeds)
    whole = seeds // members * members
    return np.where(number < whole, number // members, number).astype(np.int32)


AXES = {
    "distance": "case puzzle seed: distance from the plain end",
    "solved": "case puzzle seed",
    "score": "case puzzle seed",
    "kind": "case",
    "layer": "case",
    "step": "case",
}
"""Of the arrays below (`Experiment.axes`)."""


@dataclasses.dataclass
class Found:
    """All arms × P puzzles × K seeds.

    forwards: passes of the first so many steps. shown: ends of runs, videos of puzzles or latents.
    longer: whether single runs of so many steps, from the noise of the first seed, solve the
    puzzles. ideal: whether the ideal denoiser solves them, of the arms that need no tokens.
    """

    arms: list[Arm]
    samples: Samples
    forwards: Callable[[int], int]
    steps: int
    shown: UInt8[np.ndarray, "Q P K F H W 3"] | Float[np.ndarray, "Q P K F h w C"]
    longer: dict[int, Bool[np.ndarray, " P"]]
    ideal: dict[Arm, Bool[np.ndarray, "P K"]]

    def __post_init__(self) -> None:
        plain = self.shown[0]
        self.size = np.maximum(_rms(plain), 1e-12)
        moved = [_rms(shown - plain.astype(np.float32)) for shown in self.shown]
        self.moved: Float[np.ndarray, "Q P K"] = np.stack(moved) / self.size
        self.base = self.samples.baselines()
        if self.judged:
            scores, solved = self.samples.judge(self.shown.swapaxes(0, 1))
            self.scores, self.solved = scores.swapaxes(0, 1), solved.swapaxes(0, 1)

    @property
    def judged(self) -> bool:
        return self.samples.judged

    @property
    def main(self) -> Arm:
        """The paper's."""
        return self.arms[1]

    @property
    def sizes(self) -> list[int]:
        """How many members there are, in ascending order."""
        return sorted({arm.members for arm in self.arms[1:]})

    def number(self, arm: Arm) -> int:
        return self.arms.index(arm)

    def of(self, arm: Arm, members: int, values: Shaped[np.ndarray, "Q P K *rest"]) -> np.ndarray:
        """[P, groups, members, …] of an arm, without seeds that are left over."""
        chosen = values[self.number(arm)]
        whole = chosen.shape[1] // members * members
        return chosen[:, :whole].reshape(len(chosen), -1, members, *chosen.shape[2:])

    def one(self, arm: Arm, members: int) -> Bool[np.ndarray, "P G K"]:
        """Solved by each member that goes on."""
        return self.of(arm, members, self.solved)

    def best(self, arm: Arm, members: int) -> Bool[np.ndarray, "P G"]:
        """Solved by any member."""
        return np.asarray(self.one(arm, members).any(-1))

    def majority(self, arm: Arm, members: int) -> Bool[np.ndarray, "P G"]:
        """Solved by the member that is nearest to the others (the first of equals)."""
        apart = self.apart(arm, members).sum(-1)
        nearest = apart.argmin(-1)[..., None]
        return np.take_along_axis(self.one(arm, members), nearest, -1)[..., 0]

    def apart(self, arm: Arm, members: int) -> Float[np.ndarray, "P G K K"]:
        """Distances between the ends of a group's members, over the size of the plain ones."""
        ends = self.of(arm, members, self.shown).astype(np.float32)
        found = np.zeros((*ends.shape[:2], members, members))
        for i in range(members):
            for j in range(i):
                found[:, :, i, j] = found[:, :, j, i] = _rms(ends[:, :, i] - ends[:, :, j])
        return found / self.size.mean(1)[:, None, None, None]

    def spread(self, arm: Arm, members: int) -> Float[np.ndarray, "P G"]:
        """Mean distance between two members."""
        pairs = members * (members - 1)
        return self.apart(arm, members).sum((-1, -2)) / pairs

    def cost(self, arm: Arm, *, everyone: bool = False, members: int | None = None) -> int:
        """Passes: of the run that goes on and of the others as long as they are needed, or of all
        runs."""
        members = arm.members if members is None else members
        whole = self.forwards(self.steps)
        if everyone:
            return members * whole
        return whole + (members - 1) * (self.forwards(arm.steps[-1] + 1) if arm.steps else 0)

    def gain(self, arm: Arm, p: Int[np.ndarray, " n"], *, how: str = "one") -> Estimate:
        """Solved with averaging less without, by the same puzzles and seeds; how: "one", "best" or
        "majority"."""
        measured = getattr(self, how)
        mean, plain = measured(arm, arm.members), measured(self.arms[0], arm.members)
        return estimate(mean[p].astype(np.float64) - plain[p], GAINS)

    def change(self, arm: Arm, p: Int[np.ndarray, " n"]) -> Estimate:
        """What maps show: the gain; of clips the distance from the plain end."""
        if self.judged:
            return self.gain(arm, p)
        return estimate(self.of(arm, arm.members, self.moved)[p], POSITIVE)

    def arrays(self) -> dict[str, np.ndarray]:
        found = {
            "arm": np.array([str(arm) for arm in self.arms]),
            "members": np.array([arm.members for arm in self.arms]),
            "kind": np.array([f"mean {arm.kind} of {arm.members}" for arm in self.arms]),
            "layer": np.array([arm.layers[0] if arm.layers else -1 for arm in self.arms]),
            "step": np.array([arm.steps[-1] if arm.steps else -1 for arm in self.arms]),
            "distance": self.moved,
        }
        if self.judged:
            found |= {"solved": self.solved, "score": self.scores}
            found |= {f"solved_in_{n}_steps": v for n, v in self.longer.items()}
            found["ideal_arm"] = np.array([str(arm) for arm in self.ideal])
            found["ideal_solved"] = np.array(list(self.ideal.values()))
        return found

    def rows(self) -> Iterator[Row]:
        for task, p in self.samples.groups.items():
            if self.judged:
                yield from self._plain(task, p)
                for arm in self.arms[1:]:
                    yield from self._solved(task, p, arm)
                yield from self._equal_compute(task, p)
                yield from self._ideal(task, p)
            yield from self._distances(task, p)

    def _plain(self, task: str, p: Int[np.ndarray, " n"]) -> Iterator[Row]:
        base, none = self.base, self.arms[0]
        for measure, values in (("solved", self.solved), ("score", self.scores)):
            yield row(task, measure, "one run", values[0, p], self.cost(none), base[task, measure])
        for steps, solved in self.longer.items():
            case, cost = f"one run of {steps} steps", self.forwards(steps)
            yield row(task, "solved", case, solved[p], cost, base[task, "solved"])
        for k in self.sizes:
            cost = self.cost(none, everyone=True, members=k)
            for how in ("majority", "best"):
                solved = getattr(self, how)(none, k)[p]
                yield row(task, "solved", f"{k} runs, {how}", solved, cost, base[task, "solved"])
                more = solved.astype(float) - self.one(none, k)[p].mean(-1)
                case = f"{k} runs, {how}"
                yield row(task, "solved, more than one run", case, more, cost, span=GAINS)

    def _solved(self, task: str, p: Int[np.ndarray, " n"], arm: Arm) -> Iterator[Row]:
        base, none, k = self.base, self.arms[0], arm.members
        for how in ("one", "majority", "best"):
            case, cost = f"{arm}, {_word(how)}", self.cost(arm, everyone=how != "one")
            solved = getattr(self, how)(arm, k)[p]
            yield row(task, "solved", case, solved, cost, base[task, "solved"])
            yield row(
                task, f"solved, more than {_less(how)}", case, self.gain(arm, p, how=how), cost
            )
        case, cost = f"{arm}, {_word('one')}", self.cost(arm)
        score, plain = (self.of(a, k, self.scores)[p] for a in (arm, none))
        yield row(task, "score", case, score, cost, base[task, "score"])
        yield row(task, "score, more than one run", case, score - plain, cost, span=GAINS)
        now, before = self.one(arm, k)[p], self.one(none, k)[p]
        yield row(task, "solved only with averaging", case, now & ~before, cost)
        yield row(task, "solved only without", case, before & ~now, cost)

    def _equal_compute(self, task: str, p: Int[np.ndarray, " n"]) -> Iterator[Row]:
        """The paper's arm and plain runs against one run with as many forwards, from the first
        seed's noise."""
        arm, none, k = self.main, self.arms[0], self.main.members
        for steps, how in zip(self.longer, ("one", "majority"), strict=False):
            cost, long = self.forwards(steps), self.longer[steps][p].astype(float)
            for which, name in ((arm, f"{arm}, {_word(how)}"), (none, f"{k} runs, {how}")):
                if which is arm or how == "majority":
                    first = getattr(self, how)(which, k)[p, 0]
                    more = (first[:, 0] if how == "one" else first) - long
                    about = f"solved, more than one run of {steps} steps"
                    yield row(task, about, name, more, cost, span=GAINS)

    def _ideal(self, task: str, p: Int[np.ndarray, " n"]) -> Iterator[Row]:
        """The ideal denoiser with each mean, and with it less without."""
        plain = self.ideal[self.arms[0]][p].astype(float)
        for arm, found in self.ideal.items():
            solved, whose = found[p], "ideal denoiser"
            if arm.kind == "nothing":
                yield row(task, "solved", f"one run, {whose}", solved, 0, self.base[task, "solved"])
                continue
            case = f"{arm}, {_word('one')}, {whose}"
            whole = solved.shape[1] // arm.members * arm.members
            yield row(task, "solved", case, solved[:, :whole], 0, self.base[task, "solved"])
            more = (solved - plain)[:, :whole]
            yield row(task, f"solved, more than {_less('one')}", case, more, 0, span=GAINS)

    def _distances(self, task: str, p: Int[np.ndarray, " n"]) -> Iterator[Row]:
        for k in self.sizes:
            cost = self.cost(self.arms[0], everyone=True, members=k)
            apart = self.spread(self.arms[0], k)[p]
            about = "distance between the ends"
            yield row(task, about, f"{k} runs", apart, cost, span=POSITIVE)
        for arm in self.arms[1:]:
            moved = self.of(arm, arm.members, self.moved)[p]
            about, cost = "distance from the plain end", self.cost(arm)
            yield row(task, about, arm, moved, cost, span=POSITIVE)
            apart, cost = self.spread(arm, arm.members)[p], self.cost(arm, everyone=True)
            yield row(task, "distance between the ends", arm, apart, cost, span=POSITIVE)


def _word(how: str) -> str:
    return {"one": "one goes on", "majority": "majority of all", "best": "best of all"}[how]


def _less(how: str) -> str:
    """What an arm is compared with."""
    return {"one": "one run", "majority": "the majority of as many", "best": "the best of as many"}[
        how
    ]


def _rms(ends: Any) -> Float[np.ndarray, "..."]:
    return np.sqrt(np.mean(np.square(ends, dtype=np.float32), axis=(-4, -3, -2, -1)))
