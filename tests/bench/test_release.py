"""A released model, with text encoder and VAE, through the benchmark: the original's tiny one."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from jcos import wan
from jcos.bench.arm import Arm
from jcos.bench.export import export
from jcos.bench.folder import read_bench
from jcos.bench.run import Work, run
from jcos.config import UMT5Config
from jcos.experiments.experiment import Settings
from jcos.media import formats
from jcos.model.text import UMT5
from jcos.wan import TINY, Wan
from tests.test_staged import release  # noqa: F401

ARM = Arm(profile="float32", scale=0.1, frames=5, sampling=Settings(steps=1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*token.*:UserWarning")  # this tiny model reads 24 of them
def test_two_arms_load_the_text_encoder_once(
    release: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[Wan] = []
    load = wan.load

    def recorded(*given: Any, **options: Any) -> Wan:
        loaded.append(load(*given, **options))
        return loaded[-1]

    monkeypatch.setattr(wan, "load", recorded)
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


def test_a_model_without_its_vae_is_refused_at_once(
    release: Path,  # noqa: F811
    bench_folder: Path,
    tmp_path: Path,
) -> None:
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
