"""Released checkpoints as they are published: which model a folder holds, and where each of its
leaves lies.

Opening a folder (`layouts`) reads headers only; `load_released` and the converter read the
tensors, one at a time.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from jcos.config import DiTConfig, StoredType, UMT5Config, VaeConfig, VisionConfig, WanConfig
from jcos.files import local_path
from jcos.model.dit import DiT
from jcos.model.text import UMT5 as TextEncoder
from jcos.model.vae import Vae
from jcos.model.vision import VisionTower
from jcos.variants import VARIANTS, vae_2_1, vae_2_2, with_profile
from jcos.weights import hub
from jcos.weights.checkpoint import CheckpointError, abstract_model, leaves, misfits
from jcos.weights.faults import listed
from jcos.weights.layouts import Layout, Tensors, open_weights, read_json, recognise
from jcos.weights.lora import Adapter
from jcos.weights.names import (
    ANCHORS,
    DIT,
    DIT_OF_DIFFUSERS,
    UMT5,
    UMT5_OF_TRANSFORMERS,
    VAE,
    VAE_2_1_OF_DIFFUSERS,
    VAE_2_2_OF_DIFFUSERS,
    VISION,
    VISION_OF_RELEASES,
    Leaf,
    Row,
    original_name,
    place,
    without_prefix,
)
from jcos.weights.quantised import floats


@dataclass(frozen=True)
class Released:
    """A folder that was opened. Paths and names begin with the part they are of: `experts.0`,
    `experts.1`, `vae`, `text` or `vision`.

    config: of the whole model, VAE and encoders included even where the folder has none.
    leaves: of the model, by path, as far as the folder has them. tensors: that they are made of, by
        the part and the name in the original code. tokenizer: its folder, if there is one. notes:
        what weights lost that are kept in few bits, and what was assumed.
    """

    folder: Path
    config: WanConfig
    leaves: dict[str, Leaf]
    tensors: Tensors
    tokenizer: Path | None
    notes: list[str]

    @property
    def parts(self) -> list[str]:
        """Return the parts that the folder has."""
        return list(dict.fromkeys(map(part_of, self.leaves)))

    def files(self) -> list[Path]:
        """Return every file that holds tensors."""
        return sorted({tensor.file for tensor in self.tensors.values()})

    def merged(self, adapters: Sequence[tuple[str, Adapter]], name: str) -> np.ndarray:
        """Return a tensor with what LoRA files, given with the part of each, add to it."""
        array = self.tensors[name].read()
        for part, adapter in adapters:
            if part_of(name) == part:
                array = adapter.merged(name.removeprefix(f"{part}."), array)
        return array

    def stored_type(self, path: str, dtype: StoredType) -> np.dtype:
        """Return the type that a leaf is kept in.

        bfloat16: linear layers of the transformers and the whole text encoder, which the original
        casts to bfloat16 anyway; norms, modulation, time embedding and head, which it computes in
        float32, stay float32, and so does the VAE. So this changes no result of the official
        numerics. float32: everything but a text encoder that is published in bfloat16.
        """
        part = part_of(path)
        if dtype == "float32":
            source = self.tensors[self.leaves[path].sources[0][0]]
            return source.dtype if part == "text" else np.dtype(np.float32)
        model = _shapes(part, with_profile(self.config, "official"))
        narrow = part == "text" or model[path.removeprefix(f"{part}.")].dtype == ml_dtypes.bfloat16
        return np.dtype(ml_dtypes.bfloat16 if narrow else np.float32)


def open_released(folder: Path) -> Released:
    """Recognise a folder and check that its tensors make the model whole, without reading them.

    Raises CheckpointError: missing and truncated files all at once, then names and shapes that do
    not fit all at once, or why the folder holds no model of this family.
    """
    folder = local_path(folder)
    layout = recognise(folder)
    faults: list[str] = []
    opened = {part: open_weights(place, faults) for part, place in layout.places.items()}
    configs = {
        part: read_json(place / "config.json", faults if _is_dit(part) else [])
        for part, place in layout.places.items()
        if place.is_dir()
    }
    notes = []
    for part, found in opened.items():
        opened[part], note = floats(found, configs.get(part, {}), layout.places[part])
        notes += [note] if note else []
    _complain(folder, faults)
    tensors = {part: _renamed(part, t, layout.places[part]) for part, t in opened.items()}
    try:
        for part in filter(_is_dit, tensors):
            configs.setdefault(part, _sizes(tensors[part]))
        config = _config(configs, layout, tensors)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{folder} cannot be read: {reason}") from None
    if config.vision is None:  # an encoder that this model does not read
        tensors.pop("vision", None)
    placed = {part: _fit(part, found, config, faults) for part, found in tensors.items()}
    _complain(folder, faults)
    return Released(
        folder,
        config,
        {f"{p}.{path}": leaf.of(p) for p, found in placed.items() for path, leaf in found.items()},
        {f"{p}.{name}": tensor for p, found in tensors.items() for name, tensor in found.items()},
        layout.tokenizer if layout.tokenizer.is_dir() else None,
        notes,
    )


def load_released(
    source: Released,
    want: Mapping[str, Any],
    shardings: Mapping[str, jax.sharding.Sharding] | None = None,
    adapters: Sequence[tuple[str, Adapter]] = (),
) -> dict[str, jax.Array]:
    """Return leaves by path, read one after the other and put on the devices at once.

    want: what to load, with the types to load it in (`checkpoint.leaves` of an abstract model).
    shardings: by path; the first device for those that are not named. adapters: LoRA files to
    merge, with the part that each changes.
    """
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    found = {}
    for path, leaf in want.items():
        array = source.leaves[path].build(partial(source.merged, adapters), leaf.dtype)
        found[path] = jax.device_put(array, (shardings or {}).get(path, first))
    return found


def part_of(path: str) -> str:
    """Return the part of a tensor: `experts.0.blocks.…` belongs to `experts.0`, `vae.…` to
    `vae`."""
    first, number, *_ = path.split(".")
    return f"{first}.{number}" if first == "experts" else first


def _complain(folder: Path, faults: list[str]) -> None:
    if faults:
        raise CheckpointError(listed(f"{folder} cannot be read{hub.remedy(folder)}", faults))


# ---- which model it is

_TYPES = ("t2v", "i2v", "ti2v")
_COMMON = {"ffn_dim": "ffn_dim", "layers": "num_layers", "freq_dim": "freq_dim", "eps": "eps"}
_SIZES = _COMMON | {
    "dim": "dim",
    "heads": "num_heads",
    "in_channels": "in_dim",
    "out_channels": "out_dim",
    "text_len": "text_len",
}
_SIZES_OF_DIFFUSERS = _COMMON | {
    "head_dim": "attention_head_dim",
    "heads": "num_attention_heads",
    "in_channels": "in_channels",
    "out_channels": "out_channels",
}


def _is_dit(part: str) -> bool:
    return part.startswith("experts.")


def _renamed(part: str, tensors: Tensors, place: Path) -> Tensors:
    """Rename by the names of the original code, whatever the layout."""
    tensors = without_prefix(tensors, ANCHORS[part.split(".")[0]], place)
    renaming = UMT5_OF_TRANSFORMERS
    if part == "vision":
        return _vision(tensors)
    if _is_dit(part):
        renaming = DIT_OF_DIFFUSERS
    elif part == "vae":
        first = tensors.get("encoder.conv_in.weight")
        patched = first is not None and first.shape[1:2] == (12,)
        renaming = VAE_2_2_OF_DIFFUSERS if patched else VAE_2_1_OF_DIFFUSERS
    return {original_name(name, renaming): tensor for name, tensor in tensors.items()}


def _vision(tensors: Tensors) -> Tensors:
    """Return the tensors that are read of a CLIP: no text half, not the last block and what follows
    it; q, k and v each by itself."""
    known = r"(pre_norm|blocks\.\d+)\..+|(cls|pos)_embedding|patch_embedding\.weight"
    named = {original_name(n, VISION_OF_RELEASES): (n, t) for n, t in tensors.items()}
    named = {n: t for n, (was, t) in named.items() if not was.startswith("textual.")}
    last = max((int(m[1]) for n in named if (m := re.match(r"blocks\.(\d+)\.", n))), default=0)
    found: Tensors = {}
    for name, tensor in named.items():
        if not re.fullmatch(known, name) or name.startswith(f"blocks.{last}."):
            continue
        if ".to_qkv." in name:
            each = ((name.replace("to_qkv", q), tensor.part(i, 3)) for i, q in enumerate("qkv"))
            found |= dict(each)
        else:
            found[name] = tensor
    return found


def _config(
    configs: Mapping[str, dict[str, Any]],
    layout: Layout,
    tensors: Mapping[str, Tensors],
) -> WanConfig:
    """Return the whole model: defaults of the release it is, sizes from its files."""
    dits = [_dit_config(c, tensors[part]) for part, c in configs.items() if _is_dit(part)]
    if dits[0] != dits[-1]:
        one, other = (dataclasses.asdict(dit).items() for dit in (dits[0], dits[-1]))
        raise ValueError(f"its experts differ: {dict(one - other)} and {dict(other - one)}")
    config = _variant(dits[0], len(dits))
    codec = vae_2_2() if dits[0].out_channels == 48 else vae_2_1()
    text = UMT5Config(dim=dits[0].text_dim)
    if "vae" in tensors:
        codec = _vae_config(tensors["vae"], configs.get("vae", {}))
    if "text" in tensors:
        text = _text_config(tensors["text"])
    if codec.channels != dits[0].out_channels or text.dim != dits[0].text_dim:
        raise ValueError(
            f"its parts do not belong together: the transformer makes {dits[0].out_channels} "
            f"channels from texts of width {dits[0].text_dim}, the VAE has {codec.channels}, the "
            f"text encoder {text.dim}"
        )
    boundary = config.boundary and (layout.about.get("boundary_ratio") or config.boundary)
    vision = None
    if dits[0].image_dim is not None:
        vision = VisionConfig(dim=dits[0].image_dim)
        if "vision" in tensors:
            vision = _vision_config(tensors["vision"], configs.get("vision", {}))
    parts: dict[str, Any] = {"dit": dits[0], "codec": codec, "text": text, "vision": vision}
    return dataclasses.replace(config, boundary=boundary, **parts)


def _sizes(tensors: Tensors) -> dict[str, Any]:
    """Return what `config.json` would say of a transformer in a single file, which has none: heads
    of 128, texts of 512 tokens and an epsilon of 1e-6 are the family's, everything else is a
    shape."""
    dim, channels, *patch = tensors["patch_embedding.weight"].shape
    layers = [int(m[1]) for name in tensors if (m := re.match(r"blocks\.(\d+)\.", name))]
    return {
        "dim": dim,
        "num_heads": dim // 128,
        "in_dim": channels,
        "out_dim": tensors["head.head.weight"].shape[0] // (patch[0] * patch[1] * patch[2]),
        "ffn_dim": tensors["blocks.0.ffn.0.weight"].shape[0],
        "num_layers": max(layers, default=-1) + 1,
        "freq_dim": tensors["time_embedding.0.weight"].shape[1],
        "text_len": 512,
        "eps": 1e-6,
        "patch_size": patch,
    }


def _dit_config(config: Mapping[str, Any], tensors: Tensors) -> DiTConfig:
    kind = config.get("model_type", "t2v")
    cls = config.get("_class_name", "WanModel")
    if kind not in _TYPES or cls not in ("WanModel", "WanTransformer3DModel"):
        raise ValueError(f"it is a {cls} of type {kind}; models of type {', '.join(_TYPES)} can be")
    image = tensors.get("img_emb.proj.0.weight")
    names = _SIZES if cls == "WanModel" else _SIZES_OF_DIFFUSERS
    sizes: dict[str, Any] = {ours: config[theirs] for ours, theirs in names.items()}
    if "head_dim" in sizes:
        sizes["dim"] = sizes.pop("head_dim") * sizes["heads"]
    text_dim = tensors["text_embedding.0.weight"].shape[1]
    sizes["image_dim"] = None if image is None else image.shape[0]
    return DiTConfig(**sizes, text_dim=text_dim, patch=tuple(config.get("patch_size", (1, 2, 2))))


def _variant(dit: DiTConfig, experts: int) -> WanConfig:
    match experts, dit.in_channels, dit.out_channels:
        case 2, 36, 16:
            name = "wan2.2-i2v-a14b"
        case 2, 16, 16:
            name = "wan2.2-t2v-a14b"
        case 1, 36, 16 if dit.image_dim is not None:
            name = "wan2.1-i2v-14b"
        case 1, 48, 48:
            name = "wan2.2-ti2v-5b"
        case 1, 16, 16:
            name = "wan2.1-t2v-14b" if dit.dim >= 5120 else "wan2.1-t2v-1.3b"
        case _:
            raise ValueError(
                f"{experts} expert(s) with {dit.in_channels} channels in and {dit.out_channels} "
                "out are no known release; of a model with two experts give the folder of both"
            )
    return VARIANTS[name]()


def _vae_config(tensors: Tensors, about: Mapping[str, Any]) -> VaeConfig:
    """Return the sizes. about: `config.json` of diffusers, whose statistics of the latents are
    taken."""
    width, channels = tensors["encoder.conv1.weight"].shape[:2]
    base = vae_2_2() if channels == 12 else vae_2_1()
    return dataclasses.replace(
        base,
        encoder_dim=width,
        decoder_dim=tensors["decoder.head.0.gamma"].shape[0],
        mean=tuple(about.get("latents_mean", base.mean)),
        std=tuple(about.get("latents_std", base.std)),
    )


def _vision_config(tensors: Tensors, about: Mapping[str, Any]) -> VisionConfig:
    """Return the sizes. about: `config.json` of transformers; the original's has 16 heads."""
    dim, _, patch, _ = tensors["patch_embedding.weight"].shape
    return VisionConfig(
        dim=dim,
        ffn_dim=tensors["blocks.0.mlp.0.weight"].shape[0],
        heads=about.get("num_attention_heads", VisionConfig.heads),
        layers=sum(bool(re.fullmatch(r"blocks\.\d+\.norm1\.weight", name)) for name in tensors),
        size=patch * math.isqrt(tensors["pos_embedding"].shape[-2] - 1),
        patch=patch,
        eps=about.get("layer_norm_eps", VisionConfig.eps),
    )


