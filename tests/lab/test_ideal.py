"""The ideal denoiser against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcos.config import Sampling
from jcos.lab import ideal as denoiser
from jcos.lab.ideal import ideal_run, posterior
from jcos.sampling import flow

SHAPE = (2, 3, 3, 4)
ideal = jax.jit(denoiser.ideal)


def gaussian(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def sigma(value: float) -> jax.Array:
    return jnp.float32(value)


ANSWERS = gaussian(0, 4, *SHAPE)


@pytest.mark.parametrize("level", [0.05, 0.3, 0.6, 0.9, 0.99])
def test_weights_are_bayes_rule_in_float64(level: float) -> None:
    x = (1 - level) * ANSWERS[2] + level * gaussian(1, *SHAPE)
    exact = np.asarray(ANSWERS, np.float64)
    apart = np.asarray(x, np.float64)[None] - (1 - level) * exact
    logits = -np.square(apart).sum((1, 2, 3, 4)) / (2 * level**2)
    want = np.exp(logits - logits.max())
    want /= want.sum()
    found = ideal(x, sigma(level), ANSWERS)
    np.testing.assert_allclose(found.weights, want, atol=1e-5)
    np.testing.assert_allclose(found.x0, np.tensordot(want, exact, 1), atol=1e-4)


def test_pure_noise_says_nothing_and_no_noise_says_all() -> None:
    np.testing.assert_allclose(posterior(gaussian(1, *SHAPE), sigma(1.0), ANSWERS), 0.25)
    for level in (1e-3, 0.0):
        np.testing.assert_array_equal(posterior(ANSWERS[3], sigma(level), ANSWERS), np.eye(4)[3])


def test_a_prior_weighs_and_leaves_out() -> None:
    noise = gaussian(1, *SHAPE)
    prior = jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4]))
    np.testing.assert_allclose(
        posterior(noise, sigma(1.0), ANSWERS, prior), [0.1, 0.2, 0.3, 0.4], atol=1e-6
    )
    room = jnp.array([0.0, -jnp.inf, 0.0, -jnp.inf])
    x = 0.5 * ANSWERS[1] + 0.5 * noise
    padded = posterior(x, sigma(0.5), ANSWERS, room)
    padded = np.asarray(padded)
    np.testing.assert_array_equal(padded[1::2], 0)
    alone = posterior(x, sigma(0.5), ANSWERS[::2])
    np.testing.assert_allclose(padded[::2], alone, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["euler", "unipc", "cps", "sde", "dance", "cpws", "renoise"])
def test_its_own_run_ends_on_an_answer_and_all_are_equally_likely(solver: str) -> None:
    """The flow of the ideal denoiser carries noise to the answers, in equal shares."""
    grid = "unipc" if solver == "unipc" else "euler"
    schedule = flow.schedule(Sampling(steps=40, shift=3.0, solver=solver, grid=grid))  # type: ignore[arg-type]
    noise = gaussian(5, 256, *SHAPE)
    found = jax.jit(jax.vmap(lambda n: ideal_run(schedule, n, ANSWERS)))(noise)
    assert found.x0.shape == (256, 40, *SHAPE)
    weights = np.asarray(found.weights)
    assert (weights[:, -1].max(-1) > 0.999).mean() > 0.97
    shares = np.bincount(weights[:, -1].argmax(-1), minlength=4) / 256
    np.testing.assert_allclose(shares, 0.25, atol=0.1)
    entropy = -(weights * np.log(np.maximum(weights, 1e-30))).sum(-1).mean(0)
    assert entropy[0] > 1.35  # ln 4 = 1.39
    assert entropy[-1] < 0.02
