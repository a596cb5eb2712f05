"""VBVR-Pro-Bench: its categories, seeds by place, noise from files, a scorer that can measure."""

import dataclasses
import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from unittest.mock import Mock

import jax.numpy as jnp
import numpy as np
import pytest

from jcos.bench import evalkit, scores
from jcos.bench.arm import Arm, load_arms
from jcos.bench.evalkit import Scores
from jcos.bench.export import export
from jcos.bench.folder import OFFICIAL, Bench, category_of, read_bench
from jcos.bench.run import Work, run
from jcos.bench.sampler import Sampler
from jcos.experiments.settings import override
from jcos.generation import generate
from jcos.media import image
from jcos.sampling import flow
from jcos.sampling.trajectory import Condition
from jcos.variants import TINY, VARIANTS, with_profile
from jcos.wan import Wan
from tests.bench.test_run import sampler_of
from tests.conftest import ROOT

CONFIG = ROOT / "configs" / "vbvr_pro.py"
TASKS = [(row["split"], task) for task, row in OFFICIAL.items()]
SMALL = ("profile=none", "size=none", "frames=none", "scale=0.125", "sampling.steps=2")


def test_the_categories_are_its_own() -> None:
    pro = [category_of(task, "vbvr-pro") for _, task in TASKS]
    counts = {str(c): pro.count(c) for c in pro}
    want = {"Perception": 28, "Abstraction": 25, "Knowledge": 19}
    assert counts == want | {"Spatiality": 16, "Transformation": 12}
    inside = [category_of(t, "vbvr-pro") for split, t in TASKS if split == "In-Domain_50"]
    assert (inside.count("Knowledge"), inside.count("Transformation")) == (14, 6)
    assert category_of("O-44_rotation_puzzle_data-generator", "vbvr-pro") == "Abstraction"
    assert category_of("O-44_rotation_puzzle_data-generator") == "Transformation"


@pytest.fixture
def samples(tmp_path: Path) -> Bench:
    """Two mazes and two patterns, exported in its layout."""
    folder = tmp_path / "small"
    export(folder, ("maze", "pattern"), 2, benchmark="vbvr-pro")
    return read_bench(folder, benchmark="vbvr-pro")


def test_a_sample_needs_what_the_scorer_reads(samples: Bench) -> None:
    assert not samples.faults
    assert [s.place for s in samples.samples] == [0, 1, 2, 3]
    about = samples.samples[1].folder / "metadata.json"
    for content in ("[]", "no json"):
        about.write_text(content)
        (fault,) = read_bench(samples.root, benchmark="vbvr-pro").faults.values()
        assert "metadata.json is damaged" in fault
    assert not read_bench(samples.root).faults  # of VBVR-Bench, where the file is left alone
    about.write_text("{}")  # an empty one is an object
    assert not read_bench(samples.root, benchmark="vbvr-pro").faults
    for file in samples.root.rglob("metadata.json"):
        file.unlink()
    assert len(read_bench(samples.root, benchmark="vbvr-pro").faults) == 4
    with pytest.raises(ValueError, match="there are vbvr, vbvr-pro"):
        read_bench(samples.root, benchmark="pro")


def test_the_place_is_that_in_the_whole_benchmark(tmp_path: Path, samples: Bench) -> None:
    """Also of a part: In-Domain first, tasks by name as strings, five samples each."""
    ordered = sorted(TASKS)
    for at in (3, 77):
        split, task = ordered[at]
        shutil.copytree(samples.samples[0].folder, tmp_path / "part" / split / task / "00002")
    found = read_bench(tmp_path / "part").samples
    assert [sample.place for sample in found] == [5 * 3 + 2, 5 * 77 + 2]


def test_in_the_profile_of_diffusers_and_on_the_grid_of_euler_nothing_is_rounded() -> None:
    arm = override(load_arms(CONFIG)[0]["cps-0.7"], ("profile=diffusers", "sampling.grid=euler"))
    assert arm.profile is not None
    config = arm.of(with_profile(VARIANTS["wan2.2-ti2v-5b"](), arm.profile))
    assert config.numerics.latents == "float32"
    rounded = flow.schedule(dataclasses.replace(config.sampling, grid="vbvr-pro"))
    plan = flow.schedule(config.sampling)
    np.testing.assert_array_equal(plan.sigmas, rounded.sigmas)
    np.testing.assert_allclose(plan.timesteps, 1000 * plan.sigmas[:-1], rtol=1e-6)
    assert not np.allclose(rounded.timesteps, plan.timesteps, rtol=1e-4)


def test_an_image_encoder_sees_the_picture_as_the_profile_brings_it(samples: Bench) -> None:
    config, sample = VARIANTS["wan2.1-i2v-14b"](), samples.samples[0]
    arm, prompt = load_arms(CONFIG)[0]["unipc"], np.zeros((1, 8), np.float32)
    model = Mock(spec=Wan, config=config)
    model.condition.return_value = Condition(jnp.asarray(prompt), (1, 1, 1))
    Sampler(arm, model, lambda _: prompt).prepare(sample, arm.shape(config, sample))
    picture, frame = image.read_picture(sample.picture), np.zeros((1, 1, 3), np.float32)
    want = image.for_encoder(picture, frame, 224, "diffusers")
    np.testing.assert_array_equal(model.condition.call_args.kwargs["seen"], want)


