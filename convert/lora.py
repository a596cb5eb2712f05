"""LoRA files merged into an expert: W' = W + scale · (B A), in float32.

The names of DiffSynth (any of its prefixes, `.default.`), diffusers and PEFT, kohya, LyCORIS,
OneTrainer and ComfyUI (`lora_down`, `lora_up`, `alpha`), lightx2v (`diff`, `diff_b`, `diff_m`) and
musubi (underscores) are read. Where a file, or the configuration in it or beside it, gives alpha,
B A is multiplied by alpha / rank; else by nothing but the scale asked for.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jcos.weights.checkpoint import CheckpointError
from jcos.weights.faults import listed, shorter
from jcos.weights.tensors import Tensor, check_finite, tensors_in

from . import peft, spelling

# The key and tensor of each kind (`A`, `B`, `alpha`, `diff`, …) that changes one tensor.
Group = dict[str, tuple[str, Tensor]]


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
    image encoder that Wan2.2 does not have. unused: keys without a place. note: where alpha is from
    if not from the keys. settings: which gave it, if any.
    """

    file: Path
    scale: float
    changes: dict[str, list[Change]]
    used: list[str]
    skipped: list[str]
    unused: list[str]
    note: str
    settings: peft.Settings | None

    @property
    def files(self) -> list[Path]:
        """Return files that the result depends on."""
        return list(dict.fromkeys([self.file, *([self.settings.source] if self.settings else [])]))

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


def open_adapter(
    file: Path,
    scale: float,
    tensors: Mapping[str, Tensor],
    *,
    expert: int = 0,
    allow_unused: bool = False,
) -> Adapter:
    """Match every key of a LoRA file with a tensor of an expert; of the large ones headers are
    read alone.

    file: or the folder of a PEFT adapter. tensors: of the expert, by the original's names. expert:
    which one to take of a file that is for both.
    Raises CheckpointError naming every key without a place (unless `allow_unused`), every shape
    that does not fit and every half of a pair at once; and for adapters of another kind.
    """
    file = peft.adapter_file(Path(file))
    keys = tensors_in(file)
    if kind := spelling.other_kind(keys):
        raise CheckpointError(f"{file} is {kind}, no product of two factors: it cannot be merged")
    second = {key for key in keys if spelling.is_of_second_expert(key)}
    if second and second == keys.keys() and expert == 0:
        raise CheckpointError(f"{file} is of the expert for low noise; give it with --lora-low")
    if second:
        keys = {key: t for key, t in keys.items() if (key in second) == (expert == 1)}
    groups, skipped, unused = _by_target(keys, tensors)
    used = sorted(keys.keys() - {*skipped, *unused})
    if not groups:
        first = shorter(min(keys, default="none"), 100)
        raise CheckpointError(f"{file} has no key that is a LoRA of this model's; one is {first}")
    settings, note = None, ""
    if any("A" in group and "alpha" not in group for group in groups.values()):
        settings = peft.settings(file, second=bool(second) and expert == 1)
        note = f"alpha is that of {settings.source}" if settings else "no alpha: taken as it is"
    changes, faults = {}, []
    for target, group in groups.items():
        try:
            changes[target] = _changes(group, tensors[target].shape, scale, settings)
        except CheckpointError:
            raise
        except (ValueError, IndexError) as error:
            faults.append(f"{target} {error}")
    if not allow_unused:
        faults += [f"{key} has no place in the model" for key in unused]
    if faults:
        start = f"{file} does not fit the model in {len(faults)} places"
        deep, deepest = spelling.blocks(tensors), spelling.blocks(map(spelling.bare, keys))
        if deepest > deep:
            start += f" (it is of a model with {deepest} blocks, this one has {deep})"
        raise CheckpointError(listed(start, faults))
    return Adapter(file, scale, changes, used, skipped, unused, note, settings)


def _by_target(
    keys: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Group], list[str], list[str]]:
    """Keys by the tensor they change and by their kind (A, B, alpha, diff, …); and the keys that
    are skipped, and those that are unused."""
    targets = {spelling.underscored(name): name for name in tensors}
    groups: dict[str, Group] = defaultdict(dict)
    skipped, unused = [], []
    for key in sorted(keys):
        parsed = spelling.parse(key)
        target = targets.get(parsed.target) if parsed else None
        if parsed and target and parsed.kind not in groups[target]:
            groups[target][parsed.kind] = (key, keys[key])
        elif spelling.is_of_image_encoder(key):
            skipped.append(key)
        else:
            unused.append(key)
    return {target: group for target, group in groups.items() if group}, skipped, unused


def _changes(
    group: Group, shape: tuple[int, ...], scale: float, settings: peft.Settings | None
) -> list[Change]:
    """What the keys of one tensor add to it; ValueError where their shapes or types do not fit."""
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
        rank = down.shape[0]
        made = (up.shape[0], math.prod(down.shape[1:]))
        if made != (shape[0], math.prod(shape[1:])) or math.prod(up.shape[1:]) != rank or not rank:
            raise ValueError(f"has shape {shape}, its factors {up.shape} and {down.shape}")
        factor = 1.0
        if "alpha" in group:
            factor = float(group["alpha"][1].read().reshape(-1)[0]) / rank
        elif settings:
            factor = settings.factor(key, rank)
        if not math.isfinite(factor):
            raise ValueError(f"has an alpha that is no number: {factor * rank}")
        changes.append(Change((up, down), scale * factor))
    return changes


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)
