"""Adapters of PEFT: the file in a folder, alpha from the configuration in it or beside it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from jcos.weights.checkpoint import CheckpointError
from jcos.weights.lora import Adapter, open_adapter
from tests.conftest import GOLDEN, load_release
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


@pytest.mark.parametrize("name", ["adapter_model", "high_noise"])
@pytest.mark.parametrize("prefix", ["base_model.model.", "diffusion_model.", ""])
def test_alpha_beside_the_file_whatever_it_is_called(tmp_path, name, prefix):
    file = folder_of(tmp_path / "peft", name, prefix)
    for path in (file, file.parent):
        adapter = opened(path, 0.5)
        assert set(scales(adapter).values()) == {0.5 * 16 / RANK}
        assert "adapter_config.json" in adapter.note
        assert adapter.files == [file, file.parent / "adapter_config.json"]


def test_the_merged_weights(tmp_path):
    name = "blocks.1.self_attn.o.weight"
    weight = load_release("i2v_high")[name]
    plain = opened(PEFT, 4.0).merged(name, weight)
    assert np.abs(plain - weight).max() > 1e-2
    found = opened(folder_of(tmp_path / "x").parent).merged(name, weight)
    np.testing.assert_allclose(found, plain)


def test_without_a_configuration_it_is_taken_as_it_is_and_said():
    adapter = opened(PEFT)
    assert set(scales(adapter).values()) == {1.0}
    assert "no alpha" in adapter.note
    assert adapter.files == [PEFT]


def test_rank_stabilised(tmp_path):
    adapter = opened(folder_of(tmp_path / "x", use_rslora=True))
    assert set(scales(adapter).values()) == {16 / RANK**0.5}


def test_patterns_of_alpha_and_rank(tmp_path):
    """The first pattern that a module's name ends in counts, also as a regular expression."""
    patterns = {"attn1.to_q": 2, r"blocks\.1\.attn2.*": 8}
    found = scales(opened(folder_of(tmp_path / "x", alpha_pattern=patterns)))
    assert found["blocks.0.self_attn.q.weight"] == 2 / RANK
    assert found["blocks.1.self_attn.q.weight"] == 2 / RANK
    assert found["blocks.1.cross_attn.k.weight"] == 8 / RANK
    assert found["blocks.0.cross_attn.k.weight"] == 16 / RANK
    file = folder_of(tmp_path / "y", r=64, rank_pattern={".*": RANK})
    assert set(scales(opened(file)).values()) == {16 / RANK}


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
        ({"alpha_pattern": {"(": 3}}, "alpha_pattern"),
        ({"r": 8}, f"has rank {RANK}, where"),
    ],
)
def test_configurations_of_something_else(tmp_path, about, words):
    message = refused(folder_of(tmp_path / "x", **about))
    assert words in message
    assert str(tmp_path / "x" / "adapter_config.json") in message


def test_a_damaged_configuration(tmp_path):
    file = folder_of(tmp_path / "x")
    for content in ("{", "3"):
        (tmp_path / "x" / "adapter_config.json").write_text(content)
        assert "adapter_config.json is damaged" in refused(file)


def test_folders_without_one_file(tmp_path):
    assert f"{tmp_path} has 0 safetensors files" in refused(tmp_path)
    content = (GOLDEN / "lora" / "diffsynth_high_noise_lora.safetensors").read_bytes()
    (tmp_path / "._a.safetensors").write_bytes(b"no LoRA")
    (tmp_path / "a.safetensors").write_bytes(content)
    assert opened(tmp_path).file == tmp_path / "a.safetensors"
    (tmp_path / "b.safetensors").write_bytes(content)
    assert "has 2 safetensors files" in refused(tmp_path)
