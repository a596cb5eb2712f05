"""Scores of arms, of a still picture and of the ground truth: the official scorer's, or those of
the small tasks. Missing videos count as zero."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import UInt8

from jcos.bench import export
from jcos.bench.arm import resized
from jcos.bench.evalkit import Scores, official
from jcos.bench.folder import SPLITS, TITLES, Bench, Sample, category_of, task_of
from jcos.bench.results import Folder
from jcos.files import check_folder, check_room, read_json, visible, write
from jcos.lab.measures import UNBOUNDED, Estimate, estimate
from jcos.media.formats import write_mp4
from jcos.media.image import read_picture
from jcos.runs import MANIFEST, as_text, made, read

STILL, TRUTH = "still", "truth"
"""Arms that `score` makes itself: the first frame held, and the ground truth."""
CRF = {"vbvr": 25, "vbvr-pro": 12}
"""Of still pictures, as of a benchmark's arms: some rules see the difference (of G-174, by 0.2)."""
TRUTH_AT_LEAST = 0.988
"""The least that a sample's ground truth scored against itself, as published for VBVR-Pro-Bench."""


class Comparison(NamedTuple):
    """scores: of the arms, the first of which is the baseline, then of still and truth.

    table: a line for each arm and group. kind: `score`, or `less` the baseline, sample by sample.
    mean, low, high: over n samples, the missing ones as zero, with a 95 % interval over tasks.
    found: videos there are. official: the mean over those alone, as the official scorer has it;
    nan where there are none.
    """

    scores: list[Scores]
    table: pd.DataFrame


def compare(
    bench: Bench, arms: Sequence[Path], out: Path, scorer: str | None = None, command: str = ""
) -> Comparison:
    """Return what arms score, with a still picture and the ground truth, paired by sample.

    Writes OUT/scores.json (every sample), OUT/table.csv, OUT/run.json and the baselines' videos.
    Raises ValueError as `score`, and OSError where `out` cannot be written.
    """
    read(out / MANIFEST, "arms")  # not into the folder of an arm
    check_room(out)
    scores = score(bench, arms, out, scorer)
    check(bench, scores)
    rows = table(bench, scores) + table(bench, scores[1 : len(arms)], scores[0])
    frame = pd.DataFrame(rows)
    versions = {arm.arm: arm.version for arm in scores}
    frame["scorer"] = [versions.get(arm) or "" for arm in frame["arm"]]
    parts = {a.arm: {"scores": a.values, "errors": a.errors, "scorer": a.scorer} for a in scores}
    write(out / "scores.json", as_text({"samples": bench.extent, "arms": parts}))
    write(out / "table.csv", frame.to_csv(index=False, na_rep="nan"))
    about = {
        "question": f"What do these arms score on {TITLES[bench.benchmark]}?",
        "samples": {"folder": str(bench.root), "extent": bench.extent},
        "arms": {arm.arm: str(path) for arm, path in zip(scores, arms, strict=False)},
        "scorer": {arm.arm: arm.scorer for arm in scores},
    }
    write(out / MANIFEST, as_text(about | made(command)))
    return Comparison(scores, frame)


def check(bench: Bench, scores: Sequence[Scores]) -> None:
    """Raise ValueError where a scorer cannot have measured: scores of several of its versions, or,
    of VBVR-Pro-Bench, a ground truth that does not score itself."""
    versions = {arm.arm: arm.version for arm in scores if arm.values}
    if len(set(versions.values())) > 1:
        each = "; ".join(f"{name} {version}" for name, version in versions.items())
        raise ValueError(f"scores of several scorers are not compared: {each}; score all anew")
    truth = scores[-1]
    mean = float(np.mean([*truth.values.values()])) if truth.values else 0.0
    if bench.benchmark == "vbvr-pro" and truth.scorer is not None and mean < TRUTH_AT_LEAST:
        raise ValueError(
            f"the ground truth scores {mean:.3f} against itself, at least {TRUTH_AT_LEAST} is "
            f"known: the scorer does not work here ({len(truth.errors)} errors)"
        )


def score(bench: Bench, arms: Sequence[Path], out: Path, scorer: str | None = None) -> list[Scores]:
    """Scores of the arms, then of the still pictures and of the ground truth, whose videos are made
    in `out`.

    scorer: the command that runs the official `run_evaluation.py`; without one, the results of the
    last time are read. Raises ValueError where there are none, or no arms.
    """
    if not arms:
        raise ValueError("no arms; name at least one folder of videos")
    for arm in arms:
        check_folder(arm)
        inside = {str(path.parent): 0 for path in visible(arm, "*/*_50") if path.name in SPLITS}
        if inside and not any((arm / split).is_dir() for split in SPLITS):
            raise ValueError(f"{arm} is no arm; its arms are {', '.join(inside)}")
    names = [*labels(arms), STILL, TRUTH]
    puzzles = [export.puzzle_of(sample) for sample in bench.samples]
    small = puzzles and all(puzzles)
    if small and scorer is not None:
        raise ValueError("the exported small tasks judge themselves; leave out the scorer")
    folders = [*arms, *baselines(bench, out)]
    if small:
        return [_judged(bench, *arm) for arm in zip(folders, names, strict=True)]
    return [official(bench, *arm, out, scorer) for arm in zip(folders, names, strict=True)]


