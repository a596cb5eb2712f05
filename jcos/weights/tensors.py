"""Tensors in files of PyTorch's world, found by their headers and read one at a time.

Two formats: safetensors, and the zip files that `torch.save` writes (`.pth`, `.pt`, `.bin`). The
second is a pickle, which could run any code: here it may only build tensors, everything else is
refused. PyTorch is not needed for either.
"""

import collections
import json
import math
import pickle
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from jcos.files import is_lfs_pointer
from jcos.weights.checkpoint import CheckpointError
from jcos.weights.faults import shorter

Shape = tuple[int, ...]

_TYPES = {
    "F64": ("Double", np.float64),
    "F32": ("Float", np.float32),
    "F16": ("Half", np.float16),
    "BF16": ("BFloat16", ml_dtypes.bfloat16),
    "F8_E4M3": ("Float8_e4m3fn", ml_dtypes.float8_e4m3fn),
    "F8_E5M2": ("Float8_e5m2", ml_dtypes.float8_e5m2),
    "I64": ("Long", np.int64),
    "I32": ("Int", np.int32),
    "I16": ("Short", np.int16),
    "I8": ("Char", np.int8),
    "U8": ("Byte", np.uint8),
    "BOOL": ("Bool", np.bool_),
}
_SAFETENSORS = {name: np.dtype(kind) for name, (_, kind) in _TYPES.items()}
_TORCH = {f"{name}Storage": np.dtype(kind) for name, kind in _TYPES.values()}
_PIECE = 1 << 16  # values that are looked at together; they fit a core's cache
_WRAPPERS = ("model_state", "state_dict")


@dataclass(frozen=True)
class Tensor:
    """A tensor that lies in a file; `read` brings it into memory.

    offset: bytes from the start of the file. strides: in elements, as torch counts them; None where
    the values lie one behind the other.
    """

    file: Path
    shape: Shape
    dtype: np.dtype
    offset: int
    strides: Shape | None = None

    def part(self, number: int, parts: int) -> "Tensor":
        """Return one of so many equal parts along the first axis."""
        rows = self.shape[0] // parts
        strides = self.strides or tuple(
            math.prod(self.shape[i + 1 :]) for i in range(len(self.shape))
        )
        offset = self.offset + number * rows * strides[0] * self.dtype.itemsize
        return replace(self, shape=(rows, *self.shape[1:]), offset=offset)

    def read(self) -> np.ndarray:
        """Return a copy of the values. CheckpointError where the file has become shorter."""
        strides = self.strides
        flat = empty(self.shape if strides is None else (_extent(self.shape, strides),), self.dtype)
        with self.file.open("rb") as file:
            file.seek(self.offset)
            if file.readinto(flat.reshape(-1).view(np.uint8).data) != flat.nbytes:
                raise CheckpointError(f"{self.file} ends in the middle of a tensor")
        if strides is None:
            return flat
        steps = [step * self.dtype.itemsize for step in strides]
        return np.lib.stride_tricks.as_strided(flat, self.shape, steps).copy()


