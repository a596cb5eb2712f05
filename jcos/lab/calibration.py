"""A calibrated stop: how likely a run is to end solved, given a judge's score after each step, and
when to give it up for a new one.

    calibration = fit(scores.reshape(-1, steps), solved.ravel())    # of training runs [P, N, S]
    method = methods.calibrated(8, least=stop(scores, calibration(scores), price=0.003))
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import optimize, special

BINS = 10
"""Of a reliability curve, with equally many runs."""
ROUNDS = 30
"""Of the iteration for what a new run is worth, each half-way."""


class Calibration(NamedTuple):
    """The logit of success is slope × score + bias, after each of S steps."""

    slope: Float[np.ndarray, " S"]
    bias: Float[np.ndarray, " S"]

    def __call__(self, scores: Float[np.ndarray, "*runs S"]) -> Float[np.ndarray, "*runs S"]:
        """Return the probability of success after each step."""
        return special.expit(scores * self.slope + self.bias)


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
    scores: Float[np.ndarray, "P N S"], chance: Float[np.ndarray, "P N S"], price: float
) -> list[float]:
    """Return the score after each step below which a run is given up for a new one (−inf: never).

    scores, chance: of N training runs of each of P puzzles. A step costs `price` solved runs. After
    the last one a run is worth its probability of success; before, what comes next. A new run is
    worth what runs of the same puzzle are, so that hard puzzles are not begun again and again. Both
    are fitted as monotone functions of the score (optimal stopping, by iteration).
    """
    puzzles, runs, steps = scores.shape
    values, ends = scores.reshape(-1, steps), chance[..., -1].ravel()
    anew, least = chance[..., -1].mean(1) - price * steps, [-np.inf] * steps
    for _ in range(ROUNDS):
        worth, other = ends, np.repeat(anew, runs)
        for step in reversed(range(steps)):
            score = values[:, step]
            ahead = worth if step == steps - 1 else _monotone(score, worth)
            order = np.argsort(score, kind="stable")
            good = (ahead >= _monotone(score, other) - 1e-9)[order]
            first = int(good.argmax())
            least[step] = float(score[order[first]]) if first else -np.inf
            worth = np.where(score >= least[step], worth, other) - price
        anew = 0.5 * (anew + worth.reshape(puzzles, runs).mean(1))
    return least


def _monotone(
    scores: Float[np.ndarray, " n"], values: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Return the fit to values that does not fall as the score rises (isotonic regression)."""
    order, fitted = np.argsort(scores, kind="stable"), np.empty(len(values))
    fitted[order] = optimize.isotonic_regression(values[order]).x
    return fitted


class Reliability(NamedTuple):
    """predicted, happened [bins]: mean probability, and share of runs that succeed. error: their
    mean distance, weighted by runs (the expected calibration error)."""

    predicted: Float[np.ndarray, " bins"]
    happened: Float[np.ndarray, " bins"]
    error: float


def reliability(chance: Float[np.ndarray, " n"], solved: Bool[np.ndarray, " n"]) -> Reliability:
    """Return how well probabilities hold, in bins of equally many runs."""
    order = np.array_split(np.argsort(chance, kind="stable"), min(BINS, len(chance)))
    predicted, happened = (np.array([a[rows].mean() for rows in order]) for a in (chance, solved))
    sizes = np.array([len(rows) for rows in order]) / len(chance)
    return Reliability(predicted, happened, float(np.abs(predicted - happened) @ sizes))
