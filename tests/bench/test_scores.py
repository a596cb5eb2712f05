"""Scores and tables: known answers."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jcos.bench import scores
from jcos.bench.folder import Bench, read_bench
from jcos.bench.scores import Cell, Scores

NAMES = tuple(
    f"{split}/{task}_data-generator/{i:05d}"
    for split, task in (
        ("In-Domain_50", "O-36_grid_shift"),
        ("In-Domain_50", "O-38_majority_color"),
        ("Out-of-Domain_50", "O-49_symmetry_completion"),
    )
    for i in range(2)
)
BENCH = Bench(Path("."), (), {}, NAMES)


def arm(name: str, *values: float | None) -> Scores:
    found = {n: v for n, v in zip(NAMES, values, strict=True) if v is not None}
    return Scores(name, found, {})


def cells(rows: list[Cell]) -> dict[tuple[str, str], Cell]:
    return {(cell.arm, cell.group): cell for cell in rows}


def test_missing_videos_count_as_zero_beside_the_official_mean() -> None:
    found = cells(scores.table(BENCH, [arm("a", 1.0, 0.5, None, 0.5, 0.0, 1.0)]))
    assert [group for _, group in found] == [
        "overall",
        "ID",
        "ID Perception",
        "ID Transformation",
        "OOD",
        "OOD Abstraction",
    ]
    overall = found["a", "overall"]
    assert (overall.mean, overall.n, overall.found) == (0.5, 6, 5)
    assert overall.official == pytest.approx(0.6)
    assert overall.low < 0.5 < overall.high
    assert found["a", "ID Perception"].mean == 0.25
    assert found["a", "OOD"].mean == 0.5
    assert np.isnan(cells(scores.table(BENCH, [arm("b", *[None] * 6)]))["b", "ID"].official)


def test_arms_are_compared_sample_by_sample() -> None:
    """A gain that is the same everywhere has no spread, however the samples differ."""
    base = arm("base", 0.0, 0.2, 0.4, 0.6, 0.8, 0.1)
    better = arm("better", *(v + 0.1 for v in base.found.values()))
    for cell in scores.against(BENCH, [better], base):
        assert cell.mean == pytest.approx(0.1)
        assert cell.low == pytest.approx(0.1)
        assert cell.high == pytest.approx(0.1)
        assert cell.official == pytest.approx(0.1)


def test_intervals_are_over_tasks() -> None:
    """Samples of a task that agree say no more than one of them."""
    many = {f"s/t{i}/{k:05d}": float(i % 2) for i in range(10) for k in range(5)}
    one = {f"s/t{i}/00000": float(i % 2) for i in range(10)}
    assert scores.over_tasks(many)[:3] == pytest.approx(scores.over_tasks(one)[:3])
    alone = scores.over_tasks({"s/t/00000": 0.5})
    assert alone.mean == 0.5
    assert np.isnan(alone.low)


@pytest.mark.parametrize("tasks", [5, 13, 50])
def test_intervals_hold_the_truth_as_often_as_they_say(
    tasks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores of five samples per task, whose tasks are mostly solved or mostly not: the numbers in
    docs/vbvr.md."""
    monkeypatch.setattr(scores, "DRAWS", 2_000)
    rng, held = np.random.default_rng(0), []
    for _ in range(400):
        drawn = rng.beta(1.2, 0.6, (tasks, 1)) + rng.normal(0, 0.15, (tasks, 5))
        found = {f"s/t{i}/{k:05d}": v for i, row in enumerate(drawn) for k, v in enumerate(row)}
        estimate = scores.over_tasks(found)
        held.append(estimate.low <= 1.2 / 1.8 <= estimate.high)
    assert 0.9 <= np.mean(held) <= 0.98


def test_the_still_picture_is_zero_and_the_truth_one() -> None:
    def cell(mean: float) -> Cell:
        return Cell("", "", mean, mean, mean, 1, 1, mean)

    assert scores.restored(cell(0.685), cell(0.366), cell(0.88)) == pytest.approx(0.6206, abs=1e-4)
    assert np.isnan(scores.restored(cell(0.5), cell(0.4), cell(0.4)))


