"""Weights kept in few bits, read as the floats they stand for: float8, with and without scales, and
GGUF.

A scaled weight is value × scale, with one scale per tensor or row, as ComfyUI's `fp8_scaled` files
and compressed-tensors store it. What cannot be read so (integers, blocks, code books) is refused by
name: numbers without their scales are no weights.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jcos.weights.checkpoint import CheckpointError
from jcos.weights.faults import listed, shorter
from jcos.weights.tensors import Tensor, check_fetched

GGUF = ".gguf"
_PLAIN = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
_SCALES = ("scale_weight", "weight_scale")  # ComfyUI's first and second way, `X.weight` with them
# What belongs to the arithmetic of other codes, or to a tokenizer, and changes no weight.
_ASIDE = re.compile(r"(.*\.)?(scaled_fp8|scale_input|input_scale|comfy_quant|spiece_model)")

# By the names of what quantised files hold beside the weights, or in their place.
_KINDS = [
    (
        r".*\.(nested_)?(absmax|quant_map)|.*\.quant_state\..+|.*\.(SCB|weight_format)",
        "bitsandbytes",
    ),
    (r".*(weight|input|output)_(scale(_inv|_2)|zero_point|scalar)", "weight_scale per block"),
    (r".*\.(scale_weight|(weight|output)_scale)", "weight_scale of something that is no float8"),
]


@dataclass(frozen=True)
class Float8(Tensor):
    """A float8 tensor that is read as float32.

    kind: its type in the file. scale: one number, or one per row; None: 1.
    """

    kind: str = ""
    scale: Tensor | None = None

    @property
    def _stored(self) -> Tensor:
        return Tensor(self.file, self.shape, np.dtype(self.kind), self.offset, self.strides)

    def part(self, number: int, parts: int) -> "Float8":
        """Return one of so many equal parts along the first axis, with its rows' scales."""
        part, scale = self._stored.part(number, parts), self.scale
        if scale is not None and math.prod(scale.shape) > 1:
            scale = scale.part(number, parts)
        return replace(self, shape=part.shape, offset=part.offset, scale=scale)

    def read(self) -> np.ndarray:
        """Return value × scale, rounded once, to float32."""
        values = self._stored.read().astype(np.float32)
        if self.scale is not None:
            scale = self.scale.read().astype(np.float32)
            values *= scale.reshape(-1, *[1] * (values.ndim - 1))
        return values


@dataclass(frozen=True)
class Gguf(Tensor):
    """A quantised tensor of a GGUF file that is read as float32.

    kind: its type there, like Q4_K. stored: how many rows, and bytes of each.
    """

    kind: str = ""
    stored: tuple[int, int] = (0, 0)

    def read(self) -> np.ndarray:
        """Return the values as the package `gguf` dequantises them."""
        from gguf import GGMLQuantizationType, quants

        raw = Tensor(self.file, self.stored, np.dtype(np.uint8), self.offset).read()
        return quants.dequantize(raw, GGMLQuantizationType[self.kind]).reshape(self.shape)


