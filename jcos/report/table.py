"""The table of runs below a folder: what each is, its score, in what it differs from the others."""

import contextlib
import csv
import datetime as dt
import functools
import io
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np

from jcos.media import formats
from jcos.report.contents import OUTCOMES, settings_of
from jcos.report.plane import PLANES
from jcos.report.reading import ESTIMATES, FIGURES, TABLE, UNREADABLE, manifest_of
from jcos.runs import MANIFEST

HOW = ("versions", "mesh", "numerics", "puzzles")
"""Settings that a table does not name."""
LONGEST, DIGEST = 60, re.compile("[0-9a-f]{64}")
"""Characters of a setting; a digest is cut to eight."""
MOST = 6
"""Differences that a row names."""
EMPTY = b'<svg xmlns="http://www.w3.org/2000/svg" width="3" height="2"/>'


def rows_of(folder: Path, runs: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Return the runs of a folder by their addresses, the newest first."""
    manifests: dict[str, dict[str, Any]] = defaultdict(dict)
    faults, when = {}, {}
    for key, path in runs.items():
        try:
            when[key] = (path / MANIFEST).stat().st_mtime
            manifests[key] = manifest_of(path)
        except UNREADABLE as error:
            faults[key] = f"run.json cannot be read ({error})"
    settings = {key: settings_of(manifests[key], (*HOW, *OUTCOMES)) for key in runs}
    kinds = {key: kind_of(manifests[key]) for key in runs}

    @functools.cache
    def usual(kind: str, name: str) -> str:
        alike = (settings[key].get(name, "–") for key in runs if kinds[key] == kind)
        return Counter(alike).most_common(1)[0][0]

    rows = []
    for key, path in runs.items():
        about = manifests[key]
        differ = [f"{n} {_cut(v)}" for n, v in settings[key].items() if usual(kinds[key], n) != v]
        more = [f"{len(differ) - MOST} more"] if len(differ) > MOST else []
        name, score = score_of(path, about)
        titles = (about.get(entry) for entry in ("title", "question", "command"))
        rows.append(
            {
                "key": key,
                "path": path.relative_to(folder).as_posix() if path != folder else path.name,
                "title": faults.get(key) or next(filter(None, titles), ""),
                "kind": kinds[key],
                "score": score,
                "score_name": name,
                "differs": "; ".join(differ[:MOST] + more),
                "when": dt.datetime.fromtimestamp(when.get(key, 0)).isoformat(" ", "minutes"),
            }
        )
    return sorted(rows, key=lambda row: row["when"], reverse=True)


def kind_of(manifest: Mapping[str, Any]) -> str:
    """Return what made a run: an experiment by its name, else the command."""
    words = str(manifest.get("command", "")).split()
    made = " ".join(words[1 : 3 if words[1:2] == ["bench"] else 2])
    return str(manifest.get("experiment") or made or ("look" if "planes" in manifest else ""))


def score_of(folder: Path, manifest: Mapping[str, Any]) -> tuple[str, float | None]:
    """Return the share of runs that are solved, or else the first number of the table."""
    planes = manifest.get("planes")
    solved = manifest.get("solved")
    if isinstance(planes, list):
        solved = [
            p["solved"] for p in planes if isinstance(p, dict) and p.get("solved") is not None
        ]
    try:
        if solved:
            return "solved", float(np.mean(np.array(solved, float)))
        with (folder / TABLE).open(newline="", encoding="utf-8") as file:
            row = next(csv.DictReader(file))
        value = next(row[name] for name in ESTIMATES if row.get(name))
        words = (row.get("task") or "", row.get("measure") or "", row.get("case") or "")
        return ", ".join(filter(None, words)), float(value)
    except (*UNREADABLE, StopIteration):
        return "", None


def thumbnail(folder: Path) -> tuple[bytes | Path, str]:
    """Return a picture of a run and its type: the end of its first video, or its first figure; an
    empty one where it has neither."""
    with contextlib.suppress(*UNREADABLE, StopIteration):
        if (folder / PLANES).is_file():
            with np.load(folder / PLANES, allow_pickle=False) as arrays:
                name = next(n for n in ("video_0", "x0_0") if n in arrays.files)
                frame = arrays[name].reshape(-1, *arrays[name].shape[-3:])[-1]
            return formats.png(frame), "image/png"
        for path in sorted(folder.glob("puzzle-*.webp")):
            return path, "image/webp"
        for path in sorted(folder.glob(f"{FIGURES}/*.svg")):
            return path, "image/svg+xml"
        films = (path for path in folder.rglob("*.mp4") if "-x0-step-" not in path.stem)
        with av.open(str(min(films, default=""))) as film:
            film.seek(film.duration or 0)  # to the last picture that needs none before it
            *_, last = film.decode(video=0)
            picture = last.to_image()
        picture.thumbnail((176, 116))
        picture.save(data := io.BytesIO(), "PNG")
        return data.getvalue(), "image/png"
    return EMPTY, "image/svg+xml"


def _cut(text: str) -> str:
    """Return what a table has room for."""
    room = 8 if DIGEST.fullmatch(text) else LONGEST
    return text if len(text) <= room else f"{text[: room - 1]}…"
