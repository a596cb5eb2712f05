"""Releases as people have them: prefixes, odd files beside, quantised ones, damaged ones."""

import errno
import fcntl
import json
import os
import shutil
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import safetensors.numpy

from convert.__main__ import main
from convert.work import Work
from jcos.weights import checkpoint
from jcos.weights.checkpoint import CheckpointError
from jcos.weights.released import open_released
from tests.convert.makers import (
    APPLE_DOUBLE,
    EXPERTS,
    LFS_POINTER,
    ended,
    integers,
    prefixed,
    repacked,
    with_keys,
)
from tests.releases import I2V, KOHYA, T2V, TI2V, as_diffusers, edit, in_full

FILE = "diffusion_pytorch_model.safetensors"


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        open_released(folder)
    return in_full(str(error.value))


def same_weights(folder: Path, like: Path = I2V) -> None:
    """Each tensor of the experts, bit by bit."""
    found, want = open_released(folder), open_released(like)
    for a, b in ((found.leaves, want.leaves), (found.tensors, want.tensors)):
        assert {n for n in a if n.startswith("experts")} == {
            n for n in b if n.startswith("experts")
        }
    for name, tensor in want.tensors.items():
        if name.startswith("experts"):
            np.testing.assert_array_equal(found.tensors[name].read(), tensor.read(), err_msg=name)


# ---- what is read


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", "module."])
def test_a_prefix_of_all_tensors_is_no_content(tmp_path, prefix):
    same_weights(repacked(tmp_path / "x", prefixed(prefix), "wan2.2_i2v_14B.safetensors"))


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


def test_tensors_beside_the_prefix_are_named(tmp_path):
    def change(tensors):
        return prefixed("model.")(tensors) | {"first_stage_model.conv1.bias": np.zeros(3)}

    message = refused(repacked(tmp_path / "x", change))
    assert "first_stage_model.conv1.bias" in message
    assert "model." in message


def test_hidden_files_are_no_weights(tmp_path):
    folder = repacked(tmp_path / "x", name="wan22_i2v.safetensors")
    for place in EXPERTS:
        (folder / place / "._wan22_i2v.safetensors").write_bytes(APPLE_DOUBLE)
        (folder / place / ".DS_Store").write_bytes(b"\0")
    (folder / "._Wan2.1_VAE.pth").write_bytes(APPLE_DOUBLE)
    same_weights(folder)
    assert open_released(folder).parts == ["experts.0", "experts.1"]


def channels(folder: Path) -> int:
    """Of the VAE that is taken from a release."""
    codec = open_released(folder).config.codec
    assert codec is not None
    return codec.channels


@pytest.mark.parametrize(("release", "width"), [(I2V, 16), (TI2V, 48)], ids=lambda p: str(p)[-8:])
def test_of_two_vaes_the_fitting_one_is_taken(tmp_path, release, width):
    folder = shutil.copytree(release, tmp_path / "x")
    shutil.copy(I2V / "Wan2.1_VAE.pth", folder)
    shutil.copy(TI2V / "Wan2.2_VAE.pth", folder)
    found = open_released(folder)
    assert channels(folder) == found.config.dit.out_channels == width
    assert found.leaves.keys() == open_released(release).leaves.keys()
    # One that cannot be read is no reason to refuse the other, unless it is the one that is needed.
    other, needed = ("Wan2.1_VAE.pth", "Wan2.2_VAE.pth")[:: 1 if width == 48 else -1]
    content = (folder / needed).read_bytes()
    (folder / other).write_bytes(b"damaged")
    assert channels(folder) == width
    (folder / needed).write_bytes(b"damaged")
    (folder / other).write_bytes(content)
    assert channels(folder) == width


# ---- what is refused by name


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (integers, " tensors of integers without scales"),
        (with_keys(".absmax"), "bitsandbytes"),
        (with_keys(".quant_state.bitsandbytes__nf4", np.uint8), "bitsandbytes"),
        (with_keys("SCB"), "bitsandbytes"),
        (with_keys("weight_scale"), "weight_scale"),
        (with_keys("weight_scale_inv"), "weight_scale"),
        (with_keys("scale_weight"), "no float8"),
        (with_keys("comfy_quant", np.uint8), "ComfyUI"),
        (with_keys("qweight", np.int32), "GPTQ"),
        (with_keys("._data", np.int8), "quanto"),
        (with_keys("smooth_factor"), "SVDQuant"),
    ],
)
def test_quantised_weights(tmp_path, change, kind):
    message = refused(repacked(tmp_path / "x", change))
    assert kind in message
    assert "take the unquantised release" in message
    assert len(message) < 300 + len(str(tmp_path))


def test_a_quantisation_that_the_configuration_names(tmp_path):
    folder = as_diffusers(I2V, tmp_path / "x")
    place = folder / "text_encoder" / "config.json"
    place.write_text(json.dumps({"quantization_config": {"quant_method": "bitsandbytes"}}))
    assert f"{place.parent} is quantised (bitsandbytes)" in refused(folder)


def test_a_git_lfs_pointer_is_called_one(tmp_path):
    folder = shutil.copytree(I2V, tmp_path / "x")
    shard = next((folder / "high_noise_model").glob("*-00001-*.safetensors"))
    for file in (shard, folder / "Wan2.1_VAE.pth", folder / "low_noise_model" / "config.json"):
        content = file.read_bytes()
        file.write_bytes(LFS_POINTER)
        assert f"{file} is a Git LFS pointer" in refused(folder)
        file.write_bytes(content)


