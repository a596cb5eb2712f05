"""The pod script: two hosts with four simulated devices each give what one device gives."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jcos
from tests.conftest import ROOT
from tests.many_devices import finish, free_port, launch

SCRIPT = ROOT / "scripts" / "pod_example.py"


@pytest.mark.slow
def test_two_hosts_write_the_trace_of_one_device(tmp_path: Path) -> None:
    task = jcos.tasks.get("maze")
    puzzle = task.sample(3, "test")
    picture = tmp_path / "maze.png"
    Image.fromarray(task.first_frame(puzzle)).save(picture)
    words = [tmp_path / "out", "--picture", picture, "--prompt", puzzle.prompt, "--frames", "5"]
    words += ["--mesh", "context=8", "--hosts", "2"]
    words += ["--coordinator", f"localhost:{free_port()}"]
    hosts = [launch(SCRIPT, *words, "--host", i, JAX_NUM_CPU_DEVICES="4") for i in range(2)]
    try:
        for process in hosts:
            finish(process)
    finally:
        for process in hosts:
            process.kill()
    found = jcos.Trace.load(tmp_path / "out")
    model = jcos.load()
    probe = jcos.SeedEnsemble.window(model.config.sampling.steps, model.config.dit.layers)
    condition = model.condition(task.first_frame(puzzle), puzzle.prompt, 5)
    want = jcos.generate(model, condition, seeds=[0, 1, 2], probe=probe)
    assert found.x0.shape == want.x0.shape
    np.testing.assert_allclose(found.x0, want.x0, atol=1e-3 * float(np.abs(want.x0).max()))
    np.testing.assert_allclose(found.sigma, want.sigma, rtol=1e-6)
