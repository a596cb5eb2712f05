"""From pixels to latents and back: the small model's exact codec, and Wan's causal video VAEs.

Axis letters: F H W frames, height and width of a video, f h w of its latents, C latent channels.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Float, UInt8

from jcos.config import PixelCodec, VaeConfig
from jcos.model.causal import Decoder, Encoder, Frames, Layer, Past


def check_colours(video: Any) -> None:
    """Raise ValueError where a picture or video is neither uint8 nor floats in −1..1, which edges
    of a picture that was resized may go beyond. Numbers that are unknown, inside jit, pass."""
    if not jnp.issubdtype(video.dtype, jnp.floating):
        if video.dtype != np.uint8:
            raise ValueError(f"a picture is uint8, or floats in −1..1; this is {video.dtype}")
    elif not isinstance(video, Tracer) and (most := np.abs(video).max()) > 2:
        raise ValueError(f"a picture of floats is in −1..1; this one reaches {most:.4g}")


def signed(video: Any) -> Float[Array, "..."]:
    """Return colours in −1..1. Raises as `check_colours`."""
    check_colours(video)
    video = jnp.asarray(video)
    if video.dtype == jnp.uint8:
        return video.astype(jnp.float32) / 127.5 - 1
    return video.astype(jnp.float32)


def encode_pixels(
    codec: PixelCodec,
    video: UInt8[Any, "F H W 3"] | Float[Any, "F H W 3"],
) -> Float[Any, "F h w C"]:
    """Return normalised colours (0..255) with `stride` × `stride` pixels folded into channels. Of
    numpy arrays in numpy, which compiles nothing."""
    # As XLA divides by a constant, so that both give the same numbers.
    per_level, per_std = np.float32(1 / 255), np.float32(1) / np.float32(codec.std)
    z = (video.astype(np.float32) * per_level - codec.mean) * per_std
    return rearrange(z, "f (h a) (w b) c -> f h w (a b c)", a=codec.stride, b=codec.stride)


def decode_pixels(codec: PixelCodec, latents: Float[Any, "F h w C"]) -> Float[Any, "F H W 3"]:
    """Return the inverse, as float colours 0..255, not clipped."""
    rgb = rearrange(latents, "f h w (a b c) -> f (h a) (w b) c", a=codec.stride, b=codec.stride)
    return (rgb * codec.std + codec.mean) * 255


def pixel_videos(
    codec: PixelCodec, latents: Float[Any, "*axes h w C"]
) -> UInt8[Any, "*axes H W 3"]:
    """Return decoded frames with any leading axes as they are shown: rounded, 0 to 255."""
    flat = latents.reshape(-1, *latents.shape[-3:])
    video = decode_pixels(codec, flat).round().clip(0, 255).astype(np.uint8)
    return video.reshape(*latents.shape[:-3], *video.shape[1:])


Tiles = tuple[int, int]
"""Height and width, in latent cells, of the pieces that a frame is coded in where it is too large
for the memory as a whole. They overlap by half of it, as DiffSynth's do, whose results these are
where the tiles fit the frame. (Where they do not, the last one is moved back to the border here;
there, it is cut off.)"""


class Vae(nnx.Module):
    """Wan's video VAE 2.1 or 2.2 for one video, in float32 of full precision on every device.

    Frames are streamed through it as in the original, the first one, then 4 or one latent frame at
    a time: memory grows by no more than video and latents themselves. Source: `vae2_1.py` and
    `vae2_2.py` in `wan/modules` of the original.
    """

    def __init__(self, cfg: VaeConfig, *, rngs: nnx.Rngs):
        self.encoder = Encoder(cfg, rngs)
        self.conv1 = nnx.Linear(2 * cfg.channels, 2 * cfg.channels, rngs=rngs)
        self.conv2 = nnx.Linear(cfg.channels, cfg.channels, rngs=rngs)
        self.decoder = Decoder(cfg, rngs)
        self.cfg = cfg

    def encode(
        self, video: Float[Array, "F H W rgb"], *, tiles: Tiles | None = None
    ) -> Float[Array, "f h w C"]:
        """Return normalised means (nothing is sampled) of a video in −1..1.

        1 + 4n frames make 1 + n latent frames; as in the original, up to 3 frames more than that
        are dropped. tiles: code pieces of the frames, for less memory; None for all of a frame.
        Raises ValueError where a height or width is no multiple of `cfg.strides`.
        """
        along, *strides = self.cfg.strides
        frames, height, width, _ = video.shape
        for name, size, stride in zip(("height", "width"), (height, width), strides, strict=True):
            if size < 1 or size % stride:
                raise ValueError(f"the {name} is {size} pixels; a VAE needs a multiple of {stride}")
        video = video[: frames - (frames - 1) % along].astype(jnp.float32)
        return _code(self._encode, video, along, tiles, (strides[0], 1))

    def decode(
        self,
        latents: Float[Array, "f h w C"],
        *,
        tiles: Tiles | None = None,
        clamp: bool = True,
    ) -> Float[Array, "F H W 3"]:
        """Return a video of 1 + 4(f − 1) frames, clamped to −1..1 or not.

        tiles: as in `encode`; they are blended before clamping.
        Raises ValueError where the latents are empty or have other channels than this VAE's.
        """
        channels = self.cfg.channels
        if latents.shape[-1] != channels or not latents.size:
            raise ValueError(f"a VAE decodes 1 or more cells […, {channels}], not {latents.shape}")
        scales = (1, self.cfg.strides[1])
        video = _code(self._decode, latents.astype(jnp.float32), 1, tiles, scales)
        return jnp.clip(video, -1, 1) if clamp else video

    def _encode(
        self, video: Float[Array, "F H W 3"], past: Past
    ) -> tuple[Float[Array, "f h w C"], Past]:
        if self.cfg.patched:
            video = rearrange(video, "f (h a) (w b) c -> f h w (c b a)", a=2, b=2)
        x, past = self.encoder(video, past)
        mean, std = self._statistics()
        return (self.conv1(x)[..., : self.cfg.channels] - mean) / std, past

    def _decode(
        self, latents: Float[Array, "f h w C"], past: Past
    ) -> tuple[Float[Array, "F H W 3"], Past]:
        mean, std = self._statistics()
        x, past = self.decoder(self.conv2(latents * std + mean), past)
        if self.cfg.patched:
            x = rearrange(x, "f h w (c b a) -> f (h a) (w b) c", a=2, b=2)
        return x, past

    def _statistics(self) -> tuple[Float[Array, "1 1 1 C"], Float[Array, "1 1 1 C"]]:
        mean, std = jnp.array(self.cfg.mean), jnp.array(self.cfg.std)
        return mean[None, None, None], std[None, None, None]


# ---- how a clip is cut: in time, then in space

Clip = Callable[[Frames], Float[Array, "f h w O"]]


def _code(
    layer: Layer,
    x: Frames,
    frames: int,
    tiles: Tiles | None,
    scales: tuple[int, int],
) -> Float[Array, "f h w O"]:
    """Code a video in chunks. frames: of a chunk. scales: pixels per latent cell, going in and
    coming out."""
    clip = partial(_streamed, layer, frames)
    with jax.default_matmul_precision("highest"):
        return clip(x) if tiles is None else _tiled(clip, x, tiles, scales)


def _streamed(layer: Layer, frames: int, x: Frames) -> Float[Array, "f h w O"]:
    """Code the first frame, then so many at a time."""
    first, past = layer(x[:1], None)
    count = (len(x) - 1) // frames
    if not count:
        return first

    def step(past: Past, i: Array) -> tuple[Past, Array]:
        # A slice, because chunks as the scan's input would be a copy of the video.
        y, past = layer(jax.lax.dynamic_slice_in_dim(x, 1 + i * frames, frames), past)
        return past, y

    _, rest = jax.lax.scan(step, past, jnp.arange(count))
    return jnp.concatenate([first, rearrange(rest, "n f h w c -> (n f) h w c")])


def _tiled(clip: Clip, x: Frames, tiles: Tiles, scales: tuple[int, int]) -> Float[Array, "f h w O"]:
    """Code every tile by itself, one after the other, then blended."""
    into, out = scales
    cells = (x.shape[1] // into, x.shape[2] // into)
    size = (min(tiles[0], cells[0]), min(tiles[1], cells[1]))
    (rows, down), (columns, across) = (_cut(*axis, out) for axis in zip(cells, tiles, strict=True))

    def cut(row: Array | int, column: Array | int) -> Frames:
        shape = (len(x), size[0] * into, size[1] * into, x.shape[3])
        return jax.lax.dynamic_slice(x, (0, row * into, column * into, 0), shape)

    def add(sums: tuple[Array, Array], tile: Sequence[Array]) -> tuple[tuple[Array, Array], None]:
        row, column, down, across = tile
        weight = jnp.minimum(down[:, None], across[None])[None, :, :, None]
        video, weights = sums
        at = (0, row * out, column * out, 0)
        video = _added(video, clip(cut(row, column)) * weight, at)
        return (video, _added(weights, weight, at)), None

    made = jax.eval_shape(lambda: clip(cut(0, 0)))
    area = (cells[0] * out, cells[1] * out)
    sums = (jnp.zeros((len(made), *area, made.shape[3])), jnp.zeros((1, *area, 1)))
    i, j = np.indices((len(rows), len(columns))).reshape(2, -1)
    every = [jnp.asarray(a) for a in (rows[i], columns[j], down[i], across[j])]
    (video, weights), _ = jax.lax.scan(add, sums, every)
    return video / weights


def _cut(cells: int, size: int, out: int) -> tuple[np.ndarray, np.ndarray]:
    """Return, along one axis, the first cell of every tile, and its weight at each of its pixels,
    which rises and falls over the overlaps."""
    last, overlap = max(cells - size, 0), size // 2
    starts = np.array([*range(0, last, size - overlap), last])
    rise = np.minimum(np.arange(1, min(size, cells) * out + 1) / max(overlap * out, 1), 1)
    level = np.ones_like(rise)
    weights = [
        np.minimum(rise if start else level, rise[::-1] if start < last else level)
        for start in starts
    ]
    return starts, np.array(weights, np.float32)


def _added(total: Array, value: Array, at: tuple[Array | int, ...]) -> Array:
    there = jax.lax.dynamic_slice(total, at, value.shape)
    return jax.lax.dynamic_update_slice(total, there + value, at)
