"""Search along the denoising steps: many seeds begin, judges read early estimates, few go on.

    result = jcos.search.run(model, condition, jcos.search.epbs(8))
    video = model.decode(result.latents)

Methods (`methods.py`) are data, judges (`judges.py`) functions of estimates. It runs on
`jcos.steps`: particles lie on its seed axis, many videos (puzzles) on its world axis; on a mesh
both are spread.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jcos import loop
from jcos.config import Sampling
from jcos.devices import mesh
from jcos.lab.judges import (
    STANDARD,
    Agreement,
    Change,
    Decided,
    Energy,
    Entropy,
    Estimates,
    Frames,
    Head,
    Judge,
    Preview,
    Random,
    Scorer,
    check_scores,
    fit_head,
    fit_preview,
)
from jcos.lab.methods import (
    PRESETS,
    Method,
    Population,
    Row,
    best_of,
    check,
    early_failure,
    epbs,
    evosearch,
    latsearch,
    sampling_of,
    smc,
    tbs,
)
from jcos.sampling import flow
from jcos.sampling.probes import Probe, TokenFeatures, chain
from jcos.sampling.trajectory import Condition
from jcos.wan import Wan

__all__ = [
    "PRESETS",
    "STANDARD",
    "Agreement",
    "Change",
    "Cost",
    "Decided",
    "Energy",
    "Entropy",
    "Estimates",
    "Frames",
    "Generation",
    "Head",
    "Judge",
    "Method",
    "Population",
    "Preview",
    "Random",
    "Result",
    "Row",
    "Scorer",
    "best_of",
    "check",
    "early_failure",
    "epbs",
    "evosearch",
    "fit_head",
    "fit_preview",
    "latsearch",
    "replay",
    "run",
    "smc",
    "tbs",
]

FRESH = 2**31 - 1
"""Folded into keys for the noise of a row; no step is so large."""


class Generation(NamedTuple):
    """What happened after a step. seeds, scores, alive, log_weights [W, K]: of the particles before
    it. parents [W, k]: who went on, by position; places that fill up a row are −1. x0: their clean
    estimates, where they are recorded."""

    step: int
    judge: str
    seeds: Int[np.ndarray, "W K"]
    scores: Float[np.ndarray, "W K"]
    alive: Bool[np.ndarray, "W K"]
    log_weights: Float[np.ndarray, "W K"]
    parents: Int[np.ndarray, "W k"]
    x0: Float[np.ndarray, "W K F h w C"] | None = None


class Cost(NamedTuple):
    """forwards: passes through the transformer, two a step with guidance. decodes: of estimates.
    judged: calls of a judge, one a particle. All of each video [W]. seconds: of all together."""

    forwards: Int[np.ndarray, " W"]
    decodes: Int[np.ndarray, " W"]
    judged: Int[np.ndarray, " W"]
    seconds: float


class Result(NamedTuple):
    """latents: the chosen video, [W, F, h, w, C], without W where there was one condition; seed:
    whose it is [W]. tree: who came from whom. particles [W, K, F, h, w, C], weights [W, K]: all
    that were alive at the end (those that were not weigh 0). log_norm [W]: log of the estimated
    mean of exp(scale × score), where particles were drawn by weight."""

    latents: Float[Any, "*W F h w C"]
    seed: Int[np.ndarray, " W"]
    tree: tuple[Generation, ...]
    cost: Cost
    particles: Float[Any, "W K F h w C"]
    weights: Float[np.ndarray, "W K"]
    log_norm: Float[np.ndarray, " W"]


def run(
    model: Wan,
    condition: Condition,
    method: Method,
    seed: int | Sequence[int] = 0,
    *,
    judges: Mapping[str, Judge] | None = None,
    sampling: Sampling | None = None,
    probe: Probe | None = None,
    record: bool = False,
    on_step: Callable[[int, int], None] | None = None,
) -> Result:
    """Search for the best video of a condition, or of each of several stacked ones.

    seed: the first one (of each video): particles have this one and those that follow. judges: by
    name, added to those of `judges.STANDARD`. sampling: the model's own by default.
    probe: acts on every particle. record: keep the estimates that were judged. on_step: called with
    the step and the number of particles after each.

    The result of a video does not depend on the others. Raises ValueError, before anything
    runs, for a method that this model cannot do (`check`) or a judge that does not fit, and later
    for one that returns nan.
    """
    start = time.monotonic()
    going = _Run(model, condition, method, seed, judges, sampling, probe, record, on_step)
    state = going.begin(0)
    for number, row in enumerate(method.rows):
        state = going.until(state, row.at(going.plan.steps), going.population.alive)
        scores = going.scores(row, state, going.population.alive)
        for _ in range(row.tries):
            lacking = going.population.lacking(row, scores)
            if not lacking.any():
                break
            fresh = going.begin(state.rows.shape[1])
            alive = lacking[:, None] & (np.arange(fresh.rows.shape[1]) < method.seeds)
            fresh = going.until(fresh, state.step, alive)
            scores = np.concatenate([scores, going.scores(row, fresh, alive)], 1)
            going.population.join(alive)
            state = state.join(fresh)
        state = going.select(state, row, scores, last=number == len(method.rows) - 1)
    state = going.until(state, going.plan.steps - 1, going.population.alive)
    return going.result(state, time.monotonic() - start)


class _Run:
    """A search under way."""

    def __init__(
        self,
        model: Wan,
        condition: Condition,
        method: Method,
        seed: int | Sequence[int],
        judges: Mapping[str, Judge] | None,
        sampling: Sampling | None,
        probe: Probe | None,
        record: bool,
        on_step: Callable[[int, int], None] | None,
    ):
        self.single = condition.context.ndim == 2
        self.conditions = jax.tree.map(lambda a: a[None], condition) if self.single else condition
        worlds = len(self.conditions.context)
        self.first = [seed] * worlds if isinstance(seed, int) else list(seed)
        if len(self.first) != worlds:
            raise ValueError(f"{len(self.first)} first seeds for {worlds} video(s)")
        self.model, self.method, self.record, self.on_step = model, method, record, on_step
        sampling = sampling_of(method, sampling or model.config.sampling)
        self.sampling, self.plan = sampling, flow.plan(sampling, model.config.boundary)
        known = {name: make() for name, make in STANDARD.items()} | dict(judges or {})
        self.shape = (*self.conditions.grid, model.config.dit.out_channels)
        check(method, model.config, sampling, list(known), self.shape[0], probe or Probe())
        self.judges = {row.judge: known[row.judge] for row in method.rows}
        self.layers = sorted({j.layer for j in self.judges.values() if j.layer is not None})
        acting = [probe or Probe()]
        if self.layers:
            acting.append(TokenFeatures(self.layers))
        self.probe = chain(*acting)
        self._check_judges(worlds, method.seeds)
        # Devices that share the particles all have equally many.
        self.multiple = mesh.devices(mesh.SEED)
        self.population = Population(worlds, method.seeds, self.first)
        if short := -method.seeds % self.multiple:
            self.population.join(np.zeros((worlds, short), bool))
        self.counts = np.zeros((3, worlds), int)  # forwards, decodes, judged
        self.tree: list[Generation] = []

    def _check_judges(self, worlds: int, count: int) -> None:
        zeros = jax.ShapeDtypeStruct((worlds, count, *self.shape), jnp.float32)
        for judge in self.judges.values():
            latents = zeros
            if judge.on_host:
                latents = jnp.zeros((worlds, count, *self.shape), jnp.float32)
            cfg = self.model.config.dit
            tokens = math.prod(cfg.tokens(*self.shape[:3]))
            each = jax.ShapeDtypeStruct((worlds, count, tokens, cfg.dim), jnp.float32)
            tokens_of = dict.fromkeys(self.layers, each)
            alive = np.ones((worlds, count), bool)
            at = Estimates(self.model, -1, 1.0, latents, latents, latents, alive, tokens_of)
            judge.check(self.model.config, at)

    def begin(self, number: int) -> loop.State:
        """Return fresh particles, from the given number on, before their first step."""
        count = -(-self.method.seeds // self.multiple) * self.multiple
        seeds = [[first + number + i for i in range(count)] for first in self.first]
        runs = loop.steps(
            self.model, self.conditions, seeds, probe=self.probe, sampling=self.sampling
        )
        assert runs.state is not None
        if self.method.spread == 1:
            return runs.state
        x, near = runs.state.solver.x, self.method.spread
        mixed = math.sqrt(1 - near**2) * x[:, :1] + near * x
        return runs.state.move(mixed.at[:, 0].set(x[:, 0]), step=-1)

    def until(self, state: loop.State, step: int, alive: Bool[np.ndarray, "W K"]) -> loop.State:
        """Return the state after a step, and count the passes of those alive."""
        passes = 1 if self.plan.guidance is None else 2
        while state.step < step:
            state = next(state.runs)
            self.counts[0] += passes * alive.sum(1)
            if self.on_step is not None:
                self.on_step(state.step, state.rows.shape[1])
        return state

    def scores(
        self, row: Row, state: loop.State, alive: Bool[np.ndarray, "W K"]
    ) -> Float[np.ndarray, "W K"]:
        """Return what a row's judge says of the particles, and count it for those alive."""
        judge, solver = self.judges[row.judge], state.solver
        tokens = {}
        if judge.layer is not None:
            if state.trace is None:
                raise ValueError(f"{row.judge} reads tokens, of which nothing is left after a row")
            observed = state.trace.block_obs[-1]
            tokens = {layer: observed[:, :, 0, i] for i, layer in enumerate(self.layers)}
        at = Estimates(
            self.model,
            state.step,
            state.next_sigma,
            solver.x,
            solver.last,
            solver.before_last,
            alive,
            tokens,
        )
        scores = np.asarray(judge(at), np.float64)
        check_scores(judge, scores, state.rows.shape)
        if not np.isfinite(scores[alive]).all():
            world, place = np.argwhere(alive & ~np.isfinite(scores))[0]
            raise ValueError(
                f"judge {row.judge!r} returned {scores[world, place]} for particle {place} of "
                f"video {world} after step {state.step}; it must return numbers"
            )
        self.counts[1:] += alive.sum(1) * np.array([[judge.decodes], [True]])
        return scores

    def select(
        self, state: loop.State, row: Row, scores: Float[np.ndarray, "W K"], *, last: bool
    ) -> loop.State:
        """Return the particles that go on."""
        people, before = self.population, (self.population.alive, self.population.log_weight)
        x0 = np.asarray(state.solver.last) if self.record else None
        which = people.select(row, scores, last=last, multiple=self.multiple)
        parents = np.where(people.alive, which, -1)
        seeds = np.array(state.rows.tolist())
        self.tree.append(Generation(state.step, row.judge, seeds, scores, *before, parents, x0))
        state = state.take(which)
        copied = np.tril(which[:, :, None] == which[:, None], -1).any(-1)
        if row.copy == "mutate":
            return state.move(self._noised(state, row.strength, state.next_sigma, copied))
        if row.copy == "renoise":
            sigma = float(self.plan.schedule.sigmas[row.back + 1])
            return state.move(self._noised(state, row.strength, sigma), step=row.back)
        if row.copy == "prefix":
            self.conditions = self.conditions.replace(first=state.solver.last[:, 0, : row.frames])
            return self.begin(self.method.seeds * len(self.tree))
        return state

    def _noised(
        self,
        state: loop.State,
        strength: float,
        sigma: float,
        where: Bool[np.ndarray, "W K"] | None = None,
    ) -> Any:
        """Return latents of a noise level: the estimate with the noise that is left in x, renewed
        by `strength`."""
        x, x0, now = state.solver.x, state.solver.last, state.next_sigma
        keys = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(
            state.keys, np.uint32(FRESH)
        )
        draw = jax.vmap(jax.vmap(lambda key: jax.random.normal(key, x.shape[2:], x.dtype)))
        left = (x - (1 - now) * x0) / max(now, 1e-6)
        noise = math.sqrt(1 - strength**2) * left + strength * draw(keys)
        moved = (1 - sigma) * x0 + sigma * noise
        return moved if where is None else jnp.where(where[:, :, *[None] * 4], moved, x)

    def result(self, state: loop.State, seconds: float) -> Result:
        people = self.population
        rank = np.where(people.alive, people.rank, -np.inf)
        best, worlds = rank.argmax(1), np.arange(len(rank))
        latents = jax.block_until_ready(state.solver.x)
        weights = people.weights
        logs = np.where(people.alive, people.log_weight, -np.inf)
        high = logs.max(1)
        mean = np.exp(logs - high[:, None]).sum(1) / people.alive.sum(1)
        log_norm = people.log_norm + high + np.log(mean)
        seeds = np.array(state.rows.tolist())[worlds, best]
        chosen = latents[worlds, best]
        forwards, decodes, judged = self.counts
        cost = Cost(forwards, decodes, judged, seconds)
        chosen = chosen[0] if self.single else chosen
        return Result(chosen, seeds, tuple(self.tree), cost, latents, weights, log_norm)


