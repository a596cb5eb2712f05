"""The first noise of a video: PyTorch's for a seed on a CPU, made without PyTorch, or a file's."""

import math
import operator
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array, Float, Float32, UInt32

from jcos.config import WanConfig
from jcos.files import local_path
from jcos.weights.tensors import tensors_in

FLOATS = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)
SEEDS = range(-(2**63), 2**64)
"""The range of `torch.Generator.manual_seed`."""
BLOCK = 16
"""PyTorch draws so many normal numbers at a time."""
Seeds = Sequence[int] | SupportsIndex | Sequence[Sequence[int]]
"""One seed for each run, or a row of them for each world."""
Noise = Float[Array | np.ndarray, "K F h w C"] | str | None
"""The first noise of each seed, or its generator (`first_noise`)."""


def first_noise(
    config: WanConfig,
    seeds: Sequence[int],
    shape: tuple[int, int, int, int],
    noise: Noise = None,
) -> Float[Array, "K F h w C"] | None:
    """Return the first noise of these seeds; None: the program draws it from their keys.

    shape: of a latent, [F, h, w, C]. noise: an array, returned in float32, or its generator, by
    default `config.noise`: "torch" as in all reference codes for Wan (`wan_noise`), or "jax"
    inside the program. Raises ValueError where it is none that fits, or PyTorch takes no such seed.
    """
    drawn = config.noise if noise is None else noise
    if not isinstance(drawn, str):
        first = jnp.asarray(drawn, jnp.float32)
        if first.shape != (len(seeds), *shape):
            needs = f"{len(seeds)} seed(s) of this video need {(len(seeds), *shape)}"
            raise ValueError(f"noise has shape {first.shape}; {needs}")
        return first
    if drawn not in ("torch", "jax"):
        raise ValueError(f"noise is {drawn!r}; it is torch, jax or an array [K, F, h, w, C]")
    if drawn == "jax":
        return None
    return jnp.asarray(np.stack([wan_noise(seed, shape) for seed in seeds]))


def seed_numbers(seeds: Sequence[int] | SupportsIndex) -> list[int]:
    """Return the seeds, or the single one, as a list; ValueError for none, or for one that PyTorch
    refuses."""
    try:
        numbers = [operator.index(seeds)]  # type: ignore[arg-type]
    except TypeError:
        numbers = [operator.index(seed) for seed in seeds]  # type: ignore[union-attr]
    if not numbers:
        raise ValueError("there are no seeds; give at least one")
    for seed in numbers:
        if seed not in SEEDS:
            raise ValueError(f"the seed is {seed}; PyTorch takes −2⁶³ to 2⁶⁴ − 1")
    return numbers


def distinct_seeds(seeds: Sequence[int] | SupportsIndex) -> list[int]:
    """Return `seed_numbers`; ValueError also where one is given twice, whose runs are the same."""
    numbers = seed_numbers(seeds)
    if twice := {seed for seed in numbers if numbers.count(seed) > 1}:
        raise ValueError(f"the seed {min(twice)} is given twice; its runs would be the same")
    return numbers


def seed_rows(seeds: Seeds) -> list[list[int]]:
    """Return the seeds of each world, or those of all as a single row."""
    single = isinstance(seeds, SupportsIndex) and not getattr(seeds, "ndim", 0)
    if not single and any(np.ndim(seed) for seed in seeds):  # type: ignore[union-attr]
        return [seed_numbers(row) for row in seeds]  # type: ignore[arg-type,union-attr]
    return [seed_numbers(seeds)]  # type: ignore[arg-type]


def positions(which: Any) -> np.ndarray:
    """Return positions on the seed axis as whole numbers; ValueError for a mask or fractions."""
    chosen = np.asarray(which)
    if chosen.ndim == 0 or (chosen.size and chosen.dtype.kind not in "iu"):
        raise ValueError(f"runs {which} were chosen; give their positions, as np.flatnonzero(mask)")
    return chosen.astype(int)


def seed_words(seeds: Sequence[int] | SupportsIndex) -> UInt32[np.ndarray, " K"]:
    """Return the lowest 32 bits of each seed, as PyTorch does (−1 is 2³² − 1)."""
    return np.array([seed & 0xFFFFFFFF for seed in seed_numbers(seeds)], np.uint32)