def test_a_pointer_in_place_of_the_tokenizer(tmp_path, capsys):
    folder = shutil.copytree(I2V, tmp_path / "x")
    file = folder / "google" / "umt5-xxl" / "tokenizer.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(LFS_POINTER)
    assert f"{file} is a Git LFS pointer" in ended(capsys, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_message_is_short(tmp_path):
    """Of a configuration of another depth and width: all 100 places are in the file it names."""
    folder = repacked(tmp_path / "x", lambda tensors: {f"n.{k}" * 9: a for k, a in tensors.items()})
    assert refused(folder)
    folder = shutil.copytree(I2V, tmp_path / "y")
    paths = [folder / place / "config.json" for place in EXPERTS]
    dim = json.loads(paths[0].read_text())["dim"]
    for path in paths:
        edit(path, num_layers=9, dim=2 * dim)
    message = refused(folder)
    assert "(all in " in message
    assert f"experts.1.time_projection.kernel has shape ({dim}, {6 * dim})" in message


# ---- values that are no numbers


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_weight_that_is_no_number_is_named(tmp_path, capsys, value):
    def change(tensors):
        wrong = tensors["blocks.1.ffn.0.weight"].copy()
        wrong[3, 4] = value
        return tensors | {"blocks.1.ffn.0.weight": wrong}

    folder = repacked(tmp_path / "x", change)
    message = ended(capsys, folder, tmp_path / "out")
    assert f"experts.0.blocks.1.ffn.0.weight of {folder / 'high_noise_model' / FILE}" in message
    assert not (tmp_path / "out").exists()


def test_a_lora_that_is_no_number_is_named_before_anything_is_written(tmp_path, capsys):
    tensors = safetensors.numpy.load_file(KOHYA)
    (key,) = [key for key in tensors if "blocks.0.ffn.2.lora_up" in key]
    tensors[key] = np.full_like(tensors[key], np.inf)
    file = tmp_path / "lora.safetensors"
    safetensors.numpy.save_file(tensors, file)
    message = ended(capsys, I2V, tmp_path / "out", "--lora", f"low={file}")
    assert f"blocks.0.ffn.2.weight in {file}" in message
    assert list(tmp_path.iterdir()) == [file]
    scale = ("--lora", f"low={KOHYA}:nan")
    assert "the scale of a LoRA is 'nan'" in ended(capsys, I2V, tmp_path / "out", *scale)
    huge = ("--lora", f"low={KOHYA}:1e39")
    message = ended(capsys, I2V, tmp_path / "out", *huge)
    assert "experts.1.blocks." in message
    assert not (tmp_path / "out").exists()


# ---- disks and names


def unlocked(monkeypatch, code: str) -> None:
    """What a disk answers where it is asked for a lock."""
    answer = OSError(getattr(errno, code), "no locks")
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=answer))


@pytest.mark.parametrize("code", ["ENOSYS", "EOPNOTSUPP", "ENOLCK", "ENOTSUP"])
def test_a_disk_without_locks(tmp_path, monkeypatch, code):
    unlocked(monkeypatch, code)
    work = Work(tmp_path / "out", {})
    assert not work.locked
    work.close()
    assert not list(tmp_path.iterdir())


def test_a_disk_without_locks_is_said_and_converted_to(tmp_path, monkeypatch, capsys):
    unlocked(monkeypatch, "ENOSYS")
    main([str(T2V), str(tmp_path / "out")])
    assert f"{tmp_path} has no file locks" in capsys.readouterr().err.replace("\n", " ")
    checkpoint.read_manifest(tmp_path / "out", verify=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_lock_that_fails_otherwise_leaves_nothing(tmp_path, monkeypatch):
    unlocked(monkeypatch, "EIO")
    with pytest.raises(OSError, match="no locks"):
        Work(tmp_path / "out", {})
    assert not list(tmp_path.iterdir())


@pytest.fixture
def latin(tmp_path) -> Path:
    """A folder whose name is no UTF-8."""
    try:
        os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    except OSError:
        pytest.skip("this disk has names of UTF-8 alone")
    return tmp_path / os.fsdecode(b"caf\xe9")


def test_a_source_whose_name_is_not_utf_8(latin, tmp_path, capfd):
    folder = shutil.copytree(T2V, latin / os.fsdecode(b"wan\xff"))
    main([str(folder), str(tmp_path / "out")])
    notes = checkpoint.read_manifest(tmp_path / "out", verify=True)["notes"]
    assert notes["converted from"] == r"wan\xff"
    assert "wan2.1-t2v-1.3b" in capfd.readouterr().out


def test_a_target_whose_name_is_not_utf_8(latin, capsys):
    message = ended(capsys, T2V, latin / "out")
    assert r"caf\xe9" in message
    assert "not UTF-8" in message
    assert not list(latin.iterdir())


def test_the_report_is_written_whatever_the_names_are(latin, tmp_path, capfd, monkeypatch):
    """Also where standard output takes UTF-8 alone."""
    lora = latin / os.fsdecode(b"\xe9.safetensors")
    shutil.copy(KOHYA, lora)
    with open(1, "w", encoding="utf-8", closefd=False) as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        main([str(I2V), str(tmp_path / "out"), "--lora", f"high={lora}"])
    assert r"caf\xe9/\xe9.safetensors into experts.0" in capfd.readouterr().out
