"""Search along the denoising steps: many seeds begin, judges read early estimates, few go on.

    result = jcos.search.run(model, condition, jcos.search.epbs(8))
    video = model.decode(result.latents)

Methods (`methods.py`) are data, judges (`judges.py`) functions of estimates. It runs on
`jcos.steps`: particles lie on its seed axis, many videos (puzzles) on its world axis; on a mesh
both are spread.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import special

from jcos import loop
from jcos.config import Sampling, VaeConfig, WanConfig
from jcos.devices import mesh
from jcos.lab import saved
from jcos.lab.judges import STANDARD as STANDARD
from jcos.lab.judges import Decided as Decided
from jcos.lab.judges import Entropy as Entropy
from jcos.lab.judges import Estimates as Estimates
from jcos.lab.judges import Frames as Frames
from jcos.lab.judges import Head as Head
from jcos.lab.judges import Judge as Judge
from jcos.lab.judges import Random as Random
from jcos.lab.judges import Scorer as Scorer
from jcos.lab.judges import check_scores
from jcos.lab.judges import fit_head as fit_head
from jcos.lab.judges import standard as standard
from jcos.lab.methods import PRESETS as PRESETS
from jcos.lab.methods import Method as Method
from jcos.lab.methods import Row as Row
from jcos.lab.methods import best_of as best_of
from jcos.lab.methods import calibrated as calibrated
from jcos.lab.methods import chain_clips as chain_clips
from jcos.lab.methods import early_failure as early_failure
from jcos.lab.methods import epbs as epbs
from jcos.lab.methods import evosearch as evosearch
from jcos.lab.methods import latsearch as latsearch
from jcos.lab.methods import named as named
from jcos.lab.methods import plan_in_words as plan_in_words
from jcos.lab.methods import sampling_of as sampling_of
from jcos.lab.methods import smc as smc
from jcos.lab.methods import tbs as tbs
from jcos.lab.outcome import Cost
from jcos.lab.outcome import Generation as Generation
from jcos.lab.outcome import Result as Result
from jcos.lab.outcome import video as video
from jcos.lab.population import Search
from jcos.lab.population import replay as replay
from jcos.lab.refusals import check as check
from jcos.model.vae import Tiles
from jcos.preview import fit_preview as fit_preview
from jcos.sampling import flow
from jcos.sampling.checks import check_order
from jcos.sampling.inside import Capture
from jcos.sampling.noise import seed_numbers, seed_words
from jcos.sampling.probes import Probe, chain
from jcos.sampling.trajectory import Condition, tree_stack
from jcos.wan import Wan

FRESH = 2**31 - 1
"""Folded into keys for the noise of a row, less its number; no step is so large."""


def run(
    model: Wan,
    condition: Condition,
    method: Method,
    seed: Sequence[int] | SupportsIndex = 0,
    *,
    judges: Mapping[str, Judge] | None = None,
    sampling: Sampling | None = None,
    probe: Probe | None = None,
    noise: str | None = None,
    record: bool | slice = False,
    keep: Path | None = None,
    tiles: Tiles | None = None,
    together: int | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Result:
    """Search for the best video of a condition, or of each of several stacked ones.

    seed: the first one (of each video): particles have this one and those that follow. judges: by
    name, added to those of `judges.STANDARD`. sampling: the model's own by default.
    probe: acts on every particle. noise: "torch" or "jax", by default the model's own generator.
    record: keep the estimates that were judged, or a slice of their latent frames. keep: a folder
    that holds the search after every step; one that was killed goes on from there, another one is
    refused. tiles: as in `Wan.encode`. together: as in `steps`. on_step: called with the step and
    the number of particles after each.

    The result of a video does not depend on the others. Raises ValueError, before anything
    runs, for a method that this model cannot do (`check`) or a judge that does not fit, and later
    for one that returns nan.
    """
    start, acting = time.monotonic(), probe or Probe()
    going = _Run(model, condition, method, seed, dict(judges or {}), sampling, acting, noise)
    going.record, going.keep, going.on_step = record, keep, on_step
    going.tiles, going.together = tiles, together
    at = saved.load(keep, going) if keep is not None else None
    state, row, scores = at or (going.begin(0), 0, None)
    return going.result(going.act(state, row, scores), time.monotonic() - start)


class _Run(Search):
    """A search whose runs are made."""

    record: bool | slice = False
    keep: Path | None = None
    on_step: Callable[[int, int], None] | None = None
    tiles: Tiles | None = None
    together: int | None = None

    def __init__(
        self,
        model: Wan,
        condition: Condition,
        method: Method,
        seed: Sequence[int] | SupportsIndex,
        judges: dict[str, Judge],
        sampling: Sampling | None,
        probe: Probe,
        noise: str | None,
    ):
        self.single = condition.context.ndim == 2
        self.conditions = jax.tree.map(lambda a: a[None], condition) if self.single else condition
        worlds = len(self.conditions.context)
        one = np.ndim(seed) == 0  # type: ignore[arg-type]
        self.first = seed_numbers(seed) * (worlds if one else 1)
        if len(self.first) != worlds:
            raise ValueError(f"{len(self.first)} first seeds for {worlds} video(s)")
        self.model, self.noise = model, noise
        self.sampling = sampling_of(method, sampling or model.config.sampling)
        self.plan = flow.plan(self.sampling, model.config.boundary)
        known = standard(model.config) | judges
        self.shape = (*self.conditions.grid, model.config.dit.out_channels)
        check(method, model.config, self.sampling, list(known), self.shape[0], probe)
        check_order(probe)
        self.judges = {row.judge: known[row.judge] for row in method.rows}
        decodes = any(judge.decodes for judge in self.judges.values())
        coded = isinstance(model.config.codec, VaeConfig)
        if coded and model.vae is None and (decodes or needs_vae(method, model.config)):
            raise ValueError(f"this search codes frames; load {model.config.name} with its VAE")
        for row, at, before, _ in method.stages(self.plan.steps):
            if at == before and self.judges[row.judge].layer is not None:
                raise ValueError(
                    f"judge {row.judge!r} reads tokens, of which nothing is left after the row "
                    f"before; let it judge another step than {at}"
                )
        self.layers = sorted({j.layer for j in self.judges.values() if j.layer is not None})
        self.probe = chain(probe, Capture("block", self.layers)) if self.layers else chain(probe)
        self._check_judges(worlds, method.seeds)
        # Devices that share the particles all have equally many.
        super().__init__(method, self.plan.steps, self.first, mesh.devices(mesh.SEED))
        self.passes = 1 if self.plan.guidance is None else 2
        self.going: loop.Runs | None = None
        self.tree: list[Generation] = []
        self.clips: list[Any] = []

    def _check_judges(self, worlds: int, count: int) -> None:
        shape, cfg = (worlds, count, *self.shape), self.model.config.dit
        tokens = (worlds, count, math.prod(cfg.tokens(*self.shape[:3])), cfg.dim)
        tokens_of = dict.fromkeys(self.layers, jax.ShapeDtypeStruct(tokens, jnp.float32))
        alive = np.ones((worlds, count), bool)
        for judge in self.judges.values():
            made = jnp.zeros if judge.on_host else jax.ShapeDtypeStruct
            latents = made(shape, jnp.float32)
            at = Estimates(self.model, -1, 1.0, latents, latents, latents, alive, tokens_of)
            judge.check(self.model.config, at)

    def begin(self, number: int | Int[np.ndarray, " W"]) -> loop.State:
        """Return fresh particles, from the given number on (of each world), before their first
        step."""
        numbers = np.broadcast_to(number, len(self.first)).tolist()
        firsts = [first + n for first, n in zip(self.first, numbers, strict=True)]
        runs = self.runs([range(first, first + self.width) for first in firsts])
        assert runs.state is not None
        if self.method.spread == 1:
            return runs.state
        x, near = runs.state.solver.x, self.method.spread
        mixed = math.sqrt(1 - near**2) * x[:, :1] + near * x
        return runs.state.move(mixed.at[:, 0].set(x[:, 0]), step=-1)

    def runs(self, seeds: Any = (0,), start: Path | None = None) -> loop.Runs:
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

    def advance(self, state: loop.State) -> loop.State:
        if self.going is not state.runs:
            if self.going is not None:
                self.going.release()  # or its expert stays beside the one that comes
            self.going = state.runs
        state = next(state.runs)
        if self.on_step is not None:
            self.on_step(state.step, state.rows.shape[1])
        return state

    def save(self, state: loop.State, number: int, scores: np.ndarray | None = None) -> None:
        if self.keep is not None:
            saved.save(self.keep, self, state, number, scores)

    def scores(
        self, row: Row, state: loop.State, alive: Bool[np.ndarray, "W K"]
    ) -> Float[np.ndarray, "W K"]:
        """Count the calls of the judge, too, of those alive."""
        judge, solver = self.judges[row.judge], state.solver
        tokens = {}
        if judge.layer is not None:
            assert state.trace is not None  # no row before at this step
            observed = state.trace.block_obs[-1]
            tokens = {layer: observed[:, :, 0, i] for i, layer in enumerate(self.layers)}
        latents = solver.x, solver.last, solver.before_last
        seeds = seed_words(state.rows.ravel().tolist()).reshape(state.rows.shape)
        at = Estimates(
            self.model, state.step, state.next_sigma, *latents, alive, tokens, seeds, self.tiles
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
        people, before = self.population, copy.copy(self.population)
        before.weigh(row, scores, last=last)  # of the copy: by which particles are drawn
        x0 = None
        if self.record:
            frames = self.record if isinstance(self.record, slice) else slice(None)
            x0 = np.asarray(state.solver.last[:, :, frames])
        which = people.select(row, scores, last=last, multiple=self.multiple)
        parents = np.where(people.alive, which, -1)
        scored = state.step, row.judge, state.rows, scores
        self.tree.append(Generation(*scored, before.alive, before.log_weight, parents, x0))
        state = state.take(which)
        copied = np.tril(which[:, :, None] == which[:, None], -1).any(-1)
        if row.copy == "mutate":
            return state.move(self._noised(state, row.strength, state.next_sigma, copied))
        if row.copy == "renoise":
            sigma = float(self.plan.schedule.sigmas[row.back + 1])
            moved = self._noised(state, row.strength, sigma, number=len(self.tree))
            return state.move(moved, step=row.back)
        if row.copy in ("prefix", "chain"):
            self._give(row, state.solver.last[:, 0])
            return self.begin(self.method.seeds * len(self.tree))
        return state

    def _give(self, row: Row, best: Float[Any, "W F h w C"]) -> None:
        """Make the best video's first frames those of all that begin anew, or its last ones."""
        worlds = [jax.tree.map(lambda a, w=w: a[w], self.conditions) for w in range(len(best))]
        if row.copy == "chain":
            self.clips.append(np.asarray(best))
            give = partial(self.model.chained, frames=row.frames)
        else:
            give, best = self.model.continued, best[:, : row.frames]
        each = zip(worlds, best, strict=True)
        self.conditions = tree_stack([give(*one, tiles=self.tiles) for one in each])

    def _noised(
        self,
        state: loop.State,
        strength: float,
        sigma: float,
        where: Bool[np.ndarray, "W K"] | None = None,
        number: int = 0,
    ) -> Any:
        """Return latents of a noise level: the estimate with the noise that is left in x, renewed
        by `strength`; all of it where none is left. number: of the row, for particles that keep
        their keys."""
        x, x0, now = state.solver.x, state.solver.last, state.next_sigma
        strength = strength if now > 0 else 1.0
        keys = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(
            state.keys, np.uint32(FRESH - number)
        )
        draw = jax.vmap(jax.vmap(lambda key: jax.random.normal(key, x.shape[2:], x.dtype)))
        left = (x - (1 - now) * x0) / max(now, 1e-6)
        noise = math.sqrt(1 - strength**2) * left + strength * draw(keys)
        moved = (1 - sigma) * x0 + sigma * noise
        return moved if where is None else jnp.where(where[:, :, *[None] * 4], moved, x)

    def result(self, state: loop.State, seconds: float) -> Result:
        people = self.population
        at = np.arange(len(people.alive)), people.chosen
        latents = jax.block_until_ready(state.solver.x)
        logs = np.asarray(special.logsumexp(people.log_weight, 1, people.alive))
        log_norm = people.log_norm + logs - np.log(people.alive.sum(1))
        seeds, chosen = state.rows[at], latents[at]
        forwards, decodes, judged = self.counts
        cost = Cost(forwards, decodes, judged, seconds)
        chosen = chosen[0] if self.single else chosen
        clips = tuple(clip[0] if self.single else clip for clip in self.clips)
        tree = tuple(self.tree)
        shared = tuple(row.frames for row in self.method.rows if row.copy == "chain")
        return Result(chosen, seeds, tree, cost, latents, people.weights, log_norm, clips, shared)


def needs_vae(method: Method, config: WanConfig) -> bool:
    """Return whether frames are decoded and coded between restarts."""
    copies = {row.copy for row in method.rows}
    coded = "chain" in copies or ("prefix" in copies and config.image != "pin")
    return isinstance(config.codec, VaeConfig) and coded
