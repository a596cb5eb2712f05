"""How a first frame is told to a model beside its latent: mask channels, and the image encoder of
Wan2.1, the vision tower of a CLIP (ViT-H/14), up to its last block but one.

Module names follow the original (`blocks.attn.q`, `pre_norm`, …), whose q, k and v are one tensor.
All is float32. Axis letters: E tokens (class token first), V width.
"""

from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from jcos.config import VisionConfig
from jcos.model.attention import attention
from jcos.model.dit import MLP, Linear, gelu
from jcos.model.layers import LayerNorm

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the colours 0..1 that CLIP was trained on."""


class VisionAttention(nnx.Module):
    def __init__(self, cfg: VisionConfig, rngs: nnx.Rngs):
        self.q, self.k, self.v, self.proj = (
            Linear(cfg.dim, cfg.dim, "float32", rngs) for _ in range(4)
        )
        self.heads = cfg.heads

    def __call__(self, x: Float[Array, "E V"]) -> Float[Array, "E V"]:
        q, k, v = (
            rearrange(a(x), "n (h d) -> n h d", h=self.heads) for a in (self.q, self.k, self.v)
        )
        return self.proj(rearrange(attention(q, k, v), "n h d -> n (h d)"))


class VisionBlock(nnx.Module):
    """Pre-norm attention and MLP, with the exact GELU."""

    def __init__(self, cfg: VisionConfig, rngs: nnx.Rngs):
        self.norm1, self.norm2 = LayerNorm(cfg.dim, cfg.eps), LayerNorm(cfg.dim, cfg.eps)
        self.attn = VisionAttention(cfg, rngs)
        self.mlp = MLP(cfg.dim, cfg.ffn_dim, cfg.dim, gelu, "float32", rngs)

    def __call__(self, x: Float[Array, "E V"]) -> Float[Array, "E V"]:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTower(nnx.Module):
    """From a picture to its tokens."""

    def __init__(self, cfg: VisionConfig, *, rngs: nnx.Rngs):
        draw = jax.random.normal
        self.patch_embedding = nnx.Param(0.02 * draw(rngs.params(), (3 * cfg.patch**2, cfg.dim)))
        self.cls_embedding = nnx.Param(0.02 * draw(rngs.params(), (1, cfg.dim)))
        self.pos_embedding = nnx.Param(0.02 * draw(rngs.params(), (cfg.tokens, cfg.dim)))
        self.pre_norm = LayerNorm(cfg.dim, cfg.eps)
        self.blocks = jax.vmap(lambda key: VisionBlock(cfg, nnx.Rngs(key)))(
            jax.random.split(rngs.params(), cfg.layers)
        )
        self.cfg = cfg

    def embed(self, picture: Float[Array, "size size 3"]) -> Float[Array, "E V"]:
        """Return the tokens before the first block, of colours in −1..1."""
        mean, std = (jnp.array(colours)[None, None] for colours in (MEAN, STD))
        colours = (0.5 * picture + 0.5 - mean) / std
        side = self.cfg.patch
        patches = rearrange(colours, "(h a) (w b) c -> (h w) (c a b)", a=side, b=side)
        tokens = [self.cls_embedding[...], patches @ self.patch_embedding[...]]
        return self.pre_norm(jnp.concatenate(tokens) + self.pos_embedding[...])

    def __call__(self, picture: Float[Array, "size size 3"]) -> Float[Array, "E V"]:
        """Return the tokens after the last block but one of the CLIP, which is the last here."""
        step = lambda x, block: (block(x), None)  # noqa: E731
        return jax.lax.scan(step, self.embed(picture), self.blocks)[0]


@partial(jax.jit, static_argnums=1)
def given_mask(latents: Float[Array, "F h w C"], given: int) -> Float[Array, "F h w 4"]:
    """Return four channels that are 1 in the frames which are given."""
    inside = (jnp.arange(len(latents)) < given).astype(latents.dtype)
    return jnp.broadcast_to(inside[:, None, None, None], (*latents.shape[:3], 4))


@partial(jax.jit, static_argnums=(1, 2))
def image_channels(
    first: Float[Array, "given h w C"],
    frames: int,
    image: str = "concat",
) -> Float[Array, "F h w E"]:
    """Return what image-to-video models see beside the noise: four mask channels, 1 where a frame
    is given, and the latents of these frames; behind them zero (`concat`) or the last one repeated
    (`repeat`: so the small model need not learn to copy the scene from frame to frame)."""
    latents = first[jnp.minimum(jnp.arange(frames), len(first) - 1)]
    mask = given_mask(latents, len(first))
    if image == "concat":
        latents = jnp.where(mask[..., :1] > 0, latents, 0.0)
    return jnp.concatenate([mask, latents], axis=-1)
