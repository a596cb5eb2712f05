"""LoRA files merged into an expert: W' = W + scale · (B A), in float32.

The names of DiffSynth (any of its prefixes, `.default.`), diffusers and PEFT, kohya, LyCORIS,
OneTrainer and ComfyUI (`lora_down`, `lora_up`, `alpha`), lightx2v (`diff`, `diff_b`, `diff_m`) and
musubi (underscores) are read. Where a file, or the configuration in it or beside it, gives alpha,
B A is multiplied by alpha / rank; else by nothing but the scale asked for.
"""

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from jcos.config import WanConfig
from jcos.devices import memory
from jcos.model.dit import DiT
from jcos.weights import peft, spelling
from jcos.weights.checkpoint import CheckpointError, abstract_model
from jcos.weights.checkpoint import leaves as leaves_of
from jcos.weights.faults import listed, shorter
from jcos.weights.loras import Asked, parse_all
from jcos.weights.names import DIT, Leaf, place
from jcos.weights.tensors import Tensor, check_finite, tensors_in

Group = dict[str, tuple[str, Tensor]]
"""The key and tensor of what changes one tensor, by kind: `A`, `B`, `alpha`, `diff`, …"""


@dataclass(frozen=True)
class Change:
    """What is added to a tensor, times `scale`: B A, [out, r] times [r, in], or a tensor as it is.

    tensors: B and A, or the one.
    """

    tensors: tuple[Tensor, ...]
    scale: float

    def __call__(self, shape: tuple[int, ...]) -> np.ndarray:
        total, *down = (a.read().astype(np.float32, copy=False) for a in self.tensors)
        for a in down:
            total = total.reshape(len(total), -1) @ a.reshape(len(a), -1)
        return np.float32(self.scale) * total.reshape(shape)


@dataclass(frozen=True)
class Adapter:
    """A LoRA file matched with an expert.

    changes: by the original's tensor names. used: the keys they come from. skipped: keys of an
    image encoder that the model does not have. unused: keys without a place. note: where alpha is
    from if not from the keys. files: that the result depends on.
    """

    file: Path
    scale: float
    changes: dict[str, list[Change]]
    used: list[str]
    skipped: list[str]
    unused: list[str]
    note: str
    files: list[Path]

    def merged(self, name: str, weight: np.ndarray) -> np.ndarray:
        """Return the tensor `name` with what the file adds to it; float32 if that is anything."""
        for change in self.changes.get(name, ()):
            weight = weight.astype(np.float32, copy=False) + change(weight.shape)
        return weight

    def check_finite(self) -> None:
        """Read all that is used once. CheckpointError names the first tensor with a nan or inf."""
        for name, changes in self.changes.items():
            for tensor in (t for change in changes for t in change.tensors):
                check_finite(tensor.read(), f"the LoRA of {name} in {tensor.file}")


def identity(adapters: Sequence[tuple[Any, Adapter]]) -> list[list[Any]] | None:
    """Return what manifests say of merged LoRAs: expert, scale, and hashes of their files."""

    def digest(file: Path) -> str:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()

    return [[expert, a.scale, *map(digest, a.files)] for expert, a in adapters] or None


def open_adapter(
    file: Path,
    scale: float,
    tensors: Mapping[str, tuple[int, ...]],
    *,
    expert: int = 0,
    allow_unused: bool = False,
) -> Adapter:
    """Match every key of a LoRA file with a tensor of an expert; of the large ones headers are
    read alone.

    file: or the folder of a PEFT adapter. tensors: shapes of the expert's, by the original's names.
    expert: which one to take of a file that is for both.
    Raises CheckpointError naming every key without a place (unless `allow_unused`), every shape
    that does not fit and every half of a pair at once; and for adapters of another kind.
    """
    file = peft.adapter_file(Path(file))
    keys = tensors_in(file)
    if kind := spelling.other_kind(keys):
        raise CheckpointError(f"{file} is {kind}, no product of two factors: it cannot be merged")
    first = shorter(min(keys, default="none"), 100)
    second = {key for key in keys if spelling.is_of_second_expert(key)}
    if second:
        keys = {key: t for key, t in keys.items() if (key in second) == (expert == 1)}
    groups, skipped, unused = _by_target(keys, tensors)
    used = sorted(keys.keys() - {*skipped, *unused})
    if not groups:
        raise CheckpointError(f"{file} has no key that is a LoRA of this model's; one is {first}")
    settings, note = None, ""
    if any("A" in group and "alpha" not in group for group in groups.values()):
        settings = peft.settings(file, second=bool(second) and expert == 1)
        note = f"alpha is that of {settings.source}" if settings else "no alpha: taken as it is"
    changes, faults = {}, []
    for target, group in groups.items():
        try:
            changes[target] = _changes(group, tensors[target], scale, settings)
        except ValueError as error:
            faults.append(f"{target} {error}")
    if not allow_unused:
        faults += [f"{key} has no place in the model" for key in unused]
    if faults:
        start = f"{file} does not fit the model in {len(faults)} places"
        deep, deepest = spelling.blocks(tensors), spelling.blocks(map(spelling.bare, keys))
        if deepest > deep:
            start += f" (it is of a model with {deepest} blocks, this one has {deep})"
        raise CheckpointError(listed(start, faults))
    files = [file] if settings is None or settings.source == file else [file, settings.source]
    return Adapter(file, scale, changes, used, skipped, unused, note, files)