SCORER = """
import json, pathlib, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
model = pathlib.Path(given["--model_path"])
samples = [
    {"folder": v.parts[-3], "task_name": v.parts[-2], "video_file": v.name, "score": 0.25,
     "error": "blurred" if v.name == "00001.mp4" else None}
    for v in sorted(model.rglob("*.mp4"))
]
out = pathlib.Path(given["--output_dir"])
out.mkdir(parents=True, exist_ok=True)
(out / (model.name + "_vbvr_results.json")).write_text(json.dumps({"samples": samples}))
"""


def test_the_official_scorer_is_run_once_and_read(bench_folder: Path, tmp_path: Path) -> None:
    for puzzle in bench_folder.rglob("puzzle.json"):
        puzzle.unlink()
    bench = read_bench(bench_folder)
    video = tmp_path / "arm" / f"{bench.names[0]}.mp4"
    video.parent.mkdir(parents=True)
    video.write_bytes(b"x")
    (tmp_path / "arm" / f"{bench.names[1]}.mp4").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"arm_vbvr_results.json is missing: give the official"):
        scores.score(bench, [tmp_path / "arm"], tmp_path / "s")
    file = tmp_path / "scorer.py"
    file.write_text(SCORER)
    command = shlex.join([sys.executable, str(file)])
    found = scores.score(bench, [tmp_path / "arm"], tmp_path / "s", command)
    assert [s.arm for s in found] == ["arm", "still", "truth"]
    assert found[0].found == {bench.names[0]: 0.25, bench.names[1]: 0.25}
    assert found[0].errors == {bench.names[1]: "blurred"}
    assert len(found[1].found) == len(found[2].found) == 6
    # Again: its files are there, and nothing is run.
    assert scores.score(bench, [tmp_path / "arm"], tmp_path / "s") == found


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_the_scorers_commit_is_told(tmp_path: Path) -> None:
    script = tmp_path / "run_evaluation.py"
    script.touch()
    assert scores.commit_of(f"python {script}") is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    head = (tmp_path / ".git" / "HEAD").read_text().split()[1]
    assert scores.commit_of(f"python {script}") == (tmp_path / ".git" / head).read_text().strip()
    assert scores.commit_of(None) is None


def test_our_own_tasks_judge_themselves(bench_folder: Path, tmp_path: Path) -> None:
    bench = read_bench(bench_folder)
    (tmp_path / "arm").mkdir()
    empty, still, truth = scores.score(bench, [tmp_path / "arm"], tmp_path / "s")
    assert empty.found == {}
    assert max(still.found.values()) <= 0.1
    assert min(truth.found.values()) >= 0.95
    broken = tmp_path / "arm" / f"{bench.names[0]}.mp4"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no video")
    again = scores.score(bench, [tmp_path / "arm"], tmp_path / "s")[0]
    assert again.found == {bench.names[0]: 0.0}
    assert "no video that can be read" in again.errors[bench.names[0]]


def test_a_file_that_is_no_result_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a_vbvr_results.json"
    for content in ("[]", "{}", json.dumps({"samples": [{"score": 1}]})):
        file.write_text(content)
        with pytest.raises(ValueError, match="is no results file of the official scorer"):
            scores.read_results(file, "a", NAMES)


def test_arms_need_names_of_their_own(bench_folder: Path, tmp_path: Path) -> None:
    bench = read_bench(bench_folder)
    for names in (("a/x", "b/x"), ("still",)):
        with pytest.raises(ValueError, match="arms are told apart by their folders' names"):
            scores.score(bench, [tmp_path / name for name in names], tmp_path / "s")
    with pytest.raises(ValueError, match="there is no folder"):
        scores.score(bench, [tmp_path / "absent"], tmp_path / "s")
