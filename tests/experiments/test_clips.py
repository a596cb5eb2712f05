"""The same experiments on a released model: two experts, guidance, a VAE, prompts with pictures."""

import csv
import dataclasses
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from jcos import cli
from jcos.config import WanConfig
from jcos.experiments.activations import Activations
from jcos.experiments.behaviour import Behaviour
from jcos.experiments.budget import Budget
from jcos.experiments.ensemble import Ensemble
from jcos.experiments.experiment import Experiment, Settings
from jcos.experiments.flow import Flow
from jcos.experiments.heads import Heads
from jcos.experiments.layers import Layers
from jcos.experiments.lens import Lenses
from jcos.experiments.noise import Noise
from jcos.experiments.samples import Samples
from jcos.experiments.steps import Steps
from jcos.experiments.swap import WAY, Swap
from jcos.experiments.sweeps import sweep
from jcos.generation import generate
from jcos.media import image
from jcos.sampling import flow
from jcos.sampling.probes import Noise as Replaced
from jcos.variants import Profile
from jcos.wan import Wan
from tests.conftest import GOLDEN, ROOT, compilations, load_golden
from tests.experiments.conftest import clips_file

SHORT = Settings(steps=4)
SMALL: dict[str, tuple[Experiment, int, int]] = {
    "steps": (Steps(sampling=SHORT, seeds=(0, 1)), 8, 1),
    "noise": (
        Noise(
            sampling=SHORT,
            steps=(0, 3),
            frames=(1,),
            map_steps=(1,),
            strengths=(0.5,),
            strength_steps=(1,),
            cleanup=1,
        ),
        10,
        1,
    ),
    "behaviour": (Behaviour(sampling=SHORT, seeds=(0, 1)), 8, 1),
    "budget": (Budget(steps=(1, 4), lengths=(4,), shifts=(1.0,), middles=()), 8, 1),
    "heads": (Heads(sampling=Settings(steps=2), layers=(1,), windows=1, members=2), 4, 1),
    "ensemble": (
        Ensemble(
            sampling=Settings(steps=3),
            seeds=(0, 1, 2, 3),
            more_members=(2,),
            layers=(0, 0.5),
            until=(0,),
        ),
        10,
        1,
    ),
    "flow": (Flow(sampling=SHORT, steps=(1, 3), frames=(1,)), 16, 1),
    "layers": (Layers(sampling=SHORT, steps=(0, 3), layers=(1,)), 8, 3),
    "swap": (Swap(sampling=SHORT, steps=(0,), until=(1.0,)), 16, 1),
    "activations": (Activations(sampling=SHORT, tokens=8), 8, 1),
    "lens": (Lenses(sampling=SHORT), 8, 1),
}
"""Experiments on clips, their dearest forwards (two a step with guidance), and their figures."""
QUICK = ("steps", "noise")
JUDGED = re.compile("solved|score|agreement|AUROC|ideal|answer|probe")


class Known(NamedTuple):
    """The dataset of an experiment of `SMALL`, its table, and how many programs it took."""

    data: xr.Dataset
    table: pd.DataFrame
    programs: int

    def values(self, measure: str) -> Any:
        """The values of a measure, by case."""
        return self.table[self.table["measure"] == measure].set_index("case")["value"]


@pytest.fixture(scope="module")
def on_clips(model: Wan, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Known]:
    """Runs an experiment of `SMALL` on two short clips, once."""
    short = clips_file(tmp_path_factory.mktemp("short"), frames=5, count=2)

    @functools.cache
    def run(name: str) -> Known:
        before, experiment = compilations(), dataclasses.replace(SMALL[name][0], clips=short)
        data = experiment.run(model)
        return Known(data, experiment.table(data), compilations() - before)

    return run


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in SMALL]
)
def test_an_experiment_on_clips_is_one_program_and_has_no_judge(name: str, on_clips) -> None:
    known, (experiment, forwards, figures) = on_clips(name), SMALL[name]
    assert known.programs == 1 or name == "budget"
    assert set(known.table["task"]) == {"clips"}
    assert not known.table["measure"].str.contains(JUDGED).any()
    assert max(known.table["forwards"]) == forwards
    assert len(list(experiment.figures(known.data))) == figures


def test_distances_of_estimates_end_at_the_last(on_clips) -> None:
    distance = on_clips("steps").data["distance_to_the_end"]
    assert distance.sizes == {"clip": 2, "seed": 2, "step": 4}
    np.testing.assert_array_equal(distance.sel(step=3), 0)
    assert (distance.sel(step=slice(0, 2)) > 0).all()


def test_noise_at_its_own_level_moves_the_end_less(on_clips) -> None:
    distance = on_clips("noise").values("distance")
    assert distance["no noise"] == 0
    assert distance["step 3, all frames"] > distance["step 3, all frames, at its own level"] > 0


@pytest.mark.slow
def test_clips_settle_in_parts(on_clips) -> None:
    known = on_clips("behaviour")
    assert known.data["distance"].sizes == {"part": 2, "clip": 2, "seed": 2, "step": 4}
    np.testing.assert_array_equal(known.data["distance"].sel(step=3), 0)
    assert "what changes less what stays" in set(known.table["case"])


@pytest.mark.slow
def test_clips_are_compared_with_the_longest_run(model: Wan, on_clips) -> None:
    known, experiment = on_clips("budget"), SMALL["budget"][0]
    assert isinstance(experiment, Budget)
    plans = [experiment.plan_of(model, case) for case in experiment.cases()]
    # Two experts: a program is for a length and how it is divided.
    assert known.programs == len({(p.steps, p.high_steps) for p in plans})
    value = known.values("distance of the end")
    assert value["4 steps"] == 0 < value["1 step"]


