"""Releases as people have them: prefixes, odd files beside, quantised ones, damaged ones."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from convert.__main__ import main
from jcos.weights import checkpoint
from jcos.weights.checkpoint import CheckpointError
from jcos.weights.released import open_released
from tests.conftest import load_release
from tests.convert.test_command import ended
from tests.releases import I2V, KOHYA, T2V, TI2V, as_diffusers, edit, in_full

FILE = "diffusion_pytorch_model.safetensors"
EXPERTS = {"high_noise_model": "i2v_high", "low_noise_model": "i2v_low"}
Tensors = dict[str, np.ndarray]

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 28577\n"
APPLE_DOUBLE = b"\0\5\26\7" + bytes(4092)
"""How a file begins that macOS leaves beside another on disks that are not its own."""


def repacked(
    folder: Path, change: Callable[[Tensors], Tensors] = lambda tensors: tensors, name: str = FILE
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


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        open_released(folder)
    return in_full(str(error.value))


def same_weights(folder: Path) -> None:
    """Each tensor of the experts, bit by bit."""
    found, want = (
        {name: t for name, t in open_released(f).tensors.items() if name.startswith("experts")}
        for f in (folder, I2V)
    )
    assert found.keys() == want.keys()
    for name, tensor in want.items():
        np.testing.assert_array_equal(found[name].read(), tensor.read(), err_msg=name)


# ---- what is read


def test_prefixes_and_hidden_files_are_no_content(tmp_path):
    change = prefixed("model.diffusion_model.")
    folder = repacked(tmp_path / "x", change, "wan2.2_i2v_14B.safetensors")
    for place in EXPERTS:
        (folder / place / "._wan2.2_i2v_14B.safetensors").write_bytes(APPLE_DOUBLE)
        (folder / place / ".DS_Store").write_bytes(b"\0")
    (folder / "._Wan2.1_VAE.pth").write_bytes(APPLE_DOUBLE)
    same_weights(folder)
    assert open_released(folder).parts == ["experts.0", "experts.1"]


def test_a_prefix_in_the_layout_of_diffusers_and_in_shards(tmp_path):
    folder = as_diffusers(I2V, tmp_path / "x")
    for file in folder.rglob("*.safetensors"):
        tensors = safetensors.numpy.load_file(file)
        safetensors.numpy.save_file(prefixed("some.thing.")(tensors), file)
    for file in folder.rglob("*.index.json"):
        where = json.loads(file.read_text())["weight_map"]
        edit(file, weight_map={f"some.thing.{name}": shard for name, shard in where.items()})
    same_weights(folder)
    assert open_released(folder).parts == ["experts.0", "experts.1", "vae", "text"]


@pytest.mark.parametrize(("release", "width"), [(I2V, 16), (TI2V, 48)], ids=lambda p: str(p)[-8:])
def test_of_two_vaes_the_fitting_one_is_taken(tmp_path, release, width):
    folder = shutil.copytree(release, tmp_path / "x")
    shutil.copy(I2V / "Wan2.1_VAE.pth", folder)
    shutil.copy(TI2V / "Wan2.2_VAE.pth", folder)

    def channels() -> int:
        codec = open_released(folder).config.codec
        assert codec is not None
        return codec.channels

    assert channels() == width
    # One that cannot be read is no reason to refuse the other, unless it is the one that is needed.
    other, needed = ("Wan2.1_VAE.pth", "Wan2.2_VAE.pth")[:: 1 if width == 48 else -1]
    content = (folder / needed).read_bytes()
    (folder / other).write_bytes(b"damaged")
    assert channels() == width
    (folder / needed).write_bytes(b"damaged")
    (folder / other).write_bytes(content)
    assert channels() == width


# ---- what is refused by name


def integers(tensors: Tensors) -> Tensors:
    """The matrices of the blocks as int8, without their scales."""
    return {
        name: np.round(a * (127 / np.abs(a).max())).astype(np.int8)
        if a.ndim == 2 and name.startswith("blocks")
        else a
        for name, a in tensors.items()
    }


def with_key(end: str, dtype: type = np.float32) -> Callable[[Tensors], Tensors]:
    """With a tensor more for a matrix, as quantised files have: `blocks.0.….q.weight` + end."""
    name = "blocks.0.self_attn.q.weight"
    base = name if end.startswith(".") else name.removesuffix("weight")
    return lambda tensors: tensors | {base + end: np.ones(4, dtype)}


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (integers, " tensors of integers without scales"),
        (with_key(".absmax"), "bitsandbytes"),
        (with_key(".quant_state.bitsandbytes__nf4", np.uint8), "bitsandbytes"),
        (with_key("SCB"), "bitsandbytes"),
        (with_key("weight_scale"), "weight_scale"),
        (with_key("weight_scale_inv"), "weight_scale"),
        (with_key("scale_weight"), "no float8"),
        (with_key("comfy_quant", np.uint8), "ComfyUI"),
    ],
)
def test_quantised_weights(tmp_path, change, kind):
    message = refused(repacked(tmp_path / "x", change))
    assert kind in message
    assert "take the unquantised release" in message
    assert len(message) < 300 + len(str(tmp_path))


def test_strange_tensors_and_a_quantisation_that_the_configuration_names(tmp_path):
    def change(tensors):
        return prefixed("model.")(tensors) | {"first_stage_model.conv1.bias": np.zeros(3)}

    message = refused(repacked(tmp_path / "x", change))
    assert "tensors beside those under model.: first_stage_model.conv1.bias" in message
    folder = as_diffusers(I2V, tmp_path / "y")
    place = folder / "text_encoder" / "config.json"
    place.write_text(json.dumps({"quantization_config": {"quant_method": "bitsandbytes"}}))
    assert f"{place.parent} is quantised (bitsandbytes)" in refused(folder)


def test_a_git_lfs_pointer_is_called_one(tmp_path, capsys):
    folder = shutil.copytree(I2V, tmp_path / "x")
    shard = next((folder / "high_noise_model").glob("*-00001-*.safetensors"))
    for file in (shard, folder / "Wan2.1_VAE.pth", folder / "low_noise_model" / "config.json"):
        content = file.read_bytes()
        file.write_bytes(LFS_POINTER)
        assert f"{file} is a Git LFS pointer" in refused(folder)
        file.write_bytes(content)
    file = folder / "google" / "umt5-xxl" / "tokenizer.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(LFS_POINTER)
    assert f"{file} is a Git LFS pointer" in ended(capsys, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- values that are no numbers


def test_a_weight_that_is_no_number_is_named(tmp_path, capsys):
    def change(tensors):
        wrong = tensors["blocks.1.ffn.0.weight"].copy()
        wrong[3, 4] = np.nan
        return tensors | {"blocks.1.ffn.0.weight": wrong}

    folder = repacked(tmp_path / "x", change)
    message = ended(capsys, folder, tmp_path / "out")
    assert f"experts.0.blocks.1.ffn.0.weight of {folder / 'high_noise_model' / FILE}" in message
    assert list(tmp_path.iterdir()) == [folder]


def test_a_lora_that_is_no_number_is_named_before_anything_is_written(tmp_path, capsys):
    tensors = safetensors.numpy.load_file(KOHYA)
    (key,) = [key for key in tensors if "blocks.0.ffn.2.lora_up" in key]
    tensors[key] = np.full_like(tensors[key], np.inf)
    file = tmp_path / "lora.safetensors"
    safetensors.numpy.save_file(tensors, file)
    command = I2V, tmp_path / "out", "--lora"
    assert f"blocks.0.ffn.2.weight in {file}" in ended(capsys, *command, f"low={file}")
    assert "the scale of a LoRA is 'nan'" in ended(capsys, *command, f"low={KOHYA}:nan")
    assert list(tmp_path.iterdir()) == [file]
    assert "experts.1.blocks." in ended(capsys, *command, f"low={KOHYA}:1e39")
    assert not (tmp_path / "out").exists()


# ---- names


def test_names_that_are_not_utf_8(tmp_path, capsys):
    try:
        os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    except OSError:
        pytest.skip("this disk has names of UTF-8 alone")
    latin = tmp_path / os.fsdecode(b"caf\xe9")
    assert r"caf\xe9/out has bytes in its name that are not UTF-8" in ended(
        capsys, T2V, latin / "out"
    )
    assert not list(latin.iterdir())
    folder = shutil.copytree(I2V, latin / os.fsdecode(b"wan\xff"))
    lora = latin / os.fsdecode(b"\xe9.safetensors")
    shutil.copy(KOHYA, lora)
    main([str(folder), str(tmp_path / "out"), "--lora", f"high={lora}"])
    notes = checkpoint.read_manifest(tmp_path / "out")["notes"]
    assert notes["converted from"] == r"wan\xff"
    assert r"caf\xe9/\xe9.safetensors into experts.0" in capsys.readouterr().out
