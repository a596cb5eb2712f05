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
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jcos import loop
from jcos.config import Sampling, VaeConfig, WanConfig
from jcos.devices import mesh
from jcos.lab import saved
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
    standard,
)
from jcos.lab.methods import (
    PRESETS,
    Method,
    Population,
    Row,
    best_of,
    chain_clips,
    check,
    early_failure,
    epbs,
    evosearch,
    latsearch,
    sampling_of,
    smc,
    tbs,
)
from jcos.lab.outcome import Cost, Generation, Result, joined, video
from jcos.lab.presets import forwards, named, plan_in_words
from jcos.lab.replay import replay
from jcos.model.vae import Tiles
from jcos.sampling import flow
from jcos.sampling.probes import Probe, TokenFeatures, chain
from jcos.sampling.trajectory import Condition, tree_stack
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
    "chain_clips",
    "check",
    "early_failure",
    "epbs",
    "evosearch",
    "fit_head",
    "fit_preview",
    "forwards",
    "joined",
    "latsearch",
    "named",
    "needs_vae",
    "plan_in_words",
    "replay",
    "run",
    "smc",
    "standard",
    "tbs",
    "video",
]

FRESH = 2**31 - 1
"""Folded into keys for the noise of a row; no step is so large."""


def run(
    model: Wan,
    condition: Condition,
    method: Method,
    seed: int | Sequence[int] = 0,
    *,
    judges: Mapping[str, Judge] | None = None,
    sampling: Sampling | None = None,
    probe: Probe | None = None,
    noise: str | None = None,
    record: bool = False,
    keep: Path | None = None,
    tiles: Tiles | None = None,
    together: int | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Result:
    """Search for the best video of a condition, or of each of several stacked ones.

    seed: the first one (of each video): particles have this one and those that follow. judges: by
    name, added to those of `judges.STANDARD`. sampling: the model's own by default.
    probe: acts on every particle. noise: "torch" or "jax", by default the model's own generator.
    record: keep the estimates that were judged. keep: a folder that holds the search after every
    step; one that was killed goes on from there (without the estimates of before). tiles: as in
    `Wan.encode`. together: as in `steps`. on_step: called with the step and the number of
    particles after each.

    The result of a video does not depend on the others. Raises ValueError, before anything
    runs, for a method that this model cannot do (`check`) or a judge that does not fit, and later
    for one that returns nan.
    """
    start = time.monotonic()
    going = _Run(model, condition, method, seed, judges, sampling, probe, noise, record, on_step)
    going.keep, going.tiles, going.together = keep, tiles, together
    at = saved.load(keep, going) if keep is not None else None
    state, first, scores, tried = at or (going.begin(0), 0, None, 0)
    for number, row in enumerate(method.rows[first:], first):
        if scores is None:
            state = going.until(state, row.at(going.plan.steps), going.population.alive, number)
            scores = going.scores(row, state, going.population.alive)
        for tries in range(tried, row.tries):
            lacking = going.population.lacking(row, scores)
            if not lacking.any():
                break
            going.save(state, number, scores, tries)
            fresh = going.begin(state.rows.shape[1])
            alive = lacking[:, None] & (np.arange(fresh.rows.shape[1]) < method.seeds)
            fresh = going.until(fresh, state.step, alive)
            scores = np.concatenate([scores, going.scores(row, fresh, alive)], 1)
            going.population.join(alive)
            state = state.join(fresh)
        state = going.select(state, row, scores, last=number == len(method.rows) - 1)
        scores, tried = None, 0
        going.save(state, number + 1)
    rows = len(method.rows)
    state = going.until(state, going.plan.steps - 1, going.population.alive, rows)
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
        noise: str | None,
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
        self.noise = noise
        self.keep: Path | None = None
        self.tiles: Tiles | None = None
        self.together: int | None = None
        self.going: loop.Runs | None = None
        sampling = sampling_of(method, sampling or model.config.sampling)
        self.sampling, self.plan = sampling, flow.plan(sampling, model.config.boundary)
        known = standard(model.config) | dict(judges or {})
        self.shape = (*self.conditions.grid, model.config.dit.out_channels)
        check(method, model.config, sampling, list(known), self.shape[0], probe or Probe())
        if needs_vae(method, model.config) and model.vae is None:
            raise ValueError(f"this search codes frames; load {model.config.name} with its VAE")
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
        self.clips: list[Any] = []
        self.shared: list[int] = []

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
        runs = self.steps(seeds)
        assert runs.state is not None
        if self.method.spread == 1:
            return runs.state
        x, near = runs.state.solver.x, self.method.spread
        mixed = math.sqrt(1 - near**2) * x[:, :1] + near * x
        return runs.state.move(mixed.at[:, 0].set(x[:, 0]), step=-1)

    def steps(self, seeds: Any = (0,), start: Path | None = None) -> loop.Runs:
        return loop.steps(
            self.model,
            self.conditions,
            seeds,
            probe=self.probe,
            sampling=self.sampling,
            noise=self.noise,
            start=start,
            together=self.together,
        )

    def until(
        self,
        state: loop.State,
        step: int,
        alive: Bool[np.ndarray, "W K"],
        number: int | None = None,
    ) -> loop.State:
        """Return the state after a step, and count the passes of those alive. number: of the row
        that comes next, where what lies between is to be kept."""
        if self.going is not state.runs:
            if self.going is not None:
                self.going.release()  # or its expert stays beside the one that comes
            self.going = state.runs
        while state.step < step:
            state = next(state.runs)
            self.counts[0] += (1 if self.plan.guidance is None else 2) * alive.sum(1)
            if self.on_step is not None:
                self.on_step(state.step, state.rows.shape[1])
            if number is not None and state.step < step:
                self.save(state, number)
        return state

    def save(
        self, state: loop.State, number: int, scores: np.ndarray | None = None, tried: int = 0
    ) -> None:
        """Store where the search is, if it is kept: before the row of this number."""
        if self.keep is not None:
            saved.save(self.keep, self, state, number, scores, tried)

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
        if row.copy in ("prefix", "chain"):
            self._give(row, state.solver.last[:, 0])
            return self.begin(self.method.seeds * len(self.tree))
        return state

    def _give(self, row: Row, best: Float[Any, "W F h w C"]) -> None:
        """Make the best video's first frames those of all that begin anew, or its last ones."""
        worlds = [jax.tree.map(lambda a, w=w: a[w], self.conditions) for w in range(len(best))]
        if row.copy == "chain":
            self.clips.append(np.asarray(best))
            self.shared.append(row.frames)
            given = [
                self.model.chained(*each, row.frames) for each in zip(worlds, best, strict=True)
            ]
        else:
            first = best[:, : row.frames]
            given = [self.model.continued(*each) for each in zip(worlds, first, strict=True)]
        self.conditions = tree_stack(given)

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
        clips = tuple(clip[0] if self.single else clip for clip in self.clips)
        tree, shared = tuple(self.tree), tuple(self.shared)
        return Result(chosen, seeds, tree, cost, latents, weights, log_norm, clips, shared)


def needs_vae(method: Method, config: WanConfig) -> bool:
    """Return whether frames are decoded and coded between restarts."""
    known = standard(config)
    copies = {row.copy for row in method.rows}
    coded = "chain" in copies or ("prefix" in copies and config.image != "pin")
    decoded = any(row.judge in known and known[row.judge].decodes for row in method.rows)
    return isinstance(config.codec, VaeConfig) and (coded or decoded)
