"""`Store`: files beside the results, of puzzles and of clips; a killed run goes on."""

import json
from pathlib import Path

import numpy as np
import pytest

from jcos.experiments.folder import run_to
from jcos.experiments.store import Store
from jcos.lab import activations, results
from jcos.wan import Wan

SMALL = Store(tasks=("maze",), puzzles=3, layers=(1,), steps=(0, 2), tokens=4, chunk=2)


def run(folder: Path, experiment: Store, model: Wan) -> bool:
    return run_to(
        folder, experiment, model.config, lambda: model, weights={"digest": "0"}, command="test"
    )


@pytest.mark.slow
def test_files_lie_beside_the_results_also_of_a_killed_run(
    small_model: Wan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "store"
    with monkeypatch.context() as killed:
        killed.setattr(Store, "described", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(folder, SMALL, small_model)
    assert not folder.exists()
    monkeypatch.setattr(activations, "steps", None)  # all files are there
    assert run(folder, SMALL, small_model)
    assert not run(folder, SMALL, small_model)
    data = activations.load(folder / "activations")
    assert data.sizes == {"puzzle": 3, "seed": 1, "step": 2, "layer": 1, "token": 4, "channel": 32}
    measures = results.load(folder / "results.nc", "store")
    size = np.sqrt((data**2).mean(["token", "channel"]))
    np.testing.assert_allclose(measures["size"].squeeze(), size.squeeze(), rtol=1e-5)
    assert json.loads((folder / "run.json").read_text())["experiment"] == "store"


@pytest.mark.slow
def test_clips_of_a_released_model_go_the_same_way(model: Wan, clips: Path, tmp_path: Path) -> None:
    run(tmp_path / "store", Store(clips=clips, layers=(0, 1), steps=(0, 1.0), tokens=6), model)
    data = activations.load(tmp_path / "store" / "activations", layer=1)
    assert data.sizes["puzzle"] == 2
    assert data.sizes["step"] == 2
    assert np.isfinite(data).all()
    first, last = data["frame"].values[[0, -1]]
    assert (first, last) == (0, 2)
