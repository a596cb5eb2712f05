"""From pixels to latents and back."""

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, UInt8

from jcos.config import PixelCodec


def encode_pixels(codec: PixelCodec, video: UInt8[Array, "F H W 3"]) -> Float[Array, "F h w C"]:
    """Normalised colours with `stride` × `stride` pixels folded into channels. No time is folded: T
    = F."""
    z = (video.astype(jnp.float32) / 255 - codec.mean) / codec.std
    return rearrange(z, "f (h a) (w b) c -> f h w (a b c)", a=codec.stride, b=codec.stride)


def decode_pixels(codec: PixelCodec, latents: Float[Array, "F h w C"]) -> Float[Array, "F H W 3"]:
    """The inverse, as float colours 0..255, not clipped (`media.to_uint8` clips and rounds)."""
    rgb = rearrange(latents, "f h w (a b c) -> f (h a) (w b) c", a=codec.stride, b=codec.stride)
    return (rgb * codec.std + codec.mean) * 255
