"""Scores and tables: known answers."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jcos.bench import scores
from jcos.bench.folder import Bench, read_bench
from jcos.bench.scores import Scores

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


def cells(rows: list[dict[str, Any]]) -> dict[tuple[str, str], SimpleNamespace]:
    return {(row["arm"], row["group"]): SimpleNamespace(**row) for row in rows}


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
    assert (found["a", "OOD"].low, found["a", "OOD"].high) == (0, 1), (
        "not beyond what scores can be"
    )
    assert np.isnan(cells(scores.table(BENCH, [arm("b", *[None] * 6)]))["b", "ID"].official)


def test_arms_are_compared_sample_by_sample() -> None:
    """A gain that is the same everywhere has the spread of its size, however samples differ."""
    base = arm("base", 0.0, 0.2, 0.4, 0.6, 0.8, 0.1)
    better = arm("better", *(v + 0.1 for v in base.values.values()))
    for cell in cells(scores.table(BENCH, [better], base)).values():
        assert cell.mean == pytest.approx(0.1)
        assert cell.low < 0.1 < cell.high
        assert cell.high - cell.mean == pytest.approx(cell.mean - cell.low)
        assert cell.official == pytest.approx(0.1)


def test_intervals_are_over_tasks() -> None:
    """Samples of a task that agree say no more than one of them."""
    many = {f"s/t{i}/{k:05d}": float(i % 2) for i in range(10) for k in range(5)}
    one = {f"s/t{i}/00000": float(i % 2) for i in range(10)}
    assert scores.over_tasks(many)[:3] == pytest.approx(scores.over_tasks(one)[:3])
    alone = scores.over_tasks({"s/t/00000": 0.5})
    assert alone.mean == 0.5
    assert alone.low < 0 < 1 < alone.high


@pytest.mark.parametrize("tasks", [5, 13, 50])
def test_intervals_hold_the_truth_as_often_as_they_say(tasks: int) -> None:
    """Scores of five samples per task, whose tasks are mostly solved or mostly not: the numbers in
    docs/vbvr.md."""
    rng, held = np.random.default_rng(0), []
    for _ in range(400):
        drawn = rng.beta(1.2, 0.6, (tasks, 1)) + rng.normal(0, 0.15, (tasks, 5))
        found = {f"s/t{i}/{k:05d}": v for i, row in enumerate(drawn) for k, v in enumerate(row)}
        estimate = scores.over_tasks(found)
        held.append(estimate.low <= 1.2 / 1.8 <= estimate.high)
    assert 0.9 <= np.mean(held) <= 0.98


def test_the_still_picture_is_zero_and_the_truth_one() -> None:
    assert scores.restored(0.685, 0.366, 0.88) == pytest.approx(0.6206, abs=1e-4)
    assert np.isnan(scores.restored(0.685, 0.366, 0.366))


def test_our_own_tasks_judge_themselves(bench_folder: Path, tmp_path: Path) -> None:
    bench = read_bench(bench_folder)
    (tmp_path / "arm").mkdir()
    empty, still, truth = scores.score(bench, [tmp_path / "arm"], tmp_path / "s")
    assert empty.values == {}
    with pytest.raises(ValueError, match="leave out the scorer"):
        scores.score(bench, [tmp_path / "arm"], tmp_path / "s", "python nowhere.py")
    assert max(still.values.values()) <= 0.1
    assert min(truth.values.values()) >= 0.95
    broken = tmp_path / "arm" / f"{bench.names[0]}.mp4"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no video")
    again = scores.score(bench, [tmp_path / "arm"], tmp_path / "s")[0]
    assert again.values == {bench.names[0]: 0.0}
    assert "no video that can be read" in again.errors[bench.names[0]]


@pytest.mark.slow
def test_baselines_follow_the_samples_and_the_codec_of_the_benchmark(
    bench_folder, tmp_path, monkeypatch
) -> None:
    """They are remade where a sample of the same name has another picture or truth, or where they
    were written otherwise; else left alone."""
    bench, out, arm = read_bench(bench_folder), tmp_path / "s", tmp_path / "arm"
    arm.mkdir()

    def remade() -> set[tuple[str, str]]:
        """Baseline and sample."""
        for video in out.rglob("*.mp4"):
            os.utime(video, (1, 1))
        scores.score(read_bench(bench_folder), [arm], out)
        new = (p.relative_to(out) for p in out.rglob("*.mp4") if p.stat().st_mtime != 1)
        return {(p.parts[0], Path(*p.parts[1:]).with_suffix("").as_posix()) for p in new}

    assert len(remade()) == 12
    assert remade() == set()
    first, second = bench.samples[:2]
    shutil.copy(second.picture, first.picture)
    assert remade() == {("still", first.name)}
    shutil.copy(second.truth, first.truth)
    assert remade() == {("truth", first.name)}
    assert (out / "truth" / f"{first.name}.mp4").read_bytes() == second.truth.read_bytes()
    coarse = (out / "still" / f"{first.name}.mp4").stat().st_size
    monkeypatch.setitem(scores.CRF, "vbvr", 1)
    assert remade() == {("still", name) for name in bench.names}
    assert (out / "still" / f"{first.name}.mp4").stat().st_size > coarse


def test_arms_are_told_apart_by_the_folders_above(bench_folder: Path, tmp_path: Path) -> None:
    arms = [tmp_path / name for name in ("a/base", "b/base", "a/noise", "a/still")]
    bench = read_bench(bench_folder)
    for folder in arms:
        folder.mkdir(parents=True)
    video = arms[1] / f"{bench.names[0]}.mp4"
    video.parent.mkdir(parents=True)
    shutil.copy(bench.samples[0].truth, video)
    found = scores.score(bench, arms, tmp_path / "s")
    names = ["a/base", "b/base", "a/noise", "a/still", "still", "truth"]
    assert [s.arm for s in found] == names
    assert [len(s.values) for s in found] == [0, 1, 0, 0, 6, 6]
    rows = scores.table(bench, found)
    assert list(dict.fromkeys(row["arm"] for row in rows)) == names
    for folders, says in (
        ([arms[0], arms[0]], "a/base is named twice"),
        ([tmp_path / "absent"], "there is no folder"),
        ([tmp_path / "b"], f"b is no arm; its arms are {arms[1]}"),
    ):
        with pytest.raises(ValueError, match=says):
            scores.score(bench, folders, tmp_path / "s")