def _text_config(tensors: Tensors) -> UMT5Config:
    vocabulary, dim = tensors["token_embedding.weight"].shape
    buckets, heads = tensors["blocks.0.pos_embedding.embedding.weight"].shape
    return UMT5Config(
        vocabulary=vocabulary,
        dim=dim,
        heads=heads,
        head_dim=tensors["blocks.0.attn.q.weight"].shape[0] // heads,
        ffn_dim=tensors["blocks.0.ffn.fc1.weight"].shape[0],
        layers=sum(bool(re.fullmatch(r"blocks\.\d+\.norm1\.weight", name)) for name in tensors),
        buckets=buckets,
    )


def _fit(part: str, tensors: Tensors, config: WanConfig, faults: list[str]) -> dict[str, Leaf]:
    """Return the leaves that the tensors make, compared with those of the model."""
    table: list[Row] = {"vae": VAE, "text": UMT5, "vision": VISION}.get(part, DIT)
    placed, wrong = place({name: t.shape for name, t in tensors.items()}, table)
    faults += [f"{part}.{fault}" for fault in [*wrong, *misfits(_shapes(part, config), placed)]]
    return placed


@cache
def _shapes(part: str, config: WanConfig) -> dict[str, Any]:
    """Return the leaves of an abstract part of the model."""
    if part == "vae" and isinstance(config.codec, VaeConfig):
        return leaves(abstract_model(Vae, config.codec))
    if part == "text" and isinstance(config.text, UMT5Config):
        return leaves(abstract_model(TextEncoder, config.text))
    if part == "vision" and config.vision is not None:
        return leaves(abstract_model(VisionTower, config.vision))
    return leaves(abstract_model(DiT, config.dit, numerics=config.numerics))
