"""What is read off trajectories: functions of arrays, and the intervals that go beside them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped
from scipy import special


def cka(x: Float[Array, "n p"], y: Float[Array, "n q"]) -> Float[Array, ""]:
    """Linear centred kernel alignment of two sets of n features: 1 the same up to rotation and
    scale, 0 unrelated.

    Computed in feature space, p × q, which is what fits when n is tens of thousands of tokens.
    """
    x, y = x - x.mean(0, keepdims=True), y - y.mean(0, keepdims=True)
    cross, self_x, self_y = (jnp.sum(jnp.square(a.T @ b)) for a, b in ((x, y), (x, x), (y, y)))
    return cross / jnp.sqrt(self_x * self_y)


def dissimilarity(
    x: Float[Array, "N D"], y: Float[Array, "N D"], frames: int
) -> Float[Array, " G"]:
    """1 − CKA (linear, without bias) of two sets of tokens, rows ordered by frame: of all of them,
    and without those of each frame in turn."""
    x, y = (a.astype(jnp.float32) for a in (x, y))
    x, y = x - x.mean(0, keepdims=True), y - y.mean(0, keepdims=True)
    cross, self_x, self_y = (hsic(a, b, frames) for a, b in ((x, y), (x, x), (y, y)))
    return 1.0 - cross / jnp.sqrt(jnp.maximum(self_x * self_y, jnp.finfo(jnp.float32).tiny))


def hsic(x: Float[Array, "N D"], y: Float[Array, "N D"], frames: int) -> Float[Array, " G"]:
    """n (n − 3) times the unbiased estimate of HSIC with linear kernels (Song et al. 2012, equation
    5): of all tokens, and without those of each frame in turn.

    K = x xᵀ is never built but within a frame. What a frame takes off Σ K_ij L_ij = ‖xᵀy‖² is twice
    its tokens' share Σ x_i xᵀy y_i, less what its tokens have among themselves.
    """
    keep = jnp.concatenate([jnp.zeros((1, frames)), jnp.eye(frames)])
    keep = 1.0 - jnp.repeat(keep, len(x) // frames, axis=1)
    n = keep.sum(1)
    self_x, self_y = jnp.sum(x * x, 1), jnp.sum(y * y, 1)
    share = jnp.sum((x @ (x.T @ y)) * y, 1)
    by_frame = (a.reshape(frames, -1, a.shape[1]) for a in (x, y))
    inside_x, inside_y = (jnp.einsum("fid,fjd->fij", a, a) for a in by_frame)
    among = jnp.pad(jnp.sum(inside_x * inside_y, (1, 2)), (1, 0))
    pairs = share.sum() - 2 * ((1 - keep) @ share) + among - keep @ (self_x * self_y)
    rows_x, rows_y = (
        keep * ((keep @ a) @ a.T - self_k[None]) for a, self_k in ((x, self_x), (y, self_y))
    )
    both = rows_x.sum(1) * rows_y.sum(1) / ((n - 1) * (n - 2))
    return pairs + both - 2 * jnp.sum(rows_x * rows_y, 1) / (n - 2)


ITERATIONS, LEAST_SPREAD = 1_000, 1e-4
"""Of the fit in `answer_mass`: how often the weights are improved, and the spread of the blended
answers below which its steps grow no more."""


class Mass(NamedTuple):
    """on [K]: how much of the estimate is each answer, 0..1 (an even blend of two is ½, ½).
    off: the rest, 0..1. All of it sums to 1."""

    on: Float[Array, " K"]
    off: Float[Array, ""]


def answer_mass(
    x0: Float[Array, "F H W C"], answers: Float[Array, "K F H W C"], still: Float[Array, "F H W C"]
) -> Mass:
    """Return how much of a clean estimate is each answer, and how much is none.

    The blend Σ w_k answer_k + w_0 still nearest to the estimate, with weights of at least 0 that
    sum to 1. Where several weights make the same blend (of four routes from two independent
    detours only three are independent), those of largest entropy: only the blend is determined.
    Each w_k counts by 1 − (residual / blend), both as squared changes against the still picture,
    and by nothing where the residual is larger: grey or noise holds no answer. The weight of the
    still picture and what is not explained are the rest. An answer that is the still picture
    (room in a batch) never gets any mass.

    For the ideal denoiser the clean estimate is Σ p_k answer_k, and the mass is the posterior p
    wherever the blend determines it.

    The weights are found by exponentiated gradient from even ones, which tends to the minimiser of
    largest entropy. Its step is 1 / Σ w_k ‖answer_k − blend‖², which bounds the local curvature.
    """
    change = (answers - still[None]).reshape(len(answers), -1)
    estimate = (x0 - still).reshape(-1)
    columns = jnp.concatenate([change, jnp.zeros_like(change[:1])])
    gram = jnp.matmul(columns, columns.T, precision="highest")
    match = jnp.matmul(columns, estimate, precision="highest")
    size = jnp.maximum(jnp.max(jnp.diag(gram)), 1e-12)
    gram, match = gram / size, match / size
    possible = (jnp.diag(gram) > 1e-6).at[-1].set(True)

    def improve(logits: Array, _: None) -> tuple[Array, None]:
        weights = jax.nn.softmax(logits)
        pull = gram @ weights
        spread = weights @ jnp.diag(gram) - weights @ pull
        logits = logits - (pull - match) / jnp.maximum(spread, LEAST_SPREAD)
        return logits - jnp.max(logits), None

    even = jnp.where(possible, 0.0, -jnp.inf)
    logits, _ = jax.lax.scan(improve, even, length=ITERATIONS)
    weights = jax.nn.softmax(logits)[:-1]
    blend = jnp.matmul(weights, change, precision="highest")
    residual, explained = (jnp.sum(jnp.square(a)) for a in (estimate - blend, blend))
    on = weights * jnp.clip(1 - residual / jnp.maximum(explained, 1e-12 * size), 0, 1)
    return Mass(on, jnp.maximum(1 - jnp.sum(on), 0))


@jax.jit
def rms(x: Float[Array | np.ndarray, "*axes F h w C"]) -> Float[Array, "*axes"]:
    """Return the root mean square of each latent."""
    return jnp.sqrt(jnp.mean(jnp.square(x), (-4, -3, -2, -1)))


class Ridge(NamedTuple):
    """A linear regression on standardised features: one for each of A sets of them."""

    mean: Float[np.ndarray, "*A 1 D"]
    size: Float[np.ndarray, "*A 1 D"]
    weights: Float[np.ndarray, "*A D Q"]
    centre: Float[np.ndarray, " Q"]

    def __call__(self, features: Float[np.ndarray, "m *A D"]) -> Float[np.ndarray, "m *A Q"]:
        """Return what it says of samples."""
        z = np.moveaxis(np.asarray(features, np.float64), 0, -2)
        return np.moveaxis((z - self.mean) / self.size @ self.weights + self.centre, -2, 0)


def ridge(
    features: Float[np.ndarray, "n *A D"], targets: Float[np.ndarray, "n Q"], penalty: float
) -> Ridge:
    """Return the regression of targets on features. penalty: of the weights' square, per sample.
    What does not vary tells nothing."""
    x = np.moveaxis(np.asarray(features, np.float64), 0, -2)
    mean, size = x.mean(-2, keepdims=True), x.std(-2, keepdims=True)
    size = np.where(size > 1e-5, size, np.inf)
    x = (x - mean) / size
    centre, turned = targets.mean(0), np.swapaxes(x, -1, -2)
    gram = turned @ x + penalty * len(features) * np.eye(x.shape[-1])
    return Ridge(mean, size, np.linalg.solve(gram, turned @ (targets - centre)), centre)


def commitment_step(solved: Bool[np.ndarray, "... S"]) -> Int[np.ndarray, "..."]:
    """First step from which on every clean estimate is solved; S where the last one is not."""
    return np.asarray(solved.shape[-1] - np.cumprod(solved[..., ::-1], axis=-1).sum(-1))


def held_at_once(mass: Float[np.ndarray, "... K"]) -> Float[np.ndarray, "..."]:
    """Return how many answers a blend holds: exp of the entropy of their shares, 1 to K; nan where
    none has any mass."""
    total = mass.sum(-1, keepdims=True, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = mass / total
        entropy = -np.where(share > 0, share * np.log(share), 0.0).sum(-1)
    return np.where(total[..., 0] > 0, np.exp(entropy), np.nan)


class Estimate(NamedTuple):
    """A mean (or median, area, …) with its 95 % interval over n puzzles."""

    mean: float
    low: float
    high: float
    n: int


UNKNOWN = Estimate(float("nan"), float("nan"), float("nan"), 0)
"""What is estimated of nothing."""
Span = tuple[float, float]
SCORES: Span = (0.0, 1.0)
"""What scores, masses, and yes or no lie within."""
GAINS: Span = (-1.0, 1.0)
"""What their paired differences lie within."""
POSITIVE: Span = (0.0, np.inf)
UNBOUNDED: Span = (-np.inf, np.inf)
NORMAL = 1.959964
"""The normal distribution's 97.5 % quantile."""


