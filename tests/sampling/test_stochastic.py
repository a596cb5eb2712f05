"""Stochastic solvers: pairs (k, n) of one table, exact on Gaussian data, and nothing to others."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jcos
from jcos.config import STOCHASTIC, Sampling, Solver
from jcos.lab.ideal import gaussian_variance, same_temperature
from jcos.loop import steps
from jcos.sampling import flow, stochastic, trajectory
from tests.models import CONFIG

# solver, eta -> final variance of N(0, 1) data after 10, 30 and 50 steps at shift 5, by hand
FINAL: dict[tuple[Solver, float | None], tuple[float, ...]] = {
    ("euler", None): (0.594, 0.844, 0.903),
    ("cps", 0.3): (0.568, 0.793, 0.847),
    ("cps", 0.7): (0.456, 0.602, 0.640),
    ("cps", 0.9): (0.376, 0.477, 0.506),
    ("renoise", None): (0.332, 0.412, 0.436),
    ("sde", 0.7): (0.698, 0.890, 0.935),
    ("dance", 0.3): (0.601, 0.847, 0.906),
}


def levels(steps: int = 10) -> np.ndarray:
    return np.asarray(flow.schedule(Sampling(steps)).sigmas, np.float64)


@pytest.mark.parametrize("solver", ["cps", "sde", "dance", "cpws"])
def test_without_noise_each_is_euler(solver: Solver) -> None:
    euler = flow.schedule(Sampling(10)).table
    table = flow.schedule(Sampling(10, solver=solver, eta=0)).table
    np.testing.assert_allclose(table[:, :8], euler, atol=1e-6)
    np.testing.assert_array_equal(table[:, 8], 0)


@pytest.mark.parametrize("solver", ["cps", "cpws", "renoise"])
def test_the_level_of_noise_is_kept(solver: Solver) -> None:
    sigmas = levels()
    k, n = stochastic.STEPS[solver](sigmas[:-1], sigmas[1:], 0.7)
    np.testing.assert_allclose(k**2 + n**2, sigmas[1:] ** 2, atol=1e-12)


def test_flow_sde_has_the_excess_noise_of_its_source() -> None:
    sigmas = levels()
    t, s = sigmas[1:-1], sigmas[2:]
    k, n = stochastic.STEPS["sde"](t, s, 0.7)
    rate = 0.7 * np.sqrt(t / (1 - t))
    excess = (rate * (t - s)) ** 2 / t + (rate**2 * (t - s) / (2 * t)) ** 2
    np.testing.assert_allclose(k**2 + n**2 - s**2, excess, atol=1e-12)
    # Flow-GRPO's own spelling of the mean, with dt = s − t.
    x, v, dt = 0.3, -1.2, s - t
    ours = x * ((1 - s) + k) + v * (k * (1 - t) - t * (1 - s))
    theirs = x * (1 + rate**2 * dt / (2 * t)) + v * (1 + rate**2 * (1 - t) / (2 * t)) * dt
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize(("solver", "eta"), FINAL)
def test_variances_on_gaussian_data_are_the_known_ones(solver: Solver, eta: float | None) -> None:
    for steps_, want in zip((10, 30, 50), FINAL[solver, eta], strict=True):
        got = gaussian_variance(flow.schedule(Sampling(steps_, solver=solver, eta=eta)))
        assert got == pytest.approx(want, rel=0.01)


@jax.jit
def spread(plan: flow.Schedule, key: jax.Array) -> jax.Array:
    """Variance of a run whose data are N(0, 1), under the exact denoiser."""
    x = jax.random.normal(key, (50, 64, 64, 1))

    def step(state, scanned):
        t, row, key = scanned
        x0 = state.x * (1 - t) / ((1 - t) ** 2 + t**2)
        noise = flow.step_noise(row, key, state.x)
        return flow.solver_step(state, state.x, x0, row, noise), None

    keys = jax.random.split(key, len(plan.timesteps))
    scanned = (plan.sigmas[:-1], plan.table, keys)
    return jnp.var(jax.lax.scan(step, flow.solver_init(x), scanned)[0].x)


@pytest.mark.slow
def test_runs_have_these_variances() -> None:
    for solver, eta in list(FINAL)[1:]:
        plan = flow.schedule(Sampling(10, solver=solver, eta=eta))
        got = float(spread(jax.tree.map(jnp.asarray, plan), jax.random.key(1)))
        assert got == pytest.approx(gaussian_variance(plan), rel=0.01)


def test_euler_at_the_same_temperature_has_the_same_variance() -> None:
    cps = Sampling(30, solver="cps", eta=0.7)
    scale = same_temperature(cps)
    assert scale == pytest.approx((0.602 / 0.844) ** 0.5, rel=0.01)
    assert same_temperature(Sampling(30)) == 1
    with pytest.raises(ValueError, match="memory"):
        same_temperature(Sampling(30, solver="unipc", grid="unipc"))


def test_another_solver_brings_its_noise() -> None:
    cps = CONFIG.sampling_with(solver="cps", eta=0.9)
    assert (cps.grid, cps.eta) == ("euler", 0.9)
    config = dataclasses.replace(CONFIG, sampling=cps)
    assert config.sampling_with(solver="euler") == CONFIG.sampling
    assert config.sampling_with(solver="sde").eta == 0.7


# ---- in the loop


CPS = CONFIG.sampling_with(solver="cps", eta=0.7)


@pytest.mark.slow
def test_copies_part(model, condition) -> None:
    runs = steps(model, condition, 0, sampling=CPS)
    next(runs).branch(2)
    last = list(runs)[-1].x
    assert float(jnp.abs(last[0] - last[1]).max()) > 0.01


def test_pinned_frames_get_no_noise(model, condition) -> None:
    first = jnp.full((1, *condition.grid[1:], 12), 0.5)
    runs = steps(model, condition.replace(first=first), (0, 1), sampling=CPS)
    for state in runs:
        np.testing.assert_array_equal(state.x[:, 0], jnp.stack([first[0]] * 2))
        np.testing.assert_array_equal(state.x0[:, 0], jnp.stack([first[0]] * 2))


def test_solvers_without_noise_draw_none(model, condition) -> None:
    def program(solver: Solver) -> str:
        plan = flow.plan(CONFIG.sampling_with(solver=solver))
        one = trajectory.steps_of(plan, 0)
        run = partial(trajectory.advance, model.experts[0], one, probe=jcos.Probe())
        worlds = jax.tree.map(lambda a: a[None], condition)
        state = steps(model, condition, 0).state
        assert state is not None
        return str(jax.make_jaxpr(run)(worlds, state.solver, state.keys))

    drawn = {solver: program(solver).count("random_bits") for solver in ("euler", "unipc", "cps")}
    assert drawn == {"euler": 0, "unipc": 0, "cps": 1}


@pytest.mark.parametrize("solver", STOCHASTIC)
def test_one_step_is_the_clean_estimate(solver: Solver) -> None:
    table = flow.schedule(Sampling(1, solver=solver)).table
    np.testing.assert_array_equal(table[-1][5:], [0, 1, 0, 0])


def test_the_first_noise_has_a_temperature(model, condition) -> None:
    cold = CONFIG.sampling_with(temperature=0.5)
    whole, half = (steps(model, condition, 0, sampling=s).state for s in (None, cold))
    assert whole is not None
    assert half is not None
    np.testing.assert_allclose(half.x, 0.5 * whole.x, rtol=1e-6)
