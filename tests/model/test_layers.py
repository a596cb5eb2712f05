"""Small parts against float64 arithmetic, and the laws that make them what they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcos.model.attention import attention
from jcos.model.layers import RMSNorm, layer_norm, time_features


def gaussian(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def test_layer_norm_keeps_its_digits_far_from_zero():
    """E[x²] − E[x]² in float32 would be all noise here."""
    x = 1000 + gaussian(0, 5, 64)
    wide = np.asarray(x, np.float64)
    want = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(layer_norm(x, 1e-6), want, atol=1e-4)


def test_rms_norm_rounds_before_the_weight_is_applied():
    norm = RMSNorm(64, 1e-6)
    norm.scale[...] = 1 + gaussian(1, 64)
    x = gaussian(0, 5, 64).astype(jnp.bfloat16)
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + 1e-6)
    want = normed.astype(jnp.bfloat16) * norm.scale[...][None]
    np.testing.assert_array_equal(norm(x), want)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [2, 48, 256])
def test_time_features_are_exact_between_whole_timesteps_too(dim):
    """Angles reach 1000 radians: a float32 angle alone would be wrong by 3e-5."""
    t = np.array([0, 0.5, 1, 17.25, 623.4375, 907.99, 999.984375, 1000], np.float32)
    angle = t.astype(np.float64)[:, None] * 10000.0 ** (-np.arange(dim // 2) / (dim // 2))
    want = np.concatenate([np.cos(angle), np.sin(angle)], -1)
    features = jax.jit(lambda t: time_features(t, dim))(t)
    assert np.abs(np.asarray(features) - want).max() < 2e-7


def test_attention_is_softmax_of_scaled_products():
    """With scores in the hundreds, where exp alone would overflow."""
    q, k, v = (gaussian(i, *shape) for i, shape in enumerate([(7, 2, 8), (9, 2, 8), (9, 2, 8)]))
    q = 60 * q
    wide_q, wide_k, wide_v = (np.asarray(a, np.float64) for a in (q, k, v))
    scores = np.einsum("nhd,mhd->hnm", wide_q, wide_k) / np.sqrt(8)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    want = np.einsum("hnm,mhd->nhd", weights, wide_v)
    np.testing.assert_allclose(jax.jit(attention)(q, k, v), want, atol=6e-5)


@pytest.mark.slow
def test_gradient_of_attention_is_that_of_the_plain_formula():
    """The row maximum is left out of the gradient; that must not change it."""
    q, k, v = (gaussian(i, 4, 1, 6) for i in range(3))
    weight = gaussian(3, 4, 1, 6)

    def total(q, k, v):
        return jnp.sum(weight * attention(q, k, v))

    def plain(q, k, v):
        scores = jnp.einsum("nhd,mhd->hnm", q, k) * 6**-0.5
        return jnp.sum(weight * jnp.einsum("hnm,mhd->nhd", jax.nn.softmax(scores, -1), v))

    gradients = (jax.jit(jax.grad(f, (0, 1, 2)))(q, k, v) for f in (total, plain))
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)