def estimate(
    values: Shaped[np.ndarray, "P *runs"],
    span: Span = SCORES,
    *,
    groups: Int[np.ndarray, " P"] | None = None,
) -> Estimate:
    """Return the mean over puzzles, of each over its runs, with a 95 % interval over puzzles.

    span: the least and the largest possible value. groups: which puzzles (or samples) rise and
    fall together; then groups are what the interval is over. A value that is not finite is a run
    that cannot tell: it is left out; all is nan where no run can tell. Raises ValueError for values
    outside the span.

    One convention: where every puzzle says all or nothing (0 or 1 of a score), Wilson's interval.
    Otherwise Student's t of the values and of two more, one at each end of the span; as a beta
    distribution of that mean and variance, so that it stays within. Where the span has no end,
    these two lie as far from the mean as the farthest value (as zero, where all are alike; 1 away,
    where all are zero) and count only for the spread. So the width is never zero.
    """
    rows = np.asarray(values, np.float64).reshape(len(values), -1)
    known = np.isfinite(rows)
    usable = known.any(1)
    if not usable.any():
        return UNKNOWN
    means = np.where(known, rows, 0).sum(1)[usable] / known.sum(1)[usable]
    low, high = span
    slack = 1e-5 * (high - low if np.isfinite(high - low) else max(1.0, np.abs(means).max()))
    if means.min() < low - slack or means.max() > high + slack:
        raise ValueError(
            f"the values reach from {means.min():g} to {means.max():g}; they are to lie within "
            f"{low:g} to {high:g}: give their span"
        )
    means = means.clip(low, high)
    mean, n, weight = float(means.mean()), len(means), np.ones(len(means))
    if groups is not None:
        _, group = np.unique(groups[usable], return_inverse=True)
        weight = np.bincount(group)
        means = np.bincount(group, means) / weight
        weight = weight * weight.sum() / np.square(weight).sum()  # sums to their effective number
    if not np.isfinite(high - low):
        return Estimate(mean, *_unbounded(means, weight, span), n)
    unit = (means - low) / (high - low)
    ends = _wilson if np.isin(unit, (0.0, 1.0)).all() else _bounded
    lower, upper = (low + (high - low) * end for end in ends(unit, weight))
    return Estimate(mean, min(lower, mean), max(upper, mean), n)


