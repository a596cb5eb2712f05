"""The small parts of Wan's transformer: norms, time embedding, 3-D rotary positions.

Axis letters: N tokens, M keys, H heads, d head size, D = H·d, L text rows, T timesteps (1, or N
where tokens have their own), F frames, h w token grid.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

_STEPS = 1000


def rounded(x: Float[Array, "..."], dtype: str) -> Float[Array, "..."]:
    """Return float32 numbers as a type keeps them. (Casts there and back may be optimised away.)"""
    info = jnp.finfo(jnp.dtype(dtype))
    return jax.lax.reduce_precision(x, info.nexp, info.nmant)


def layer_norm(x: Float[Array, "N D"], eps: float) -> Float[Array, "N D"]:
    """Return layer norm without parameters, in float32. (Flax's E[x²] − E[x]² loses digits.)"""
    x = x.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)


class LayerNorm(nnx.Module):
    """Layer norm with weight and bias, in float32 (the original's norm3)."""

    def __init__(self, dim: int, eps: float):
        self.scale = nnx.Param(jnp.ones(dim))
        self.bias = nnx.Param(jnp.zeros(dim))
        self.eps = eps

    def __call__(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        return layer_norm(x, self.eps) * self.scale[...][None] + self.bias[...][None]


class RMSNorm(nnx.Module):
    """RMS norm over all heads together; statistics in float32, cast to x's type before the weight
    is applied.

    That order is the original's: with bfloat16 weights, multiplying first rounds differently.
    """

    def __init__(self, dim: int, eps: float):
        self.scale = nnx.Param(jnp.ones(dim))
        self.eps = eps

    def __call__(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        wide = x.astype(jnp.float32)
        size = jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.eps)
        # Kept apart, or XLA's code for GPUs writes the norm out in float32 before it is rotated.
        normed = wide * jax.lax.optimization_barrier(size)
        return normed.astype(x.dtype) * self.scale[...][None]


def time_features(t: Float[Array, " T"], dim: int) -> Float[Array, "T dim"]:
    """Return sinusoidal features [cos ; sin] of timesteps in 0..1000, as exact as the original's
    float64.

    Angles reach 1000 radians, where float32 has lost four digits. So the whole part of t is looked
    up in a table made in float64, and only the fraction's small angle is computed here and added
    on.
    """
    cos, sin, rate = _time_table(dim)
    whole = jnp.clip(jnp.floor(t), 0, _STEPS).astype(jnp.int32)
    angle = (t - whole)[:, None] * rate[None]
    c, s = jnp.asarray(cos)[whole], jnp.asarray(sin)[whole]
    small_c, small_s = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([c * small_c - s * small_s, s * small_c + c * small_s], axis=-1)


@cache
def _time_table(dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rate = 10000.0 ** (-np.arange(dim // 2) / (dim // 2))
    angle = np.arange(_STEPS + 1)[:, None] * rate
    return (
        np.cos(angle).astype(np.float32),
        np.sin(angle).astype(np.float32),
        rate.astype(np.float32),
    )


def rope_angles(
    grid: tuple[int, int, int], head_dim: int, theta: float
) -> tuple[Float[Array, "N half"], Float[Array, "N half"]]:
    """Return cos and sin of the rotary angles of every token of a (frames, height, width) grid,
    row-major.

    Half of the head's half pairs less two thirds turn with time, a third each with height and
    width; each axis counts its exponents by its own width. Tables are float64 per axis and joined
    as float32.
    """
    pairs = head_dim // 2
    third = pairs // 3
    axes = []
    for axis, (size, count) in enumerate(zip(grid, (pairs - 2 * third, third, third), strict=True)):
        angle = np.arange(size)[:, None] * theta ** (-np.arange(count) / max(count, 1))
        shape = [1, 1, 1, count]
        shape[axis] = size
        axes.append(angle.reshape(shape))

    def join(f: np.ufunc) -> Float[Array, "N half"]:
        tables = [jnp.asarray(f(a).astype(np.float32)) for a in axes]
        return jnp.concatenate(
            [jnp.broadcast_to(a, (*grid, a.shape[-1])) for a in tables], -1
        ).reshape(-1, pairs)

    return join(np.cos), join(np.sin)


def rotate(
    x: Float[Array, "N H d"], angles: tuple[Float[Array, "N half"], Float[Array, "N half"]]
) -> Float[Array, "N H d"]:
    """Rotate interleaved pairs (2i, 2i+1) of every head by its token's angles, in float32."""
    cos, sin = (a[:, None, :] for a in angles)
    a, b = x[..., 0::2].astype(jnp.float32), x[..., 1::2].astype(jnp.float32)
    return jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape)
