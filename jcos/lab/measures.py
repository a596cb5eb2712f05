"""What is read off trajectories: functions of arrays, and the intervals that go beside them."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped


def cka(x: Float[Array, "n p"], y: Float[Array, "n q"]) -> Float[Array, ""]:
    """Linear centred kernel alignment of two sets of n features: 1 the same up to rotation and
    scale, 0 unrelated.

    Computed in feature space, p × q, which is what fits when n is tens of thousands of tokens.
    """
    x, y = x - x.mean(0, keepdims=True), y - y.mean(0, keepdims=True)
    cross, own_x, own_y = (jnp.sum(jnp.square(a.T @ b)) for a, b in ((x, y), (x, x), (y, y)))
    return cross / jnp.sqrt(own_x * own_y)


def dissimilarity(
    x: Float[Array, "N D"], y: Float[Array, "N D"], frames: int
) -> Float[Array, " G"]:
    """1 − CKA (linear, without bias) of two sets of tokens, rows ordered by frame: of all of them,
    and without those of each frame in turn."""
    x, y = (a.astype(jnp.float32) for a in (x, y))
    x, y = x - x.mean(0, keepdims=True), y - y.mean(0, keepdims=True)
    cross, own_x, own_y = (hsic(a, b, frames) for a, b in ((x, y), (x, x), (y, y)))
    return 1.0 - cross / jnp.sqrt(jnp.maximum(own_x * own_y, jnp.finfo(jnp.float32).tiny))


def hsic(x: Float[Array, "N D"], y: Float[Array, "N D"], frames: int) -> Float[Array, " G"]:
    """n (n − 3) times the unbiased estimate of HSIC with linear kernels (Song et al. 2012, equation
    5): of all tokens, and without those of each frame in turn.

    K = x xᵀ is never built but within a frame. What a frame takes off Σ K_ij L_ij = ‖xᵀy‖² is twice
    its tokens' share Σ x_i xᵀy y_i, less what its tokens have among themselves.
    """
    keep = jnp.concatenate([jnp.zeros((1, frames)), jnp.eye(frames)])
    keep = 1.0 - jnp.repeat(keep, len(x) // frames, axis=1)
    n = keep.sum(1)
    own_x, own_y = jnp.sum(x * x, 1), jnp.sum(y * y, 1)
    share = jnp.sum((x @ (x.T @ y)) * y, 1)
    by_frame = (a.reshape(frames, -1, a.shape[1]) for a in (x, y))
    inside_x, inside_y = (jnp.einsum("fid,fjd->fij", a, a) for a in by_frame)
    among = jnp.pad(jnp.sum(inside_x * inside_y, (1, 2)), (1, 0))
    pairs = share.sum() - 2 * ((1 - keep) @ share) + among - keep @ (own_x * own_y)
    rows_x, rows_y = (keep * ((keep @ a) @ a.T - own[None]) for a, own in ((x, own_x), (y, own_y)))
    both = rows_x.sum(1) * rows_y.sum(1) / ((n - 1) * (n - 2))
    return pairs + both - 2 * jnp.sum(rows_x * rows_y, 1) / (n - 2)


class Mass(NamedTuple):
    """on [K]: how much of the estimate is each answer (an even blend of two is ½, ½). off: the part
    of its change against the still picture that no blend of answers explains, 0..1."""

    on: Float[Array, " K"]
    off: Float[Array, ""]


def answer_mass(
    x0: Float[Array, "F H W C"], answers: Float[Array, "K F H W C"], still: Float[Array, "F H W C"]
) -> Mass:
    """Weights of the blend of answers nearest to a clean estimate, all as changes against the still
    picture.

    For the ideal denoiser the clean estimate is exactly Σ p_k answer_k, and the weights are the
    posterior p. Where answers depend on each other (two independent detours give four routes, of
    which only three are independent) the weights of least norm are taken.
    """
    change = (answers - still[None]).reshape(len(answers), -1)
    seen = (x0 - still).reshape(-1)
    gram = change @ change.T
    on = jnp.linalg.pinv(gram, rtol=1e-4, hermitian=True) @ (change @ seen)
    rest = jnp.sum(jnp.square(seen - on @ change)) / jnp.maximum(jnp.sum(jnp.square(seen)), 1e-12)
    return Mass(on, rest)


def commitment_step(solved: Bool[np.ndarray, "... S"]) -> Int[np.ndarray, "..."]:
    """First step from which on every clean estimate is solved; S where the last one is not."""
    return np.asarray(solved.shape[-1] - np.cumprod(solved[..., ::-1], axis=-1).sum(-1))


def held_at_once(weights: Float[np.ndarray, "... K"]) -> Float[np.ndarray, "..."]:
    """How many answers a blend holds: exp of the entropy of its weights, 1 to K.

    Negative weights, which `answer_mass` may give, count as none; all zero gives nan.
    """
    positive = np.maximum(np.asarray(weights, np.float64), 0.0)
    total = positive.sum(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = positive / total
        entropy = -np.where(share > 0, share * np.log(share), 0.0).sum(-1)
    return np.where(total[..., 0] > 0, np.exp(entropy), np.nan)


class Estimate(NamedTuple):
    """A mean (or median, area, …) with its 95 % interval over n puzzles."""

    mean: float
    low: float
    high: float
    n: int


def proportion(successes: Bool[np.ndarray, " n"]) -> Estimate:
    """Wilson's interval: honest near 0 and 1, where the solved rates are."""
    n = len(successes)
    p, z = float(np.mean(successes)), 1.959964
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Estimate(p, float(min(p, centre - half)), float(max(p, centre + half)), n)


