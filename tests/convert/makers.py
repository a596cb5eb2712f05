"""Releases as people have them on disk: the tiny ones packed anew."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from convert.__main__ import main
from tests.conftest import load_release
from tests.releases import I2V

EXPERTS = {"high_noise_model": "i2v_high", "low_noise_model": "i2v_low"}
Tensors = dict[str, np.ndarray]

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 28577\n"
APPLE_DOUBLE = b"\0\5\26\7" + bytes(4092)
"""How a file begins that macOS leaves beside another on disks that are not its own."""


def ended(capsys, *arguments: Path | str) -> str:
    """The one sentence of a command that is refused."""
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    assert end.value.code == 2
    start = "python -m convert: "
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith(start)]
    return line.removeprefix(start)


def repacked(
    folder: Path,
    change: Callable[[Tensors], Tensors] = lambda tensors: tensors,
    name: str = "diffusion_pytorch_model.safetensors",
) -> Path:
    """Both experts of the I2V release alone, each in one file."""
    for place, weights in EXPERTS.items():
        (folder / place).mkdir(parents=True)
        shutil.copy(I2V / place / "config.json", folder / place)
        tensors = {k: np.ascontiguousarray(a) for k, a in change(load_release(weights)).items()}
        safetensors.numpy.save_file(tensors, folder / place / name)
    return folder


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + name: a for name, a in tensors.items()}


def integers(tensors: Tensors) -> Tensors:
    """The matrices of the blocks as int8, without their scales."""
    return {
        name: np.round(a * (127 / np.abs(a).max())).astype(np.int8)
        if a.ndim == 2 and name.startswith("blocks")
        else a
        for name, a in tensors.items()
    }


def with_keys(end: str, dtype: type = np.float32) -> Callable[[Tensors], Tensors]:
    """With a tensor more for each matrix, as quantised files have: `blocks.0.….q.weight` + end."""

    def change(tensors: Tensors) -> Tensors:
        names = [name for name in tensors if name.startswith("blocks") and tensors[name].ndim == 2]
        base = [name if end.startswith(".") else name.removesuffix("weight") for name in names]
        return tensors | {name + end: np.ones(4, dtype) for name in base}

    return change