def gguf_tensors(path: Path) -> dict[str, Tensor]:
    """Return every tensor of a GGUF file by its name; only the header is read.

    Raises CheckpointError where the package `gguf` or the file is missing, or the file is damaged
    or has a type that the package cannot dequantise.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    check_fetched(path)
    try:
        import gguf
    except ImportError:
        raise CheckpointError(
            f"{path} is a GGUF file, which takes the package gguf: pip install 'jcos[gguf]'"
        ) from None
    try:
        reader = gguf.GGUFReader(path)
    except Exception as error:  # noqa: BLE001 (whatever its parser stumbles over)
        raise CheckpointError(f"{path} is truncated or no GGUF file: {error}") from None
    if reader.byte_order == "S":
        raise CheckpointError(f"{path} has its bytes in the other order (big-endian): convert it")
    found: dict[str, Tensor] = {}
    for tensor in reader.tensors:
        kind, float32 = tensor.tensor_type.name, np.dtype(np.float32)
        shape = tuple(int(size) for size in reversed(tensor.shape))
        # ComfyUI's converter folds tensors whose rows do not divide into blocks.
        if field := reader.get_field(f"comfy.gguf.orig_shape.{tensor.name}"):
            shape = tuple(int(field.parts[i][0]) for i in field.data)
        if kind in _PLAIN:
            found[tensor.name] = Tensor(path, shape, np.dtype(_PLAIN[kind]), tensor.data_offset)
        elif tensor.tensor_type in gguf.quants._type_traits:
            row = int(tensor.data.shape[-1])
            stored = int(tensor.n_bytes) // row, row
            found[tensor.name] = Gguf(path, shape, float32, tensor.data_offset, None, kind, stored)
        else:
            raise CheckpointError(f"{path}: {shorter(tensor.name, 100)} has type {kind}, no float")
    return found


def floats(
    tensors: Mapping[str, Tensor], about: Mapping[str, Any], place: object
) -> tuple[dict[str, Tensor], str]:
    """Return the weights of a part as tensors that are read as floats, and a note that says what
    they lost, empty where that is nothing.

    about: the folder's `config.json`. place: what messages call the file or folder.
    Raises CheckpointError with the name of a quantisation that is not read.
    """
    if kind := _other_kind(tensors, about):
        raise CheckpointError(
            f"{place} is quantised ({kind}), which jcos does not read; take the unquantised "
            "release, float8 or GGUF"
        )
    scales = {n.rpartition(".")[0] + ".weight": n for n in tensors if n.endswith(_SCALES)}
    kept = {n: t for n, t in tensors.items() if not (_ASIDE.fullmatch(n) or n.endswith(_SCALES))}
    narrow = [name for name, tensor in kept.items() if tensor.dtype.name in _FLOAT8]
    faults = [f"{n} is float8 without a scale" for n in narrow if scales and n not in scales]
    for name in narrow:
        scale = tensors.get(scales.get(name, ""))
        if scale is not None and math.prod(scale.shape) not in (1, kept[name].shape[0]):
            faults.append(f"{name} has shape {kept[name].shape}, its scales {scale.shape}")
        t, dtype = kept[name], np.dtype(np.float32)
        kept[name] = Float8(t.file, t.shape, dtype, t.offset, t.strides, t.dtype.name, scale)
    if faults:
        raise CheckpointError(listed(f"{place} has weights that cannot be read", faults))
    return kept, _note(kept, place)


def _other_kind(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str | None:
    """Return the name of how the weights are quantised, if that is not read."""
    for name, tensor in tensors.items():
        if name.endswith(".comfy_quant") and (kind := _comfy(tensor)) not in _FLOAT8:
            return f"ComfyUI's {shorter(kind, 40)}"
    for pattern, kind in _KINDS:
        for name in tensors:
            if re.fullmatch(pattern, name):
                weight = tensors.get(name.rpartition(".")[0] + ".weight")
                narrow = weight is not None and weight.dtype.name in _FLOAT8
                if not (narrow and name.endswith(_SCALES)):
                    return kind
    if config := about.get("quantization_config"):
        method = config.get("quant_method") if isinstance(config, dict) else None
        return shorter(str(method or "as its config.json says"), 60)
    whole = [n for n, t in tensors.items() if t.dtype.kind in "iub" and not _ASIDE.fullmatch(n)]
    if whole:
        return f"{len(whole)} tensors of integers without scales, such as {shorter(whole[0], 100)}"
    return None


def _comfy(tensor: Tensor) -> str:
    """Return the format that ComfyUI notes beside a weight, as JSON in bytes."""
    try:
        return str(json.loads(tensor.read().tobytes())["format"])
    except (ValueError, KeyError, TypeError):
        return "quantisation of an unknown format"


def _note(tensors: Mapping[str, Tensor], place: object) -> str:
    bare = [t.kind for t in tensors.values() if isinstance(t, Float8) and t.scale is None]
    if not bare:
        return ""
    about = ml_dtypes.finfo(bare[0])
    return (
        f"{place} holds rounded weights: {len(bare)} of {len(tensors)} tensors are {bare[0]} "
        f"without scales, up to {float(about.eps) / 2:.1%} off, and below "
        f"{float(about.smallest_subnormal) / 2:.1g} they are 0"
    )