def torch_cpu_normal(seed: int, shape: tuple[int, ...]) -> Float32[np.ndarray, "..."]:
    """Return `torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))` of at least
    16 numbers.

    Equal within the last bit or two (5e-7), which differ between PyTorch's machines too. A GPU
    draws other noise. Raises ValueError where PyTorch does not take the seed.
    """
    (word,) = seed_words([seed])
    twister, count = np.random.RandomState(word), math.prod(shape)
    uniform = _uniform(twister, count)
    # An incomplete last block is drawn anew, ends with the array and overwrites what is before it.
    last = _uniform(twister, BLOCK if count % BLOCK else 0)
    whole = count - count % BLOCK
    values = np.empty(count, np.float32)
    values[:whole] = _box_muller(uniform[:whole])
    values[count - len(last) :] = _box_muller(last)
    return values.reshape(shape)


def wan_noise(seed: int, shape: tuple[int, int, int, int]) -> Float32[np.ndarray, "F h w C"]:
    """Return PyTorch's noise for a latent [F, h, w, C], drawn as [C, F, h, w] by the paper's tools
    too. The original draws on the GPU: save that, and read it with `noise_from_file`."""
    frames, height, width, channels = shape
    return np.moveaxis(torch_cpu_normal(seed, (channels, frames, height, width)), 0, -1)


def noise_from_file(
    path: Path | str, shape: tuple[int, int, int, int]
) -> Float32[np.ndarray, "F h w C"]:
    """Read noise for a latent of `shape` [F, h, w, C] from a .npy, .npz or .safetensors file.

    The file has PyTorch's layout [C, F, h, w]; a leading batch axis of 1 is dropped. Of several
    arrays, the one named `noise` is read. Raises ValueError where the file is missing, damaged or
    of another kind, or has no array of finite floats of this shape.
    """
    path = local_path(path)
    array = _read(path)
    if array.dtype not in FLOATS:
        raise ValueError(f"{path} holds {array.dtype} numbers; noise is floats")
    frames, height, width, channels = shape
    want = (channels, frames, height, width)
    size = array.shape[1:] if array.ndim == 5 and array.shape[0] == 1 else array.shape
    if size != want:
        raise ValueError(
            f"{path} holds noise of shape {size}; this video needs {want} ([C, F, h, w])"
        )
    with np.errstate(over="ignore"):
        values = array.reshape(want).astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{path} holds numbers that are not finite; such noise makes no video")
    return np.moveaxis(values, 0, -1)


def _uniform(twister: np.random.RandomState, count: int) -> Float32[np.ndarray, " N"]:
    """Draw numbers of 24 bits in 0..1, exact in float32."""
    words = twister.randint(0, 2**32, count, dtype=np.uint32)  # the twister's own outputs
    return (words & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)


def _box_muller(uniform: Float32[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Transform pairs that are 8 apart. The angle is rounded to float32, as PyTorch's is: else
    large values differ in the sixth digit."""
    u, v = np.moveaxis(uniform.reshape(-1, 2, BLOCK // 2), 1, 0)
    angle = (np.float32(2 * np.pi) * v).astype(np.float64)
    radius = np.sqrt(-2 * np.log(1 - u.astype(np.float64)))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)


def _read(path: Path) -> np.ndarray:
    """Return the only array of a file, or `noise` of several; ValueError where there is none."""
    arrays = tensors_in(path) if path.suffix == ".safetensors" else _numpy(path)
    if "noise" not in arrays and len(arrays) != 1:
        raise ValueError(f"{path} holds {', '.join(arrays) or 'nothing'}; name the array noise")
    array = arrays["noise"] if "noise" in arrays else next(iter(arrays.values()))
    return array if isinstance(array, np.ndarray) else array.read()


def _numpy(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file of NumPy's by name, a single one as `noise`."""
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(f"noise is torch, jax or a file .npy, .npz or .safetensors, not {path}")
    try:
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            return {"noise": arrays} if isinstance(arrays, np.ndarray) else dict(arrays)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; noise was to be read from it") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        raise ValueError(f"{path} is damaged, or holds something else than numbers") from None
