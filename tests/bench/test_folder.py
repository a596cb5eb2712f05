"""Benchmark folders: what is in them, and what is wrong."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from jcos.bench.export import export, puzzle_of, score
from jcos.bench.folder import OFFICIAL, category_of, read_bench
from jcos.bench.scores import still_of
from jcos.media.formats import write_mp4


def test_the_benchmark_has_a_hundred_tasks_in_five_categories() -> None:
    counts = Counter((row["split"][:2], row["category"][0]) for row in OFFICIAL.values())
    inside = dict(zip("AKPST", (15, 9, 11, 8, 7), strict=True))
    outside = dict(zip("AKPST", (8, 5, 19, 5, 13), strict=True))
    assert counts == {("In", k): n for k, n in inside.items()} | {
        ("Ou", k): n for k, n in outside.items()
    }
    assert len(OFFICIAL) == 100
    assert category_of("O-36_grid_shift_data-generator") == "Transformation"
    assert category_of("O-36_gridshift_data-generator") is None
    assert category_of("O-36_grid_shift") is None


def test_samples_are_read_in_order(bench_folder: Path) -> None:
    bench = read_bench(bench_folder)
    assert bench.faults == {}
    assert [s.name for s in bench.samples] == list(bench.names)
    first, last = bench.samples[0], bench.samples[-1]
    assert first.name == "In-Domain_50/T-1_maze_data-generator/00000"
    assert last.name == "Out-of-Domain_50/T-7_maze7_data-generator/00001"
    assert (first.frames, first.height, first.width) == (5, 160, 160)
    assert last.height > 160
    part = read_bench(bench_folder, per_task=1)
    assert part.samples == bench.samples[::2]  # with their places in the whole


def test_what_is_wrong_is_said_and_the_rest_is_read(bench_folder: Path) -> None:
    inside = bench_folder / "In-Domain_50"
    maze, pattern = (inside / f"T-{t}_data-generator" for t in ("1_maze", "3_pattern"))
    (maze / "00000" / "first_frame.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    (maze / "00001" / "ground_truth.mp4").unlink()
    (pattern / "00000" / "prompt.txt").write_text(" \n")
    shutil.copytree(pattern / "00001", pattern / "1")
    shutil.copytree(pattern / "00001", pattern / "00003")
    for task in ("O-360_grid", "O-36_grid", "O-39_maze"):
        (inside / f"{task}_data-generator" / "00000").mkdir(parents=True)
    bench = read_bench(bench_folder)
    assert len(bench.samples) == 4
    assert len(bench.names) == 8
    said = {name.removeprefix("In-Domain_50/"): why for name, why in bench.faults.items()}
    for name, why in (
        ("T-1_maze_data-generator/00000", "is no picture"),
        ("T-1_maze_data-generator/00001", "no file"),
        ("T-3_pattern_data-generator/00000", "is empty"),
        ("T-3_pattern_data-generator/1", "five digits"),
        ("T-3_pattern_data-generator/00002", "the folder is missing"),
        ("O-360_grid_data-generator", "the benchmark has no task of this name"),
        ("O-36_grid_data-generator", "its O-36 is O-36_grid_shift_data-generator"),
        ("O-39_maze_data-generator", "the benchmark has this task in Out-of-Domain_50"),
    ):
        assert why in said.pop(name)
    assert said == {}


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda folder: read_bench(folder / "new"), "is no benchmark folder"),
        (lambda folder: read_bench(folder / "empty"), "has no samples"),
        (lambda folder: read_bench(folder, per_task=0), "0 samples of each task are asked for"),
        (lambda folder: export(folder / "new", ("chess",), 1), "there is no task 'chess'"),
        (lambda folder: export(folder / "empty", ("maze",), 1), "In-Domain_50"),  # an older export
        (lambda folder: export(folder, ("maze",), 1), "empty"),
    ],
)
def test_folders_that_cannot_be_are_refused(tmp_path: Path, call, says) -> None:
    (tmp_path / "empty" / "In-Domain_50").mkdir(parents=True)
    with pytest.raises(ValueError, match=says):
        call(tmp_path)
    assert len(list(tmp_path.rglob("*"))) == 2


def test_it_is_said_how_much_of_the_benchmark_there_is(bench_folder: Path) -> None:
    bench = read_bench(bench_folder)
    assert bench.extent == "6 samples, 0 of them of the benchmark's 500"
    names = [f"{r['split']}/{task}/{i:05d}" for task, r in OFFICIAL.items() for i in range(5)]
    assert bench._replace(names=tuple(names)).extent == "all 500 samples"
    assert bench._replace(names=tuple(names[:16])).extent == "16 of the benchmark's 500 samples"


def test_exported_puzzles_are_judged_after_the_codec(bench_folder: Path, tmp_path: Path) -> None:
    for sample in read_bench(bench_folder).samples:
        puzzle = puzzle_of(sample)
        assert puzzle is not None
        assert puzzle.prompt == sample.prompt
        worse = tmp_path / "still.mp4"
        write_mp4(worse, still_of(sample), crf=25)
        assert score(puzzle, sample.truth) >= 0.95
        assert score(puzzle, worse) <= 0.1
