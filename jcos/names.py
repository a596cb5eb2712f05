"""Tensor names of the released checkpoints, as tables from regular expressions to paths in a jcos
model.

Every tensor must match exactly one row and every leaf of the model must be filled; all faults are
reported at once. Tensors of numbered blocks are stacked on a leading axis, as the scanned blocks
are.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import numpy as np

from jcos.checkpoint import CheckpointError, with_leaves

M = TypeVar("M")


def _as_is(a: np.ndarray) -> np.ndarray:
    return a


def _kernel(a: np.ndarray) -> np.ndarray:
    """A torch Linear's [out, in] or a patch embedding's [out, in, t, h, w] as [in, out]."""
    return a.reshape(a.shape[0], -1).T


def _drop_batch(a: np.ndarray) -> np.ndarray:
    return a[0]


Row = tuple[str, str, Callable[[np.ndarray], np.ndarray]]


def _both(pattern: str, path: str) -> list[Row]:
    return [
        (pattern + r"\.weight", path + ".kernel", _kernel),
        (pattern + r"\.bias", path + ".bias", _as_is),
    ]


# Names of the original repository; "blocks.<i>." becomes the stacked axis.
DIT: list[Row] = [
    *_both(r"patch_embedding", "patch_embedding"),
    *_both(r"(text_embedding|time_embedding)\.(0|2)", r"\1.layers_\2"),
    *_both(r"time_projection\.1", "time_projection"),
    *_both(r"head\.head", "head.head"),
    (r"head\.modulation", "head.modulation", _drop_batch),
    (r"blocks\.\d+\.modulation", "blocks.modulation", _drop_batch),
    *_both(r"blocks\.\d+\.(self_attn|cross_attn)\.(q|k|v|o)", r"blocks.\1.\2"),
    (
        r"blocks\.\d+\.(self_attn|cross_attn)\.(norm_q|norm_k)\.weight",
        r"blocks.\1.\2.scale",
        _as_is,
    ),
    (r"blocks\.\d+\.norm3\.weight", "blocks.norm3.scale", _as_is),
    (r"blocks\.\d+\.norm3\.bias", "blocks.norm3.bias", _as_is),
    *_both(r"blocks\.\d+\.ffn\.(0|2)", r"blocks.ffn.layers_\1"),
]


def translate(tensors: Mapping[str, np.ndarray], table: Iterable[Row]) -> dict[str, np.ndarray]:
    """Tensors by jcos path, layers stacked. Raises CheckpointError naming every tensor without
    exactly one row."""
    found: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
    faults = []
    rows = [(re.compile(pattern), path, change) for pattern, path, change in table]
    for name, tensor in tensors.items():
        matches = [
            (m.expand(path), change) for regex, path, change in rows if (m := regex.fullmatch(name))
        ]
        if len(matches) != 1:
            faults.append(f"{name} matches {len(matches)} rows")
            continue
        path, change = matches[0]
        layer = re.match(r"blocks\.(\d+)\.", name)
        number = int(layer[1]) if layer else -1
        if number in found[path]:
            faults.append(f"{name} is a second tensor for {path}")
        found[path][number] = change(tensor)
    for path, layers in found.items():
        if sorted(layers) not in ([-1], list(range(len(layers)))):
            faults.append(f"{path} has layers {sorted(layers)}, not 0 to {len(layers) - 1}")
        if len(shapes := {a.shape for a in layers.values()}) > 1:
            faults.append(f"{path} has layers of different shapes {sorted(shapes)}")
    if faults:
        raise CheckpointError(
            f"{len(faults)} tensors cannot be placed: " + "; ".join(sorted(faults))
        )
    return {
        path: layers[-1] if -1 in layers else np.stack([layers[i] for i in sorted(layers)])
        for path, layers in found.items()
    }


def fill(model: M, tensors: Mapping[str, np.ndarray], table: Iterable[Row]) -> M:
    """`model` (real or abstract) with the weights of `tensors`."""
    return with_leaves(model, translate(tensors, table))