@pytest.mark.slow
def test_a_head_that_is_knocked_out_moves_the_end_of_a_clip(model: Wan, on_clips) -> None:
    distance = on_clips("heads").data["distance"]
    assert distance.shape == (1, model.config.dit.heads + 1, 2, 2, 1)
    assert (distance > 0).all()


@pytest.mark.slow
def test_a_mean_moves_the_end_of_a_clip(on_clips) -> None:
    table = on_clips("ensemble").table
    moved = table[table["measure"].str.startswith("distance from")].set_index("case")
    (case,) = [case for case in moved.index if "tokens of 2" in case]
    assert moved.value[case] > 0
    assert moved.forwards[case] == 2 * (3 + 1)  # with guidance, two a step


@pytest.mark.slow
def test_noise_reaches_the_tokens_of_later_steps_only(model: Wan, on_clips) -> None:
    data = on_clips("flow").data
    assert data["tokens"].dims[:2] == ("case", "clip")
    assert data["tokens"].shape == (5, 2, 1, 4, model.config.dit.layers, 3)
    late = abs(data["tokens"].sel(case="step 3, all frames"))
    assert late.sel(step=slice(0, 2)).max() < 1e-4 < late.sel(step=3).max()


@pytest.mark.slow
def test_tokens_of_clips_have_energy_and_components(model: Wan, on_clips) -> None:
    data = on_clips("layers").data
    assert data["energy_by_frame"].dims[0] == "clip"
    assert data["energy_by_frame"].shape == (2, 4, model.config.dit.layers, 2)
    assert data["film_components"].shape[1:3] == (2, 1)


@pytest.mark.slow
def test_clips_are_swapped_in_pairs(model: Wan, on_clips, tmp_path: Path) -> None:
    way = on_clips("swap").values(WAY)
    assert way["no swap"] == 0
    last = model.config.dit.layers - 1
    assert way[f"layer {last}, steps 0 to 3"] == pytest.approx(1, abs=0.02)
    with pytest.raises(ValueError, match="lists 1 clips; two after each other make a pair"):
        Swap(clips=clips_file(tmp_path, frames=5, count=1), sampling=SHORT).run(model)


@pytest.mark.slow
def test_clips_become_the_originals_condition(model: Wan, clips: Path) -> None:
    samples = Samples.of_clips(model, clips)
    want = np.moveaxis(load_golden("loops/i2v_unipc6")["in.y"], 0, -1)
    channels = np.asarray(samples.conditions.channels)
    assert channels.shape == (2, 1, *want.shape)
    np.testing.assert_allclose(channels[0, 0], want, atol=1e-5 * np.abs(want).max())


@pytest.mark.slow
def test_a_seed_of_a_clip_is_what_it_is_in_python(model: Wan, clips: Path) -> None:
    """Whichever clip it is, and under a probe that draws noise."""
    samples, sampling = Samples.of_clips(model, clips), SHORT.of(model.config)
    plan, probe = flow.plan(sampling, model.config.boundary), Replaced.at_steps(4, 3, [1])
    swept = sweep(model, samples.conditions, (5,), probes=[probe], plan=plan).latents
    for i, latents in enumerate(swept[0]):
        condition = jax.tree.map(lambda a, i=i: a[i, 0], samples.conditions)
        want = generate(model, condition, (5,), probe=probe, sampling=sampling).latents
        np.testing.assert_allclose(latents[0], want, atol=1e-4)


def test_what_a_released_model_does_not_run_is_refused(model: Wan, clips: Path) -> None:
    """Clean-up belongs to the low-noise expert."""
    late = Noise(clips=clips, sampling=SHORT, cleanup=4)
    high = late.plan(model.config).high_steps
    assert high is not None
    assert high > 0
    for experiment, says in (
        (late, f"it takes 0 to {4 - high} steps here"),
        (Steps(), r"is no model of the small puzzles .*clips=FILE.json"),
    ):
        with pytest.raises(ValueError, match=says):
            experiment.run(model)


def test_pictures_are_prepared_as_the_profile_does_it(
    model: Wan, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = []

    def rule_for(config: WanConfig, profile: Profile | None = None) -> image.Rule:
        rules.append((config.name, profile))
        raise ValueError("stop")

    monkeypatch.setattr(image, "rule_for", rule_for)
    for experiment in (Steps(clips=clips, profile="diffsynth"), Swap(clips=clips)):
        with pytest.raises(ValueError, match="stop"):
            experiment.samples(model)
    assert rules == [(model.config.name, "diffsynth"), (model.config.name, None)]


@pytest.mark.slow
def test_the_command_runs_a_config_on_a_released_folder(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", str(ROOT / "configs" / "steps.py"), "--out", str(tmp_path / "steps")]
    command += ["--checkpoint", str(GOLDEN / "ckpt" / "Wan2.2-I2V-A14B"), "--profile", "float32"]
    changes = (f"clips={clips}", "sampling.steps=3")
    cli.main([*command, *(word for change in changes for word in ("--set", change))])
    about = json.loads((tmp_path / "steps" / "run.json").read_text())
    assert about["model"]["name"] == "wan2.2-i2v-a14b"
    assert about["parameters"]["profile"] == "float32"
    assert about["sampling"]["guidance"] == [3.5, 3.5]
    with (tmp_path / "steps" / "table.csv").open() as file:
        assert {row["task"] for row in csv.DictReader(file)} == {"clips"}
    assert (tmp_path / "steps" / "index.html").is_file()
    with pytest.raises(SystemExit):
        cli.main([*command, "--set", f"clips={tmp_path / 'none.json'}"])
    assert "is no file of clips" in capsys.readouterr().err
