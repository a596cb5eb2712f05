"""Flow matching: sigma grids, guidance, clean estimates, and solvers as one linear multistep rule.

The path is x_σ = (1−σ) x0 + σ ε with velocity v = ε − x0, hence x̂0 = x − σ v. Euler, UniPC and
DPM++ all advance x by a linear combination of the state and of the last clean estimates. So a
`Schedule` carries eight numbers per step, computed in float64 on the host, and `solver_step` is the
same multiplications for each: solver, shift and grid are data, and never change the program.
Stochastic solvers (`stochastic.py`) have a ninth number, of fresh noise, and another program.
"""

from typing import Literal, NamedTuple, get_args

import flax.struct
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array, Float, Key

from jcos.config import STOCHASTIC, Grid, Sampling, Solver
from jcos.sampling import stochastic

# First and last point of the grid before the shift (the last is dropped), and how timesteps 1000σ
# are rounded: not at all, down, or to bfloat16. "unipc" and "dpmpp" are the original's (whose 0.999
# went through float32), "euler" is DiffSynth's, "vbvr-pro" that of VBVR-Pro's Flow-CPS runs.
GRIDS: dict[Grid, tuple[float, float, Literal["down", "bfloat16"] | None]] = {
    "unipc": (float(np.float32(0.999)), 0.0, "down"),
    "dpmpp": (1.0, 0.0, "down"),
    "euler": (1.0, 0.0, None),
    "diffusers": (1.0, 0.001, "down"),
    "vbvr-pro": (1.0, 0.0, "bfloat16"),
}


class Schedule(NamedTuple):
    """A sampling run as data: scanned over by `trajectory.advance`.

    sigmas: noise level before each step, and 0 after the last. timesteps: of the model. table:
    solver coefficients (`solver_step`): 8, or 9 where the solver is stochastic.
    """

    sigmas: Float[Array | np.ndarray, " S+1"]
    timesteps: Float[Array | np.ndarray, " S"]
    table: Float[Array | np.ndarray, "S columns"]

    @property
    def steps(self) -> int:
        return len(self.timesteps)


def schedule(sampling: Sampling) -> Schedule:
    """Return the schedule of `sampling` in float32: bit-equal to what the original of its grid
    computes, or with its explicit sigmas."""
    if sampling.sigmas is not None:
        return at_sigmas(np.array(sampling.sigmas), sampling)
    first, last, rounding = GRIDS[sampling.grid]
    linspace = np.linspace if rounding == "down" else _torch_linspace
    grid = linspace(first, last, sampling.steps + 1)[:-1]
    sigmas = sampling.shift * grid / (1 + (sampling.shift - 1) * grid)
    if sampling.grid == "diffusers" and sigmas[0] == 1.0:
        sigmas[0] -= 1e-6  # as diffusers does, to keep log(1 − σ) finite
    return at_sigmas(sigmas, sampling)


def at_sigmas(sigmas: Float[np.ndarray, " S"], sampling: Sampling) -> Schedule:
    """Return the schedule of descending noise levels, for the solver and rounding of `sampling`."""
    timesteps, rounding = 1000 * sigmas, GRIDS[sampling.grid][2]
    if rounding == "bfloat16":
        timesteps = timesteps.astype(ml_dtypes.bfloat16)
    elif rounding == "down":
        # 1000 · 0.57 is 569.9999999999999, where explicit sigmas mean 570.
        exact = timesteps if sampling.sigmas is None else np.round(timesteps, 6)
        timesteps = np.floor(exact)
    levels = np.append(sigmas, 0)
    if sampling.sigmas is not None and sampling.solver in ("unipc", "dpmpp"):
        levels[0] = min(levels[0], 1 - 1e-6)  # keeps log(1 − σ) finite
    if sampling.solver in STOCHASTIC:
        table = stochastic.table(sampling.solver, levels.astype(np.float64), sampling.eta)
    else:
        table = _TABLES[sampling.solver](levels.astype(np.float64))
    return Schedule(*(np.asarray(a, np.float32) for a in (levels, timesteps, table)))