def _wilson(unit: Float[np.ndarray, " n"], weight: Float[np.ndarray, " n"]) -> Span:
    """Wilson's interval of a proportion."""
    n = float(weight.sum())
    p, z = float(unit @ weight) / n, NORMAL
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def _bounded(unit: Float[np.ndarray, " n"], weight: Float[np.ndarray, " n"]) -> Span:
    """The interval of a mean of values 0..1, by those and by one more 0 and one more 1."""
    n = float(weight.sum()) + 2
    mean, square = (float(unit @ weight) + 1) / n, (float(unit**2 @ weight) + 1) / n
    wider = special.stdtrit(n - 1, 0.975) / NORMAL
    variance = (square - mean**2) / (n - 1) * wider**2
    size = max(mean * (1 - mean) / variance - 1, 1e-3)
    low, high = special.betaincinv(mean * size, (1 - mean) * size, [0.025, 0.975])
    return float(low), float(high)


def _unbounded(means: Float[np.ndarray, " n"], weight: Float[np.ndarray, " n"], span: Span) -> Span:
    """The interval of a mean of values whose span has no end, cut off at the end that it has."""
    n = float(weight.sum())
    mean = float(means @ weight) / n
    far = float(np.abs(means - mean).max())
    if far <= 1e-9 * abs(mean):
        far = abs(mean) or 1.0
    square = float(np.square(means - mean) @ weight) + 2 * far**2
    half = special.stdtrit(max(n - 1, 1), 0.975) * np.sqrt(square / (n + 1) / n)
    return float(max(span[0], mean - half)), float(min(span[1], mean + half))


