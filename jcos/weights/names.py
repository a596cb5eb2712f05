"""Tensor names of the released checkpoints, as tables from regular expressions to paths in a jcos
model.

Every tensor must match exactly one row and every leaf of the model must be filled; all faults are
reported at once. Tensors of numbered blocks are stacked on a leading axis, as the scanned blocks
are.
"""

import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from typing import NamedTuple, TypeVar

import numpy as np

from jcos.weights.checkpoint import CheckpointError
from jcos.weights.faults import listed, shorter
from jcos.weights.tensors import empty

T = TypeVar("T")
WORKERS = min(4, os.cpu_count() or 1)
"""Tensors that are read and turned at the same time."""
_BLOCK = 256


def _kernel(a: np.ndarray) -> np.ndarray:
    """Return a torch Linear's [out, in] or a patch embedding's [out, in, t, h, w] as [in, out]."""
    return a.reshape(a.shape[0], -1).T


def _filter(a: np.ndarray) -> np.ndarray:
    """Return a torch convolution's [out, in, ...] as [..., in, out]."""
    return np.moveaxis(a, (0, 1), (-1, -2))


Change = Callable[[np.ndarray], np.ndarray]
Row = tuple[str, str, Change]


def _both(pattern: str, path: str, kernel: Change = _kernel) -> list[Row]:
    return [
        (pattern + r"\.weight", path + ".kernel", kernel),
        (pattern + r"\.bias", path + ".bias", np.asarray),
    ]


# Names of the original repository, "blocks.<i>." without its number.
DIT: list[Row] = [
    *_both(r"(patch_embedding|head\.head|blocks\.(?:self|cross)_attn\.[qkvo])", r"\1"),
    *_both(r"(text_embedding|time_embedding|blocks\.ffn)\.([02])", r"\1.layers_\2"),
    *_both(r"time_projection\.1", "time_projection"),
    (r"((?:head|blocks)\.modulation)", r"\1", itemgetter(0)),
    (r"(blocks\.(?:norm3|(?:self|cross)_attn\.norm_[qk]))\.weight", r"\1.scale", np.asarray),
    (r"(blocks\.norm3\.bias)", r"\1", np.asarray),
    # Wan2.1's image-to-video model
    *_both(r"(blocks\.cross_attn\.[kv]_img)", r"\1"),
    (r"(blocks\.cross_attn\.norm_k_img)\.weight", r"\1.scale", np.asarray),
    *_both(r"img_emb\.proj\.([13])", r"img_emb.proj_\1"),
    (r"img_emb\.proj\.([04])\.weight", r"img_emb.proj_\1.scale", np.asarray),
    (r"img_emb\.proj\.([04])\.bias", r"img_emb.proj_\1.bias", np.asarray),
]

# Of the vision tower of Wan2.1's CLIP, whose name in the release is `transformer` for `blocks`, and
# whose q, k and v are one tensor (`released.py`).
VISION: list[Row] = [
    (r"patch_embedding\.weight", "patch_embedding", _kernel),
    (r"((?:cls|pos)_embedding)", r"\1", lambda a: a.reshape(-1, a.shape[-1])),
    *_both(r"(blocks\.attn\.(?:[qkv]|proj))", r"\1"),
    *_both(r"(blocks\.mlp)\.([02])", r"\1.layers_\2"),
    (r"(pre_norm|blocks\.norm[12])\.weight", r"\1.scale", np.asarray),
    (r"((?:pre_norm|blocks\.norm[12])\.bias)", r"\1", np.asarray),
]

# Of the released text encoder.
UMT5: list[Row] = [
    (r"(token_embedding)\.weight", r"\1", np.asarray),
    (r"(norm|blocks\.norm[12])\.weight", r"\1.scale", np.asarray),
    (r"(blocks\.pos_embedding)\.embedding\.weight", r"\1", np.asarray),
    (r"(blocks\.(?:attn\.[qkvo]|ffn\.fc[12]))\.weight", r"\1.kernel", _kernel),
    (r"blocks\.ffn\.gate\.0\.weight", "blocks.ffn.gate.kernel", _kernel),
]

# Of both released VAEs: 2.1 numbers the layers of a half, 2.2 its stages and the layers of each.
VAE: list[Row] = [
    *_both(r"(.+\.(?:shortcut|to_qkv|proj)|conv1|conv2)", r"\1"),
    *_both(r"((?:en|de)coder\.conv1|.+\.time_conv)", r"\1", _filter),
    *_both(r"(.+)\.residual\.2", r"\1.conv1", _filter),
    *_both(r"(.+)\.residual\.6", r"\1.conv2", _filter),
    *_both(r"(.+)\.resample\.1", r"\1.conv", _filter),
    *_both(r"(.+\.head)\.2", r"\1.conv", _filter),
    (r"(.+)\.residual\.0\.gamma", r"\1.norm1.gamma", np.ravel),
    (r"(.+)\.residual\.3\.gamma", r"\1.norm2.gamma", np.ravel),
    (r"(.+\.head)\.0\.gamma", r"\1.norm.gamma", np.ravel),
    (r"(.+\.norm)\.gamma", r"\1.gamma", np.ravel),
]


