"""Scores of arms: the official scorer's, which is run if it is given, or, where the samples are the
small tasks, our own. Missing videos count as zero."""

import contextlib
import json
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from jcos.bench import export
from jcos.bench.arm import Arm, resized
from jcos.bench.folder import SPLITS, Bench, Sample, category_of, task_of
from jcos.files import write
from jcos.image import read_picture
from jcos.measures import Estimate
from jcos.media import write_mp4

STILL, TRUTH = "still", "truth"
"""Arms that `score` makes itself: the first frame held, and the ground truth."""


class Scores(NamedTuple):
    """Of one arm: scores of the videos that were found, and what went wrong with some of them."""

    arm: str
    found: dict[str, float]
    errors: dict[str, str]


class Cell(NamedTuple):
    """A number of the table.

    mean, low, high: over n samples, the missing ones as zero, with a 95 % interval over tasks.
    found: videos there are. official: the mean over those alone, as the official scorer has it;
    nan where there are none.
    """

    arm: str
    group: str
    mean: float
    low: float
    high: float
    n: int
    found: int
    official: float


def score(bench: Bench, arms: Sequence[Path], out: Path, scorer: str | None = None) -> list[Scores]:
    """Scores of the arms, then of the still pictures and of the ground truth, whose videos are made
    in `out`.

    scorer: the command that runs the official `run_evaluation.py`; without one, its results are
    read from `out` or from beside the videos. Raises ValueError where there are neither.
    """
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names) or {STILL, TRUTH} & set(names):
        raise ValueError(
            f"arms are told apart by their folders' names, which are {', '.join(names)}; each must "
            f"be another, and none {STILL} or {TRUTH}"
        )
    for arm in arms:
        if not arm.is_dir():
            raise ValueError(f"there is no folder {arm} with the videos of an arm")
    puzzles = [export.puzzle_of(sample) for sample in bench.samples]
    baselines = [_baseline(bench, out / STILL, _still), _baseline(bench, out / TRUTH, _truth)]
    if puzzles and all(puzzles):
        return [_judged(bench, arm) for arm in (*arms, *baselines)]
    return [_official(bench, arm, out, scorer) for arm in (*arms, *baselines)]


def _baseline(bench: Bench, folder: Path, make: Callable[[Sample, Path], None]) -> Path:
    for sample in bench.samples:
        video = folder / f"{sample.name}.mp4"
        if not video.exists():
            make(sample, video)
    return folder


def _still(sample: Sample, video: Path) -> None:
    """Coded as an arm's videos are: some rules see the difference (a still of G-174 loses 0.2)."""
    write_mp4(video, still_of(sample), Arm.fps, crf=Arm.crf)


def still_of(sample: Sample) -> UInt8[np.ndarray, "F H W 3"]:
    """The first frame held for the whole clip, sides even as H.264 needs them."""
    height, width = (side + side % 2 for side in (sample.height, sample.width))
    first = resized(read_picture(sample.picture), height, width, exact=False)
    return np.broadcast_to(first, (sample.frames, *first.shape)).copy()


def _truth(sample: Sample, video: Path) -> None:
    write(video, sample.truth.read_bytes())


def _judged(bench: Bench, arm: Path) -> Scores:
    scores = Scores(arm.name, {}, {})
    for sample in bench.samples:
        video, puzzle = arm / f"{sample.name}.mp4", export.puzzle_of(sample)
        if puzzle is None or not video.exists():
            continue
        try:
            scores.found[sample.name] = export.score(puzzle, video)
        except ValueError as error:  # as the official scorer: it counts, with nothing
            scores.found[sample.name] = 0.0
            scores.errors[sample.name] = str(error)
    return scores


def _official(bench: Bench, arm: Path, out: Path, scorer: str | None) -> Scores:
    file = f"{arm.name}_vbvr_results.json"
    videos = [v for v in (arm / f"{name}.mp4" for name in bench.names) if v.exists()]
    places = [folder / file for folder in (out, arm, arm.parent)]
    results = next((p for p in places if p.is_file()), None)
    newest = max((v.stat().st_mtime for v in videos), default=0.0)
    if results is not None and results.stat().st_mtime >= newest:
        return read_results(results, arm.name, bench.names)
    if not videos:
        return Scores(arm.name, {}, {})
    if scorer is None:
        command = f"--model_path {arm} --gt_base {bench.root} --output_dir {out}"
        lacks = "is missing" if results is None else "is older than the videos"
        raise ValueError(
            f"{file} {lacks}: give the official scorer with --scorer 'python run_evaluation.py', "
            f"or run it yourself with {command}"
        )
    command = [*shlex.split(scorer), "--model_path", str(arm), "--gt_base", str(bench.root)]
    try:
        subprocess.run([*command, "--output_dir", str(out), "--device", "cpu"], check=True)
    except subprocess.CalledProcessError as error:
        raise ValueError(f"the scorer ended with exit code {error.returncode}") from None
    return read_results(out / file, arm.name, bench.names)


