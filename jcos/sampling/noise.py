"""The first noise of a video: what PyTorch draws on a CPU for a seed, made without PyTorch, or what
a file holds."""

import math
import operator
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import SupportsIndex

import ml_dtypes
import numpy as np
from jaxtyping import Float, Float32, UInt32

from jcos.files import local_path
from jcos.weights.tensors import tensors_in

FLOATS = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)
SEEDS = range(-(2**63), 2**64)
"""What `torch.Generator.manual_seed` takes."""
BLOCK = 16
"""PyTorch draws normal numbers in blocks of so many, and fewer than that one by one."""


def seed_numbers(seeds: Sequence[int] | SupportsIndex) -> list[int]:
    """Return the seeds as a list; a single number is one seed. ValueError where PyTorch does not
    take it."""
    try:
        numbers = [operator.index(seeds)]  # type: ignore[arg-type]
    except TypeError:
        numbers = [operator.index(seed) for seed in seeds]  # type: ignore[union-attr]
    for seed in numbers:
        if seed not in SEEDS:
            raise ValueError(f"the seed is {seed}; PyTorch takes −2⁶³ to 2⁶⁴ − 1")
    return numbers


def seed_words(seeds: Sequence[int] | SupportsIndex) -> UInt32[np.ndarray, " K"]:
    """Return what counts of each seed: its lowest 32 bits, as in PyTorch (−1 is 2³² − 1)."""
    return np.array([seed & 0xFFFFFFFF for seed in seed_numbers(seeds)], np.uint32)


def torch_cpu_normal(seed: int, shape: tuple[int, ...]) -> Float32[np.ndarray, "..."]:
    """What `torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))` returns.

    Equal to PyTorch within the last bit or two (5e-7), which are not the same on all of its
    machines either. Only the lowest 32 bits of the seed count, as there: −1 is 2³² − 1. Noise drawn
    on a GPU is another. Raises ValueError where PyTorch does not take the seed, or a size is
    negative.
    """
    (word,) = seed_words([seed])
    if any(size < 0 for size in shape):
        raise ValueError(f"noise of shape {shape} is asked for; no size may be negative")
    twister = np.random.RandomState(word)
    count = math.prod(shape)
    values = _blocks(twister, count) if count >= BLOCK else _single(twister, count)
    return values.reshape(shape)


def wan_noise(seed: int, shape: tuple[int, int, int, int]) -> Float32[np.ndarray, "F h w C"]:
    """PyTorch's noise for a latent [F, h, w, C]: drawn as [C, F, h, w] as all reference codes do,
    then turned to channels last. ValueError as `torch_cpu_normal`.

    The paper's tools draw theirs like this. The original draws on the GPU: save its noise and read
    it with `noise_from_file`.
    """
    frames, height, width, channels = shape
    return np.moveaxis(torch_cpu_normal(seed, (channels, frames, height, width)), 0, -1)


def noise_from_file(
    path: Path | str, shape: tuple[int, int, int, int], *, channels_last: bool = False
) -> Float32[np.ndarray, "F h w C"]:
    """Noise for a latent of `shape` [F, h, w, C] from a .npy, .npz or .safetensors file.

    The file has PyTorch's layout [C, F, h, w], or [F, h, w, C] where `channels_last` says so; a
    batch axis of 1 in front is dropped. Of several arrays in it, the one named `noise` is read.
    Raises ValueError where the file is missing, of another kind or damaged, holds no such array, or
    one of another shape, of another type than floats, or with values that are not finite.
    """
    path = local_path(path)
    array = _read(path)
    if array.dtype not in FLOATS:
        raise ValueError(f"{path} holds {array.dtype} numbers; noise is floats")
    frames, height, width, channels = shape
    want = shape if channels_last else (channels, frames, height, width)
    found = array.shape[1:] if array.ndim == 5 and array.shape[0] == 1 else array.shape
    if found != want:
        layout = "[F, h, w, C]" if channels_last else "[C, F, h, w]"
        turned = found == (shape if not channels_last else (channels, frames, height, width))
        hint = f"; say channels_last={not channels_last}" if turned else ""
        raise ValueError(
            f"{path} holds noise of shape {found}; this video needs {want} ({layout}){hint}"
        )
    with np.errstate(over="ignore"):
        values = array.reshape(want).astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{path} holds numbers that are not finite; such noise makes no video")
    return values if channels_last else np.moveaxis(values, 0, -1)


def _blocks(twister: np.random.RandomState, count: int) -> Float32[np.ndarray, " N"]:
    """At least one block of 16. Where the last one is incomplete, PyTorch draws it anew so that it
    ends with the array, over what stands there already."""
    uniform = _uniform(twister, count)
    last = _uniform(twister, BLOCK if count % BLOCK else 0)
    whole = count - count % BLOCK
    values = np.empty(count, np.float32)
    values[:whole] = _box_muller(uniform[:whole])
    values[count - len(last) :] = _box_muller(last)
    return values


def _uniform(twister: np.random.RandomState, count: int) -> Float32[np.ndarray, " N"]:
    """Numbers of 24 bits in 0..1, exact in float32."""
    return (_words(twister, count) & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)


def _box_muller(uniform: Float32[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Pairs are 8 apart. The angle is rounded to float32, as PyTorch's is: without that, large
    values differ in the sixth digit."""
    u, v = np.moveaxis(uniform.reshape(-1, 2, BLOCK // 2), 1, 0)
    angle = (np.float32(2 * np.pi) * v).astype(np.float64)
    radius = np.sqrt(-2 * np.log(1 - u.astype(np.float64)))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)


def _single(twister: np.random.RandomState, count: int) -> Float32[np.ndarray, " N"]:
    """Fewer than 16: in float64, of 53 bits each, the pair side by side."""
    pairs = -(-count // 2)
    high, low = np.moveaxis(_words(twister, 4 * pairs).reshape(pairs, 2, 2), -1, 0).astype(
        np.uint64
    )
    v, u = np.moveaxis(((high << 32 | low) & (2**53 - 1)) * 2.0**-53, -1, 0)
    radius, angle = np.sqrt(-2 * np.log1p(-u)), 2 * np.pi * v
    values = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return values.reshape(-1)[:count].astype(np.float32)


def _words(twister: np.random.RandomState, count: int) -> UInt32[np.ndarray, " N"]:
    """The Mersenne twister's outputs as they come."""
    return twister.randint(0, 2**32, count, dtype=np.uint32)


def _read(path: Path) -> np.ndarray:
    """The array of a file. ValueError where there is none."""
    if path.suffix == ".safetensors":
        tensors = tensors_in(path)
        return tensors[_only(path, tensors)].read()
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(f"{path} holds no noise; files that can are .npy, .npz and .safetensors")
    arrays = _numpy(path)
    return arrays[_only(path, arrays)]


def _numpy(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file of NumPy's, one without a name as `noise`."""
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            return {"noise": found} if isinstance(found, np.ndarray) else dict(found)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; noise was to be read from it") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        raise ValueError(f"{path} is damaged, or holds something else than numbers") from None


def _only(path: Path, arrays: Mapping[str, object]) -> str:
    """The name of the one array of a file, or of the one called `noise`."""
    names = list(arrays)
    if "noise" not in names and len(names) != 1:
        raise ValueError(f"{path} holds {', '.join(names) or 'nothing'}; name the array noise")
    return "noise" if "noise" in names else names[0]