def test_an_arm_is_of_this_benchmark(samples: Bench, calls, tmp_path) -> None:
    """Its manifest, the tasks' own scores, and their question."""
    arm = override(load_arms(CONFIG)[0]["cps-0.7"], SMALL)
    out = tmp_path / "out"
    status = run({"cps": arm}, TINY, samples, out, Work(text=tmp_path / "text", batch=2))["cps"]
    assert status.complete
    manifest = json.loads((out / "cps" / "run.json").read_text())
    assert manifest["benchmark"] == "vbvr-pro"
    assert manifest["arm"]["sampling"]["eta"] == 0.7
    result = scores.compare(samples, [out / "cps"], tmp_path / "s")
    assert result.scores[0].values.keys() == set(samples.names)
    assert "Pro" in json.loads((tmp_path / "s" / "run.json").read_text())["question"]


@pytest.mark.slow
def test_seeds_go_by_place_and_noise_may_come_from_files(
    samples: Bench, small_model, tmp_path
) -> None:
    """Of a stochastic sampler."""
    arm = dataclasses.replace(override(load_arms(CONFIG)[0]["cps-0.7"], SMALL), seed=3)
    assert arm.by_index
    sampler, _ = sampler_of(small_model, arm, samples.root)
    model, chosen = sampler.model, [samples.samples[1], samples.samples[3]]
    shape = arm.shape(model.config, chosen[0])
    conditions = [sampler.prepare(sample, shape) for sample in chosen]
    latents, _, _ = sampler.generate(conditions, shape, 2, chosen)
    for condition, latent, seed in zip(conditions, latents, (4, 6), strict=True):
        want = generate(model, condition, seed).latents[0]
        np.testing.assert_allclose(latent, want, atol=1e-5)
    noise = np.random.default_rng(0).standard_normal((2, *latents.shape[1:]), np.float32)
    for sample, one in zip(chosen, noise, strict=True):
        file = tmp_path / "noise" / f"{sample.name}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.moveaxis(one, -1, 0))
    with_files = dataclasses.replace(arm, noise_files=tmp_path / "noise")
    from_files, _, _ = Sampler(with_files, model).generate(conditions, shape, 2, chosen)
    want = generate(model, conditions[1], 6, noise=noise[1:]).latents[0]
    np.testing.assert_allclose(from_files[1], want, atol=1e-5)
    with pytest.raises(ValueError, match="ensembles and searches"):
        Arm(noise_files=tmp_path, ensemble=2, ensemble_layers=(0.5,))


# ---- the scorer

CV2 = """
import os, numpy as np
__version__ = os.environ["FAKE_CV2"]
FONT_HERSHEY_SIMPLEX = 0
def putText(*given): pass
def HoughLinesP(*given, **more):
    return np.zeros((1, 4) if __version__[0] == "5" else (1, 1, 4))
"""
OCR = """
import os
class Reader:
    def __init__(self, *given, **more): assert given[1] is False
    def readtext(self, page, detail): return [os.environ["FAKE_TEXT"]]
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A scorer's command, on a machine whose OpenCV and OCR work."""
    for name, content in (("cv2", CV2), ("easyocr", OCR), ("run_evaluation_video", "")):
        (tmp_path / f"{name}.py").write_text(content)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("FAKE_CV2", "4.13.0")
    monkeypatch.setenv("FAKE_TEXT", "735")
    return shlex.join([sys.executable, str(tmp_path / "run_evaluation_video.py")])


def test_a_machine_that_would_score_zero_is_refused(machine: str, monkeypatch) -> None:
    found = evalkit.probe(machine, os.environ)
    assert found == {"opencv": "4.13.0", "lines": [1, 1, 4], "text": "735"}
    for name, value, why in (
        ("FAKE_TEXT", "", "OCR reads '' for 735"),
        ("FAKE_CV2", "5.0.0", "OpenCV 5.0.0 returns lines as"),
        ("PYTHONPATH", "", "cannot be used"),
    ):
        monkeypatch.setenv(name, value)
        if name == "PYTHONPATH" and __import__("importlib.util").util.find_spec("cv2"):
            continue
        with pytest.raises(ValueError, match=why):
            evalkit.probe(machine, os.environ)


def test_what_did_not_measure_is_not_compared(samples: Bench) -> None:
    by = {"commit": "a" * 40}
    truth, bad = (Scores("truth", {"x": value}, {}, by) for value in (0.99, 0.2))
    one = Scores("one", {"x": 0.5}, {}, by)
    scores.check(samples, [one, truth])
    for made_by in ({"commit": "b"}, {"commit": None, "command": "b.py"}):
        other = Scores("other", {"x": 0.5}, {}, made_by)
        with pytest.raises(ValueError, match="scores of several scorers are not compared"):
            scores.check(samples, [one, other, truth])
    with pytest.raises(ValueError, match=r"scores 0\.200 against itself"):
        scores.check(samples, [one, bad])
