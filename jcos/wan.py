"""`Wan`: expert(s), codec and text encoder of one model, with the defaults its authors sample
with."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key, UInt8

from jcos import checkpoint, flow, trajectory
from jcos.config import FLOAT32, ImageMode, Numerics, PixelCodec, Sampling, WanConfig
from jcos.dit import DiT
from jcos.probes import Probe
from jcos.text import WordEmbedding, word_ids
from jcos.trajectory import Condition, Trace
from jcos.vae import decode_pixels, encode_pixels

TINY = Path(__file__).parent / "tiny"
"""The trained small model that comes with the package."""


class Wan(nnx.Module):
    """A whole model as one pytree; pass it to jitted functions as an argument, never close over
    it."""

    def __init__(self, config: WanConfig, *, numerics: Numerics = FLOAT32, rngs: nnx.Rngs):
        self.experts = nnx.List(
            [DiT(config.dit, numerics=numerics, rngs=rngs) for _ in range(config.experts)]
        )
        self.text = None if config.text is None else WordEmbedding(config.text, rngs=rngs)
        self.config = config

    @property
    def codec(self) -> PixelCodec:
        if self.config.codec is None:
            raise ValueError(f"{self.config.name} comes without a codec: it has latents, no pixels")
        return self.config.codec

    def embed(self, prompt: str) -> Float[Array, "L text"]:
        """Rows of a prompt, padded to the model's text length; ValueError if it cannot be read."""
        words = self.config.text
        if self.text is None or words is None:
            raise ValueError(f"{self.config.name} comes without a text encoder")
        return self.text(jnp.asarray(word_ids(words, prompt, self.config.dit.text_len)))

    def condition(
        self, first_frame: UInt8[np.ndarray, "..."], prompt: str, frames: int
    ) -> Condition:
        """What to generate from: a first frame [H, W, 3] uint8, a prompt, and a number of frames.

        Raises ValueError where the frame is not of that kind or the prompt cannot be read.
        """
        if first_frame.ndim != 3 or first_frame.shape[-1] != 3:
            raise ValueError(f"a first frame has shape [H, W, 3]; this one has {first_frame.shape}")
        if frames < 1:
            raise ValueError(f"{frames} frames asked for; a video has at least 1")
        multiple = self.codec.stride * self.config.dit.patch[1]
        for name, size in zip(("height", "width"), first_frame.shape, strict=False):
            if size < 1 or size % multiple:
                wants = f"{self.config.name} needs a multiple of {multiple}"
                raise ValueError(f"the {name} is {size} pixels; {wants}")
        first = encode_pixels(self.codec, jnp.asarray(first_frame)[None])
        return Condition(
            self.embed(prompt), self.embed(""), image_channels(first, frames, self.config.image)
        )

    def decode(self, latents: Float[Array, "*axes F h w C"]) -> UInt8[np.ndarray, "*axes F H W 3"]:
        """Latents (final ones or clean estimates, with any leading axes) as uint8 video."""
        flat = jnp.reshape(latents, (-1, *latents.shape[-4:]))
        video = jax.vmap(partial(decode_pixels, self.codec))(flat)
        video = np.asarray(jnp.clip(jnp.round(video), 0, 255).astype(jnp.uint8))
        return video.reshape(*latents.shape[:-4], *video.shape[1:])


def image_channels(
    first: Float[Array, "1 h w C"], frames: int, image: ImageMode = "concat"
) -> Float[Array, "F h w E"]:
    """What image-to-video models see beside the noise: four mask channels, 1 where a frame is
    given, and that frame's latent; elsewhere zero (`concat`, as Wan has it) or repeated (`repeat`:
    so the small model need not learn to copy the scene from frame to frame)."""
    _, h, w, _ = first.shape
    mask = jnp.zeros((frames, h, w, 4)).at[0].set(1.0)
    if image == "repeat":
        return jnp.concatenate([mask, jnp.repeat(first, frames, axis=0)], axis=-1)
    return jnp.concatenate([mask, jnp.zeros((frames, *first.shape[1:])).at[:1].set(first)], axis=-1)


def load(folder: Path | str = TINY) -> Wan:
    """A model from a checkpoint folder; without one, the small model of the package.

    Raises checkpoint.CheckpointError where the folder is not one, or is damaged.
    """
    manifest = checkpoint.read_manifest(Path(folder))
    config = checkpoint.read_config(manifest)
    return checkpoint.restore(Path(folder), jax.eval_shape(lambda: Wan(config, rngs=nnx.Rngs(0))))


def seed_keys(seeds: Sequence[int]) -> Key[Array, " K"]:
    """One key per seed: a seed's noise does not depend on which others run beside it."""
    return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


@partial(jax.jit, static_argnames=("high_steps",))
def generate_worlds(
    model: Wan,
    plan: flow.Schedule,
    conditions: Condition,
    keys: Key[Array, " K"],
    probe: Probe,
    guidance: Float[Array, " experts"] | None = None,
    high_steps: int | None = None,
) -> Trace:
    """`trajectory.run` with noise drawn from the seeds' keys; arrays of `conditions` have a world
    axis."""
    if conditions.channels is None:
        raise ValueError("the size of the video is read off the image channels; there are none")
    shape = (*conditions.channels.shape[1:4], model.config.dit.out_channels)
    noise_keys, step_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(noise_keys)
    return trajectory.run(
        model.experts, plan, conditions, noise, step_keys, probe, guidance, high_steps
    )


def generate(
    model: Wan,
    condition: Condition,
    seeds: Sequence[int] = (0,),
    *,
    probe: Probe | None = None,
    sampling: Sampling | None = None,
) -> Trace:
    """One video per seed, with every step's clean estimate and what the probe observed: leaves [K,
    …].

    sampling: the model's own by default. Raises FloatingPointError where a latent stops being
    finite.
    """
    worlds = jax.tree.map(lambda a: a[None], condition)
    return jax.tree.map(
        lambda a: a[0], generate_side_by_side(model, worlds, seeds, probe=probe, sampling=sampling)
    )


def generate_side_by_side(
    model: Wan,
    conditions: Condition,
    seeds: Sequence[int] = (0,),
    *,
    probe: Probe | None = None,
    sampling: Sampling | None = None,
) -> Trace:
    """`generate` for several worlds at once (`trajectory.stack` of conditions): leaves [W, K,
    …]."""
    sampling = sampling or model.config.sampling
    plan = flow.schedule(sampling)
    boundary = model.config.boundary
    high_steps = None if boundary is None else flow.high_noise_steps(plan, boundary)
    guidance = None if sampling.guidance is None else jnp.asarray(sampling.guidance)
    trace = generate_worlds(
        model, plan, conditions, seed_keys(seeds), probe or Probe(), guidance, high_steps
    )
    return trajectory.check_finite(trace)