def commit_of(scorer: str | None) -> str | None:
    """The commit of the scorer, which has changed since the paper; None where nothing tells."""
    for part in shlex.split(scorer or ""):
        if Path(part).is_file():
            command = ["git", "-C", str(Path(part).resolve().parent), "rev-parse", "HEAD"]
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                told = subprocess.run(command, capture_output=True, check=True, text=True)
                return told.stdout.strip()
    return None


def read_results(file: Path, arm: str, names: Sequence[str]) -> Scores:
    """The samples of a results file of `run_evaluation.py`. Its own means are left alone: they are
    of whatever videos it found. Raises ValueError where it is none."""
    scores, known = Scores(arm, {}, {}), set(names)
    try:
        for entry in json.loads(file.read_text())["samples"]:
            number = Path(entry["video_file"]).stem
            name = f"{entry['folder']}/{entry['task_name']}/{number}"
            if name not in known:
                continue
            scores.found[name] = float(entry["score"])
            if entry.get("error"):
                scores.errors[name] = str(entry["error"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no results file of the official scorer: {error!r}") from None
    return scores


def groups(names: Sequence[str]) -> dict[str, list[str]]:
    """The columns of the paper's table: overall, both splits, and each split's categories."""
    found: dict[str, list[str]] = {"overall": list(names)}
    for split, short in SPLITS.items():
        inside = [name for name in names if name.startswith(f"{split}/")]
        found[short] = inside
        for name in inside:
            found.setdefault(f"{short} {category_of(task_of(name))}", []).append(name)
    ordered = ["overall", *sorted(g for g in found if g != "overall")]
    return {group: found[group] for group in ordered if found[group]}


DRAWS = 10_000


def over_tasks(values: dict[str, float]) -> Estimate:
    """The mean over samples with a 95 % interval: tasks are what is resampled, because the samples
    of a task rise and fall together; samples, where there is one task.

    Percentiles of a bootstrap, taken as much further out as Student's t is than the normal
    distribution (Hesterberg 2015, "expanded percentile interval"): plain ones are too narrow for
    few tasks, and some categories have five. nan where there is one sample.
    """
    scores = np.array(list(values.values()), np.float64)
    _, unit = np.unique([task_of(name) for name in values], return_inverse=True)
    if unit.max() == 0:
        unit = np.arange(len(scores))
    number = int(unit.max()) + 1
    if number == 1:
        return Estimate(float(scores.mean()), float("nan"), float("nan"), 1)
    drawn = np.random.default_rng(0).multinomial(number, np.full(number, 1 / number), DRAWS)
    total, size = (np.bincount(unit, weights) for weights in (scores, None))
    means: Float[np.ndarray, " draws"] = (drawn @ total) / (drawn @ size)
    outside = 100 * _outside(number)
    low, high = np.percentile(means, [outside, 100 - outside])
    return Estimate(float(scores.mean()), float(low), float(high), len(scores))


def _outside(number: int) -> float:
    """Share of a bootstrap of so many units that lies below a 95 % interval: 2.5 % for many."""
    freedom = number - 1
    # The distribution of Student's t by t = √freedom · tan θ.
    angle = np.linspace(0, np.pi / 2, 20_001)
    mass = np.cumsum(np.cos(angle) ** (freedom - 1))
    quantile = np.sqrt(freedom) * np.tan(np.interp(0.95, mass / mass[-1], angle))
    return NormalDist().cdf(-quantile * np.sqrt(number / freedom))


def table(bench: Bench, arms: Sequence[Scores]) -> list[Cell]:
    """Every arm in every group."""
    cells = []
    for scores in arms:
        for group, names in groups(bench.names).items():
            there = [scores.found[name] for name in names if name in scores.found]
            official = float(np.mean(there)) if there else float("nan")
            mean = over_tasks({name: scores.found.get(name, 0.0) for name in names})
            cells.append(Cell(scores.arm, group, *mean, len(there), official))
    return cells


def against(bench: Bench, arms: Sequence[Scores], base: Scores) -> list[Cell]:
    """Every arm less another, sample by sample. official: over samples that both have."""
    cells = []
    for scores in arms:
        for group, names in groups(bench.names).items():
            both = [name for name in names if name in scores.found and name in base.found]
            gain = {n: scores.found.get(n, 0.0) - base.found.get(n, 0.0) for n in names}
            official = float(np.mean([gain[name] for name in both])) if both else float("nan")
            cells.append(Cell(scores.arm, group, *over_tasks(gain), len(both), official))
    return cells


def restored(cell: Cell, still: Cell, truth: Cell) -> float:
    """Where an arm stands between the still picture, 0, and the ground truth, 1; nan where these
    two are the same."""
    span = truth.mean - still.mean
    return (cell.mean - still.mean) / span if span > 0 else float("nan")
