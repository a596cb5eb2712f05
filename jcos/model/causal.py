"""Encoder and decoder of Wan's video VAEs: layers that remember the frames they have seen.

Every layer is a pure function (x, past) → (y, past). `past` holds what later frames need of earlier
ones, None before the clip's first frame. So a whole clip is one call with None, and a stream is a
call per chunk that hands the past on: first one frame alone, then chunks whose length all strides
in time divide.

Axis letters: F frames, H W height and width, C or I channels in, f h w O the same of the output.
Module names follow the released checkpoints; `names.VAE` is the table.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange, reduce, repeat
from flax import nnx
from jaxtyping import Array, Float

from jcos.config import VaeConfig
from jcos.model.attention import attention, side_by_side

Frames = Float[Array, "F H W I"]
Past = Any
"""Arrays of earlier frames in lists and tuples as the layers are nested; None for none."""
Layer = Callable[[Frames, Past], tuple[Float[Array, "f h w O"], Past]]

_WIDTHS = (1, 2, 4, 4)
_DOWN = ((1, 2), (2, 2), (2, 2), (1, 1))
_UP = ((2, 2), (2, 2), (1, 2), (1, 1))
"""By what factors the stages shrink and grow time and space."""


def through(
    layers: Sequence[Layer], x: Frames, past: Past
) -> tuple[Float[Array, "f h w O"], list[Past]]:
    """Apply one layer after the other, each with a past of its own."""
    kept = []
    for layer, before in zip(layers, past or [None] * len(layers), strict=True):
        x, now = layer(x, before)
        kept.append(now)
    return x, kept


def first_apart(
    layer: Layer, x: Frames, past: Past, start: Past
) -> tuple[Float[Array, "f H W I"], Past]:
    """Apply `layer` to all frames but the clip's first; `start`: its past before the second."""
    if past is not None:
        return layer(x, past)
    y, past = layer(x[1:], start)
    return jnp.concatenate([x[:1], y]), past


# ---- layers


class RMSNorm(nnx.Module):
    """Channels scaled to length √C, then by weights. The length has a floor, but no epsilon."""

    def __init__(self, channels: int):
        self.gamma = nnx.Param(jnp.ones(channels))

    def __call__(self, x: Frames) -> Frames:
        length = jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))
        return x / length * (x.shape[-1] ** 0.5 * self.gamma[...])[None, None, None]


def _random(rngs: nnx.Rngs, *shape: int) -> nnx.Param:
    fan_in = math.prod(shape[:-1])
    return nnx.Param(jax.random.normal(rngs.params(), shape) * fan_in**-0.5)


class Conv(nnx.Module):
    """3 × 3 convolution of single frames."""

    def __init__(self, n_in: int, n_out: int, rngs: nnx.Rngs):
        self.kernel = _random(rngs, 3, 3, n_in, n_out)
        self.bias = nnx.Param(jnp.zeros(n_out))

    def __call__(
        self, x: Frames, stride: int = 1, padding: tuple[int, int] = (1, 1)
    ) -> Float[Array, "F h w O"]:
        return _convolve(x, self.kernel[...], padding, stride) + self.bias[...][None, None, None]


class CausalConv(nnx.Module):
    """Convolution of `size` × `size` pixels of a frame and the two before it."""

    def __init__(self, n_in: int, n_out: int, rngs: nnx.Rngs, size: int = 3, stride: int = 1):
        self.kernel = _random(rngs, 3, size, size, n_in, n_out)
        self.bias = nnx.Param(jnp.zeros(n_out))
        self.padding, self.stride = (size // 2, size // 2), stride

    def __call__(self, x: Frames, past: Past) -> tuple[Float[Array, "f H W O"], Past]:
        """Return the convolved frames. past: the 3 − stride frames before x; zeros where None is
        given."""
        stride = self.stride
        if past is None:
            past = jnp.zeros((3 - stride, *x.shape[1:]), x.dtype)
        x = jnp.concatenate([past, x])
        count = (len(x) - 3) // stride + 1
        # A sum over time: on CPUs, XLA's convolutions in three dimensions are up to ten times
        # slower.
        first, second, third = (
            _convolve(x[t : t + count * stride : stride], kernel, self.padding)
            for t, kernel in enumerate(self.kernel[...])
        )
        return first + second + third + self.bias[...][None, None, None], x[stride - 3 :]


def _convolve(
    x: Frames, kernel: Float[Array, "kh kw I O"], padding: tuple[int, int], stride: int = 1
) -> Float[Array, "F h w O"]:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride,) * 2, (padding,) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


