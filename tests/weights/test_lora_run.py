"""LoRA at run time: the same weights as merged by the converter; presets of distilled models."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from convert.stream import Job, convert
from jcos import wan
from jcos.config import FLOAT32
from jcos.devices import sharding
from jcos.model.dit import DiT
from jcos.sampling import flow
from jcos.variants import PRESETS, VARIANTS, with_preset
from jcos.weights import checkpoint, lora
from jcos.weights.checkpoint import CheckpointError
from jcos.weights.lora import original_shapes
from jcos.weights.loras import Lora, parse, parse_all
from jcos.weights.released import open_released
from tests.releases import DIFFSYNTH, I2V, LIGHTX2V, PEFT, T2V, TI2V


def weights(folder: Path, *lora: str, **options: Any) -> dict[str, np.ndarray]:
    options = {"profile": "float32", "text": False, "vae": False, "lora": lora} | options
    model = wan.load(folder, **options)
    return {path: np.asarray(a) for path, a in checkpoint.leaves(model).items()}


def converted(folder: Path, *loras: Lora) -> Path:
    convert(Job(I2V, folder, "float32", loras=loras))
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*no alpha")
def test_at_run_time_and_merged_are_the_same(tmp_path):
    """LoRA of one expert, with biases and modulation of another file in the second."""
    plain = converted(tmp_path / "plain")
    made = converted(tmp_path / "made", Lora(DIFFSYNTH, 0, 0.5), Lora(LIGHTX2V, 1, -2.0))
    asked = (f"high={DIFFSYNTH}:0.5", f"low={LIGHTX2V}:-2")
    want, before = weights(made), weights(plain)
    changed = [path for path, a in want.items() if not np.array_equal(a, before[path])]
    assert {path[:9] for path in changed} == {"experts.0", "experts.1"}
    for folder in (I2V, plain):
        found = weights(folder, *asked)
        for path, a in want.items():
            np.testing.assert_allclose(found[path], a, 2e-7, 1e-9, err_msg=f"{folder} {path}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*no alpha")
def test_weights_in_bfloat16_that_wait_or_are_spread_change_alike(tmp_path):
    """Each number is that of float32, rounded once more."""
    folder, asked = converted(tmp_path / "plain"), (f"high={DIFFSYNTH}", f"low={LIGHTX2V}")
    plain, want, official = weights(folder), weights(folder, *asked), {"profile": "official"}
    with sharding.use_mesh(sharding.make_mesh({"fsdp": 1})):
        spread = weights(folder, *asked, **official)
    assert any(a.dtype == jnp.bfloat16 for a in spread.values())
    for found in (spread, weights(folder, *asked, **official, resident=False)):
        for path, a in found.items():
            np.testing.assert_array_equal(a, spread[path], path)
            exact = want[path] - plain[path] + plain[path].astype(a.dtype).astype(np.float32)
            assert (abs(a - exact) <= 2.0**-8 * abs(exact) + 1e-6).all(), path


@pytest.mark.filterwarnings("ignore:.*no alpha")
def test_one_file_for_both_experts(tmp_path):
    first = safetensors.numpy.load_file(PEFT)
    second = {key.replace("transformer.", "transformer_2.", 1): a for key, a in first.items()}
    both = tmp_path / "both.safetensors"
    safetensors.numpy.save_file(first | second, both)
    found, want = weights(I2V, str(both)), weights(I2V, f"high={PEFT}", f"low={PEFT}")
    for path, a in want.items():
        np.testing.assert_array_equal(found[path], a, path)


def test_a_lora_that_does_not_fit_is_refused_before_weights_are_read(monkeypatch):
    monkeypatch.setattr(checkpoint, "restore", None)
    for folder, asked, reason in (
        (I2V, DIFFSYNTH, "of two say which one"),
        (T2V, f"high={DIFFSYNTH}", "of one do not"),
        (TI2V, DIFFSYNTH, "does not fit the model"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            wan.load(folder, lora=asked)


def test_an_adapter_is_known_by_all_of_its_files(tmp_path):
    """Also by the configuration that gives its alpha."""
    shutil.copy(PEFT, tmp_path / "adapter_model.safetensors")
    known = []
    for alpha in (8, 16):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": alpha}))
        known.append(lora.identity(lora.read(open_released(I2V).config, f"high={tmp_path}")))
    assert known[0] != known[1]


def test_what_is_asked_for(tmp_path):
    file = tmp_path / "a:1.safetensors"
    file.touch()
    assert parse(str(file)) == Lora(file)
    assert parse(f"low={file}:-0.5") == Lora(file, 1, -0.5)
    assert parse_all(None) == ()
    assert parse_all(file) == parse_all([Lora(file)]) == (Lora(file),)
    for asked, reason in ((f"{file}:strong", "give a number"), ("none:1", "there is no file none")):
        with pytest.raises(ValueError, match=reason):
            parse(asked)


@pytest.mark.parametrize("folder", [I2V, TI2V, T2V], ids=lambda p: p.name)
def test_the_originals_shapes_from_a_model_s_leaves(folder):
    source = open_released(folder)
    cfg = source.config.dit
    dit = jax.eval_shape(lambda: DiT(cfg, numerics=FLOAT32, rngs=wan.nnx.Rngs(0)))
    want = {k: t.shape for k, t in source.tensors.items() if k.startswith("experts.0.")}
    found = original_shapes(checkpoint.leaves(dit), cfg.patch)
    assert {f"experts.0.{k}": shape for k, shape in found.items()} == want


@pytest.mark.parametrize(
    ("preset", "timesteps", "high"),
    [
        ("lightning-4", [1000, 937.5, 833.333, 625], 2),
        ("lightning-8", [1000, 972.222, 937.5, 892.857, 833.333, 750, 625, 416.667], 4),
    ],
)
@pytest.mark.parametrize("model", ["wan2.2-i2v-a14b", "wan2.2-t2v-a14b"])
def test_the_presets_have_the_authors_timesteps(preset, timesteps, high, model):
    config = VARIANTS[model]()
    sampling = config.sampling_with(**with_preset(preset, {"steps": None}))
    schedule = flow.schedule(sampling)
    np.testing.assert_allclose(schedule.timesteps, timesteps, rtol=1e-6)
    assert sampling.guidance is None
    if preset == "lightning-4":
        assert flow.high_noise_steps(schedule, config.boundary) == high


def test_options_go_before_a_preset():
    config = VARIANTS["wan2.2-i2v-a14b"]()
    changes = with_preset("lightning-4", {"shift": 3.0, "solver": None})
    assert config.sampling_with(**changes) == dataclasses.replace(
        config.sampling_with(**PRESETS["lightning-4"]), shift=3.0
    )
    changes = with_preset("lightning-4", {"sigmas": (1000, 500)})
    assert config.sampling_with(**changes).sigmas == (1.0, 0.5)
    with pytest.raises(ValueError, match="known are lightning-4, lightning-8"):
        with_preset("lightning-6", {})
