"""The same experiments on a released model: two experts, guidance, a VAE, prompts with pictures."""

import csv
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jcos import cli
from jcos.config import WanConfig
from jcos.experiments.experiment import Settings
from jcos.experiments.noise import Noise
from jcos.experiments.samples import Samples
from jcos.experiments.steps import Steps
from jcos.experiments.swap import Swap
from jcos.experiments.sweeps import sweep
from jcos.generation import generate
from jcos.lab.results import rows as rows_of
from jcos.media import image
from jcos.sampling import flow
from jcos.sampling.probes import Noise as Replaced
from jcos.variants import Profile
from jcos.wan import Wan
from tests.conftest import GOLDEN, ROOT, compilations, load_golden

SHORT = Settings(steps=4)


def test_clips_become_the_originals_condition(model: Wan, clips: Path) -> None:
    samples = Samples.of_clips(model, clips)
    want = np.moveaxis(load_golden("loops/i2v_unipc6")["in.y"], 0, -1)
    channels = np.asarray(samples.conditions.channels)
    assert channels.shape == (2, 1, *want.shape)
    np.testing.assert_allclose(channels[0, 0], want, atol=1e-5 * np.abs(want).max())


def test_a_seed_of_a_clip_is_what_it_is_in_python(model: Wan, clips: Path) -> None:
    """Whichever clip it is, and under a probe that draws noise."""
    samples, sampling = Samples.of_clips(model, clips), SHORT.of(model.config)
    plan, probe = flow.plan(sampling, model.config.boundary), Replaced.at_steps(4, 3, [1])
    swept = sweep(model, samples.conditions, (5,), probes=[probe], plan=plan).latents
    for i, latents in enumerate(swept[0]):
        condition = jax.tree.map(lambda a, i=i: a[i, 0], samples.conditions)
        want = generate(model, condition, (5,), probe=probe, sampling=sampling).latents
        np.testing.assert_allclose(latents[0], want, atol=1e-4)


def test_steps_measures_distances_and_decodes(model: Wan, clips: Path) -> None:
    before = compilations()
    experiment = Steps(clips=clips, sampling=SHORT, seeds=(0, 1))
    data = experiment.run(model)
    assert compilations() == before + 1
    distance = data["distance_to_the_end"]
    assert distance.sizes == {"clip": 2, "seed": 2, "step": 4}
    np.testing.assert_array_equal(distance.sel(step=3), 0)
    assert (distance.sel(step=slice(0, 2)) > 0).all()
    table = experiment.table(data)
    assert set(table["task"]) == {"clips"}
    assert set(table["measure"]) == {"distance to the end", "distance to the step before"}
    assert max(table["forwards"]) == 8  # with guidance, two a step
    assert {name for name, _ in experiment.figures(data)} == {"distance", "film-clips"}


def test_noise_runs_without_a_judge(model: Wan, clips: Path) -> None:
    experiment = Noise(
        clips=clips,
        sampling=SHORT,
        steps=(0, 3),
        frames=(2,),
        map_steps=(1,),
        strengths=(0.5,),
        strength_steps=(1,),
        cleanup=1,
    )
    before = compilations()
    data = experiment.run(model)
    assert compilations() == before + 1
    rows = list(rows_of(data))
    assert {r.measure.split(",")[0] for r in rows} == {"distance"}
    by_case = {r.case: r.value for r in rows if r.measure == "distance"}
    assert by_case["no noise"] == 0
    assert {name for name, _ in experiment.figures(data)} == {"step"}
    assert by_case["step 3, all frames"] > by_case["step 3, all frames, at its own level"] > 0


def test_clean_up_belongs_to_the_low_noise_expert(model: Wan, clips: Path) -> None:
    experiment = Noise(clips=clips, sampling=SHORT, cleanup=4)
    high = experiment.plan(model.config).high_steps
    assert high is not None
    assert high > 0
    with pytest.raises(ValueError, match=f"it takes 0 to {4 - high} steps here"):
        experiment.run(model)


def test_a_model_with_a_vae_is_asked_for_clips(model: Wan) -> None:
    with pytest.raises(ValueError, match=r"is no model of the small puzzles .*clips=FILE.json"):
        Steps().run(model)


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
    said = " ".join(capsys.readouterr().err.split())
    assert "Sampled in 3 steps; wan2.2-i2v-a14b has 40 of its own" in said
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