def baselines(bench: Bench, out: Path) -> tuple[Path, Path]:
    """Return the folders of still pictures and of the ground truth in `out`, laid out as an arm's.
    A video that is there is left alone if it was made of the same files."""
    still, truth, crf = Folder(out / STILL), Folder(out / TRUTH), CRF[bench.benchmark]
    for sample in bench.samples:
        video, content = truth.video(sample.name), sample.truth.read_bytes()
        if not video.exists() or video.read_bytes() != content:
            write(video, content)
        video, about = still.video(sample.name), {"digest": sample.digest, "crf": crf}
        made_of = read_json(still.about(sample.name, "made"))
        if not (video.exists() and about.items() <= made_of.items()):
            write_mp4(video, still_of(sample), crf=crf)
            still.note(sample.name, "made", about)
    return still.path, truth.path


def still_of(sample: Sample) -> UInt8[np.ndarray, "F H W 3"]:
    """Return the first frame held for the whole clip, sides even as H.264 needs them."""
    height, width = (side + side % 2 for side in (sample.height, sample.width))
    first = resized(read_picture(sample.picture), height, width, exact=False)
    return np.broadcast_to(first, (sample.frames, *first.shape)).copy()


def labels(arms: Sequence[Path]) -> list[str]:
    """Return a name for each arm's folder: its path below the folder that all of them are in.

    Raises ValueError where a folder comes twice.
    """
    paths = [os.path.abspath(arm) for arm in arms]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise ValueError(f"{twice[0]} is named twice; each arm is a folder by itself")
    above = os.path.commonpath([os.path.dirname(path) for path in paths])
    if {os.path.join(above, name) for name in (STILL, TRUTH)} & set(paths):
        above = os.path.dirname(above)  # names of the baselines
    return [os.path.relpath(path, above).replace(os.sep, "/") for path in paths]


def _judged(bench: Bench, arm: Path, name: str) -> Scores:
    scores = Scores(name, {}, {})
    for sample in bench.samples:
        video, puzzle = arm / f"{sample.name}.mp4", export.puzzle_of(sample)
        if puzzle is None or not video.exists():
            continue
        try:
            scores.values[sample.name] = export.score(puzzle, video)
        except ValueError as error:  # as the official scorer: it counts, with nothing
            scores.values[sample.name] = 0.0
            scores.errors[sample.name] = str(error)
    return scores


def groups(names: Sequence[str], benchmark: str = "vbvr") -> dict[str, list[str]]:
    """The columns of the paper's table: overall, both splits, and each split's categories."""
    members: dict[str, list[str]] = {}
    for name in names:
        split = SPLITS[name.split("/")[0]]
        for group in (split, f"{split} {category_of(task_of(name), benchmark)}"):
            members.setdefault(group, []).append(name)
    return {"overall": list(names)} | dict(sorted(members.items()))


def over_tasks(values: dict[str, float]) -> Estimate:
    """The mean over samples with a 95 % interval (`measures.estimate`): over tasks, because the
    samples of a task rise and fall together; over samples, where there is one task. A task's mean
    over its samples is taken as having no bounds, which it hardly ever meets."""
    scores = np.array(list(values.values()), np.float64)
    _, task = np.unique([task_of(name) for name in values], return_inverse=True)
    return estimate(scores, UNBOUNDED, groups=task if task.any() else None)


def table(bench: Bench, arms: Sequence[Scores], base: Scores | None = None) -> list[dict[str, Any]]:
    """Return the lines of `Comparison.table` of every arm in every group; less `base`, sample by
    sample, if there is one. official: of samples that both have."""
    rows, less = [], {} if base is None else base.values
    kind = "score" if base is None else f"less {base.arm}"
    for scores in arms:
        for group, names in groups(bench.names, bench.benchmark).items():
            gain = {n: scores.values.get(n, 0.0) - less.get(n, 0.0) for n in names}
            there = [n for n in names if n in scores.values and (base is None or n in less)]
            official = float(np.mean([gain[n] for n in there])) if there else float("nan")
            mean, low, high, n = over_tasks(gain)
            span = {"low": max(low, 0.0 if base is None else -1.0), "high": min(high, 1.0)}
            row = {"kind": kind, "arm": scores.arm, "group": group, "mean": mean, **span, "n": n}
            rows.append(row | {"found": len(there), "official": official})
    return rows


def restored(mean: float, still: float, truth: float) -> float:
    """Where an arm stands between still picture, 0, and truth, 1; nan where these are the same."""
    return (mean - still) / (truth - still) if truth > still else float("nan")
