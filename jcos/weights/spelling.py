"""How the keys of LoRA files are spelled: a prefix, the name of a module, and what the tensor is.

Modules have the names of the original or of diffusers, their parts joined by dots or underscores.
Each rule is a row of a table here.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from jcos.weights.names import DIT_OF_DIFFUSERS, Renaming, original_name

# Words that PEFT, DiffSynth, diffusers, ComfyUI, kohya, LyCORIS, OneTrainer and PyTorch put before
# a module's name, in any order and number; of two, the longer first.
_SECOND_EXPERT = ("transformer_2", "dit2")
_WORDS = (
    *_SECOND_EXPERT,
    "base_model",
    "diffusion_model",
    "dit",
    "lora",
    "lycoris",
    "model",
    "module",
    "_orig_mod",
    "pipe",
    "transformer",
    "unet",
)
_PREFIX = re.compile(rf"((?:{'|'.join(_WORDS)})[._]+)*")
_SUFFIX = re.compile(
    r"(?P<module>.+)\.(lora(_linear_layer)?[._](?P<factor>A|B|down|up)(\.([^.]+\.)?weight)?"
    r"|(?P<other>alpha|diff(_b|_m)?))"
)
_FACTORS = {"A": "A", "down": "A", "B": "B", "up": "B"}
_PLACES = {"diff_b": "bias", "diff_m": "modulation"}  # all other kinds change the weight
_EITHER: Renaming = [(pattern.replace(r"\.", "[._]"), new) for pattern, new in DIT_OF_DIFFUSERS]

# Of Wan2.1's image encoder: files for Wan2.2 made from 2.1's have them, Wan2.2 has no place.
_IMAGE_ENCODER = re.compile(
    r"(^|[._])(k_img|v_img|norm_k_img|img_emb|add_[kv]_proj|norm_added_k|image_embedder)"
)

_KINDS = {
    "a Skip-LoRA": r"skip_proj",
    "a DoRA": r"dora_scale|lora_magnitude_vector",
    "a LoHa (LyCORIS)": r"hada_(w[12](_[ab])?|t[12])",
    "a LoKr (LyCORIS)": r"lokr_(w[12](_[ab])?|t[12])",
    "a LoCon with a Tucker core (lora_mid)": r"lora_mid",
}
"""Adapters that are no product of two factors, by how their keys end."""
_ENDS = {k: re.compile(rf".*[._]({end})(\.[^.]+)?(\.weight)?") for k, end in _KINDS.items()}


class Key(NamedTuple):
    """A key of a LoRA file.

    kind: `A`, `B`, `alpha`, `diff`, `diff_b` or `diff_m`. target: the tensor that it changes, as
    `underscored`.
    """

    kind: str
    target: str


def parse(key: str) -> Key | None:
    """Return what a key says; None where it is spelled in no known way."""
    parsed = _SUFFIX.fullmatch(bare(key))
    if parsed is None:
        return None
    kind = _FACTORS.get(parsed["factor"], parsed["other"])
    original = original_name(f"{parsed['module']}.", _EITHER).removesuffix(".")
    return Key(kind, underscored(f"{original}.{_PLACES.get(kind, 'weight')}"))


def underscored(name: str) -> str:
    """Return a tensor's name as it is where dots and underscores are not told apart."""
    return name.replace(".", "_")


def is_of_second_expert(key: str) -> bool:
    """Return whether the prefix says so; a file without such prefixes is of either."""
    prefix = key.removesuffix(bare(key))
    return any(re.search(rf"(^|[._]){word}[._]", prefix) for word in _SECOND_EXPERT)


def is_of_image_encoder(key: str) -> bool:
    """Return whether Wan2.2 lacks the place because it has no image encoder."""
    return bool(_IMAGE_ENCODER.search(key))


def other_kind(keys: Iterable[str]) -> str | None:
    """Return what kind of adapter the keys are of, if it is none that can be merged."""
    lower = [key.lower() for key in keys]
    return next((kind for kind, end in _ENDS.items() if any(map(end.fullmatch, lower))), None)


def blocks(names: Iterable[str]) -> int:
    """Return how many blocks a model with such modules or tensors has at least."""
    numbers = (re.match(r"blocks[._](\d+)[._]", name) for name in names)
    return max((int(number[1]) + 1 for number in numbers if number), default=0)


def bare(key: str) -> str:
    """Return a key without its prefix."""
    return _PREFIX.sub("", key, count=1)