class Residual(nnx.Module):
    """Two causal convolutions, each behind a norm and SiLU, added to what came in."""

    def __init__(self, n_in: int, n_out: int, rngs: nnx.Rngs):
        self.norm1, self.conv1 = RMSNorm(n_in), CausalConv(n_in, n_out, rngs)
        self.norm2, self.conv2 = RMSNorm(n_out), CausalConv(n_out, n_out, rngs)
        self.shortcut = nnx.Linear(n_in, n_out, rngs=rngs) if n_in != n_out else None

    def __call__(self, x: Frames, past: Past) -> tuple[Float[Array, "F H W O"], Past]:
        past1, past2 = past or (None, None)
        y, past1 = self.conv1(jax.nn.silu(self.norm1(x)), past1)
        y, past2 = self.conv2(jax.nn.silu(self.norm2(y)), past2)
        return (self.shortcut(x) if self.shortcut else x) + y, (past1, past2)


class FrameAttention(nnx.Module):
    """Attention with one head among the cells of every single frame."""

    def __init__(self, channels: int, rngs: nnx.Rngs):
        self.norm = RMSNorm(channels)
        self.to_qkv = nnx.Linear(channels, 3 * channels, rngs=rngs)
        self.proj = nnx.Linear(channels, channels, rngs=rngs)

    def __call__(self, x: Frames, past: Past) -> tuple[Frames, Past]:
        q, k, v = rearrange(self.to_qkv(self.norm(x)), "f h w (qkv c) -> qkv f (h w) 1 c", qkv=3)
        with side_by_side(len(q)):
            y = jax.vmap(attention)(q, k, v)
        return x + self.proj(y.reshape(x.shape)), past


class Head(nnx.Module):
    """Last norm and convolution."""

    def __init__(self, n_in: int, n_out: int, rngs: nnx.Rngs):
        self.norm, self.conv = RMSNorm(n_in), CausalConv(n_in, n_out, rngs)

    def __call__(self, x: Frames, past: Past) -> tuple[Float[Array, "F H W O"], Past]:
        return self.conv(jax.nn.silu(self.norm(x)), past)


class Down(nnx.Module):
    """Halves height and width, and the frames behind the first if it is `temporal`."""

    def __init__(self, channels: int, temporal: bool, rngs: nnx.Rngs):
        self.conv = Conv(channels, channels, rngs)
        self.time_conv = CausalConv(channels, channels, rngs, 1, stride=2) if temporal else None

    def __call__(self, x: Frames, past: Past) -> tuple[Float[Array, "f h w I"], Past]:
        x = self.conv(x, stride=2, padding=(0, 1))
        if self.time_conv is None:
            return x, None
        return first_apart(self.time_conv, x, past, start=x[:1])


class Up(nnx.Module):
    """Doubles height and width, and the frames behind the first if it is `temporal`."""

    def __init__(self, n_in: int, n_out: int, temporal: bool, rngs: nnx.Rngs):
        self.conv = Conv(n_in, n_out, rngs)
        self.time_conv = CausalConv(n_in, 2 * n_in, rngs, 1) if temporal else None

    def __call__(self, x: Frames, past: Past) -> tuple[Float[Array, "f h w O"], Past]:
        if self.time_conv is not None:
            # The second frame's convolution sees zeros, not the first frame.
            x, past = first_apart(self._double, x, past, start=None)
        return self.conv(repeat(x, "f h w c -> f (h a) (w b) c", a=2, b=2)), past

    def _double(self, x: Frames, past: Past) -> tuple[Float[Array, "f H W I"], Past]:
        assert self.time_conv is not None
        y, past = self.time_conv(x, past)
        return rearrange(y, "f h w (two c) -> (f two) h w c", two=2), past


# ---- stages of 2.2, whose shortcuts have no weights


class DownStage(nnx.Module):
    """Layers, added to averages of what came in."""

    def __init__(self, layers: list[nnx.Module], n_out: int, factor: tuple[int, int]):
        self.downsamples = nnx.List(layers)
        self.n_out, self.factor = n_out, factor

    def __call__(self, x: Frames, past: Past) -> tuple[Float[Array, "f h w O"], Past]:
        y, past = through(self.downsamples, x, past)
        return y + averaged(x, self.n_out, self.factor), past


