"""A released model, with text encoder and VAE, through the benchmark: the original's tiny one."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest

from jcos import cli, wan
from jcos.bench.arm import Arm
from jcos.bench.export import export
from jcos.bench.folder import read_bench
from jcos.bench.run import Work, run
from jcos.config import UMT5Config
from jcos.experiments.experiment import Settings
from jcos.media import formats
from jcos.model.text import UMT5
from jcos.wan import TINY, Wan
from tests.conftest import GOLDEN

LORA = GOLDEN / "lora" / "diffsynth_high_noise_lora.safetensors"
ARM = Arm(profile="float32", scale=0.1, frames=5, sampling=Settings(steps=1))


@pytest.fixture
def loaded(monkeypatch) -> list[Wan]:
    """The models that are loaded, in order."""
    models, load = [], wan.load
    monkeypatch.setattr(wan, "load", lambda *a, **k: models.append(load(*a, **k)) or models[-1])
    return models


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*token.*:UserWarning")  # this tiny model reads 24 of them
def test_two_arms_load_the_text_encoder_once(release, tmp_path, loaded) -> None:
    export(tmp_path / "small", ("maze",), 1)
    bench, work = read_bench(tmp_path / "small"), Work(text=tmp_path / "text")
    arms = {f"{seed}": dataclasses.replace(ARM, seed=seed) for seed in (1, 2)}
    done = run(arms, release, bench, tmp_path, work)
    assert [status.complete for status in done.values()] == [True, True]
    has_text = [isinstance(model.text, UMT5) for model in loaded]
    assert has_text == [True, False, False]
    assert [model.vae is None for model in loaded] == has_text
    assert [len(model.experts) for model in loaded] == [0, 2, 2]
    one, two = (tmp_path / f"{seed}" / f"{bench.names[0]}.mp4" for seed in (1, 2))
    assert formats.read_mp4(one).shape == (5, 160, 160, 3)
    assert (formats.read_mp4(one) != formats.read_mp4(two)).any()


def test_a_model_without_its_vae_is_refused_at_once(release, bench_folder, tmp_path) -> None:
    """As VBVR's folder is published; converted or not."""
    folder = tmp_path / "VBVR-Wan2.2"
    shutil.copytree(release, folder, ignore=shutil.ignore_patterns("*VAE*"))
    with pytest.raises(ValueError, match=r"VBVR-Wan2.2 has no VAE.*docs/wan.md"):
        run({"a": ARM}, folder, read_bench(bench_folder), tmp_path, Work(text=tmp_path))
    assert not (tmp_path / "a").exists()
    config = wan.read_config(release)
    assert isinstance(config.text, UMT5Config)
    with pytest.raises(ValueError, match="has no VAE"):
        wan.check_vae(config, TINY)  # a folder that jcos wrote, whose weights have none


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # of tokens, and of a LoRA without alpha
def test_loras_are_merged_and_decide_the_run(
    release,
    bench_folder,
    tmp_path,
    calls,
    loaded,
    refused,
) -> None:
    (tmp_path / "arms.py").write_text(
        "from tests.bench.test_release import ARM\narms = {'arm': ARM}\n"
    )
    command = ["bench", "run", tmp_path / "arms.py", "--samples", bench_folder, "--per-task", 1]
    command += ["--checkpoint", release, "--out", tmp_path / "out"]
    cli.main([*map(str, command), "--lora", f"high={LORA}:0.5"])
    assert len(calls) == 3
    merging = loaded[-1]
    plain, merged = (
        [np.asarray(expert.blocks.self_attn.q.kernel[...]) for expert in model.experts]
        for model in (wan.load(release, profile="float32", text=False, vae=False), merging)
    )
    assert np.abs(merged[0] - plain[0]).max() > 1e-4
    np.testing.assert_array_equal(merged[1], plain[1])
    about = json.loads((tmp_path / "out" / "arm" / "run.json").read_text())
    digest = hashlib.sha256(LORA.read_bytes()).hexdigest()
    assert about["arm"]["lora"] == [["experts.0", 0.5, digest]]
    assert "arm.lora" in refused(*command)
    assert "there is no file absent" in refused(*command, "--lora", "absent")
