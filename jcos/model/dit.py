"""Wan's diffusion transformer for one video: no batch axis, blocks stacked on a leading layer axis.

Module names follow the released checkpoints (`blocks.self_attn.q`, `time_embedding`, …), so that
converting weights is a table of names. Axis letters as in `layers.py`; latents are channels last,
[F, H, W, C].
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jcos.config import FLOAT32, DiTConfig, Numerics
from jcos.devices import mesh
from jcos.model.attention import attention
from jcos.model.layers import (
    LayerNorm,
    RMSNorm,
    layer_norm,
    rope_angles,
    rotate,
    rounded,
    time_features,
)
from jcos.model.slots import Slots

Tokens = Float[Array, "N D"]
Angles = tuple[Float[Array, "N half"], Float[Array, "N half"]]
OnSite = Callable[[Int[Array, ""], Any], tuple[Any, Any]]
"""Is called at a place inside the model with the number of the block and what is computed there;
returns what to go on with, and an observation."""
At = Callable[[str, Any], Any]
"""Returns what to go on with at a place inside a block, of its name and what is computed there."""
SITES = ("input", "attention", "heads", "cross", "mlp", "update", "block")
"""Places inside the model: the tokens [N, D] after the patch embedding; queries and keys of
self-attention, a pair of [N, H, d]; what its heads, and those of cross-attention, return [N, H, d];
the hidden units [N, ffn] after the activation; the tokens before and after a block, a pair of which
the second goes on; the tokens after a block."""


def computed_at(cfg: DiTConfig, numerics: Numerics, tokens: int) -> dict[str, Any]:
    """Return shape and type of what is computed at each of `SITES`."""
    shape, linear = jax.ShapeDtypeStruct, jnp.dtype(numerics.linear)
    stream = shape((tokens, cfg.dim), jnp.dtype(numerics.residual))
    heads = shape((tokens, cfg.heads, cfg.head_dim), linear)
    turned = shape(heads.shape, jnp.float32)  # queries and keys are normed and rotated so
    return {
        "input": stream,
        "attention": (turned, turned),
        "heads": heads,
        "cross": heads,
        "mlp": shape((tokens, cfg.ffn_dim), linear),
        "update": (stream, stream),
        "block": stream,
    }


def go_on(site: str, z: Any) -> Any:
    del site
    return z


class Linear(nnx.Module):
    """Rounds once, after the bias, like PyTorch's; Flax's also rounds the product. (So does this
    one on a GPU where XLA chooses its own kernel over cuBLAS.)"""

    def __init__(self, n_in: int, n_out: int, dtype: str, rngs: nnx.Rngs):
        self.dtype = jnp.dtype(dtype)
        self.kernel = nnx.Linear(n_in, n_out, param_dtype=self.dtype, rngs=rngs).kernel
        self.bias = nnx.Param(jnp.zeros(n_out, self.dtype))

    def __call__(self, x: Float[Array, "N I"]) -> Float[Array, "N O"]:
        x, kernel, bias = (a.astype(self.dtype) for a in (x, self.kernel[...], self.bias[...]))
        if mesh.platform() == "gpu":
            # cuBLAS adds the bias before it rounds, and then writes half as much.
            return jnp.matmul(x, kernel) + bias[None]
        product = jnp.matmul(x, kernel, preferred_element_type=jnp.float32)
        return (product + bias[None]).astype(self.dtype)


class Attention(nnx.Module):
    """Multi-head attention; q and k are RMS-normed over all heads together.

    image: with keys and values of a second context, the picture's tokens (Wan2.1 I2V).
    """

    def __init__(self, cfg: DiTConfig, numerics: Numerics, rngs: nnx.Rngs, image: bool = False):
        self.q, self.k, self.v, self.o = (
            Linear(cfg.dim, cfg.dim, numerics.linear, rngs) for _ in range(4)
        )
        self.norm_q, self.norm_k = RMSNorm(cfg.dim, cfg.eps), RMSNorm(cfg.dim, cfg.eps)
        if image:
            self.k_img, self.v_img = (
                Linear(cfg.dim, cfg.dim, numerics.linear, rngs) for _ in range(2)
            )
            self.norm_k_img = RMSNorm(cfg.dim, cfg.eps)
        self.heads = cfg.heads

    def __call__(
        self,
        x: Tokens,
        context: Float[Array, "M D"],
        angles: Angles | None = None,
        rows: int | None = None,
        at: At = go_on,
        image: Float[Array, "E D"] | None = None,
    ) -> Tokens:
        """Return the block's tokens. angles: of self-attention. rows: how many of its tokens are no
        padding; None: all. image: the second context, which the same normed queries read; both
        results are added."""
        q, k, v = (
            rearrange(a, "n (h d) -> n h d", h=self.heads)
            for a in (self.norm_q(self.q(x)), self.norm_k(self.k(context)), self.v(context))
        )
        together = angles is not None
        if angles is not None:
            q, k = at("attention", (rotate(q, angles), rotate(k, angles)))
        z = attention(q, k, v, keys=rows, together=together)
        if image is not None:
            k, v = (
                rearrange(a, "n (h d) -> n h d", h=self.heads)
                for a in (self.norm_k_img(self.k_img(image)), self.v_img(image))
            )
            z = z + attention(q, k, v)
        return self.o(rearrange(at("heads" if together else "cross", z), "n h d -> n (h d)"))


class MLP(nnx.Module):
    """Two linear layers around an activation, numbered as in a torch Sequential."""

    def __init__(
        self,
        n_in: int,
        hidden: int,
        n_out: int,
        activation: Callable[[Array], Array],
        dtype: str,
        rngs: nnx.Rngs,
    ):
        self.layers_0 = Linear(n_in, hidden, dtype, rngs)
        self.layers_2 = Linear(hidden, n_out, dtype, rngs)
        self.activation = activation

    def __call__(self, x: Float[Array, "N I"], at: At = go_on) -> Float[Array, "N O"]:
        return self.layers_2(at("mlp", self.activation(self.layers_0(x))))


def gelu_tanh(x: Float[Array, "N D"]) -> Float[Array, "N D"]:
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)  # rounds once


def gelu(x: Float[Array, "N D"]) -> Float[Array, "N D"]:
    return jax.nn.gelu(x.astype(jnp.float32), approximate=False).astype(x.dtype)


class ImageProjection(nnx.Module):
    """Tokens of an image encoder in the transformer's width, numbered as in a torch Sequential: its
    norms have torch's eps, its GELU is the exact one (Wan2.1's MLPProj)."""

    def __init__(self, n_in: int, n_out: int, dtype: str, rngs: nnx.Rngs):
        self.proj_0, self.proj_4 = LayerNorm(n_in, 1e-5), LayerNorm(n_out, 1e-5)
        self.proj_1, self.proj_3 = Linear(n_in, n_in, dtype, rngs), Linear(n_in, n_out, dtype, rngs)

    def __call__(self, image: Float[Array, "E I"]) -> Float[Array, "E D"]:
        return self.proj_4(self.proj_3(gelu(self.proj_1(self.proj_0(image)))))


def of_tokens(rows: Float[Array, "T D"], clean: Bool[Array, " N"] | None) -> Float[Array, "_ D"]:
    """Return a row for each token: of two, the second for those that are clean."""
    return rows if clean is None else jnp.where(clean[:, None], rows[1], rows[0])


class Block(nnx.Module):
    """Self-attention and feed-forward, modulated and gated by time, cross-attention between."""

    def __init__(self, cfg: DiTConfig, numerics: Numerics, rngs: nnx.Rngs):
        self.self_attn = Attention(cfg, numerics, rngs)
        self.cross_attn = Attention(cfg, numerics, rngs, image=cfg.image_dim is not None)
        self.norm3 = LayerNorm(cfg.dim, cfg.eps)
        self.ffn = MLP(cfg.dim, cfg.ffn_dim, cfg.dim, gelu_tanh, numerics.linear, rngs)
        self.modulation = nnx.Param(jax.random.normal(rngs.params(), (6, cfg.dim)) * cfg.dim**-0.5)
        self.eps = cfg.eps
        self.residual = jnp.dtype(numerics.residual)

    def __call__(
        self,
        x: Tokens,
        time: Float[Array, "T 6 D"],
        context: Float[Array, "L D"],
        angles: Angles,
        rows: int | None = None,
        clean: Bool[Array, " N"] | None = None,
        at: At = go_on,
        image: Float[Array, "E D"] | None = None,
    ) -> Tokens:
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            of_tokens(row, clean) for row in jnp.moveaxis(self.modulation[...][None] + time, 1, 0)
        )

        def add(x: Tokens, y: Tokens) -> Tokens:
            return (x + y).astype(self.residual)

        with jax.named_scope("self_attn"):
            h = layer_norm(x, self.eps) * (1 + scale1) + shift1
            x = add(x, self.self_attn(h, h, angles, rows, at) * gate1)
        with jax.named_scope("cross_attn"):
            x = add(x, self.cross_attn(self.norm3(x), context, None, None, at, image))
        with jax.named_scope("ffn"):
            h = layer_norm(x, self.eps) * (1 + scale2) + shift2
            return add(x, self.ffn(h, at) * gate2)


class Head(nnx.Module):
    """Last modulated norm and projection to patches."""

    def __init__(self, cfg: DiTConfig, numerics: Numerics, rngs: nnx.Rngs):
        pt, ph, pw = cfg.patch
        # Zero at the start of training, so that the first velocity is zero and not noise.
        zeros = nnx.initializers.zeros_init()
        self.head = nnx.Linear(
            cfg.dim,
            pt * ph * pw * cfg.out_channels,
            kernel_init=zeros,
            dtype=jnp.dtype(numerics.head),
            param_dtype=jnp.dtype(numerics.head),
            rngs=rngs,
        )
        self.modulation = nnx.Param(jax.random.normal(rngs.params(), (2, cfg.dim)) * cfg.dim**-0.5)
        self.eps = cfg.eps

    def __call__(
        self, x: Tokens, time: Float[Array, "T D"], clean: Bool[Array, " N"] | None = None
    ) -> Float[Array, "N P"]:
        rows = jnp.moveaxis(self.modulation[...][None] + time[:, None], 1, 0)
        shift, scale = (of_tokens(row, clean) for row in rows)
        return self.head(layer_norm(x, self.eps) * (1 + scale) + shift)


class DiT(nnx.Module):
    """One expert: from a latent, its timestep and the embedded prompt to the velocity ε − x0."""

    def __init__(self, cfg: DiTConfig, *, numerics: Numerics = FLOAT32, rngs: nnx.Rngs):
        pt, ph, pw = cfg.patch
        self.patch_embedding = Linear(
            pt * ph * pw * cfg.in_channels, cfg.dim, numerics.linear, rngs
        )
        self.text_embedding = MLP(cfg.text_dim, cfg.dim, cfg.dim, gelu_tanh, numerics.linear, rngs)
        self.time_embedding = MLP(cfg.freq_dim, cfg.dim, cfg.dim, jax.nn.silu, numerics.time, rngs)
        self.time_projection = Linear(cfg.dim, 6 * cfg.dim, numerics.time, rngs)
        self.blocks = jax.vmap(lambda key: Block(cfg, numerics, nnx.Rngs(key)))(
            jax.random.split(rngs.params(), cfg.layers)
        )
        self.head = Head(cfg, numerics, rngs)
        if cfg.image_dim is not None:
            self.img_emb = ImageProjection(cfg.image_dim, cfg.dim, numerics.linear, rngs)
        self.cfg = cfg
        self.numerics = numerics

    def __call__(
        self,
        latents: Float[Array, "F H W C"],
        t: Float[Array, ""] | Float[Array, " N"],
        context: Float[Array, "L text"],
        *,
        sites: Mapping[str, OnSite] = MappingProxyType({}),
        clean: Bool[Array, " N"] | None = None,
        image: Float[Array, "E image"] | None = None,
        slots: Any = None,
        remat: bool = False,
    ) -> tuple[Float[Array, "F H W O"], Any]:
        """Return the velocity, and the observations of `sites`, stacked over layers.

        latents: any concatenated conditioning included (cfg.in_channels). t: timestep 0..1000, one
            for the video or one per token (row-major over the token grid).
        clean: tokens at timestep 0 instead, like TI2V's first frame. Then two timesteps are
            embedded, not one per token (2 GB less at 704p).
        context: embedded prompt, at most cfg.text_len rows; it is zero-padded to that length and,
            as in the original, the padding is attended to.
        image: tokens of the image encoder, for models that have a place for them (cfg.image_dim).
        sites: functions by their place in the model (`SITES`); observations are a dict of these
            places. "input" is before the layers: it is called with layer −1, and its observation
            has no layer axis.
        slots: layers whose observations are kept instead of all, by place, as in `Slots`.
        remat: recompute blocks in the backward pass (training).
        """
        cfg = self.cfg
        grid = cfg.tokens(*latents.shape[:3])
        if (image is None) != (cfg.image_dim is None):
            has = "none" if image is None else f"{image.shape[1]}-wide ones"
            raise ValueError(f"image tokens are {cfg.image_dim} wide; the condition has {has}")

        with jax.named_scope("embed"):
            x = self.patch_embedding(self.patchify(latents)).astype(
                jnp.dtype(self.numerics.residual)
            )
            e = self.time_vector(t, clean)
            time = rearrange(self.time_projection(jax.nn.silu(e)), "t (six d) -> t six d", six=6)
            text = self.text_embedding(
                jnp.pad(context, ((0, cfg.text_len - context.shape[0]), (0, 0)))
            )
            picture = None if image is None else self.img_emb(image)
            angles = rope_angles(grid, cfg.head_dim, cfg.rope_theta)

        # On a mesh, rows are spread over devices, with padding that probes do not get.
        n = x.shape[0]
        rows = None if mesh.padded(n) == n else n
        x, *angles = (mesh.spread(a) for a in (x, *angles))
        if clean is not None:
            clean = mesh.spread(clean)
        elif time.shape[0] > 1:
            e, time = mesh.spread(e), mesh.spread(time)

        layers = jnp.arange(cfg.layers)
        first: dict[str, Any] = {}
        if "input" in sites:
            x, first["input"] = sites["input"](jnp.int32(-1), x[:n])
            x = mesh.spread(x)
        places = [site for site in sites if site != "input"]
        computed = computed_at(cfg, self.numerics, n)
        shapes = {s: jax.eval_shape(sites[s], layers[0], computed[s])[1] for s in places}
        chosen = Slots({s: slots[s] for s in places} if slots else None, shapes)

        def body(carry: tuple[Tokens, Any], scanned: tuple[Block, Int[Array, ""]]) -> Any:
            (x, buffers), (block, layer) = carry, scanned
            observed: dict[str, Any] = {}

            def at(site: str, z: Any) -> Any:
                if site not in sites:
                    return z
                z, observed[site] = sites[site](layer, jax.tree.map(lambda a: a[:n], z))
                second = None if site in ("update", "block") else mesh.TENSOR
                return jax.tree.map(lambda a: mesh.spread(a, second), z)

            before, x = x, block(x, time, text, (angles[0], angles[1]), rows, clean, at, picture)
            _, x = at("update", (before, x))
            x = at("block", x)
            buffers, stacked = chosen.put(buffers, observed, layer)
            return (mesh.spread(x), buffers), stacked

        (x, buffers), stacked = jax.lax.scan(
            jax.checkpoint(body) if remat else body, (x, chosen.empty()), (self.blocks, layers)
        )
        with jax.named_scope("head"):
            # Patches are small enough to be gathered.
            patches = mesh.constrain(self.head(x, e, clean), mesh.SEQUENCE)
            v, found = self.unpatchify(patches[:n], grid), chosen.observation(buffers, stacked)
            return v, found | first

    def time_vector(
        self, t: Float[Array, ""] | Float[Array, " N"], clean: Bool[Array, " N"] | None
    ) -> Float[Array, "T D"]:
        t = t if clean is None else jnp.stack([t, jnp.zeros_like(t)])
        # Rounded to the time embedding's data type: bfloat16 makes 999 a 1000.
        t = rounded(jnp.atleast_1d(t).astype(jnp.float32), self.numerics.time)
        return self.time_embedding(time_features(t, self.cfg.freq_dim))

    def readout(
        self,
        t: Float[Array, ""],
        shape: tuple[int, int, int],
        clean: Bool[Array, " N"] | None = None,
    ) -> Callable[[Tokens], Float[Array, "F H W O"]]:
        """Return the head as a function of tokens [N, D] alone: the velocity that it makes of them
        at this timestep. shape: frames, height and width of the latent."""
        e, grid = self.time_vector(t, clean), self.cfg.tokens(*shape)
        return lambda tokens: self.unpatchify(self.head(tokens, e, clean), grid)

    def patchify(self, latents: Float[Array, "F H W C"]) -> Float[Array, "N P"]:
        """Return patches as rows, channel slowest within a patch (as in the original's Conv3d)."""
        pt, ph, pw = self.cfg.patch
        return rearrange(latents, "(f a) (h b) (w c) ch -> (f h w) (ch a b c)", a=pt, b=ph, c=pw)

    def unpatchify(
        self, patches: Float[Array, "N P"], grid: tuple[int, int, int]
    ) -> Float[Array, "F H W O"]:
        """Return the head's rows as a latent; within a patch the channel is fastest here."""
        f, h, w = grid
        pt, ph, pw = self.cfg.patch
        return rearrange(
            patches, "(f h w) (a b c ch) -> (f a) (h b) (w c) ch", f=f, h=h, w=w, a=pt, b=ph, c=pw
        ).astype(jnp.float32)
