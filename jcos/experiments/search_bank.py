"""All runs of some puzzles, made to the end once, with every judge's score of every clean estimate:
what methods of search are replayed on."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jcos.config import Sampling
from jcos.experiments.sweeps import conditions_of, judge, one_world, pixels, play, score, sweep
from jcos.lab.judges import STANDARD, Estimates, fit_head, pooled
from jcos.lab.methods import Method
from jcos.lab.population import replay
from jcos.lab.tasks import Puzzle
from jcos.sampling import flow
from jcos.sampling.inside import Capture
from jcos.sampling.probes import Probe
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan

SIGNS = ("decided", "pixels", "change", "energy")
"""Judges that need no training."""


class Bank(NamedTuple):
    """Finished runs of P puzzles with N seeds. scores [P, N, S] by judge; solved [P, N] at the end;
    features [P, N, S, D]: what a head on tokens sees. passes: forwards of a step."""

    scores: dict[str, np.ndarray]
    solved: np.ndarray
    features: np.ndarray
    passes: int = 1

    def play(self, method: Method) -> tuple[np.ndarray, np.ndarray]:
        """Return what is solved and the forwards [P] of a method, mean over as many disjoint groups
        of seeds as there are."""
        need = method.seeds * (1 + max(row.tries for row in method.rows))
        groups = []
        for first in range(0, self.solved.shape[1] - need + 1, need):
            here = slice(first, first + need)
            scores = {row.judge: self.scores[row.judge][:, here] for row in method.rows}
            chosen, forwards = replay(method, scores, self.passes)
            right = np.take_along_axis(self.solved[:, here], chosen[:, None], 1)[:, 0]
            groups.append((right.astype(float), forwards))
        solved, forwards = (np.mean(a, 0) for a in zip(*groups, strict=True))
        return solved, forwards

    def best(self, methods: Sequence[Method], budgets: Sequence[float]) -> dict[float, Method]:
        """Return the method that solves most within each budget, where one does; of several the
        one that needs fewest forwards."""
        solved, passes = np.array([np.mean(self.play(method), 1) for method in methods]).T
        rank = solved - 1e-9 * passes
        within = {b: np.where(passes <= b, rank, -1) for b in budgets if passes.min() <= b}
        return {b: methods[int(values.argmax())] for b, values in within.items()}


def make_bank(
    model: Wan,
    puzzles: Sequence[Puzzle],
    seeds: Sequence[int],
    plan: flow.Plan,
    what: str,
    **options: Any,
) -> Bank:
    """Run all seeds of these puzzles to the end. options: of `sweep`."""
    conditions = one_world(conditions_of(model, puzzles))
    about: dict[str, Any] = {"plan": plan, "readout": judged, "what": what}
    about["probes"] = [Capture("block", (model.config.dit.layers // 2,))]
    scores, features, video = sweep(model, conditions, seeds, **about, **options)
    solved = judge(puzzles, video[0, :, 0])[1]
    known = {name: a[0, :, 0] for name, a in scores.items()}
    shape = known["decided"].shape
    known["random"] = np.random.default_rng(0).random(shape)
    known["oracle"] = np.broadcast_to(solved[..., None], shape).astype(float)
    return Bank(known, solved, features[0, :, 0], 1 if plan.guidance is None else 2)


def add_head(learnt: Bank, others: Sequence[Bank], penalty: float = 1.0) -> None:
    """Add the scores of a head on tokens, fitted at each step on the first bank, to all of them.
    Each half of the first bank's own puzzles is read by a head of the other half."""
    for bank in others:
        bank.scores["head"] = _headed(bank.features, learnt, slice(None), penalty)
    learnt.scores["head"] = np.zeros(learnt.features.shape[:3])
    for half in (slice(0, None, 2), slice(1, None, 2)):
        other = slice(1 - half.start, None, 2)
        learnt.scores["head"][half] = _headed(learnt.features[half], learnt, other, penalty)


def _headed(
    features: Float[np.ndarray, "P N S D"], learnt: Bank, rows: slice, penalty: float
) -> Float[np.ndarray, "P N S"]:
    """Return what heads say, fitted at each step on some puzzles of a bank."""
    right = learnt.solved[rows].ravel().astype(float)
    known = np.moveaxis(learnt.features[rows], 2, 0)
    heads = [fit_head(0, a.reshape(-1, a.shape[-1]), right, penalty) for a in known]
    weights = np.stack([np.asarray(head.weights) for head in heads])
    return np.einsum("pksd,sd->pks", features, weights) + np.array([head.bias for head in heads])


def judged(
    model: Wan, plan: flow.Plan, trace: Trace, aux: Any
) -> tuple[Mapping[str, jax.Array], jax.Array, jax.Array]:
    """Return every judge's score [W, K, S], pooled tokens [W, K, S, D], and the final video."""
    scores = scores_of(model, plan, trace.x0)
    return scores, pooled(trace.block_obs[:, :, :, 0]), pixels(model, trace.x0[:, :, -1])


def scores_of(
    model: Wan, plan: flow.Plan, x0: Float[Array, "W K S F h w C"], names: Iterable[str] = SIGNS
) -> dict[str, Float[Array, "W K S"]]:
    """Return the scores of clean estimates by standard judges."""
    before = jnp.concatenate([jnp.zeros_like(x0[:, :, :1]), x0[:, :, :-1]], 2)
    alive = jnp.ones(x0.shape[:2], bool)
    known = {name: STANDARD[name]() for name in names}
    scores: dict[str, list[Any]] = {name: [] for name in known}
    for step in range(plan.steps):
        sigma: Any = plan.schedule.sigmas[step + 1]
        now = x0[:, :, step]
        at = Estimates(model, step, sigma, now, now, before[:, :, step], alive, {})
        for name, one in known.items():
            scores[name].append(jnp.asarray(one(at)))
    return {name: jnp.stack(each, -1) for name, each in scores.items()}


def ended(
    model: Wan,
    puzzles: Sequence[Puzzle],
    seeds: Sequence[int],
    probes: Sequence[Probe],
    sampling: Sampling,
) -> np.ndarray:
    """Return which runs end solved [Q, P, K]."""
    ends = play(model, puzzles, seeds, probes=probes, sampling=sampling).latents
    return np.stack([score(model, puzzles, one)[1] for one in ends]).astype(float)