def check_finite(array: np.ndarray, what: str) -> None:
    """Raise CheckpointError where a value is nan or infinite. Takes little memory of its own."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE]
        # Of a bfloat16 NumPy says so three times as fast by way of float32.
        if not np.isfinite(piece.astype(np.float32) if piece.itemsize == 2 else piece).all():
            raise CheckpointError(f"{what} has values that are no numbers (nan or inf)")


def empty(shape: Shape, dtype: np.dtype) -> np.ndarray:
    """Return an empty array on a 64-byte boundary, which jax on a CPU takes without a copy."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def tensors_in(path: Path) -> dict[str, Tensor]:
    """Return every tensor of a file by its name; only the header is read.

    A `.pth` may hold its dict under `model_state` or `state_dict`. Raises CheckpointError where the
    file is missing, truncated, of another format, or holds code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    check_fetched(path)
    return _safetensors(path)[0] if path.suffix == ".safetensors" else _torch(path)


def check_fetched(path: Path) -> None:
    """Raise CheckpointError where a file is what Git LFS left in its place."""
    if path.is_file() and is_lfs_pointer(path):
        raise CheckpointError(f"{path} is a Git LFS pointer; fetch it with `git lfs pull`")


def metadata_of(path: Path) -> dict[str, str]:
    """Return the texts that a safetensors file carries beside its tensors."""
    return _safetensors(Path(path))[1]


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, "np"):  # checks sizes, shapes and offsets
            pass
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file: {error}") from None
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", {})
    found = {}
    for name, entry in header.items():
        if (kind := entry["dtype"]) not in _SAFETENSORS:
            raise CheckpointError(
                f"{path}: {shorter(name, 100)} has type {kind}; those that can be read are "
                f"{', '.join(_SAFETENSORS)}; of a quantised release take the unquantised one"
            )
        start = 8 + length + entry["data_offsets"][0]
        found[name] = Tensor(path, tuple(entry["shape"]), _SAFETENSORS[kind], start)
    return found, metadata


class _Storage(NamedTuple):
    """Where a torch storage lies in its file: bytes from the start, and how many elements."""

    dtype: np.dtype
    offset: int
    size: int


class _Unpickler(pickle.Unpickler):
    """Builds dicts of `Tensor` and nothing else: no name that the pickle asks for is imported."""

    def __init__(self, stream: Any, path: Path, archive: zipfile.ZipFile, folder: str):
        super().__init__(stream)
        self.path = path
        self.archive = archive
        self.folder = folder

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "collections", "OrderedDict":
                return collections.OrderedDict
            case "torch._utils", "_rebuild_tensor_v2":
                return self.tensor
            case "torch._utils", "_rebuild_parameter":
                return lambda tensor, *rest: tensor
            case "torch", _ if name in _TORCH:
                return _TORCH[name]
        raise CheckpointError(
            f"{self.path} is refused: besides tensors it holds code, {module}.{name}, which "
            "PyTorch would run on loading it; save its state dict alone"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, size = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"{kind} is no storage")
        entry = self.archive.getinfo(f"{self.folder}data/{key}")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size < size * dtype.itemsize:
            raise pickle.UnpicklingError(f"storage {key} is compressed or too short")
        return _Storage(dtype, _start_of(self.path, entry), size)

    def tensor(
        self, storage: _Storage, offset: int, shape: Shape, strides: Shape, *rest: Any
    ) -> Tensor:
        del rest  # gradients and hooks
        numbers = (offset, *shape, *strides)
        if min(numbers) < 0 or offset + _extent(shape, strides) > storage.size:
            raise pickle.UnpicklingError("a tensor reaches beyond its storage")
        plain = strides == tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        start = storage.offset + offset * storage.dtype.itemsize
        return Tensor(self.path, tuple(shape), storage.dtype, start, None if plain else strides)


def _torch(path: Path) -> dict[str, Tensor]:
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is no file of weights, truncated, or older than PyTorch 1.6")
    try:
        with zipfile.ZipFile(path) as archive:
            (root,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
            with archive.open(root) as stream:
                unpickler = _Unpickler(stream, path, archive, root.removesuffix("data.pkl"))
                state = unpickler.load()
    except CheckpointError:
        raise
    except (pickle.PickleError, zipfile.BadZipFile, EOFError, *_WRONG_PICKLE) as error:
        raise CheckpointError(f"{path} is damaged or no PyTorch file: {error}") from None
    for wrapper in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds no dict of tensors but a {type(state).__name__}")
    for name, value in state.items():
        if str(name).endswith(".alpha") and not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {shorter(str(name), 100)} is no tensor, but has to be")
    return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}


# What a pickle that was not written by torch.save can make the steps above stumble over.
_WRONG_PICKLE = (KeyError, ValueError, TypeError, AttributeError, IndexError)


def _start_of(path: Path, entry: zipfile.ZipInfo) -> int:
    """Return the first byte of a stored file, which stands behind a header of its own in the
    archive."""
    with path.open("rb") as file:
        file.seek(entry.header_offset + 26)
        name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return entry.header_offset + 30 + name + extra


def _extent(shape: Shape, strides: Shape) -> int:
    """Return the elements from the first to the last of a strided tensor."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