def _torch_linspace(first: float, last: float, count: int) -> np.ndarray:
    """Return torch.linspace in float32, bit for bit: from both ends with fused multiply-adds."""
    step = np.float64(np.float32(last - first) / np.float32(count - 1))
    i = np.arange(count)
    grid = np.where(i < count // 2, first + i * step, last - (count - 1 - i) * step)
    return grid.astype(np.float32)


def high_noise_steps(plan: Schedule, boundary: float | None) -> int:
    """Count the leading steps of the high-noise expert (timestep ≥ 1000 · boundary)."""
    if boundary is None:
        return plan.steps
    return int(np.sum(np.asarray(plan.timesteps) >= 1000 * boundary))


def clean_estimate(
    x: Float[Array, "..."], v: Float[Array, "..."], sigma: Float[Array, ""]
) -> Float[Array, "..."]:
    """Return x̂0 = x − σ v (paper, section 3.1)."""
    return x - sigma * v


def guide(
    conditional: Float[Array, "..."], unconditional: Float[Array, "..."], scale: Float[Array, ""]
) -> Float[Array, "..."]:
    """Return v_u + g (v_c − v_u): classifier-free guidance."""
    return unconditional + scale * (conditional - unconditional)


class Plan(flax.struct.PyTreeNode):
    """What a run consists of apart from model, condition and noise.

    guidance: one scale per expert, None for no unconditional branch. temperature: of the first
    noise, None for 1. high_steps: number of leading steps of the first of two experts; None where
    there is one.
    """

    schedule: Schedule
    guidance: Float[Array | np.ndarray, " experts"] | None = None
    temperature: Float[Array | np.ndarray, ""] | None = None
    high_steps: int | None = flax.struct.field(pytree_node=False, default=None)

    @property
    def steps(self) -> int:
        return self.schedule.steps


def plan(sampling: Sampling, boundary: float | None = None) -> Plan:
    """Return the plan of these settings; boundary: as in `WanConfig`."""
    levels = schedule(sampling)
    scales = sampling.scales(1 if boundary is None else 2)
    guidance = None if scales is None else np.asarray(scales, np.float32)
    high_steps = None if boundary is None else high_noise_steps(levels, boundary)
    scale = sampling.temperature
    temperature = None if scale == 1 else np.asarray(scale, np.float32)
    return Plan(levels, guidance, temperature, high_steps)


class SolverState(NamedTuple):
    """x: what the model sees next. corrected: x after UniPC's corrector (equal to x for the other
    solvers). last, before_last: the two previous clean estimates. All [F, H, W, C]."""

    x: Float[Array, "F H W C"]
    corrected: Float[Array, "F H W C"]
    last: Float[Array, "F H W C"]
    before_last: Float[Array, "F H W C"]


def solver_init(x: Float[Array, "F H W C"]) -> SolverState:
    return SolverState(x, x, jnp.zeros_like(x), jnp.zeros_like(x))


def solver_step(
    state: SolverState,
    changed: Float[Array, "F H W C"],
    x0: Float[Array, "F H W C"],
    row: Float[Array, " columns"],
    noise: Float[Array, "F H W C"] | None = None,
) -> SolverState:
    """Make one step from σ_i to σ_{i+1}.

    changed: the model's input x, `state.x` unless an intervention replaced it; the corrector's
        estimate moves by the same amount, so that the intervention is not corrected away.
    x0: the model's clean estimate at this step. row: this step's coefficients,
        x^c_i = r0 x_i + r1 x^c_{i−1} + r2 m_i + r3 m_{i−1} + r4 m_{i−2};  x_{i+1} = r5 x^c_i + r6
        m_i + r7 m_{i−1} (+ r8 ε).
    noise: ε of `step_noise`, for a row of 9. ValueError where it is missing.
    """
    corrected = (
        row[0] * state.x
        + row[1] * state.corrected
        + row[2] * x0
        + row[3] * state.last
        + row[4] * state.before_last
    ) + (changed - state.x)
    x = row[5] * corrected + row[6] * x0 + row[7] * state.last
    if (noise is None) != (row.shape[-1] == 8):
        raise ValueError(f"a row of {row.shape[-1]} coefficients, with noise {noise is not None}")
    if noise is not None:
        x = x + row[8] * noise
    return SolverState(x, corrected, x0, state.last)


def step_noise(
    row: Float[Array, " columns"], key: Key[Array, ""] | None, x: Float[Array, "F H W C"]
) -> Float[Array, "F H W C"] | None:
    """Return ε ~ N(0, I) of a step, from the seed's key folded with the step; None, and nothing is
    drawn, where the solver adds no noise."""
    if row.shape[-1] == 8 or key is None:
        return None
    return jax.random.normal(jax.random.fold_in(key, NOISE), x.shape, x.dtype)


NOISE = 2**32 - 1
"""Folded into a step's key for the solver; probes fold smaller numbers in."""


def _euler(sigmas: np.ndarray) -> np.ndarray:
    table = np.zeros((len(sigmas) - 1, 8))
    ratio = sigmas[1:] / sigmas[:-1]
    table[:, 0], table[:, 5], table[:, 6] = 1.0, ratio, 1.0 - ratio
    return table


def _log_snr(sigmas: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log1p(-sigmas) - np.log(sigmas)


def _dpmpp(sigmas: np.ndarray) -> np.ndarray:
    """Make a step of DPM-Solver++(2M) in its midpoint form; first and last steps are of order 1."""
    lam, steps = _log_snr(sigmas), len(sigmas) - 1
    table = np.zeros((steps, 8))
    table[:, 0] = 1.0
    for i in range(steps):
        h = lam[i + 1] - lam[i]
        k = (1 - sigmas[i + 1]) * np.expm1(-h)
        table[i, 5], table[i, 6] = sigmas[i + 1] / sigmas[i], -k
        # σ0 = 1 lies at λ = −∞: the ratio of step sizes is then infinite and the correction
        # vanishes.
        if 0 < i < steps - 1 and np.isfinite(lam[i - 1]):
            half = 0.5 * k * h / (lam[i] - lam[i - 1])
            table[i, 6], table[i, 7] = -k - half, half
    return table


def _unipc(sigmas: np.ndarray) -> np.ndarray:
    """Make a step of UniPC-bh2 of order 2 on clean estimates, lower at both ends; corrected from
    step 1 on."""
    lam, steps = _log_snr(sigmas), len(sigmas) - 1
    table = np.zeros((steps, 8))
    table[0, 0] = 1.0
    for i in range(steps):
        if i > 0:
            order = min(2, i)  # that of the predictor which led here
            h = lam[i] - lam[i - 1]
            e = np.expm1(-h)
            gain = (1 - sigmas[i]) * e
            if order == 1:
                rho = np.array([0.0, 0.5])
            else:
                r = (lam[i - 2] - lam[i - 1]) / h
                phi1 = e / -h - 1
                phi2 = phi1 / -h - 0.5
                rho = np.linalg.solve([[1, 1], [r, 1]], [phi1 / e, 2 * phi2 / e])
                rho[0] /= r
            table[i, 1] = sigmas[i] / sigmas[i - 1]
            table[i, 2] = -gain * rho[1]
            table[i, 3] = -gain * (1 - rho[0] - rho[1])
            table[i, 4] = -gain * rho[0]
        if i == steps - 1:
            table[i, 6] = 1.0  # to σ = 0: the clean estimate itself
            continue
        h = lam[i + 1] - lam[i]
        gain = (1 - sigmas[i + 1]) * np.expm1(-h)
        table[i, 5], table[i, 6] = sigmas[i + 1] / sigmas[i], -gain
        if i > 0:
            half = 0.5 * gain * h / (lam[i - 1] - lam[i])
            table[i, 6], table[i, 7] = -gain + half, -half
    return table


_TABLES = {"euler": _euler, "dpmpp": _dpmpp, "unipc": _unipc}
assert {*_TABLES, *STOCHASTIC} == set(get_args(Solver))
