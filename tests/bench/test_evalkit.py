"""The official scorer's results: whose they are, whether they are whole, and what made them."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jcos.bench import evalkit
from jcos.bench.folder import Bench
from jcos.bench.scores import Scores

TASK = "In-Domain_50/O-36_grid_shift_data-generator"
NAMES = tuple(f"{TASK}/{i:05d}" for i in range(3))
BENCH = Bench(Path("bench"), (), {}, NAMES)
SCORER = """
import json, pathlib, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
model = pathlib.Path(given["--model_path"])
samples = [
    {"folder": v.parts[-3], "task_name": v.parts[-2], "video_file": v.name,
     "score": float(v.read_text()), "error": "blurred" if v.name == "00001.mp4" else None}
    for v in sorted(model.rglob("*.mp4")) if v.name != "00002.mp4"
]
out = pathlib.Path(given["--output_dir"])
out.mkdir(parents=True, exist_ok=True)
about = {"model_path": str(model), "samples": samples}
(out / (model.name + "_vbvr_results.json")).write_text(json.dumps(about))
"""
"""Finds its scores in the videos, and passes over the third."""


@pytest.fixture
def scorer(tmp_path: Path) -> str:
    file = tmp_path / "evalkit" / "run_evaluation.py"
    file.parent.mkdir()
    file.write_text(SCORER)
    return shlex.join([sys.executable, str(file)])


def make(arm: Path, *values: float, date: float | None = None) -> Path:
    """An arm whose first videos get these scores."""
    for name, value in zip(NAMES, values, strict=False):
        video = arm / f"{name}.mp4"
        video.parent.mkdir(parents=True, exist_ok=True)
        video.write_text(str(value))
        if date is not None:
            os.utime(video, (date, date))
    return arm


def results(place: Path, arm: Path, *values: float, date: float) -> Path:
    """What a user has made with the scorer, at a time."""
    samples = [
        {"folder": TASK.split("/")[0], "task_name": TASK.split("/")[1], "score": value}
        | {"video_file": f"{i:05d}.mp4"}
        for i, value in enumerate(values)
    ]
    place.mkdir(parents=True, exist_ok=True)
    file = place / f"{arm.name}_vbvr_results.json"
    file.write_text(json.dumps({"model_path": str(arm), "samples": samples}))
    os.utime(file, (date, date))
    return file


def scored(arm: Path, out: Path, scorer: str | None = None) -> Scores:
    return evalkit.official(BENCH, arm, arm.name, out, scorer)


def test_the_scorer_is_run_once_and_read(tmp_path: Path, scorer: str) -> None:
    arm, out = make(tmp_path / "arm", 0.25, 0.5), tmp_path / "s"
    assert scored(tmp_path / "none", out, scorer) == Scores("none", {}, {})
    with pytest.raises(ValueError, match=r"^arm_vbvr_results.json is missing: give the official"):
        scored(arm, out)
    found = scored(arm, out, scorer)
    assert found.found == {NAMES[0]: 0.25, NAMES[1]: 0.5}
    assert found.errors == {NAMES[1]: "blurred"}
    assert scored(arm, out) == found  # without it: nothing is run
    make(arm, 0.75)
    with pytest.raises(ValueError, match=f"lacks 1 of 2 videos as they are, the first {NAMES[0]}"):
        scored(arm, out)
    assert scored(arm, out, scorer).found[NAMES[0]] == 0.75
    make(arm, 0.33, date=1000)  # replaced by an older one, as rsync does
    assert scored(arm, out, scorer).found[NAMES[0]] == 0.33
    found = scored(make(arm, 1, 1, 1), out, scorer)
    assert found.errors[NAMES[2]] == "the official scorer passed it over"
    assert len(found.found) == 2
    assert scored(arm, out) == found
    with pytest.raises(ValueError, match="the scorer ended with exit code 3"):
        scored(make(arm, 0), out, shlex.join([sys.executable, "-c", "raise SystemExit(3)"]))


def test_arms_of_one_name_do_not_get_each_others_scores(tmp_path: Path, scorer: str) -> None:
    one, two, out = make(tmp_path / "1/base", 0.1), make(tmp_path / "2/base", 0.2), tmp_path / "s"
    later = time.time() + 100
    results(out, one, 0.3, date=later)
    assert scored(one, out).found == {NAMES[0]: 0.3}
    with pytest.raises(ValueError, match=f"is about the videos in {one}, not in {two}"):
        scored(two, out)
    assert scored(two, out, scorer).found == {NAMES[0]: 0.2}
    assert scored(one, out).found == {NAMES[0]: 0.3}
    link = tmp_path / "base"
    link.symlink_to(two)
    assert scored(link, out, scorer).found == {NAMES[0]: 0.2}


def test_results_that_lack_a_video_are_not_taken(tmp_path: Path, scorer: str) -> None:
    """Folders of several hosts that were put together keep the dates of their files."""
    arm, out, date = make(tmp_path / "arm", 0.1, date=1000), tmp_path / "s", 2000
    results(out, arm, 0.1, date=date)
    assert scored(arm, out).found == {NAMES[0]: 0.1}
    make(arm, 0.1, 0.2, date=1000)
    with pytest.raises(ValueError, match=f"lacks 1 of 2 videos as they are, the first {NAMES[1]}"):
        scored(arm, out)
    assert scored(arm, out, scorer).found == {NAMES[0]: 0.1, NAMES[1]: 0.2}


def test_the_newest_results_are_taken(tmp_path: Path) -> None:
    arm, out = make(tmp_path / "arm", 0.1, date=1000), tmp_path / "s"
    results(out, arm, 0.2, date=2000)
    results(arm, arm, 0.3, date=4000)
    results(arm.parent, arm, 0.4, date=3000)
    assert scored(arm, out).found == {NAMES[0]: 0.3}
    make(arm, 0.1, date=5000)
    with pytest.raises(ValueError, match="is older than the videos"):
        scored(arm, out)


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_scores_keep_the_commit_that_made_them(tmp_path: Path, scorer: str) -> None:
    """Also when they are read again with a scorer that has moved on, or with none."""
    arm, out = make(tmp_path / "arm", 0.1), tmp_path / "s"
    assert evalkit.commit_of(None) is None
    assert evalkit.commit_of(scorer) is None
    first = commit(tmp_path / "evalkit")
    assert evalkit.commit_of(scorer) == first
    found = scored(arm, out, scorer)
    assert found.scorer is not None
    assert (found.scorer["commit"], found.scorer["command"]) == (first, scorer)
    second = commit(tmp_path / "evalkit")
    assert second != first
    assert scored(arm, out) == found
    again = scored(arm, out, scorer)
    assert again.scorer is not None
    assert again.scorer["commit"] == second
    later = time.time() + 100
    results(arm, arm, 0.2, date=later)
    assert scored(arm, out, scorer).scorer is None  # a user's: nothing tells


def commit(folder: Path) -> str:
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    head = (folder / ".git" / "HEAD").read_text().split()[1]
    return (folder / ".git" / head).read_text().strip()


def test_a_file_that_is_no_result_is_refused(tmp_path: Path, scorer: str) -> None:
    file = tmp_path / "a_vbvr_results.json"
    wrong = ("[]", "{}", json.dumps({"model_path": "a", "samples": [{"score": 1}]}))
    for content in wrong:
        file.write_text(content)
        with pytest.raises(ValueError, match="is no results file of the official scorer"):
            evalkit.read_results(file, NAMES)
    arm = make(tmp_path / "a", 0.5)
    with pytest.raises(ValueError, match="is no results file of the official scorer"):
        scored(arm, tmp_path / "s")
    assert scored(arm, tmp_path / "s", scorer).found == {NAMES[0]: 0.5}
