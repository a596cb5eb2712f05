"""A calibrated stop: how likely a run is to end solved, given a judge's score after each step, and
when to give it up for a new one.

    calibration = fit(scores, solved)                           # of training runs
    method = methods.calibrated(8, least=calibration.least(stop(calibration(scores), solved, 0.01)))
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import optimize, special

BINS = 10
"""Of a reliability curve, with equally many runs."""


class Calibration(NamedTuple):
    """The logit of success is slope × score + bias, after each of S steps."""

    slope: Float[np.ndarray, " S"]
    bias: Float[np.ndarray, " S"]

    def __call__(self, scores: Float[np.ndarray, "*runs S"]) -> Float[np.ndarray, "*runs S"]:
        """Return the probability of success after each step."""
        return special.expit(scores * self.slope + self.bias)

    def least(self, chance: Float[np.ndarray, " S"]) -> Float[np.ndarray, " S"]:
        """Return the scores at which these probabilities are reached (−inf: always)."""
        reached = special.logit(np.clip(chance, 0, 1 - 1e-6))
        with np.errstate(divide="ignore", invalid="ignore"):
            least = (reached - self.bias) / self.slope
        return np.where(self.slope > 0, least, -np.inf)


def fit(scores: Float[np.ndarray, "n S"], solved: Bool[np.ndarray, " n"]) -> Calibration:
    """Return the logistic regression of success on the score, step by step; a tiny penalty keeps it
    finite where a score parts the runs. Scores may lie on any scale. A score that falls where runs
    succeed tells nothing: slope 0."""
    mean, size = scores.mean(0), np.maximum(scores.std(0), 1e-9)
    yes = np.asarray(solved, float)

    def one(z: Float[np.ndarray, " n"]) -> Float[np.ndarray, " 2"]:
        def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
            logit = w[0] * z + w[1]
            error = special.expit(logit) - yes
            value = np.mean(np.logaddexp(0, logit) - yes * logit) + 1e-4 * w[0] ** 2
            return value, np.array([np.mean(error * z) + 2e-4 * w[0], np.mean(error)])

        start, bounds = np.zeros(2), [(0, None), (None, None)]
        return optimize.minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B").x

    weights = np.array([one(z) for z in ((scores - mean) / size).T])
    slope = weights[:, 0] / size
    return Calibration(slope, weights[:, 1] - slope * mean)


def stop(
    chance: Float[np.ndarray, "n S"], solved: Bool[np.ndarray, " n"], price: float
) -> Float[np.ndarray, " S"]:
    """Return the probabilities of success below which a run is given up for a new one.

    The value of going on is its probability less `price` × the steps that are left; that of a new
    run is what training runs [n] get so, by policy iteration. chance: after each step.
    """
    steps = chance.shape[1]
    left = np.arange(steps)[::-1]
    value = float(np.mean(solved)) - price * steps
    least = value + price * left
    for _ in range(100):
        fails = chance < least
        dropped = fails.any(1)
        spent = np.where(dropped, fails.argmax(1) + 1, steps)
        if dropped.all():
            break
        new = float((solved & ~dropped).sum() - price * spent.sum()) / float((~dropped).sum())
        if new <= value + 1e-9:
            break
        value, least = new, new + price * left
    return least


class Reliability(NamedTuple):
    """predicted, happened [bins]: mean probability, and share of runs that succeed. error: their
    mean distance, weighted by runs (the expected calibration error)."""

    predicted: Float[np.ndarray, " bins"]
    happened: Float[np.ndarray, " bins"]
    error: float


def reliability(
    chance: Float[np.ndarray, " n"], solved: Bool[np.ndarray, " n"], bins: int = BINS
) -> Reliability:
    """Return how well probabilities hold, in bins of equally many runs."""
    order = np.array_split(np.argsort(chance, kind="stable"), min(bins, len(chance)))
    predicted, happened = (np.array([a[rows].mean() for rows in order]) for a in (chance, solved))
    sizes = np.array([len(rows) for rows in order]) / len(chance)
    return Reliability(predicted, happened, float(np.abs(predicted - happened) @ sizes))
