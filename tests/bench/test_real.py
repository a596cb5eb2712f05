"""Real samples through the original's tiny image-to-video model. They are no part of the
repository: JCOS_VBVR names their folder, JCOS_VBVR_SCORER the command of the official scorer."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from jcos.bench import scores
from jcos.bench.arm import Arm
from jcos.bench.folder import Bench, read_bench
from jcos.bench.run import Work, run
from jcos.experiments.experiment import Settings
from jcos.media import formats

FOLDER, SCORER = os.environ.get("JCOS_VBVR"), os.environ.get("JCOS_VBVR_SCORER")
needs_samples = pytest.mark.skipif(not FOLDER, reason="JCOS_VBVR names no folder of samples")


@pytest.fixture
def samples() -> Bench:
    assert FOLDER is not None
    return read_bench(Path(FOLDER))


def expected(bench: Bench) -> dict[str, dict]:
    return {e["sample"]: e for e in json.loads((bench.root / "expected_scores.json").read_text())}


@needs_samples
def test_real_samples_are_read(samples: Bench) -> None:
    assert samples.faults == {}
    known = expected(samples)
    assert set(samples.names) == set(known)
    for sample in samples.samples:
        want = known[sample.name]
        assert (sample.frames, sample.width) == (want["frames"], want["width"])
        assert abs(sample.height - want["height"]) <= 1  # a picture of 397 lines has a video of 396


@needs_samples
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*token.*:UserWarning")  # this tiny model reads 24 of them
def test_real_samples_become_videos(samples: Bench, release: Path, tmp_path: Path) -> None:
    """Those whose size is odd, generated at a sixteenth, are written at their own."""
    odd = tuple(s for s in samples.samples if s.height % 2)
    assert odd
    part = samples._replace(samples=odd, names=tuple(s.name for s in odd))
    arm = Arm(profile="float32", scale=1 / 16, frames=5, sampling=Settings(steps=1))
    status = run({"arm": arm}, release, part, tmp_path, Work(text=tmp_path / "text"))["arm"]
    assert status.complete
    for sample in odd:
        video = formats.read_mp4(tmp_path / "arm" / f"{sample.name}.mp4")
        assert video.shape == (5, sample.height + 1, sample.width, 3)


@needs_samples
@pytest.mark.slow
@pytest.mark.skipif(not SCORER, reason="JCOS_VBVR_SCORER names no scorer")
def test_the_official_scores_are_reproduced(samples: Bench, tmp_path: Path) -> None:
    (tmp_path / "arm").mkdir()
    _, still, truth = scores.score(samples, [tmp_path / "arm"], tmp_path / "s", SCORER)
    known = expected(samples)
    for made, entry, most in (
        (truth, "ground_truth", 1e-3),
        (still, "static_first_frame", 0.1),  # which moves with the encoder
    ):
        gaps = [made.values[name] - known[name][entry] for name in samples.names]
        assert np.abs(gaps).max() <= most
        assert abs(np.mean(gaps)) <= 0.02
