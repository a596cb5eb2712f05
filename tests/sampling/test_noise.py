"""PyTorch's noise without PyTorch, and noise from files."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jcos.sampling.noise import noise_from_file, torch_cpu_normal

SHAPE = (3, 4, 5, 2)
"""Of a latent [F, h, w, C]."""
TORCH = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
"""Noise for it as [C, F, h, w]."""
LAST = np.moveaxis(TORCH, 0, -1)


def cases(arrays: dict[str, np.ndarray]):
    """(seed, shape, what torch drew, of which every so manieth is kept)."""
    for key, want in arrays.items():
        seed, shape, *every = key.removeprefix("s").replace("_every", "").split("_")
        yield int(seed), tuple(map(int, shape.split("x"))), want, int(*every or [1])


@pytest.mark.parametrize("name", ["noise/torch_cpu_randn", "noise/torch_cpu_randn_more"])
def test_the_noise_is_torchs(golden, name):
    """Among them: lengths that 16 does not divide, negative and large seeds, and a latent of
    480 × 832 pixels and 81 frames."""
    for seed, shape, want, every in cases(golden(name)):
        if np.prod(shape) < 16:  # no latent is so small
            continue
        found = torch_cpu_normal(seed, shape)
        assert found.shape == shape
        assert found.dtype == np.float32
        kept = found.reshape(-1)[::every].reshape(want.shape)
        assert np.abs(kept - want).max() <= 5e-7


def test_only_32_bits_of_a_seed_count():
    noise = torch_cpu_normal(7, (20,))
    np.testing.assert_array_equal(torch_cpu_normal(7 + 2**32, (20,)), noise)
    np.testing.assert_array_equal(torch_cpu_normal(7 - 2**32, (20,)), noise)
    assert not np.array_equal(torch_cpu_normal(8, (20,)), noise)


def written(path, array: np.ndarray, **more: np.ndarray):
    arrays: dict[str, Any] = {"latents": np.ascontiguousarray(array), **more}
    match path.suffix:
        case ".npy":
            np.save(path, array)
        case ".npz":
            np.savez(path, **arrays)
        case ".safetensors":
            safetensors.numpy.save_file(arrays, path)
    return path


FILES = pytest.mark.parametrize("file", ["noise.npy", "noise.npz", "noise.safetensors"])


@FILES
def test_noise_comes_from_a_file(tmp_path, file):
    """As float32, with or without a batch axis of one."""
    path = tmp_path / file
    for given in (written(path, TORCH), str(path)):
        np.testing.assert_array_equal(noise_from_file(given, SHAPE), LAST)
    np.testing.assert_array_equal(noise_from_file(written(path, TORCH[None]), SHAPE), LAST)
    kinds = [np.float64, np.float16] + [ml_dtypes.bfloat16] * (path.suffix == ".safetensors")
    for kind in kinds:
        found = noise_from_file(written(path, TORCH.astype(kind)), SHAPE)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, LAST.astype(kind).astype(np.float32))


@pytest.mark.parametrize("file", ["noise.npz", "noise.safetensors"])
def test_of_several_arrays_the_one_called_noise_is_read(tmp_path, file):
    path = written(tmp_path / file, TORCH * 2, noise=TORCH)
    np.testing.assert_array_equal(noise_from_file(path, SHAPE), LAST)
    path = written(tmp_path / file, TORCH * 2, other=TORCH)
    with pytest.raises(ValueError, match=r"holds latents, other; name the array noise"):
        noise_from_file(path, SHAPE)


@FILES
def test_missing_and_damaged_files_are_named(tmp_path, file):
    path = tmp_path / file
    with pytest.raises(ValueError, match=rf"{file} is missing"):
        noise_from_file(path, SHAPE)
    whole = written(path, TORCH).read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{file} (is damaged|is truncated)"):
            noise_from_file(path, SHAPE)


BROKEN = np.where(np.arange(TORCH.size).reshape(TORCH.shape) == 0, np.float32(np.nan), TORCH)


@pytest.mark.parametrize(
    ("file", "array", "says"),
    [
        (".npy", TORCH[:, :2], r"\(2, 2, 4, 5\); .* needs \(2, 3, 4, 5\) \(\[C, F, h, w\]\)$"),
        (".npz", np.stack([TORCH, TORCH]), r"holds noise of shape \(2, 2, 3, 4, 5\)"),
        (".safetensors", LAST, r"needs .* \(\[C, F, h, w\]\)$"),
        (".npz", TORCH.astype(np.int64), "holds int64 numbers; noise is floats"),
        (".safetensors", BROKEN, "not finite"),
        (".npy", TORCH.astype(np.float64) * 1e60, "not finite"),  # beyond float32
        (".npy", np.array([len], object), "is damaged, or holds something else"),
        (".pt", TORCH, "a file .npy, .npz or .safetensors"),
    ],
)
def test_what_is_no_noise_of_this_shape_is_refused(tmp_path, file, array, says):
    """Another layout is not guessed, and code in a file is not run."""
    path = written(tmp_path / f"noise{file}", array)
    with pytest.raises(ValueError, match=says):
        noise_from_file(path, SHAPE)
