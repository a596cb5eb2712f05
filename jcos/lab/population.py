"""Who goes on in a search: scores become weights, weights choose particles, and rows act one after
the other, on runs as they are made or on finished ones."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import special

from jcos.lab.methods import Method, Row


class Population:
    """What is known of W × K particles, apart from their latents; arrays [W, K].

    alive: which are particles, and which fill up a row. log_weight: never lost, but where
    particles are drawn by weight, when its mean goes into log_norm [W], the log of the estimated
    mean of exp(scale × score). rank: what the last row went by.
    """

    def __init__(self, worlds: int, count: int, seeds: Sequence[int]):
        shape = (worlds, count)
        self.alive = np.ones(shape, bool)
        self.log_weight, self.tilt, self.total, self.rank = np.zeros((4, *shape))
        self.best = np.full(shape, -np.inf)
        self.fresh, self.tried = count, np.zeros(worlds, int)
        self.log_norm, self.done = np.zeros(worlds), np.zeros(worlds, bool)
        self.rngs = [np.random.default_rng((seed % 2**64, 1)) for seed in seeds]

    FIELDS = ("alive", "log_weight", "tilt", "total", "rank", "best")

    @property
    def weights(self) -> Float[np.ndarray, "W K"]:
        """Return the share of each particle."""
        return special.softmax(np.where(self.alive, self.log_weight, -np.inf), 1)

    @property
    def ess(self) -> Float[np.ndarray, " W"]:
        """Return the effective sample size of each world's weights."""
        return 1 / np.square(self.weights).sum(1)

    @property
    def chosen(self) -> Int[np.ndarray, " W"]:
        """Return where the best particle of each world is, by the last row."""
        return np.where(self.alive, self.rank, -np.inf).argmax(1)

    def weigh(self, row: Row, scores: Float[np.ndarray, "W K"], *, last: bool) -> None:
        """Take up the scores of a row."""
        scores = np.where(self.alive, scores, 0.0)
        self.best = np.maximum(self.best, scores)
        shares = special.softmax(np.where(self.alive, row.scale * scores, -np.inf), 1)
        self.total = self.total + (shares if row.transform == "softmax" else scores)
        ranks = {"max": self.best, "sum": self.total, "softmax": self.total}
        self.rank = ranks.get(row.transform, scores)
        potential = row.scale * (scores if row.transform == "softmax" else self.rank)
        again = row.transform == "diff" or (last and row.transform != "softmax")
        growth = potential - self.tilt if again else potential
        self.tilt, self.log_weight = self.tilt + growth, self.log_weight + growth

    @property
    def begun(self) -> Int[np.ndarray, " W"]:
        """Return how many seeds have begun in each world."""
        return self.fresh * (1 + self.tried)

    def begin(self, worlds: Bool[np.ndarray, " W"]) -> None:
        """Count a try of fresh seeds in some worlds."""
        self.tried = self.tried + worlds

    def lacking(self, row: Row, scores: Float[np.ndarray, "W K"]) -> Bool[np.ndarray, " W"]:
        """Return the worlds in which no particle reaches a threshold, and tries are left."""
        passing = (self.alive & (scores >= row.least)).any(1)
        return ~passing & ~self.done & (self.tried < row.tries)

    def join(self, alive: Bool[np.ndarray, "W fresh"]) -> None:
        """Take up fresh particles."""
        for name in self.FIELDS:
            fresh = np.full(alive.shape, -np.inf if name == "best" else 0.0)
            fresh = alive if name == "alive" else fresh
            setattr(self, name, np.concatenate([getattr(self, name), fresh], 1))

    def select(
        self, row: Row, scores: Float[np.ndarray, "W K"], *, last: bool = False, multiple: int = 1
    ) -> Int[np.ndarray, "W k"]:
        """Return who goes on, by position; rows are filled up with their first one to an equal
        length, a multiple of `multiple`."""
        self.weigh(row, scores, last=last)
        chosen = [self._chosen(w, row, scores) for w in range(len(scores))]
        width = -(-max(map(len, chosen)) // multiple) * multiple
        which = np.array([(c + c[:1] * width)[:width] for c in chosen])
        for name in self.FIELDS:
            setattr(self, name, np.take_along_axis(getattr(self, name), which, 1))
        self.alive = np.arange(width) < np.array([[len(c)] for c in chosen])
        return which

    def _chosen(self, world: int, row: Row, scores: Float[np.ndarray, "W K"]) -> list[int]:
        alive = np.flatnonzero(self.alive[world])
        if self.done[world]:
            return alive.tolist()
        order = alive[np.argsort(-self.rank[world, alive], kind="stable")]
        if scores[world, alive].max() >= row.stop:
            self.done[world] = True
            return [int(alive[scores[world, alive].argmax()])]
        if row.select == "top":
            chosen = order[: row.keep]
        elif row.select == "threshold":
            passing = order[scores[world, order] >= row.least]
            chosen = passing[: row.keep] if len(passing) else order[:1]
        else:
            chosen = self._drawn(world, row, alive)
        if row.distinct:
            chosen = order[np.isin(order, chosen)][: row.keep]
        chosen = chosen.tolist()
        return [chosen[i % len(chosen)] for i in range(max(len(chosen), row.copies or 0))]

    def _drawn(self, world: int, row: Row, alive: Int[np.ndarray, " n"]) -> Int[np.ndarray, " k"]:
        logs, share = self.log_weight[world, alive], self.weights[world, alive]
        keep = len(alive) if row.distinct else row.keep
        if row.ess < 1 and self.ess[world] >= row.ess * len(alive) and keep == len(alive):
            return alive
        self.log_norm[world] += special.logsumexp(logs) - np.log(len(logs))
        self.log_weight[world] = 0.0
        rng = self.rngs[world]
        if row.select == "multinomial":
            return rng.choice(alive, keep, p=share)
        points = (rng.random() + np.arange(keep)) / keep
        return alive[np.minimum(np.searchsorted(np.cumsum(share), points), len(alive) - 1)]


class Finished(NamedTuple):
    """Where the particles of a replay are: after which step, and which run each is."""

    step: int
    run: Int[np.ndarray, "W K"]

    def join(self, other: "Finished") -> "Finished":
        return self._replace(run=np.concatenate([self.run, other.run], 1))


class Search:
    """Rows that act on W × K particles, one after the other: here on runs that were made to the
    end, whose scores by judge are `recorded`. `search.run` makes runs instead.

    width: how many particles begin, as devices share them. passes: forwards of a step. counts:
    forwards, decodes and calls of judges, of each video.
    """

    recorded: Mapping[str, Float[np.ndarray, "W N S"]]

    def __init__(self, method: Method, steps: int, firsts: Sequence[int], multiple: int = 1):
        self.method, self.steps, self.multiple, self.passes = method, steps, multiple, 1
        self.width = -(-method.seeds // multiple) * multiple
        self.population = Population(len(firsts), method.seeds, firsts)
        if self.width > method.seeds:
            self.population.join(np.zeros((len(firsts), self.width - method.seeds), bool))
        self.counts = np.zeros((3, len(firsts)), int)

    def begin(self, number: Int[np.ndarray, " W"]) -> Any:
        """Return fresh particles, from the given number on (of each world), before their first
        step."""
        return Finished(-1, number[:, None] + np.arange(self.width))

    def advance(self, state: Any) -> Any:
        """Return the state after one more step."""
        return state._replace(step=state.step + 1)

    def scores(
        self, row: Row, state: Any, alive: Bool[np.ndarray, "W K"]
    ) -> Float[np.ndarray, "W K"]:
        """Return what a row's judge says of the particles that are alive."""
        scores = self.recorded[row.judge][..., state.step]
        return np.take_along_axis(scores, np.where(alive, state.run, 0), 1)

    def select(self, state: Any, row: Row, scores: Float[np.ndarray, "W K"], *, last: bool) -> Any:
        """Return the particles that go on."""
        which = self.population.select(row, scores, last=last)
        return state._replace(run=np.take_along_axis(state.run, which, 1))

    def save(self, state: Any, number: int, scores: Float[np.ndarray, "W K"] | None = None) -> None:
        """Store where the search is, if it is kept: before the row of this number."""

    def act(
        self, state: Any, first: int = 0, scores: Float[np.ndarray, "W K"] | None = None
    ) -> Any:
        """Return the state after all rows and steps. first: the row that comes next. scores: of its
        judge, where they are known."""
        people, rows = self.population, self.method.rows
        for number, row in enumerate(rows[first:], first):
            at = row.at(self.steps)
            if scores is None:
                state = self.until(state, at, people.alive, number)
                scores = self.scores(row, state, people.alive)
            while (lacking := people.lacking(row, scores)).any():
                self.save(state, number, scores)
                fresh, alive = self.again(rows[:number], lacking)
                if alive.any():
                    fresh = self.until(fresh, at, alive)
                    scores = np.concatenate([scores, self.scores(row, fresh, alive)], 1)
                    people.join(alive)
                    state = state.join(fresh)
            state = self.select(state, row, scores, last=number == len(rows) - 1)
            scores = None
            self.save(state, number + 1)
        return self.until(state, self.steps - 1, people.alive, len(rows))

    def again(
        self, rows: Sequence[Row], lacking: Bool[np.ndarray, " W"]
    ) -> tuple[Any, Bool[np.ndarray, "W K"]]:
        """Return fresh particles of the worlds that lack one, and which of them are left after
        these rows' thresholds."""
        fresh = self.begin(self.population.begun)
        self.population.begin(lacking)
        alive = lacking[:, None] & (np.arange(self.width) < self.method.seeds)
        for row in rows:
            if row.tries and alive.any():
                fresh = self.until(fresh, row.at(self.steps), alive)
                alive = alive & (self.scores(row, fresh, alive) >= row.least)
        return fresh, alive

    def until(
        self, state: Any, step: int, alive: Bool[np.ndarray, "W K"], number: int | None = None
    ) -> Any:
        """Return the state after a step, and count the passes of those alive. number: of the row
        that comes next, where what lies between is to be kept."""
        while state.step < step:
            state = self.advance(state)
            self.counts[0] += self.passes * alive.sum(1)
            if number is not None and state.step < step:
                self.save(state, number)
        return state


def replay(
    method: Method, scores: Mapping[str, Float[np.ndarray, "W N S"]], passes: int = 1
) -> tuple[Int[np.ndarray, " W"], Int[np.ndarray, " W"]]:
    """Return whom a method would choose among N runs that were made to the end, by position, and
    how many forwards it would have taken.

    scores: of every run after every step, by judge. passes: of a step. Without copies and noise a
    run does not depend on the others, so this is what `run` does. Raises ValueError where the
    method makes copies, goes back or takes other steps, or needs more runs than there are.
    """
    ((worlds, runs, steps),) = {a.shape for a in scores.values()}
    if method.steps not in (None, steps):
        raise ValueError(f"a method of {method.steps} steps cannot be replayed on runs of {steps}")
    if method.eta or method.spread != 1 or any(r.repeats or r.copy != "key" for r in method.rows):
        raise ValueError("a method that draws noise, makes copies or goes back cannot be replayed")
    need = method.seeds * (1 + max((row.tries for row in method.rows), default=0))
    if need > runs:
        raise ValueError(f"the method may need {need} seeds; {runs} runs were made")
    search = Search(method, steps, range(worlds))
    search.recorded, search.passes = scores, passes
    ends = search.act(search.begin(np.zeros(worlds, int)))
    chosen = np.take_along_axis(ends.run, search.population.chosen[:, None], 1)
    return chosen[:, 0], search.counts[0]