def _by_target(
    keys: Mapping[str, Tensor], tensors: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Group], list[str], list[str]]:
    """Return keys by the tensor they change and by their kind (A, B, alpha, diff, …); and the keys
    that are skipped, and those that are unused."""
    targets = {spelling.underscored(name): name for name in tensors}
    groups: dict[str, Group] = defaultdict(dict)
    skipped, unused = [], []
    reads_pictures = any("k_img" in name for name in tensors)
    for key in sorted(keys):
        parsed = spelling.parse(key)
        target = targets.get(parsed.target) if parsed else None
        if parsed and target and parsed.kind not in groups[target]:
            groups[target][parsed.kind] = (key, keys[key])
        elif spelling.is_of_image_encoder(key) and not reads_pictures:
            skipped.append(key)
        else:
            unused.append(key)
    return {target: group for target, group in groups.items() if group}, skipped, unused


def _changes(
    group: Group, shape: tuple[int, ...], scale: float, settings: peft.Settings | None
) -> list[Change]:
    """Return what the keys of one tensor add to it; ValueError where their shapes or types do not
    fit."""
    changes: list[Change] = []
    for kind, (_, tensor) in group.items():
        if kind != "alpha" and tensor.dtype.kind in "iub":
            raise ValueError(f"has integers as its {kind}")
        if tensor.dtype.itemsize == 1 and tensor.dtype.kind not in "iub":
            raise ValueError(f"has {tensor.dtype} as its {kind}: take the LoRA in bfloat16")
        if kind.startswith("diff"):
            if _without_ones(tensor.shape) != _without_ones(shape):
                raise ValueError(f"has shape {shape}, its {kind} {tensor.shape}")
            changes.append(Change((tensor,), scale))
    if group.keys() & {"A", "B", "alpha"}:
        if not {"A", "B"} <= group.keys():
            raise ValueError(f"has of a pair only {' and '.join(sorted(group))}")
        (key, down), (_, up) = group["A"], group["B"]
        rank = down.shape[0] if down.shape else 0
        made = (*up.shape[:1], math.prod(down.shape[1:]))
        if made != (shape[0], math.prod(shape[1:])) or math.prod(up.shape[1:]) != rank or not rank:
            raise ValueError(f"has shape {shape}, its factors {up.shape} and {down.shape}")
        factor = 1.0
        if "alpha" in group:
            alpha = group["alpha"][1].read()
            if alpha.size != 1:
                raise ValueError(f"has an alpha of shape {alpha.shape}, which is one number")
            factor = float(alpha.item()) / rank
        elif settings:
            factor = settings.factor(key, rank)
        if not math.isfinite(factor):
            raise ValueError(f"has an alpha that is no number: {factor * rank}")
        changes.append(Change((up, down), scale * factor))
    return changes


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


# ---- of a model


