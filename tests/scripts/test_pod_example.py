"""The pod script, on two hosts of four simulated devices each, and on a single machine."""

import dataclasses
import runpy
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import jcos
from jcos.weights import checkpoint
from jcos.weights.released import open_released
from tests.conftest import ROOT
from tests.many_devices import finish, hosts
from tests.releases import I2V

SCRIPT = ROOT / "scripts" / "pod_example.py"


def test_a_picture_is_prepared_on_a_single_machine(tmp_path, monkeypatch) -> None:
    Image.fromarray(np.zeros((48, 96, 3), np.uint8)).save(tmp_path / "maze.png")
    config = open_released(I2V).config
    clip = dataclasses.replace(config.clip, height=48, width=80)
    given = []

    def condition(picture: np.ndarray, prompt: str, frames: int, seen: None) -> None:
        given.append((picture.shape, prompt, frames))
        raise NotImplementedError

    model = SimpleNamespace(config=dataclasses.replace(config, clip=clip), condition=condition)
    monkeypatch.setattr(jcos, "load", lambda folder: model)
    monkeypatch.setattr(jcos, "init_distributed", None)
    words = ["", str(tmp_path / "out"), "--picture", str(tmp_path / "maze.png"), "--prompt", "go"]
    monkeypatch.setattr(sys, "argv", [*words, "--hosts", "1"])
    with pytest.raises(NotImplementedError):
        runpy.run_path(str(SCRIPT))
    assert given == [((32, 80, 3), "go", 81)]
    (tmp_path / "out").mkdir()
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPT))


@pytest.mark.slow
def test_the_script_writes_the_trace_of_a_run(small_model, tmp_path):
    checkpoint.save(tmp_path / "model", small_model.config, small_model, {})
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "maze.png")
    words = [tmp_path / "out", "--model", tmp_path / "model", "--picture", tmp_path / "maze.png"]
    words += ["--prompt", "", "--frames", 5]  # alike on both; the mesh is all devices of both
    with hosts(SCRIPT, *words) as processes:
        for process in processes:
            finish(process)
    trace = jcos.Trace.load(tmp_path / "out")
    assert trace.x0.shape[:2] == (3, 4)
    assert np.isfinite(trace.x0).all()
