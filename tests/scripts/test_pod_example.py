"""The pod script, on two hosts of one device each."""

import numpy as np
import pytest
from PIL import Image

import jcos
from jcos.weights import checkpoint
from tests.conftest import ROOT
from tests.many_devices import finish, hosts

SCRIPT = ROOT / "scripts" / "pod_example.py"


@pytest.mark.slow
def test_the_script_writes_the_trace_of_a_run(small_model, tmp_path):
    checkpoint.save(tmp_path / "model", small_model.config, small_model, {})
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "maze.png")
    words = [tmp_path / "out", "--model", tmp_path / "model", "--picture", tmp_path / "maze.png"]
    words += ["--prompt", "", "--frames", 5]  # alike on both; the mesh is all devices of both
    with hosts(SCRIPT, *words, devices=1) as processes:
        for process in processes:
            finish(process)
    trace = jcos.Trace.load(tmp_path / "out")
    assert trace.x0.shape[:2] == (3, 4)
    assert np.isfinite(trace.x0).all()
