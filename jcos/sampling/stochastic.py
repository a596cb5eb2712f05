"""Stochastic solvers as rows of one table: every step from t to s is
x_s = (1 − s) x̂0 + k x̂1 + n ε, where x̂1 = x + (1 − t) v estimates the noise, and ε is fresh.

Each solver is a pair (k, n) per step. Euler is (s, 0), and so is each with `eta` 0.
Sources: Flow-CPS 2509.05952, Flow-GRPO 2505.05470 (Flow-SDE), DanceGRPO 2505.07818.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from jcos.config import STOCHASTIC, Solver

Levels = Float[np.ndarray, " S"]
Step = Callable[[Levels, Levels, float], tuple[Levels, Levels]]


def _cps(t: Levels, s: Levels, eta: float) -> tuple[Levels, Levels]:
    """Apply Flow-CPS (2509.05952): k² + n² = s², so the level of noise is kept."""
    del t
    return s * np.cos(eta * np.pi / 2), s * np.sin(eta * np.pi / 2)


def _drift(rate: Levels, t: Levels, s: Levels) -> tuple[Levels, Levels]:
    """Make an SDE's Euler–Maruyama step with noise of this rate: k = s − rate² (t − s) / 2t."""
    return s - np.square(rate) * (t - s) / (2 * t), rate * np.sqrt(t - s)


def _flow_rate(t: Levels, s: Levels, eta: float) -> Levels:
    """Return η √(t / (1 − t)); at t = 1 the next level stands in for t in the denominator."""
    return eta * np.sqrt(t / (1 - np.where(t < 1 - 1e-5, t, s)))


def _cpws(t: Levels, s: Levels, eta: float) -> tuple[Levels, Levels]:
    """Apply Flow-CPWS: Flow-SDE's noise, at most s, with the level of noise kept."""
    n = np.minimum(s, _flow_rate(t, s, eta) * np.sqrt(t - s))
    return np.sqrt(np.square(s) - np.square(n)), n


STEPS: dict[Solver, Step] = {
    "cps": _cps,
    "sde": lambda t, s, eta: _drift(_flow_rate(t, s, eta), t, s),  # Flow-GRPO's Flow-SDE
    "dance": lambda t, s, eta: _drift(np.full_like(t, eta), t, s),  # DanceGRPO
    "cpws": _cpws,
    "renoise": lambda t, s, eta: (np.zeros_like(t), s),  # all noise anew
}
assert set(STEPS) == set(STOCHASTIC)


def table(solver: Solver, sigmas: np.ndarray, eta: float | None) -> Float[np.ndarray, "S 9"]:
    """Return rows of `flow.solver_step` and a ninth number, of ε. The last step returns the clean
    estimate, without noise. eta: None for `renoise`."""
    t, s = sigmas[:-1], sigmas[1:]
    pairs = STEPS[solver](t, s, 1.0 if eta is None else eta)
    k, n = (np.append(column[:-1], 0.0) for column in pairs)
    rows = np.zeros((len(t), 9))
    rows[:, 0], rows[:, 5], rows[:, 8] = 1.0, k / t, n
    rows[:, 6] = (1 - s) - k * (1 - t) / t
    return rows
