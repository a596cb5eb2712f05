"""Experiments from files, changed on the command line."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from jcos.bench.arm import load_arms
from jcos.experiments.experiment import Settings, places, window
from jcos.experiments.noise import Noise
from jcos.experiments.settings import load_experiment, override
from jcos.experiments.steps import Steps
from jcos.variants import VARIANTS, with_profile

FOLDER = Path(__file__).parents[2] / "configs"
CONFIGS = [file for file in sorted(FOLDER.glob("*.py")) if not file.stem.startswith("vbvr_")]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_config_describes_its_experiment(file: Path) -> None:
    experiment = load_experiment(file)
    assert experiment.question.endswith("?")
    assert f"jcos run configs/{file.name}" in file.read_text()
    assert override(experiment, ["sampling.steps=none"]).sampling == Settings()


def test_fields_are_changed_by_their_types() -> None:
    words = "puzzles=3 seeds=4,5 several=true tasks=maze steps=0,0.5 frames=none sampling.steps=10 "
    words += "sampling.shift=3 sampling.solver=unipc sampling.guidance=2 clips=some/clips.json"
    changed = override(Noise(), words.split())
    assert changed == Noise(
        puzzles=3,
        seeds=(4, 5),
        several=True,
        tasks=("maze",),
        steps=(0, 0.5),
        sampling=Settings(steps=10, shift=3.0, solver="unipc", guidance=(2.0,)),
        clips=Path("some/clips.json"),
    )
    assert isinstance(changed.sampling.shift, float)
    assert override(changed, ["clips=none"]).clips is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("puzzels=3", "'puzzels'.*did you mean puzzles.*tasks, puzzles, puzzle_seed"),
        ("sampling.step=3", "'sampling.step'.*did you mean sampling.steps"),
        ("puzzles=many", "puzzles=many does not fit: puzzles is int"),
        ("puzzles=2.5", "puzzles is int"),
        ("several=perhaps", "several is bool"),
        ("seeds=0,a", r"seeds is tuple\[int, ...\]"),
        ("sampling.solver=heun", "'euler', 'unipc', 'dpmpp'"),
        ("sampling=4", "'sampling'.*sampling.steps, sampling.shift"),
        ("puzzles.n=4", "'puzzles.n'.*did you mean puzzles"),
        ("puzzles", "write field=value"),
    ],
)
def test_a_change_that_cannot_be_is_refused(change: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        override(Steps(), [change])


def test_places_are_numbers_or_fractions() -> None:
    assert places(None, 3, "step") == [0, 1, 2]
    assert places((5, 0.5, 0.0, 1.0), 8, "layer") == [0, 4, 5, 7]
    with pytest.raises(IndexError, match=r"layer 20 is out of range: there are layers 0 to 7 "):
        places((20,), 8, "layer")
    assert places((np.int64(5), np.float32(0.5)), 8, "layer") == [4, 5]
    for place in (-1, 1.5, -0.1, np.int64(8)):
        with pytest.raises(IndexError, match="out of range"):
            places((place,), 8, "step")


def test_a_window_is_the_papers_in_its_own_depth() -> None:
    assert window(0.5, 0.75, 40) == list(range(20, 30))
    assert [window(0.5, 0.75, n) for n in (8, 2)] == [[4, 5], [1]]
    assert window(1.0, 1.0, 4) == [3]
    with pytest.raises(ValueError, match="none: fractions"):
        window(0.7, 0.2, 8)


def test_settings_change_a_models_sampling_only_where_they_say(small_model) -> None:
    config = small_model.config
    assert Settings().of(config) == config.sampling
    assert Settings(steps=7).of(config) == dataclasses.replace(config.sampling, steps=7)
    unipc = Settings(solver="unipc", guidance=(1.0,)).of(config)
    assert (unipc.solver, unipc.grid, unipc.guidance) == ("unipc", "unipc", None)
    diffusers = with_profile(VARIANTS["wan2.2-i2v-a14b"](), "diffusers")
    assert Settings(solver="unipc").of(diffusers).grid == "diffusers", "its own solver"
    assert Settings(solver="euler").of(diffusers).grid == "euler"
    with pytest.raises(ValueError, match="guidance has 2 scales"):
        Settings(guidance=(1.0, 2.0)).of(config)


def test_a_file_without_an_experiment_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("experiment = 3\n")
    with pytest.raises(ValueError, match="describes no experiment"):
        load_experiment(tmp_path / "empty.py")
    with pytest.raises(ValueError, match="jcos bench run vbvr_base"):
        load_experiment(FOLDER / "vbvr_base.py")
    with pytest.raises(ValueError, match="jcos run noise"):
        load_arms(FOLDER / "noise.py")
