"""The official scorers, `run_evaluation.py` of VBVR-EvalKit and `run_evaluation_video.py` of
VBVR-Pro-Bench: one is run, and its output is stored. Paths are absolute: the scorers change folder.
"""

import contextlib
import hashlib
import json
import os
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jcos.bench.folder import Bench
from jcos.files import fetched, is_remote, read_json, visible, write
from jcos.runs import as_text, now

RECORD = "scorer.json"
"""Next to results: what made them, of which videos."""
PROBE = """
import json, os, cv2, numpy as np
page = np.full((96, 320, 3), 255, np.uint8)
edge = np.zeros((64, 64), np.uint8)
edge[32, 8:56] = 255
lines = cv2.HoughLinesP(edge, 1, np.pi / 180, 10, minLineLength=10, maxLineGap=2)
cv2.putText(page, "735", (60, 72), cv2.FONT_HERSHEY_SIMPLEX, 2.2, (0, 0, 0), 5)
try:
    import easyocr
    where = os.environ.get("VBVR_EASYOCR_MODELS")
    reader = easyocr.Reader(["en"], False, where, verbose=False, download_enabled=False)
    text = "".join(reader.readtext(page, detail=0))
except Exception as error:
    text = repr(error)[:200]
print(json.dumps({"opencv": cv2.__version__, "lines": list(np.shape(lines)), "text": text}))
"""
"""What VBVR-Pro-Bench's scorer gets silently wrong on some machines: OpenCV 5's lines have another
shape, and text that cannot be read is taken for none."""


class Scores(NamedTuple):
    """Of one arm: scores by sample, of the videos that are there, and what went wrong with some of
    them. scorer: command and version of the official scorer, where that made them."""

    arm: str
    values: dict[str, float]
    errors: dict[str, str]
    scorer: dict[str, Any] | None = None

    @property
    def version(self) -> str | None:
        """Of the scorer that made these; where that is not known, its command."""
        by = self.scorer or {}
        return by.get("commit") or by.get("command")


def official(bench: Bench, arm: Path, name: str, out: Path, scorer: str | None) -> Scores:
    """Return the scores of the videos in the folder `arm` by the official scorer, which leaves them
    in OUT/official/NAME; without `scorer`, those that it left there before of the same videos.

    Raises ValueError where there are none, or the scorer fails.
    """
    videos = {n: video for n in bench.names if (video := arm / f"{n}.mp4").exists()}
    if not videos:
        return Scores(name, {}, {})
    arm, place = _whole(arm), _whole(out) / "official" / name
    record = {"folder": str(arm.resolve()), "videos": {n: _state(v) for n, v in videos.items()}}
    results = place / f"{arm.name}_vbvr_results.json"
    if scorer is not None:
        for older in (place / RECORD, results):
            older.unlink(missing_ok=True)
        _run(scorer, bench, arm, place, record)
    about = read_json(place / RECORD)
    if {key: about.get(key) for key in record} != record:
        raise ValueError(
            f"{place} has no scores of the {len(videos)} videos in {arm} as they are: give the "
            "official scorer with --scorer 'python run_evaluation.py'"
        )
    values, errors = read_results(results, bench.names)
    errors |= dict.fromkeys(videos.keys() - values, "the official scorer passed it over")
    return Scores(name, values, errors, {k: v for k, v in about.items() if k not in record})


def _state(video: Path) -> list[int]:
    """Return what tells whether a file has been replaced: also by an older one, as rsync does."""
    about = video.stat()
    return [about.st_size, about.st_mtime_ns]


def _whole(path: Path) -> Path:
    """Return a path from the root, without `..`."""
    return path if is_remote(path) else Path(os.path.abspath(path))


def _run(scorer: str, bench: Bench, arm: Path, place: Path, record: Mapping[str, Any]) -> None:
    about: dict[str, Any] = {"command": scorer, "commit": version_of(scorer), "date": now()}
    environment = dict(os.environ)
    if bench.benchmark == "vbvr-pro":
        environment["CUDA_VISIBLE_DEVICES"] = ""  # its OCR takes a GPU whatever --device says
        about["probe"] = probe(scorer, environment)
    temporary = tempfile.TemporaryDirectory()
    with fetched(arm) as videos, fetched(_whole(bench.root)) as truth, temporary as new:
        target = Path(new) if is_remote(place) else place
        command = [*shlex.split(scorer), "--model_path", str(videos), "--gt_base", str(truth)]
        command += ["--output_dir", str(target), "--device", "cpu"]
        try:
            subprocess.run(command, check=True, env=environment)
        except subprocess.CalledProcessError as error:
            raise ValueError(f"the scorer ended with exit code {error.returncode}") from None
        if is_remote(place):
            place.upload(target)  # type: ignore[attr-defined]
    write(place / RECORD, as_text({**about, **record}))


def probe(scorer: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return what the scorer's Python makes of a known line and a known number. Raises ValueError
    where it gets one wrong, because the scorer would count that as the videos' fault."""
    words = shlex.split(scorer)
    script = next((i for i, word in enumerate(words) if word.endswith(".py")), 1)
    command = [*words[:script], "-c", PROBE]
    try:
        done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
        answer = json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError) as error:
        why = getattr(error, "stderr", None) or str(error)
        raise ValueError(f"the scorer's Python cannot be used: {why.strip()[-300:]}") from None
    if len(answer["lines"]) != 3:
        raise ValueError(
            f"the scorer's OpenCV {answer['opencv']} returns lines as {answer['lines']}, and tasks "
            "would score 0: install opencv-python<5"
        )
    if "735" not in answer["text"]:
        raise ValueError(
            f"the scorer's OCR reads {answer['text']!r} for 735, and labels would count as absent: "
            "give EasyOCR its models (docs/vbvr.md)"
        )
    return answer


def version_of(scorer: str) -> str:
    """Return what tells two versions of the scorer apart: the commit of its script, if git knows
    it, and a hash of the .py files beside it; the command, where there is no script."""
    files = [Path(word).resolve() for word in shlex.split(scorer) if word.endswith(".py")]
    script = next((file for file in files if file.is_file()), None)
    if script is None:
        return scorer
    whole, commit = hashlib.sha256(), "no-commit"
    for file in filter(Path.is_file, visible(script.parent, "**/*.py")):
        whole.update(f"{file.relative_to(script.parent)} {file.stat().st_size} ".encode())
        whole.update(file.read_bytes())
    quiet: dict[str, Any] = {"cwd": script.parent, "capture_output": True, "check": True}
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        subprocess.run(["git", "ls-files", "--error-unmatch", script.name], **quiet)
        done = subprocess.run(["git", "rev-parse", "HEAD"], text=True, **quiet)
        commit = done.stdout.strip()
    return f"{commit}-{whole.hexdigest()[:12]}"


def read_results(file: Path, names: Sequence[str]) -> tuple[dict[str, float], dict[str, str]]:
    """Return scores and errors of these samples in a results file. Its means are left alone:
    they cover whatever videos there were. Raises ValueError where it is none."""
    scores, errors = {}, {}
    try:
        for entry in json.loads(file.read_text())["samples"]:
            video = entry["video_file"] or ""  # of a missing video there may be none
            name = f"{entry['folder']}/{entry['task_name']}/{Path(video).stem}"
            if name in names:
                scores[name] = float(entry["score"])
                errors |= {name: str(entry["error"])} if entry.get("error") else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no results file of the official scorer: {error!r}") from None
    return {name: scores[name] for name in names if name in scores}, errors
