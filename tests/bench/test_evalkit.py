"""The official scorer's results: of which videos they are, and what made them."""

import os
import shlex
import shutil
import subprocess
import sys
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


def scored(arm: Path, out: Path, scorer: str | None = None) -> Scores:
    return evalkit.official(BENCH, arm, arm.name, out, scorer)


def test_what_the_scorer_said_is_kept_for_the_same_videos(tmp_path: Path, scorer: str) -> None:
    arm, out = make(tmp_path / "arm", 0.25, 0.5), tmp_path / "s"
    assert scored(tmp_path / "none", out, scorer) == Scores("none", {}, {})
    with pytest.raises(ValueError, match=r"2 videos.*--scorer"):
        scored(arm, out)
    found = scored(arm, out, scorer)
    assert found.values == {NAMES[0]: 0.25, NAMES[1]: 0.5}
    assert found.errors == {NAMES[1]: "blurred"}
    assert (found.scorer or {})["command"] == scorer
    assert scored(arm, out) == found  # without it: nothing is run
    # The second time by an older file, as rsync does.
    for values, date in (((0.75,), None), ((0.33,), 1000), ((0.33, 0.5, 1), None)):
        make(arm, *values, date=date)
        with pytest.raises(ValueError, match="as they are"):
            scored(arm, out)
    found = scored(arm, out, scorer)
    assert found.values == {NAMES[0]: 0.33, NAMES[1]: 0.5}
    assert found.errors[NAMES[2]] == "the official scorer passed it over"
    with pytest.raises(ValueError, match="exit code 3"):
        scored(arm, out, shlex.join([sys.executable, "-c", "raise SystemExit(3)"]))
    with pytest.raises(ValueError, match="as they are"):
        scored(arm, out)
    with pytest.raises(ValueError, match="no results file"):  # one that writes none leaves none
        scored(arm, out, shlex.join([sys.executable, "-c", ""]))


def test_arms_of_one_name_do_not_get_each_others_scores(tmp_path: Path, scorer: str) -> None:
    one, two, out = make(tmp_path / "1/base", 0.1), make(tmp_path / "2/base", 0.2), tmp_path / "s"
    assert scored(one, out, scorer).values == {NAMES[0]: 0.1}
    with pytest.raises(ValueError, match="2/base"):
        scored(two, out)
    assert scored(two, out, scorer).values == {NAMES[0]: 0.2}
    link = tmp_path / "base"
    link.symlink_to(two)
    assert scored(link, out).values == {NAMES[0]: 0.2}


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_scores_keep_the_commit_that_made_them(tmp_path: Path, scorer: str) -> None:
    arm, out = make(tmp_path / "arm", 0.1), tmp_path / "s"
    folder = tmp_path / "evalkit"
    unknown = evalkit.version_of(scorer)
    assert unknown.startswith("no-commit-")
    assert evalkit.version_of("python -m evaluate") == "python -m evaluate"
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    assert evalkit.version_of(scorer) == unknown  # in a checkout of something else
    subprocess.run([*git, "add", "run_evaluation.py"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "x"], check=True)
    head = (folder / ".git" / "HEAD").read_text().split()[1]
    commit = (folder / ".git" / head).read_text().strip()
    found = scored(arm, out, scorer)
    assert (found.version or "").startswith(f"{commit}-")
    (folder / "rules.py").write_text("edited = True")
    assert evalkit.version_of(scorer).startswith(f"{commit}-")
    assert evalkit.version_of(scorer) != found.version
    assert scored(arm, out) == found


@pytest.mark.parametrize("content", ["[]", "{}", '{"model_path": "a", "samples": [{"score": 1}]}'])
def test_a_file_that_is_no_result_is_refused(tmp_path, content) -> None:
    file = tmp_path / "a_vbvr_results.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"a_vbvr_results\.json"):
        evalkit.read_results(file, NAMES)