class Leaf(NamedTuple):
    """What a leaf of a model is made of: the name and change of its tensor, or of one per layer."""

    sources: tuple[tuple[str, Change], ...]
    stacked: bool
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def of(self, part: str) -> "Leaf":
        """Return the same, of tensors that have the part's name before their own."""
        return self._replace(sources=tuple((f"{part}.{name}", c) for name, c in self.sources))

    def build(self, read: Callable[[str], np.ndarray], dtype: np.dtype) -> np.ndarray:
        """Return the leaf in one type, from tensors of which `WORKERS` are in memory at a time."""
        whole = empty(self.shape, dtype)
        layers = whole if self.stacked else whole[None]

        def fill(i: int) -> None:
            name, change = self.sources[i]
            # The type first: that is twice as fast as turning and casting at once.
            _copy(layers[i], change(read(name).astype(dtype, copy=False)))

        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(fill, range(len(self.sources))))
        return whole


def _copy(target: np.ndarray, values: np.ndarray) -> None:
    """Copy values of the same type; where rows become columns, in blocks that fit a core's cache,
    which is about three times as fast."""
    if values.ndim != 2 or values.flags.c_contiguous or min(values.shape) <= _BLOCK:
        target[...] = values
        return
    bits = np.dtype(f"u{values.dtype.itemsize}")
    target, values = target.view(bits), values.view(bits)
    for row in range(0, values.shape[0], _BLOCK):
        for column in range(0, values.shape[1], _BLOCK):
            block = slice(row, row + _BLOCK), slice(column, column + _BLOCK)
            target[block] = values[block]


def place(
    shapes: Mapping[str, tuple[int, ...]], table: Sequence[Row]
) -> tuple[dict[str, Leaf], list[str]]:
    """Return which tensors make which leaf, by names and shapes alone; and a phrase for each tensor
    without exactly one row, and for every gap in the layers."""
    found: dict[str, dict[int, tuple[str, Change, tuple[int, ...]]]] = defaultdict(dict)
    faults = []
    for name, shape in shapes.items():
        layer = re.match(r"blocks\.(\d+)\.", name)
        bare = f"blocks.{name[layer.end() :]}" if layer else name
        matches = [
            (m.expand(path), change)
            for pattern, path, change in table
            if (m := re.fullmatch(pattern, bare))
        ]
        if len(matches) != 1:
            faults.append(f"{name} matches {len(matches)} rows")
            continue
        path, change = matches[0]
        number = int(layer[1]) if layer else -1
        if number in found[path]:
            faults.append(f"{name} is a second tensor for {path}")
        try:
            changed = change(np.broadcast_to(np.int8(0), shape)).shape
        except (ValueError, IndexError):
            faults.append(f"{name} has shape {shape}, which no such tensor has")
            continue
        found[path][number] = (name, change, changed)
    leaves = {}
    for path, layers in found.items():
        if not layers:
            continue
        if sorted(layers) not in ([-1], list(range(len(layers)))):
            faults.append(f"{path} has layers {sorted(layers)}, not 0 to {len(layers) - 1}")
        shape, *others = dict.fromkeys(shape for *_, shape in layers.values())
        if others:
            faults.append(f"{path} has layers of different shapes {sorted([shape, *others])}")
        sources = tuple(layers[i][:2] for i in sorted(layers))
        stacked = -1 not in layers
        leaves[path] = Leaf(sources, stacked, (len(layers), *shape) if stacked else shape)
    return leaves, sorted(faults)


# ---- names of diffusers and transformers, turned into those of the original

Renaming = list[tuple[str, str]]

_LINEARS = ((1, 0), (2, 2))  # diffusers counts linears, the original all layers of a Sequential
DIT_OF_DIFFUSERS: Renaming = [
    *[
        (rf"^condition_embedder\.(text|time)_embedder\.linear_{i}\.", rf"\1_embedding.{j}.")
        for i, j in _LINEARS
    ],
    (r"^condition_embedder\.time_proj\.", "time_projection.1."),
    *[
        (rf"^condition_embedder\.image_embedder\.{name}\.", f"img_emb.proj.{i}.")
        for i, name in ((0, "norm1"), (1, r"ff\.net\.0\.proj"), (3, r"ff\.net\.2"), (4, "norm2"))
    ],
    (r"\.add_(k|v)_proj\.", r".\1_img."),
    (r"\.norm_added_k\.", ".norm_k_img."),
    (r"^scale_shift_table$", "head.modulation"),
    (r"\.scale_shift_table$", ".modulation"),
    (r"^proj_out\.", "head.head."),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"_attn\.to_(q|k|v)\.", r"_attn.\1."),
    (r"_attn\.to_out\.0\.", "_attn.o."),
    (r"\.norm2\.", ".norm3."),
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
]