def bootstrap(
    values: Float[np.ndarray, " n"],
    *,
    statistic: Callable[..., np.ndarray] = np.mean,
    seed: int = 0,
    draws: int = 10_000,
) -> Estimate:
    """Percentile interval of a mean (or another numpy `statistic`), resampling puzzles; of paired
    differences when `values` are such."""
    n, exact = len(values), np.asarray(values, np.float64)
    picks = np.random.default_rng(seed).integers(n, size=(draws, n))
    low, high = np.percentile(statistic(exact[picks], axis=1), [2.5, 97.5])
    return Estimate(float(statistic(exact, axis=0)), float(low), float(high), n)


def auroc(
    values: Float[np.ndarray, " n"],
    positive: Bool[np.ndarray, " n"],
    *,
    groups: Int[np.ndarray, " n"] | None = None,
    seed: int = 0,
    draws: int = 2_000,
) -> Estimate:
    """The chance that a positive case has a larger value than a negative one (ties count half): ½
    for values that tell nothing.

    groups: which puzzle each case belongs to, by default its own; puzzles are what is resampled.
    All of it is nan where one kind is missing.
    """
    groups = np.arange(len(values)) if groups is None else groups
    number = len(np.unique(groups))
    if positive.all() or not positive.any():
        return Estimate(float("nan"), float("nan"), float("nan"), number)
    a, b = values[positive][:, None], values[~positive][None]
    wins = (a > b) + 0.5 * (a == b)
    _, group = np.unique(groups, return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), draws)
    weight = drawn[:, group].astype(np.float64)
    yes, no = weight[:, positive], weight[:, ~positive]
    total = yes.sum(1) * no.sum(1)
    areas = np.einsum("dp,pn,dn->d", yes, wins, no, optimize=True)[total > 0] / total[total > 0]
    low, high = np.percentile(areas, [2.5, 97.5])
    return Estimate(float(wins.mean()), float(low), float(high), number)


def over_puzzles(values: Shaped[np.ndarray, "P *seeds"]) -> Estimate:
    """The mean over puzzles with its interval: Wilson's for one yes or no per puzzle (or where all
    seeds of each agree), else by bootstrap of each puzzle's mean over seeds."""
    means = values.reshape(len(values), -1).mean(1).astype(np.float64)
    if values.dtype == bool and np.isin(means, (0.0, 1.0)).all():
        return proportion(means == 1)
    return bootstrap(means)
