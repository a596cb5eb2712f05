"""LoRA files merged into an expert: W' = W + scale · (B A), in float32.

The names of DiffSynth (any of its prefixes, `.default.`), diffusers and PEFT, kohya and ComfyUI
(`lora_down`, `lora_up`, `alpha`), lightx2v (`diff`, `diff_b`, `diff_m`) and musubi (underscores)
are read. Where a file gives alpha, B A is multiplied by alpha / rank; else by nothing but the scale
asked for.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jcos.weights.checkpoint import CheckpointError
from jcos.weights.names import DIT_OF_DIFFUSERS, original_name
from jcos.weights.tensors import Tensor, metadata_of, tensors_in

_PREFIX = re.compile(
    r"^((base_model\.model|module|pipe|dit|model|diffusion_model|transformer(_2)?)\.|lora_unet_)+"
)
_KEY = re.compile(
    r"(?P<module>.+)\.(lora_(?P<factor>A|B|down|up)(\.([^.]+\.)?weight)?|(?P<other>alpha|diff(_b|_m)?))"
)
# Of Wan2.1's image encoder: files for Wan2.2 made from 2.1's have them, Wan2.2 has no place.
_IMAGE_ENCODER = re.compile(
    r"(^|[._])(k_img|v_img|norm_k_img|img_emb|add_[kv]_proj|image_embedder)"
)
_FACTORS = {"A": "A", "down": "A", "B": "B", "up": "B"}
_PLACES = {"diff_b": "bias", "diff_m": "modulation"}  # all other kinds change the weight
_OTHER_KINDS = {
    "skip_proj": "a Skip-LoRA, which chains the ranks of its layers and is no change of weights",
    "dora_scale": "a DoRA, which changes the norms of the weights too",
    "lora_magnitude_vector": "a DoRA, which changes the norms of the weights too",
}


@dataclass(frozen=True)
class Product:
    """B A, [out, r] times [r, in], and what multiplies it."""

    down: Tensor
    up: Tensor
    scale: float

    def __call__(self, shape: tuple[int, ...]) -> np.ndarray:
        down, up = (a.read().astype(np.float32, copy=False) for a in (self.down, self.up))
        product = up.reshape(len(up), -1) @ down.reshape(len(down), -1)
        return np.float32(self.scale) * product.reshape(shape)


@dataclass(frozen=True)
class Difference:
    """A tensor that is added as it is."""

    tensor: Tensor
    scale: float

    def __call__(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.float32(self.scale) * self.tensor.read().astype(np.float32).reshape(shape)


@dataclass(frozen=True)
class Adapter:
    """A LoRA file matched with an expert.

    changes: by the original's tensor names. used: the keys they come from. skipped: keys of an
    image encoder that Wan2.2 does not have. unused: keys without a place.
    """

    file: Path
    scale: float
    changes: dict[str, list[Product | Difference]]
    used: list[str]
    skipped: list[str]
    unused: list[str]

    def merged(self, name: str, weight: np.ndarray) -> np.ndarray:
        """The tensor `name` with what the file adds to it; float32 if that is anything."""
        for change in self.changes.get(name, ()):
            weight = weight.astype(np.float32, copy=False) + change(weight.shape)
        return weight


def open_adapter(
    file: Path,
    scale: float,
    tensors: Mapping[str, Tensor],
    *,
    expert: int = 0,
    allow_unused: bool = False,
) -> Adapter:
    """Matches every key of a LoRA file with a tensor of an expert; of the large ones headers are
    read alone.

    tensors: of the expert, by the original's names. expert: which one to take of a file of
    diffusers' that is for both.
    Raises CheckpointError naming every key without a place (unless `allow_unused`), every shape
    that does not fit and every half of a pair at once; and for adapters of another kind.
    """
    file = Path(file)
    keys = tensors_in(file)
    for mark, kind in _OTHER_KINDS.items():
        if any(mark in key for key in keys):
            raise CheckpointError(f"{file} is {kind}; it cannot be merged")
    if any(key.startswith("transformer_2.") for key in keys):
        keys = {k: t for k, t in keys.items() if k.startswith("transformer_2.") == (expert == 1)}
    groups, skipped, unused = _by_target(keys, tensors)
    used = sorted(keys.keys() - {*skipped, *unused})
    if not groups:
        raise CheckpointError(f"{file} has no key that is a LoRA of this model's")
    changes, faults = {}, []
    alpha = _peft_alpha(file)
    for target, group in groups.items():
        try:
            changes[target] = _changes(group, tensors[target].shape, scale, alpha)
        except (ValueError, IndexError) as error:
            faults.append(f"{target} {error}")
    if not allow_unused:
        faults += [f"{key} has no place in the model" for key in unused]
    if faults:
        raise CheckpointError(
            f"{file} does not fit the model in {len(faults)} places: " + "; ".join(faults)
        )
    return Adapter(file, scale, changes, used, skipped, unused)


def _by_target(
    keys: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, dict[str, Tensor]], list[str], list[str]]:
    """Keys by the tensor they change and by their kind (A, B, alpha, diff, …); and the keys that
    are skipped, and those that are unused."""
    modules = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]
    with_underscores = {module.replace(".", "_"): module for module in modules}
    groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
    skipped, unused = [], []
    for key, tensor in sorted(keys.items()):
        parsed = _KEY.fullmatch(_PREFIX.sub("", key, count=1))
        module, kind, target = "", "", ""
        if parsed:
            module = original_name(parsed["module"] + ".", DIT_OF_DIFFUSERS).removesuffix(".")
            module = with_underscores.get(module, module)
            kind = _FACTORS.get(parsed["factor"], parsed["other"])
            target = f"{module}.{_PLACES.get(kind, 'weight')}"
        if target in tensors and kind not in groups[target]:
            groups[target][kind] = tensor
        elif _IMAGE_ENCODER.search(key):
            skipped.append(key)
        else:
            unused.append(key)
    return {target: group for target, group in groups.items() if group}, skipped, unused


def _changes(
    group: Mapping[str, Tensor], shape: tuple[int, ...], scale: float, alpha: float | None
) -> list[Product | Difference]:
    """What the keys of one tensor add to it; ValueError where their shapes do not."""
    changes: list[Product | Difference] = []
    for kind, tensor in group.items():
        if kind.startswith("diff"):
            if math.prod(tensor.shape) != math.prod(shape):
                raise ValueError(f"has shape {shape}, its {kind} {tensor.shape}")
            changes.append(Difference(tensor, scale))
    if group.keys() & {"A", "B", "alpha"}:
        if not {"A", "B"} <= group.keys():
            raise ValueError(f"has of a pair only {' and '.join(sorted(group))}")
        down, up = group["A"], group["B"]
        rank = down.shape[0]
        made = (up.shape[0], math.prod(down.shape[1:]))
        if made != (shape[0], math.prod(shape[1:])) or math.prod(up.shape[1:]) != rank:
            raise ValueError(f"has shape {shape}, its factors {up.shape} and {down.shape}")
        if "alpha" in group:
            alpha = float(group["alpha"].read().reshape(-1)[0])
        changes.append(Product(down, up, scale * (1.0 if alpha is None else alpha / rank)))
    return changes


def _peft_alpha(file: Path) -> float | None:
    """`lora_alpha`, where diffusers wrote it into the file or PEFT beside it."""
    about: dict[str, Any] = {}
    beside = file.with_name("adapter_config.json")
    if file.suffix == ".safetensors":
        about = json.loads(metadata_of(file).get("lora_adapter_metadata", "{}"))
        about = {name.removeprefix("transformer."): value for name, value in about.items()}
    if not about and file.stem == "adapter_model" and beside.is_file():
        about = json.loads(beside.read_text(encoding="utf-8"))
    if about.get("alpha_pattern") or about.get("use_rslora"):
        raise CheckpointError(
            f"{file} has an alpha_pattern or use_rslora in its PEFT configuration, which are not "
            "supported; merge it with PEFT"
        )
    return about.get("lora_alpha")