_RESIDUAL = {"norm1": "0", "conv1": "2", "norm2": "3", "conv2": "6"}
_VAE_OF_DIFFUSERS: Renaming = [
    *[(rf"(_block.*)\.{name}\.", rf"\1.residual.{i}.") for name, i in _RESIDUAL.items()],
    (r"\.conv_shortcut\.", ".shortcut."),
    (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.mid_block\.resnets\.1\.", ".middle.2."),
    (r"\.conv_in\.", ".conv1."),
    (r"\.norm_out\.", ".head.0."),
    (r"\.conv_out\.", ".head.2."),
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
]
VAE_2_1_OF_DIFFUSERS: Renaming = [
    *_VAE_OF_DIFFUSERS,
    (r"\.down_blocks\.", ".downsamples."),
    *[
        (rf"\.up_blocks\.{g}\.{part}\.", f".upsamples.{4 * g + i}.")
        for g in range(4)
        for i, part in enumerate([r"resnets\.0", r"resnets\.1", r"resnets\.2", r"upsamplers\.0"])
    ],
]
VAE_2_2_OF_DIFFUSERS: Renaming = [
    *_VAE_OF_DIFFUSERS,
    (r"\.(up|down)_blocks\.(\d)\.resnets\.", r".\1samples.\2.\1samples."),
    (r"\.down_blocks\.(\d)\.downsampler\.", r".downsamples.\1.downsamples.2."),
    (r"\.up_blocks\.(\d)\.upsampler\.", r".upsamples.\1.upsamples.3."),
]

UMT5_OF_TRANSFORMERS: Renaming = [
    (r"^(shared|encoder\.embed_tokens)\.", "token_embedding."),
    (r"^encoder\.final_layer_norm\.", "norm."),
    (r"^encoder\.block\.(\d+)\.layer\.", r"blocks.\1."),
    (r"\.0\.layer_norm\.", ".norm1."),
    (r"\.1\.layer_norm\.", ".norm2."),
    (r"\.0\.SelfAttention\.relative_attention_bias\.", ".pos_embedding.embedding."),
    (r"\.0\.SelfAttention\.", ".attn."),
    (r"\.1\.DenseReluDense\.wi_0\.", ".ffn.gate.0."),
    (r"\.1\.DenseReluDense\.wi_1\.", ".ffn.fc1."),
    (r"\.1\.DenseReluDense\.wo\.", ".ffn.fc2."),
]

VISION_OF_RELEASES: Renaming = [
    (r"^(visual|vision_model)\.", ""),
    (r"^(transformer|encoder\.layers)\.", "blocks."),
    (r"^embeddings\.class_embedding$", "cls_embedding"),
    (r"^embeddings\.position_embedding\.weight$", "pos_embedding"),
    (r"^embeddings\.patch_embedding\.", "patch_embedding."),
    (r"^pre_layrnorm\.", "pre_norm."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    *[(rf"\.mlp\.fc{i}\.", f".mlp.{j}.") for i, j in _LINEARS],
]
"""Of the original and of transformers."""


# A tensor that each part has once, in either layout: what stands before its name is a prefix.
ANCHORS = {
    "experts": r"patch_embedding\.weight",
    "vae": r"encoder\.conv(1|_in)\.weight",
    "text": r"(token_embedding|shared|encoder\.embed_tokens)\.weight",
    "vision": r"(visual|vision_model\.embeddings|(?<!vision_model\.)embeddings)"
    r"\.patch_embedding\.weight",
}


def without_prefix(tensors: Mapping[str, T], anchor: str, place: object) -> dict[str, T]:
    """Return tensors without a prefix that is common to all, such as `model.diffusion_model.`.

    Raises CheckpointError where a tensor has the prefix (by its name's end, `anchor`) and others
    have not; place: what it calls the file or folder.
    """
    anchored = [m for name in tensors if (m := re.fullmatch(rf"(.*\.)?({anchor})", name))]
    prefix = min((m[1] or "" for m in anchored), key=len, default="")
    if strangers := sorted(name for name in tensors if not name.startswith(prefix)):
        start = f"{place} has {len(strangers)} tensors beside those under {shorter(prefix, 60)}"
        raise CheckpointError(listed(start, strangers))
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def original_name(name: str, renaming: Renaming) -> str:
    """Return a tensor's name in the original code; those that are the original's stay."""
    for pattern, new in renaming:
        name = re.sub(pattern, new, name)
    return name