def read(
    config: WanConfig, asked: Asked, *, allow_unused: bool = False
) -> list[tuple[str, Adapter]]:
    """Return LoRA files matched with a model, each with the expert (`experts.0`) that it changes.

    A file that is for no expert by name is for the only one, or for those that its keys name.
    Raises CheckpointError or ValueError where a file does not fit, or holds a nan, and where it is
    not known what a file is for.
    """
    found, loras, count = [], parse_all(asked), config.experts
    shapes = _shapes(config) if loras else {}
    for lora in loras:
        numbers: Sequence[int] = [lora.expert or 0]
        if lora.expert is None and count > 1:
            keys = tensors_in(peft.adapter_file(lora.file))
            second = [spelling.is_of_second_expert(key) for key in keys]
            numbers = range(2) if any(second) and not all(second) else [1] * all(second)
        if not numbers or (lora.expert is not None and count == 1):
            raise CheckpointError(
                f"the model has {count} expert(s); of two say which one {lora.file} is for "
                "(high=FILE, low=FILE), of one do not"
            )
        for i in numbers:
            options = {"expert": i, "allow_unused": allow_unused}
            adapter = open_adapter(lora.file, lora.scale, shapes, **options)
            adapter.check_finite()
            found.append((f"experts.{i}", adapter))
    return found


def original_shapes(
    leaves: Mapping[str, Any], patch: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the original's tensors that a transformer is made of: `names.DIT`
    inverted.

    leaves: anything with a shape, by path. patch: the transformer's.
    """
    found = {}
    for path, leaf in leaves.items():
        name, shape = path, tuple(leaf.shape)
        for pattern, new in _INVERSE:
            name = re.sub(pattern, new, name)
        layers = range(shape[0]) if path.startswith("blocks.") else [None]
        shape = shape[1:] if path.startswith("blocks.") else shape
        if path == "patch_embedding.kernel":
            shape = (shape[1], shape[0] // math.prod(patch), *patch)
        elif path.endswith(".kernel"):
            shape = shape[::-1]
        elif path.endswith(".modulation"):
            shape = (1, *shape)
        for i in layers:
            found[name if i is None else name.replace("blocks.", f"blocks.{i}.", 1)] = shape
    return found


_INVERSE = [
    (r"\.(kernel|scale)$", ".weight"),
    (r"\.layers_(\d)\.", r".\1."),
    (r"\.proj_(\d)\.", r".proj.\1."),
    (r"^time_projection\.", "time_projection.1."),
]


def _shapes(config: WanConfig) -> dict[str, tuple[int, ...]]:
    dit = abstract_model(DiT, config.dit, numerics=config.numerics)
    return original_shapes(leaves_of(dit), config.dit.patch)


def merge(
    config: WanConfig, leaves: Mapping[str, jax.Array], changes: Sequence[tuple[str, Adapter]]
) -> dict[str, jax.Array]:
    """Return those leaves of a model that LoRA files (`read`) change: W + Δ in float32, rounded to
    the leaf's type. The arrays they were are deleted. Each process changes the slices it has."""
    merged, shapes = {}, _shapes(config)
    placed = place(shapes, DIT)[0] if changes else {}
    for part in dict(changes):
        adapters = [adapter for name, adapter in changes if name == part]
        added = {name: [c for a in adapters for c in a.changes.get(name, ())] for name in shapes}
        for path, leaf in placed.items():
            if any(added[name] for name, _ in leaf.sources):
                path = f"{part}.{path}"
                merged[path] = _added(leaves[path], leaf, shapes, added)
    return merged


def _added(
    array: jax.Array,
    leaf: Leaf,
    shapes: Mapping[str, tuple[int, ...]],
    changes: Mapping[str, Sequence[Change]],
) -> jax.Array:
    """Return the array with what is added to its layers, one after the other, beside a copy of it;
    of weights that wait in host memory on the device, and then back."""
    before, array = array, memory.on_device(array)
    # As integers: XLA's CPU compiler sets a layer of bfloat16 by converting all of them.
    bits = array.view(f"uint{8 * array.dtype.itemsize}")
    before.delete()
    array.delete()
    for i, (name, change) in enumerate(leaf.sources):
        if changes[name]:
            more = change(np.sum([c(shapes[name]) for c in changes[name]], 0))
            bits = _plus(bits, i if leaf.stacked else (), more, array.dtype, array.sharding)
    return jax.device_put(bits.view(array.dtype), before.sharding)


@partial(jax.jit, static_argnames=("dtype", "where"), donate_argnames="bits")
def _plus(bits: jax.Array, index: Any, more: jax.Array, dtype: Any, where: Sharding) -> jax.Array:
    layer = (bits[index].view(dtype).astype(jnp.float32) + more).astype(dtype)
    bits = bits.at[index].set(layer.view(bits.dtype))
    return jax.lax.with_sharding_constraint(bits, where)
