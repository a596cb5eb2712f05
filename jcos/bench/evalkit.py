"""The official scorer, `run_evaluation.py` of VBVR-EvalKit: its results, found or made."""

import contextlib
import hashlib
import json
import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jcos.bench.folder import Bench
from jcos.bench.state import read_json
from jcos.files import visible, write
from jcos.runs import as_text, now

RECORD = "scorer.json"
"""Beside results: what made them. Only results that were made by `official` have it."""


class Scores(NamedTuple):
    """Of one arm: scores of the videos that were found, and what went wrong with some of them.

    scorer: command and commit of the official scorer; None where nothing tells.
    """

    arm: str
    found: dict[str, float]
    errors: dict[str, str]
    scorer: dict[str, Any] | None = None


class Results(NamedTuple):
    """What a results file says. folder: of the videos that were scored."""

    folder: Path
    found: dict[str, float]
    errors: dict[str, str]


def official(bench: Bench, arm: Path, name: str, out: Path, scorer: str | None) -> Scores:
    """Scores of the videos in the folder `arm`.

    Of the results that lie in `out`, among the videos or beside their folder, the newest is taken
    that is about this very folder and all its videos as they are; if a scorer is given, of its
    commit, as far as that is known. Else the scorer is run; without one, ValueError.
    """
    videos = {n: video for n in bench.names if (video := arm / f"{n}.mp4").exists()}
    if not videos:
        return Scores(name, {}, {})
    arm = Path(os.path.abspath(arm))
    file = f"{arm.name}_vbvr_results.json"
    # Not in `out` itself: another arm of this name has its results there.
    own = out / "official" / hashlib.sha256(str(arm.resolve()).encode()).hexdigest()[:16]
    commit, faults = commit_of(scorer), []
    places = [place for p in (own, out, arm, arm.parent) if (place := p / file).is_file()]
    for place in sorted(places, key=lambda p: p.stat().st_mtime, reverse=True):
        record = read_json(own / RECORD) if place.parent == own else {}
        try:
            results = read_results(place, bench.names)
            _check(results, place, arm, videos, record, commit)
        except ValueError as fault:
            faults.append(str(fault))
        else:
            return _scores(name, results, videos, record)
    if scorer is None:
        command = f"--model_path {arm} --gt_base {bench.root} --output_dir {arm}"
        raise ValueError(
            f"{'; '.join(faults) or f'{file} is missing'}: give the official scorer with "
            f"--scorer 'python run_evaluation.py', or run it yourself with {command}"
        )
    record = _run(scorer, commit, bench, arm, own)
    return _scores(name, read_results(own / file, bench.names), videos, record)


def _scores(
    name: str, results: Results, videos: Mapping[str, Path], record: Mapping[str, Any]
) -> Scores:
    ignored = dict.fromkeys(videos.keys() - results.found, "the official scorer passed it over")
    scorer = {k: value for k, value in record.items() if k != "videos"}
    return Scores(name, results.found, results.errors | ignored, scorer or None)


def _check(
    results: Results,
    file: Path,
    arm: Path,
    videos: Mapping[str, Path],
    record: Mapping[str, Any],
    commit: str | None,
) -> None:
    """ValueError where results are not those that are wanted. Without a record of the videos that
    were scored, all must be in the results, and none be newer."""
    if results.folder.resolve() != arm.resolve():
        raise ValueError(f"{file} is about the videos in {results.folder}, not in {arm}")
    scored = record.get("videos")
    if scored is None:
        if file.stat().st_mtime < max(video.stat().st_mtime for video in videos.values()):
            raise ValueError(f"{file} is older than the videos")
        lacking = [n for n in videos if n not in results.found]
    else:
        lacking = [n for n, video in videos.items() if scored.get(n) != _state(video)]
    if lacking:
        told = f"{len(lacking)} of {len(videos)} videos as they are, the first {lacking[0]}"
        raise ValueError(f"{file} lacks {told}")
    made_by = record.get("commit")
    if made_by and commit and made_by != commit:
        raise ValueError(f"{file} was made by commit {made_by} of the scorer, not {commit}")


def _run(scorer: str, commit: str | None, bench: Bench, arm: Path, own: Path) -> dict[str, Any]:
    """Leaves results in `own`, and beside them a record of what made them; returns that."""
    for old in own.glob("*.json"):
        old.unlink()
    files = visible(arm, "**/*.mp4")
    videos = {p.relative_to(arm).with_suffix("").as_posix(): _state(p) for p in files}
    command = [*shlex.split(scorer), "--model_path", str(arm), "--gt_base", str(bench.root)]
    try:
        subprocess.run([*command, "--output_dir", str(own), "--device", "cpu"], check=True)
    except subprocess.CalledProcessError as error:
        raise ValueError(f"the scorer ended with exit code {error.returncode}") from None
    record = {"command": scorer, "commit": commit, "date": now(), "videos": videos}
    write(own / RECORD, as_text(record))
    return record


def _state(video: Path) -> list[int]:
    """What tells whether a file has been replaced: also by an older one, as rsync does."""
    about = video.stat()
    return [about.st_size, about.st_mtime_ns]


def commit_of(scorer: str | None) -> str | None:
    """The commit of the scorer, which has changed since the paper; None where nothing tells."""
    for part in shlex.split(scorer or ""):
        if part.endswith(".py") and Path(part).is_file():  # not the interpreter, of pyenv for one
            command = ["git", "-C", str(Path(part).resolve().parent), "rev-parse", "HEAD"]
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                told = subprocess.run(command, capture_output=True, check=True, text=True)
                return told.stdout.strip()
    return None


def read_results(file: Path, names: Sequence[str]) -> Results:
    """The samples of these names in a results file. Its own means are left alone: they are of
    whatever videos the scorer found. Raises ValueError where it is none."""
    known = set(names)
    try:
        about = json.loads(file.read_text())
        results = Results(Path(about["model_path"]), {}, {})
        for entry in about["samples"]:
            number = Path(entry["video_file"]).stem
            name = f"{entry['folder']}/{entry['task_name']}/{number}"
            if name not in known:
                continue
            results.found[name] = float(entry["score"])
            if entry.get("error"):
                results.errors[name] = str(entry["error"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no results file of the official scorer: {error!r}") from None
    return results