def replay(
    method: Method, scores: Mapping[str, Float[np.ndarray, "W N S"]], passes: int = 1
) -> tuple[Int[np.ndarray, " W"], Int[np.ndarray, " W"]]:
    """Return whom a method would choose among N runs that were made to the end, by position, and
    how many forwards it would have taken.

    scores: of every run after every step, by judge. passes: of a step. Without copies and noise a
    run does not depend on the others, so this is what `run` does. Raises ValueError where the
    method makes copies, or needs more runs than there are.
    """
    ((worlds, runs, steps),) = {a.shape for a in scores.values()}
    if method.eta or method.spread != 1 or any(row.count > row.keep for row in method.rows):
        raise ValueError("a method that draws noise or makes copies cannot be replayed")
    need = method.seeds * (1 + max((row.tries for row in method.rows), default=0))
    if need > runs:
        raise ValueError(f"the method may need {need} seeds; {runs} runs were made")
    people = Population(worlds, method.seeds, range(worlds))
    index = np.tile(np.arange(method.seeds), (worlds, 1))
    each, forwards, step = np.arange(worlds)[:, None], np.zeros(worlds, int), -1
    for number, row in enumerate(method.rows):
        at = row.at(steps)
        forwards += passes * (at - step) * people.alive.sum(1)
        step, read = at, scores[row.judge][each, index, at]
        for _ in range(row.tries):
            lacking = people.lacking(row, read)
            fresh = index.shape[1] + np.tile(np.arange(method.seeds), (worlds, 1))
            forwards += passes * (at + 1) * method.seeds * lacking
            people.join(np.repeat(lacking[:, None], method.seeds, 1))
            index = np.concatenate([index, fresh], 1)
            read = np.concatenate([read, scores[row.judge][each, fresh, at]], 1)
        which = people.select(row, read, last=number == len(method.rows) - 1)
        index = np.take_along_axis(index, which, 1)
    forwards += passes * (steps - 1 - step) * people.alive.sum(1)
    best = np.where(people.alive, people.rank, -np.inf).argmax(1)
    return index[np.arange(worlds), best], forwards