class UpStage(nnx.Module):
    """Layers, added to copies of what came in unless the size stays."""

    def __init__(self, layers: list[nnx.Module], n_out: int, factor: tuple[int, int]):
        self.upsamples = nnx.List(layers)
        self.n_out, self.factor = n_out, factor

    def __call__(self, x: Frames, past: Past) -> tuple[Float[Array, "f h w O"], Past]:
        y, kept = through(self.upsamples, x, past)
        if self.factor == (1, 1):
            return y, kept
        shortcut = duplicated(x, self.n_out, self.factor)
        # The first frame stays single, its last copy is the one.
        return y + (shortcut[self.factor[0] - 1 :] if past is None else shortcut), kept


def averaged(x: Frames, n_out: int, factor: tuple[int, int]) -> Float[Array, "f h w O"]:
    """Return cells folded into channels, averaged in groups; a lone first frame with zeros."""
    time, space = factor
    x = jnp.pad(x, ((-len(x) % time, 0), (0, 0), (0, 0), (0, 0)))
    x = rearrange(x, "(f t) (h a) (w b) c -> f h w (c t a b)", t=time, a=space, b=space)
    return reduce(x, "f h w (o group) -> f h w o", "mean", o=n_out)


def duplicated(x: Frames, n_out: int, factor: tuple[int, int]) -> Float[Array, "f h w O"]:
    """Return channels repeated, then unfolded into cells: the converse of `averaged`."""
    time, space = factor
    x = jnp.repeat(x, n_out * time * space**2 // x.shape[-1], axis=-1)
    return rearrange(x, "f h w (c t a b) -> (f t) (h a) (w b) c", t=time, a=space, b=space)


# ---- the two halves


def _middle(width: int, rngs: nnx.Rngs) -> list[nnx.Module]:
    return [Residual(width, width, rngs), FrameAttention(width, rngs), Residual(width, width, rngs)]


class Encoder(nnx.Module):
    """Pixels (2.2: patches of 2 × 2) to means and log-variances; time shrinks by 4, space by 8."""

    def __init__(self, cfg: VaeConfig, rngs: nnx.Rngs):
        width = cfg.encoder_dim
        self.conv1 = CausalConv(12 if cfg.patched else 3, width, rngs)
        stages: list[nnx.Module] = []
        for times, factor in zip(_WIDTHS, _DOWN, strict=True):
            n_in, width = width, times * cfg.encoder_dim
            layers: list[nnx.Module] = [Residual(n_in, width, rngs), Residual(width, width, rngs)]
            if factor != (1, 1):
                layers.append(Down(width, factor[0] == 2, rngs))
            stages += [DownStage(layers, width, factor)] if cfg.patched else layers
        self.downsamples = nnx.List(stages)
        self.middle = nnx.List(_middle(width, rngs))
        self.head = Head(width, 2 * cfg.channels, rngs)

    @property
    def layers(self) -> list[Layer]:
        return [self.conv1, *self.downsamples, *self.middle, self.head]

    def __call__(self, x: Frames, past: Past) -> tuple[Float[Array, "f h w O"], Past]:
        with jax.named_scope("encoder"):
            return through(self.layers, x, past)


class Decoder(nnx.Module):
    """Latents to pixels (2.2: patches of 2 × 2); time grows by 4, space by 8."""

    def __init__(self, cfg: VaeConfig, rngs: nnx.Rngs):
        width = _WIDTHS[-1] * cfg.decoder_dim
        self.conv1 = CausalConv(cfg.channels, width, rngs)
        self.middle = nnx.List(_middle(width, rngs))
        stages: list[nnx.Module] = []
        for times, factor in zip(reversed(_WIDTHS), _UP, strict=True):
            n_in, width = width, times * cfg.decoder_dim
            layers: list[nnx.Module] = [Residual(n_in, width, rngs)]
            layers += [Residual(width, width, rngs) for _ in range(2)]
            if factor != (1, 1):
                n_in, width = width, width if cfg.patched else width // 2
                layers.append(Up(n_in, width, factor[0] == 2, rngs))
            stages += [UpStage(layers, width, factor)] if cfg.patched else layers
        self.upsamples = nnx.List(stages)
        self.head = Head(width, 12 if cfg.patched else 3, rngs)

    @property
    def layers(self) -> list[Layer]:
        return [self.conv1, *self.middle, *self.upsamples, self.head]

    def __call__(self, x: Frames, past: Past) -> tuple[Float[Array, "f h w O"], Past]:
        with jax.named_scope("decoder"):
            return through(self.layers, x, past)