def median_step(steps: Shaped[np.ndarray, " n"], number: int) -> Estimate:
    """Return the median of steps, 0 to `number`, one of each puzzle, with its 95 % interval by
    order statistics.

    A step is only known to half a step: so much is added at both ends.
    """
    n, ordered = len(steps), np.sort(np.asarray(steps, np.float64))
    outside = int(np.searchsorted(special.bdtr(np.arange(n + 1), n, 0.5), 0.025))
    low, high = (0.0, number) if not outside else (ordered[outside - 1], ordered[-outside])
    low, high = max(0.0, float(low) - 0.5), min(float(number), float(high) + 0.5)
    return Estimate(float(np.median(ordered)), low, high, n)


def area(
    values: Float[np.ndarray, "*axes n"],
    positive: Bool[np.ndarray, "*#axes n"],
    negative: Bool[np.ndarray, "*#axes n"],
) -> Float[np.ndarray, "*axes"]:
    """Return the chance that a positive case has a larger value than a negative one (ties count
    half), along the last axis; nan where one kind is missing."""
    a, b = values[..., :, None], values[..., None, :]
    pairs = positive[..., :, None] & negative[..., None, :]
    wins = np.where(pairs, (a > b) + 0.5 * (a == b), 0).sum((-1, -2))
    number = pairs.sum((-1, -2))
    return np.where(number > 0, wins / np.maximum(number, 1), np.nan)


def auroc(
    values: Float[np.ndarray, " n"],
    positive: Bool[np.ndarray, " n"],
    *,
    groups: Int[np.ndarray, " n"] | None = None,
    seed: int = 0,
    draws: int = 2_000,
) -> Estimate:
    """Return the `area`, with a 95 % interval over puzzles: ½ for values that tell nothing.

    groups: which puzzle each case belongs to, by default its own; puzzles are what is reweighted (a
    Bayesian bootstrap), with a positive and a negative case more above all others and below them,
    which weigh as two puzzles together. So the width is never zero. All of it is nan where one kind
    is missing.
    """
    groups = np.arange(len(values)) if groups is None else groups
    number = len(np.unique(groups))
    if positive.all() or not positive.any():
        return UNKNOWN._replace(n=number)
    _, group = np.unique(groups, return_inverse=True)
    group = np.append(group, number + np.arange(4))
    every = np.append(values, [np.inf, -np.inf, np.inf, -np.inf])
    kind = np.append(positive, [True, True, False, False])
    a, b = every[kind][:, None], every[~kind][None]
    wins = (a > b) + 0.5 * (a == b)
    alpha = np.append(np.ones(number), np.full(4, 0.5))
    drawn = np.random.default_rng(seed).dirichlet(alpha, draws)[:, group]
    yes, no = drawn[:, kind], drawn[:, ~kind]
    areas = np.einsum("dp,pn,dn->d", yes, wins, no, optimize=True) / (yes.sum(1) * no.sum(1))
    low, high = np.percentile(areas, [2.5, 97.5])
    mean = float(wins[:-2, :-2].mean())
    return Estimate(mean, min(float(low), mean), max(float(high), mean), number)
