"""`Wan`: expert(s), codec and text encoder of one model, with the defaults its authors sample with."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jcos.config import FLOAT32, Numerics, WanConfig
from jcos.dit import DiT
from jcos.text import WordEmbedding


class Wan(nnx.Module):
    """A whole model as one pytree; pass it to jitted functions as an argument, never close over it."""

    def __init__(self, config: WanConfig, *, numerics: Numerics = FLOAT32, rngs: nnx.Rngs):
        self.experts = nnx.List([DiT(config.dit, numerics=numerics, rngs=rngs) for _ in range(config.experts)])
        self.text = None if config.text is None else WordEmbedding(config.text, rngs=rngs)
        self.config = config


def image_channels(first: Float[Array, "1 h w C"], frames: int) -> Float[Array, "F h w C+4"]:
    """What Wan's image-to-video models see beside the noise: four mask channels, 1 where a frame is given, and
    that frame's latent, zero elsewhere."""
    _, h, w, _ = first.shape
    given = jnp.concatenate([jnp.ones((1, h, w, 4)), first], axis=-1)
    return jnp.pad(given, ((0, frames - 1), (0, 0), (0, 0), (0, 0)))
