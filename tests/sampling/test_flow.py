"""Sigma grids and solvers: equal to PyTorch, exact where the path is straight."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcos.config import Grid, Sampling, Solver
from jcos.sampling import flow
from jcos.variants import VARIANTS
from tests.models import relative

# key in the golden files -> solver and grid
GOLDEN: dict[str, tuple[Solver, Grid]] = {
    "unipc": ("unipc", "unipc"),
    "dpmpp": ("dpmpp", "dpmpp"),
    "euler_diffsynth": ("euler", "euler"),
    "unipc_diffusers": ("unipc", "diffusers"),
}
SOLVERS: tuple[Solver, ...] = ("euler", "unipc", "dpmpp")
EVERY_PAIR = [(solver, grid) for solver in SOLVERS for grid in flow.GRIDS]


def gaussian(seed: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (2, 3, 4, 5))


@jax.jit
def sample(plan: flow.Schedule, x: jax.Array, a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """States after every step and clean estimates, for the velocity of the golden files."""

    def step(state, scanned):
        sigma, row = scanned
        v = a * state.x + 0.5 * jnp.sin(2 * state.x + 3 * sigma) + 0.2 * sigma
        x0 = flow.clean_estimate(state.x, v, sigma)
        state = flow.solver_step(state, state.x, x0, row)
        return state, (state.x, x0)

    return jax.lax.scan(step, flow.solver_init(x), (plan.sigmas[:-1], plan.table))[1]


@pytest.mark.parametrize("steps", [4, 10, 50])
@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("shift", [3, 5, 12])
def test_solvers_equal_the_original(golden, shift, name, steps):
    arrays = golden(f"sched/shift{shift}")
    want = {key: arrays[f"{name}.{steps}.{key}"] for key in ("sigmas", "timesteps", "x", "x0")}
    solver, grid = GOLDEN[name]
    plan = flow.schedule(Sampling(steps, float(shift), solver, grid))
    assert plan.steps == steps
    assert plan.sigmas[-1] == 0
    np.testing.assert_array_equal(plan.sigmas[: len(want["sigmas"])], want["sigmas"])
    np.testing.assert_array_equal(plan.timesteps, want["timesteps"])
    x, x0 = sample(plan, arrays["x_init"][0], arrays["A"][0])
    assert max(relative(x[i], want["x"][i + 1]) for i in range(steps)) <= 3e-6
    assert max(relative(x0[i], want["x0"][i]) for i in range(steps)) <= 3e-6


@pytest.mark.parametrize(("solver", "grid"), EVERY_PAIR)
def test_every_solver_is_exact_on_straight_paths(solver, grid):
    """With the velocity ε − x0 every state lies on the line from ε to x0, whatever the steps."""
    plan = flow.schedule(Sampling(7, 3.0, solver, grid))
    x0, noise = np.asarray(gaussian(0)), np.asarray(gaussian(1))
    sigmas = np.asarray(plan.sigmas)
    state = flow.solver_init(jnp.asarray((1 - sigmas[0]) * x0 + sigmas[0] * noise))
    for i in range(plan.steps):
        estimate = flow.clean_estimate(state.x, jnp.asarray(noise - x0), jnp.asarray(sigmas[i]))
        state = flow.solver_step(state, state.x, estimate, jnp.asarray(plan.table[i]))
        straight = (1 - sigmas[i + 1]) * x0 + sigmas[i + 1] * noise
        np.testing.assert_allclose(state.x, straight, atol=1e-5)


@pytest.mark.parametrize(("solver", "grid"), EVERY_PAIR)
def test_every_pair_of_solver_and_grid_makes_a_sound_table(solver, grid):
    for steps in (1, 2, 3, 50):
        plan = flow.schedule(Sampling(steps, 5.0, solver, grid))
        assert all(np.isfinite(a).all() and a.dtype == np.float32 for a in map(np.asarray, plan))
        assert (np.diff(plan.sigmas) < 0).all()
        # Where state and estimates are all the same clean latent, both rows leave it as it is.
        table = np.asarray(plan.table, np.float64)
        np.testing.assert_allclose(table[:, :5].sum(1), 1, atol=1e-6)
        np.testing.assert_allclose(table[:, 5:].sum(1), 1, atol=1e-6)
        # The last step returns the clean estimate.
        np.testing.assert_array_equal(table[-1, 5:], [0, 1, 0])


@pytest.mark.parametrize(
    ("variant", "boundary", "high"),
    [
        ("wan2.2-t2v-a14b", None, 26),
        ("wan2.2-i2v-a14b", None, 15),
        ("wan2.2-i2v-a14b", 0.875, 17),  # what DiffSynth's tool takes for I2V
    ],
)
def test_high_noise_steps_of_the_released_models(variant, boundary, high):
    config = VARIANTS[variant]()
    plan = flow.schedule(config.sampling)
    assert plan.steps == 40
    assert flow.high_noise_steps(plan, boundary or config.boundary) == high


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_intervention_moves_the_corrected_state_by_the_same_amount(solver):
    """What a probe puts into the latent reaches the corrected state whole."""
    state = flow.SolverState(gaussian(0), gaussian(1), gaussian(2), gaussian(3))
    x0, put_in = gaussian(4), gaussian(5)
    for row in jnp.asarray(flow.schedule(Sampling(5, 5.0, solver, solver)).table)[:4]:
        plain = flow.solver_step(state, state.x, x0, row)
        changed = flow.solver_step(state, state.x + put_in, x0, row)
        np.testing.assert_allclose(changed.corrected - plain.corrected, put_in, atol=2e-6)
        np.testing.assert_allclose(changed.x - plain.x, row[5] * put_in, atol=2e-6)
        np.testing.assert_array_equal(changed.last, x0)
        np.testing.assert_array_equal(changed.before_last, state.last)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"steps": 0}, "steps is 0; give a whole number from 1"),
        ({"steps": 10**8}, "steps is 100000000; give a whole number from 1 to"),
        ({"steps": -3}, "steps is -3"),
        ({"shift": 0.0}, "shift is 0.0; it must be a positive number"),
        ({"shift": -1.0}, "shift is -1.0"),
        ({"shift": math.inf}, "shift is inf"),
        ({"shift": math.nan}, "shift is nan"),
        ({"solver": "unipc", "eta": 0.3}, "unipc takes none"),
        ({"eta": 0.0}, "euler takes none"),
        ({"solver": "renoise", "eta": 1.0}, "renoise takes none"),
        ({"solver": "cps", "eta": 1.5}, "cps up to 1"),
        ({"solver": "sde", "eta": math.nan}, "0 and more"),
        ({"temperature": -1.0}, "temperature"),
        ({"sigmas": ()}, "sigmas"),
        ({"sigmas": (0.5, 0.5)}, "sigmas"),
        ({"sigmas": (0.2, 0.4)}, "sigmas"),
        ({"sigmas": (1.0, 0.0)}, "sigmas"),
        ({"sigmas": (1001, 500)}, "sigmas"),
        ({"sigmas": (0.5, -0.1)}, "sigmas"),
        ({"sigmas": (math.nan,)}, "sigmas"),
    ],
)
def test_impossible_sampling_is_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        Sampling(**settings)
