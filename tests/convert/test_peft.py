"""Adapters of PEFT: the file in a folder, alpha from the configuration in it or beside it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from jcos.weights.checkpoint import CheckpointError
from jcos.weights.lora import Adapter, open_adapter
from tests.conftest import GOLDEN
from tests.convert.test_lora import expert
from tests.releases import PEFT

RANK = 4


def folder_of(
    folder: Path, name: str = "adapter_model", prefix: str = "base_model.model.", **about: Any
) -> Path:
    """A folder as PEFT saves it; returns the file in it."""
    folder.mkdir(exist_ok=True)
    tensors = {
        prefix + key.removeprefix("transformer."): a
        for key, a in safetensors.numpy.load_file(PEFT).items()
    }
    file = folder / f"{name}.safetensors"
    safetensors.numpy.save_file(tensors, file)
    usual = {"peft_type": "LORA", "r": RANK, "lora_alpha": 16, "use_rslora": False}
    (folder / "adapter_config.json").write_text(json.dumps(usual | about))
    return file


def scales(adapter: Adapter) -> dict[str, float]:
    """What B A is multiplied by, by the tensor."""
    assert {len(changes) for changes in adapter.changes.values()} == {1}
    found = {name: changes[0] for name, changes in adapter.changes.items()}
    return {name: p.scale for name, p in found.items() if len(p.tensors) == 2}


def opened(file: Path, scale: float = 1.0, expert_number: int = 0) -> Adapter:
    return open_adapter(file, scale, expert(), expert=expert_number)


def refused(file: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        opened(file)
    assert len(str(error.value)) <= 600
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("adapter_model", "base_model.model."), ("high_noise", "diffusion_model."), ("any", "")],
)
def test_alpha_beside_the_file_whatever_it_is_called(tmp_path, name, prefix):
    file = folder_of(tmp_path / "peft", name, prefix)
    for path in (file, file.parent):
        adapter = opened(path, 0.5)
        assert set(scales(adapter).values()) == {0.5 * 16 / RANK}
        assert "adapter_config.json" in adapter.note
        assert adapter.files == [file, file.parent / "adapter_config.json"]


def test_without_a_configuration_it_is_taken_as_it_is_and_said():
    adapter = opened(PEFT)
    assert set(scales(adapter).values()) == {1.0}
    assert "no alpha" in adapter.note
    assert adapter.files == [PEFT]


@pytest.mark.parametrize(
    ("about", "scale"),
    [({"use_rslora": True}, 16 / RANK**0.5), ({"r": 64, "rank_pattern": {".*": 4}}, 16 / RANK)],
)
def test_what_a_configuration_says_of_the_rank(tmp_path, about, scale):
    assert set(scales(opened(folder_of(tmp_path / "x", **about))).values()) == {scale}


def test_of_both_experts_in_one_file_each_has_its_settings(tmp_path):
    first = safetensors.numpy.load_file(PEFT)
    second = {key.replace("transformer.", "transformer_2."): a for key, a in first.items()}
    settings = {"r": RANK, "lora_alpha": 8}
    about = {f"transformer.{k}": v for k, v in settings.items()}
    about |= {f"transformer_2.{k}": v for k, v in (settings | {"lora_alpha": 2}).items()}
    file = tmp_path / "both.safetensors"
    metadata = {"lora_adapter_metadata": json.dumps(about)}
    safetensors.numpy.save_file(first | second, file, metadata)
    assert set(scales(opened(file, 1.0, 0)).values()) == {8 / RANK}
    assert set(scales(opened(file, 1.0, 1)).values()) == {2 / RANK}


def test_alpha_in_the_file_comes_first(tmp_path):
    file = folder_of(tmp_path / "x", r=99)
    tensors = safetensors.numpy.load_file(file)
    keys = {key.partition(".lora_")[0] for key in tensors}
    alphas = {f"{key}.alpha": np.array(8, np.int64) for key in keys}
    safetensors.numpy.save_file(tensors | alphas, file)
    adapter = opened(file)
    assert set(scales(adapter).values()) == {8 / RANK}
    assert not adapter.note


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"use_dora": True}, "DoRA"),
        ({"init_lora_weights": "pissa_niter_16"}, "pissa"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"lora_alpha": "16"}, "lora_alpha"),
        ({"alpha_pattern": {"attn1.to_q": 3}}, "alpha_pattern"),
        ({"r": 8}, f"has rank {RANK}, where"),
    ],
)
def test_configurations_of_something_else(tmp_path, about, words):
    file = folder_of(tmp_path / "x", **about)
    message = refused(file)
    assert words in message
    assert str(tmp_path / "x" / "adapter_config.json") in message
    (tmp_path / "x" / "adapter_config.json").write_text("{")
    assert "adapter_config.json is damaged" in refused(file)


def test_folders_without_one_file(tmp_path):
    assert f"{tmp_path} has 0 safetensors files" in refused(tmp_path)
    content = (GOLDEN / "lora" / "diffsynth_high_noise_lora.safetensors").read_bytes()
    (tmp_path / "._a.safetensors").write_bytes(b"no LoRA")
    (tmp_path / "a.safetensors").write_bytes(content)
    assert opened(tmp_path).file == tmp_path / "a.safetensors"
    (tmp_path / "b.safetensors").write_bytes(content)
    assert "has 2 safetensors files" in refused(tmp_path)
