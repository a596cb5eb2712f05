"""`Wan`: expert(s), codec and text encoder of one model; loading, conditions, decoding."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Sharding
from jaxtyping import Array, Float, UInt8

from jcos.config import Codec, PixelCodec, UMT5Config, VaeConfig, WanConfig, Words
from jcos.devices import memory, mesh, sharding
from jcos.media.image import check_frames, stretched
from jcos.model.dit import DiT
from jcos.model.text import UMT5, WordEmbedding, cached, embed, word_ids
from jcos.model.tokenizer import Tokenizer
from jcos.model.vae import Tiles, Vae, check_colours, encode_pixels, pixel_videos, signed
from jcos.model.vision import VisionTower, given_mask, image_channels
from jcos.sampling.trajectory import Condition
from jcos.variants import TINY, Profile, with_profile
from jcos.weights import checkpoint, hub
from jcos.weights import lora as lora_files
from jcos.weights.layouts import is_released
from jcos.weights.loras import Asked
from jcos.weights.released import Released, load_released, open_released

Picture = UInt8[np.ndarray, "..."] | Float[np.ndarray, "..."] | Float[Array, "..."]
Prompt = str | Float[Array, "_ text"] | Float[np.ndarray, "_ text"]
"""What is asked for, in words or as rows that were embedded before."""


class Wan(nnx.Module):
    """A whole model as one pytree; pass it to jitted functions as an argument, never close over
    it.

    text, vae, vision: None where the configuration has none, or where they were not loaded.
    """

    def __init__(self, config: WanConfig, *, rngs: nnx.Rngs):
        self.experts = nnx.List(
            [DiT(config.dit, numerics=config.numerics, rngs=rngs) for _ in range(config.experts)]
        )
        self.text: WordEmbedding | UMT5 | None
        match config.text:
            case Words():
                self.text = WordEmbedding(config.text, rngs=rngs)
            case UMT5Config():
                self.text = UMT5(config.text, dtype=config.numerics.text, rngs=rngs)
            case None:
                self.text = None
        self.vae = Vae(config.codec, rngs=rngs) if isinstance(config.codec, VaeConfig) else None
        vision = config.vision
        self.vision = None if vision is None else VisionTower(vision, rngs=rngs)
        self.tokenizer: Tokenizer | None = None
        self.config = config

    @property
    def codec(self) -> Codec:
        if self.config.codec is None:
            raise ValueError(f"{self.config.name} comes without a codec: it has latents, no pixels")
        return self.config.codec

    def embed(self, prompt: Prompt) -> Float[Array, "L text"]:
        """Return rows of a prompt, zero-padded to the text length; ValueError if it cannot be
        read."""
        name, length = self.config.name, self.config.dit.text_len
        if not isinstance(prompt, str):
            rows = jnp.asarray(prompt)
            if rows.shape[0] > length or rows.shape[1] != self.config.dit.text_dim:
                want = f"at most {length} rows of {self.config.dit.text_dim}"
                raise ValueError(f"{name} reads {want}; these have shape {rows.shape}")
            return jnp.pad(rows, ((0, length - rows.shape[0]), (0, 0)))
        if isinstance(self.text, WordEmbedding) and isinstance(self.config.text, Words):
            return self.text(jnp.asarray(word_ids(self.config.text, prompt, length)))
        if not isinstance(self.text, UMT5):
            raise ValueError(f"{name} was loaded without a text encoder; give embedded prompts")
        return embed(self.text, _tokenizer(self), prompt, length)

    def condition(
        self,
        first_frame: Picture | None,
        prompt: Prompt,
        frames: int,
        *,
        negative: Prompt | None = None,
        size: tuple[int, int] | None = None,
        tiles: Tiles | None = None,
        seen: Picture | None = None,
    ) -> Condition:
        """Return what to generate from: a first frame, or several, a prompt, and a number of
        frames.

        first_frame: [H, W, 3], uint8, or floats in −1..1 (`image.prepare`); or the clip
        [n, H, W, 3] that the video continues, of 1 + k × 4 frames for a released model; None for
        models that make a video of a text alone, which need `size` (height, width) in pixels.
        negative: of the unconditional branch; by default the model's own, which an empty one
        selects too, as in the original. tiles: as in `encode`. seen: what an image encoder sees
        (`image.for_encoder`), by default the first frame, stretched.
        Raises ValueError where the frames are not of that kind, the model does not take them, the
        size does not divide into tokens, the codec has no such number of frames, or a prompt cannot
        be read.
        """
        check_picture(self.config, first_frame is not None)
        clip = None
        if first_frame is not None:
            clip = first_frame[None] if first_frame.ndim == 3 else first_frame
            if clip.ndim != 4 or clip.shape[-1] != 3:
                raise ValueError(
                    f"a first frame has shape [H, W, 3], a clip [n, H, W, 3]; this is "
                    f"{first_frame.shape}"
                )
            height, width = clip.shape[1:3]
            check_colours(clip)
            if size not in (None, (height, width)):
                raise ValueError(f"the first frame has size {(height, width)}, not {size}")
            size = (height, width)
        if size is None:
            raise ValueError("without a first frame, the size of the video must be given")
        grid = latent_grid(self.config, frames, *size)
        if clip is not None:
            check_given(self.config, len(clip), frames)
        rows = self.embed(prompt)
        if isinstance(negative, str | None):
            negative = negative or self.config.negative
        condition = Condition(rows, grid, self.embed(negative).astype(rows.dtype))
        return condition if clip is None else self._given(condition, clip, tiles, seen)

    def _image_tokens(self, picture: Picture) -> Float[Array, "E image"]:
        if self.vision is None:
            raise ValueError(f"{self.config.name} was loaded without its image encoder")
        side = self.vision.cfg.size
        if picture.shape[:2] != (side, side):
            picture = stretched(np.asarray(signed(picture)), side, side)
        return _see(self.vision, signed(picture))

    def continued(
        self,
        condition: Condition,
        latents: Float[Array | np.ndarray, "K h w C"],
        tiles: Tiles | None = None,
    ) -> Condition:
        """Return the condition with the first K latent frames given, clean, as those of an earlier
        run are. tiles: as in `encode`.

        Models of the kind I2V-A14B see them decoded, and encoded with grey frames behind; of the
        small model, every clean estimate is made to have them.
        Raises ValueError where the model takes no frames, or none would be left to make.
        """
        stride = self.codec.strides[0]
        check_given(
            self.config, 1 + (len(latents) - 1) * stride, 1 + (condition.grid[0] - 1) * stride
        )
        if self.config.image == "pin":
            return condition.replace(first=jnp.asarray(latents))
        if isinstance(self.codec, PixelCodec):
            return condition.replace(known=jnp.asarray(latents))
        given = self._given(condition, self.decode(latents, tiles), tiles)
        return given.replace(image=condition.image)

    def chained(
        self,
        condition: Condition,
        latents: Float[Array | np.ndarray, "F h w C"],
        frames: int = 1,
        tiles: Tiles | None = None,
    ) -> Condition:
        """Return the condition of the next clip: its first latent frames, so many, are the last
        ones of this video, decoded and coded anew. Raises as `continued`."""
        stride, total = self.codec.strides[0], condition.grid[0]
        given, whole = 1 + (frames - 1) * stride, 1 + (total - 1) * stride
        check_given(self.config, given, whole)
        return self._given(condition, self.decode(latents, tiles)[-given:], tiles)

    def _given(
        self, condition: Condition, clip: Picture, tiles: Tiles | None, seen: Picture | None = None
    ) -> Condition:
        """Give a clip: in place, or beside the noise; to a VAE with grey frames behind. seen: by
        the image encoder, by default its first frame."""
        if self.config.image == "pin":
            return condition.replace(first=self.encode(clip, tiles))
        if isinstance(self.codec, PixelCodec):  # has learnt to see one
            latents = self.encode(clip)
            channels = image_channels(latents[:1], condition.grid[0], self.config.image)
            known = latents if len(latents) > 1 else None
            return condition.replace(channels=channels, known=known)
        image = None
        if self.config.vision is not None:
            image = self._image_tokens(clip[0] if seen is None else seen)
        stride = self.codec.strides[0]
        grey = jnp.zeros((1 + (condition.grid[0] - 1) * stride - len(clip), *clip.shape[1:]))
        latents = self.encode(jnp.concatenate([signed(clip), grey]), tiles)
        mask = given_mask(latents, 1 + (len(clip) - 1) // stride)
        channels = jnp.concatenate([mask, latents], axis=-1)
        return condition.replace(channels=channels, image=image)

    def encode(self, video: Picture, tiles: Tiles | None = None) -> Float[Array, "f h w C"]:
        """Return a video [F, H, W, 3], uint8 or floats in −1..1, as latents. tiles: of a VAE,
        pieces that frames are coded in, for less memory."""
        if isinstance(self.codec, PixelCodec):
            check_colours(video)
            if jnp.issubdtype(video.dtype, jnp.floating):
                video = (video.astype(np.float32) + 1) * 127.5
            return jnp.asarray(encode_pixels(self.codec, video))
        if self.vae is None:
            raise ValueError(f"{self.config.name} was loaded without its VAE")
        with self._coding(f"{len(video)} frame(s) of {video.shape[2]}x{video.shape[1]} pixels"):
            return jax.block_until_ready(_encode(self.vae, signed(video), tiles))

    def decode(
        self, latents: Float[Array | np.ndarray, "*axes f h w C"], tiles: Tiles | None = None
    ) -> UInt8[np.ndarray, "*axes F H W 3"]:
        """Return latents, with any leading axes, as uint8 video. tiles: as in `encode`."""
        flat = latents.reshape(-1, *latents.shape[-4:])
        if isinstance(self.codec, PixelCodec):
            video = np.asarray(pixel_videos(self.codec, np.asarray(flat)))
        elif self.vae is None:
            raise ValueError(f"{self.config.name} was loaded without its VAE")
        else:
            frames, height, width = latents.shape[-4:-1]
            with self._coding(f"{frames} latent frame(s) of {width}x{height}"):
                video = np.stack([_decode(self.vae, z, tiles) for z in flat])
        return video.reshape(*latents.shape[:-4], *video.shape[1:])

    def _coding(self, what: str) -> AbstractContextManager[None]:
        return memory.explained(f"the VAE of {self.config.name}, for {what},", memory.CODING)


def check_picture(config: WanConfig, given: bool) -> None:
    """Raise ValueError where a model needs a first frame and none is given, or takes none and one
    is."""
    if given and config.image == "none":
        raise ValueError(f"{config.name} makes videos of a text alone; it takes no first frame")
    if not given and config.image in ("concat", "repeat"):
        raise ValueError(f"{config.name} makes videos of a first frame; none is given")


def check_given(config: WanConfig, given: int, frames: int) -> None:
    """Raise ValueError where a video of so many frames cannot continue so many given ones."""
    if config.image == "none":
        raise ValueError(f"{config.name} makes videos of a text alone; it continues no frames")
    stride = 1 if config.codec is None else config.codec.strides[0]
    if (given != 1 and not 1 < given < frames) or (given - 1) % stride:
        raise ValueError(
            f"{given} frames are given of {frames}; {config.name} continues 1 to "
            f"{frames - stride}" + f", 1 more than a multiple of {stride}" * (stride > 1)
        )


def check_mesh(
    sizes: Mapping[str, int], config: WanConfig, seeds: int = 1, together: int | None = None
) -> None:
    """Raise ValueError where runs of this model, sampled as its configuration says, cannot be
    spread over a mesh of these sizes. together: seeds at a time."""
    counts = {"seeds": seeds, "passes": 1 if config.sampling.guidance is None else 2}
    worlds = sizes.get(mesh.WORLD, 1)  # as many as there is room for
    sharding.check_runs(sizes, config.dit.heads, worlds=worlds, together=together, **counts)


def latent_grid(config: WanConfig, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Return frames, height and width of the latent of a video in pixels; ValueError where none
    fits."""
    if config.codec is None:
        raise ValueError(f"{config.name} comes without a codec: it has latents, no pixels")
    along, *strides = config.codec.strides
    check_frames(frames, along)
    for name, size, stride, patch in zip(
        ("height", "width"), (height, width), strides, config.dit.patch[1:], strict=True
    ):
        if size < 1 or size % (stride * patch):
            wants = f"{config.name} needs a multiple of {stride * patch}"
            raise ValueError(f"the {name} is {size} pixels; {wants}")
    return int((frames - 1) // along + 1), int(height // strides[0]), int(width // strides[1])


_see = jax.jit(VisionTower.__call__)


@partial(jax.jit, static_argnames="tiles")
def _encode(
    vae: Vae, video: Float[Array, "F H W 3"], tiles: Tiles | None
) -> Float[Array, "f h w C"]:
    return vae.encode(video, tiles=tiles)


@partial(jax.jit, static_argnames="tiles")
def _decode(
    vae: Vae, latents: Float[Array, "f h w C"], tiles: Tiles | None
) -> UInt8[Array, "F H W 3"]:
    """Decode, truncated, not rounded, to 0..255, as the original writes its videos."""
    video = vae.decode(latents, tiles=tiles)
    return jnp.clip((video + 1) * 127.5, 0, 255).astype(jnp.uint8)


def _tokenizer(model: Wan) -> Tokenizer:
    if model.tokenizer is None:
        raise ValueError(
            f"{model.config.name} comes without a tokenizer; put the release's tokenizer.json "
            "(of google/umt5-xxl) where the release or the converted folder (tokenizer/) has it, "
            "or give embedded prompts"
        )
    return model.tokenizer


def read_config(folder: Path | str, profile: Profile | None = None) -> WanConfig:
    """Return the configuration of what `load` would load, without its weights."""
    return _read(hub.find(folder), profile)[0]


def _read(folder: Path, profile: Profile | None) -> tuple[WanConfig, Released | None]:
    source = _released(folder)
    manifest = checkpoint.read_manifest(folder) if source is None else {}
    config = checkpoint.read_config(manifest) if source is None else source.config
    return (config if profile is None else with_profile(config, profile)), source


def _released(folder: Path) -> Released | None:
    """Return the folder as a released one, if that is what it is."""
    if (folder / checkpoint.MANIFEST).exists() or not is_released(folder):
        return None
    return open_released(folder)


def load(
    folder: Path | str = TINY,
    *,
    profile: Profile | None = None,
    experts: bool = True,
    text: bool = True,
    vae: bool = True,
    resident: bool | None = True,
    lora: Asked = None,
) -> Wan:
    """Load a model from a checkpoint folder; without one, the small model of the package.

    The folder is one that jcos or `python -m convert` wrote, or a released one as it is; or
    `org/name[@revision]` on Hugging Face, or a transformer's single file (`hub.find`).
    profile: whose numerics and schedule to follow (`variants.with_profile`); by default the
    authors'. experts, text, vae: what to load (an image encoder goes with the VAE); the rest is
    None, or no expert. On a mesh in use weights go straight to where they lie on it.
    resident: whether the weights of several experts lie on the device together, or wait in host
    memory, from where each comes for its steps; the videos are the same. None: together on a mesh
    (which can slice them), and where they take little enough of the device (`memory.ROOM`).
    lora: LoRA files to merge into the experts, as paths or `[high=|low=]FILE[:SCALE]`; the weights
    become those that `jcos convert` would have merged, up to the rounding of what is stored.
    Raises checkpoint.CheckpointError where the folder is not one, or is damaged, or a LoRA does not
    fit, MemoryError saying what would help where a device has too little memory, and as
    `hub.find`.
    """
    folder = hub.find(folder)
    config, source = _read(folder, profile)
    if source is None:
        found, tokens = checkpoint.stored(folder).keys(), folder / "tokenizer"
    else:
        found, tokens = source.leaves.keys(), source.tokenizer
    model = checkpoint.abstract_model(Wan, config)
    changes = lora_files.read(config, lora) if experts else []
    notes = [f"{a.file}: {a.note}" for _, a in changes if a.note]
    for note in [*(source.notes if source else ()), *notes]:
        warnings.warn(note, stacklevel=2)
    wanted = {"experts": experts, "text": text, "vae": vae, "vision": vae}
    for part, want in wanted.items():
        if not want or not any(name.split(".")[0] == part for name in found):
            setattr(model, part, nnx.List([]) if part == "experts" else None)
    if isinstance(model.text, UMT5):
        if tokens is not None and tokens.exists():
            model.tokenizer = Tokenizer.load(tokens)
        if not experts and not vae:  # it is to embed
            _tokenizer(model)
    where: dict[str, Sharding] = {}
    if mesh.in_use():
        where |= sharding.shardings(model, jax.sharding.get_mesh())
    if len(model.experts) > 1:
        weights = {k: a for k, a in checkpoint.leaves(model).items() if k.startswith("experts.")}
        where |= memory.waiting(weights, where, resident)
    with memory.explained(f"the weights of {config.name}", memory.LOADING):
        if source is None:
            only = [f"{part}." for part in wanted if getattr(model, part)]
            model = checkpoint.restore(folder, model, where, only)
            found = checkpoint.leaves(model)
            model = checkpoint.with_leaves(model, found | lora_files.merge(config, found, changes))
        else:
            want = checkpoint.leaves(model)
            model = checkpoint.with_leaves(model, load_released(source, want, where, changes))
    return model


def check_vae(config: WanConfig, folder: Path) -> None:
    """Raise ValueError where the model needs a VAE, or an image encoder, that its folder does not
    have, as VBVR's."""
    if not isinstance(config.codec, VaeConfig):
        return
    source = _released(folder)
    leaves = checkpoint.stored(folder) if source is None else source.leaves
    needed = {"vae": "VAE"} | ({} if config.vision is None else {"vision": "image encoder"})
    for part, name in needed.items():
        if not any(path.startswith(f"{part}.") for path in leaves):
            where = "put the release's by the weights (docs/wan.md)"
            raise ValueError(f"{folder} has no {name}{hub.remedy(folder)}; {where}")


def embedder(
    folder: Path,
    config: WanConfig,
    prompts: Sequence[str],
    cache: Path | None = None,
    profile: Profile | None = None,
) -> Callable[[str], Prompt]:
    """Return what embeds these prompts. The text encoder is loaded only where one of them is not in
    the folder `cache`, and let go again; small models, that read words, need no cache.

    Raises ValueError where one is neither in the cache nor can be read.
    """
    if not prompts:
        return {}.__getitem__
    encoder = partial(load, folder, profile=profile, experts=False, vae=False)
    if not isinstance(config.text, UMT5Config):
        return encoder().embed
    if cache is None:
        model = encoder()
        return {text: model.embed(text) for text in prompts}.__getitem__

    def loaded() -> tuple[UMT5 | None, Tokenizer | None]:
        model = encoder()
        return (model.text, _tokenizer(model)) if isinstance(model.text, UMT5) else (None, None)

    return cached(cache, prompts, config.numerics.text, config.dit.text_len, loaded)
