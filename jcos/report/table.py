"""The table of runs below a folder: what each is, its score, in what it differs from the others."""

import contextlib
import csv
import datetime as dt
import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from jcos.media import formats
from jcos.report.contents import ESTIMATES, OUTCOMES, settings_of
from jcos.report.plane import PLANES
from jcos.report.reading import FIGURES, TABLE, UNREADABLE, manifest_of

HOW = ("weights", "versions", "mesh", "numerics", "puzzles", "model")
"""Settings that are too long for a table."""
MOST = 6
"""Differences that a row names."""
EMPTY = b'<svg xmlns="http://www.w3.org/2000/svg" width="3" height="2"/>'


class Row(NamedTuple):
    """A run of the table. key: its address. score: with its name; None where it has none."""

    key: str
    path: str
    title: str
    kind: str
    score: float | None
    score_name: str
    differs: str
    when: str
    fault: str


def rows_of(folder: Path, runs: Mapping[str, Path]) -> list[Row]:
    """Return the runs of a folder, the newest first."""
    manifests: dict[str, dict[str, Any]] = {}
    faults = {}
    for key, path in runs.items():
        try:
            manifests[key] = manifest_of(path)
        except UNREADABLE as error:
            manifests[key], faults[key] = {}, f"run.json cannot be read ({error})"
    settings = {key: _settings(about) for key, about in manifests.items()}
    usual: dict[str, dict[str, str]] = {}
    for kind in {kind_of(about) for about in manifests.values()}:
        alike = [settings[key] for key, about in manifests.items() if kind_of(about) == kind]
        names = {name for one in alike for name in one}
        usual[kind] = {
            n: Counter(one.get(n, "–") for one in alike).most_common(1)[0][0] for n in names
        }
    rows = []
    for key, path in runs.items():
        about, mine = manifests[key], settings[key]
        normal = usual[kind_of(about)]
        differ = [f"{n.replace('_', ' ')} {v}" for n, v in mine.items() if normal[n] != v]
        more = [f"{len(differ) - MOST} more"] if len(differ) > MOST else []
        name, score = score_of(path, about)
        rows.append(
            Row(
                key=key,
                path=path.relative_to(folder).as_posix() if path != folder else path.name,
                title=str(
                    about.get("title") or about.get("question") or about.get("command") or ""
                ),
                kind=kind_of(about),
                score=score,
                score_name=name,
                differs="; ".join(differ[:MOST] + more),
                when=dt.datetime.fromtimestamp(_changed(path)).isoformat(" ", "minutes"),
                fault=faults.get(key, ""),
            )
        )
    return sorted(rows, key=lambda row: row.when, reverse=True)


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
    try:
        if (folder / PLANES).is_file():
            with np.load(folder / PLANES, allow_pickle=False) as arrays:
                name = next(n for n in ("video_0", "x0_0") if n in arrays.files)
                frame = arrays[name].reshape(-1, *arrays[name].shape[-3:])[-1]
            return formats.png(frame), "image/png"
        for pattern, kind in (
            ("puzzle-*.webp", "image/webp"),
            (f"{FIGURES}/*.svg", "image/svg+xml"),
        ):
            if paths := sorted(folder.glob(pattern)):
                return paths[0], kind
        for film in sorted(folder.rglob("*.mp4"))[:1]:
            with av.open(str(film)) as opened:
                picture = next(opened.decode(video=0)).to_image()
            picture.thumbnail((176, 116))
            picture.save(data := io.BytesIO(), "PNG")
            return data.getvalue(), "image/png"
    except (*UNREADABLE, StopIteration):
        pass
    return EMPTY, "image/svg+xml"


def _settings(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that a table has room for."""
    short = {k: v for k, v in manifest.items() if k not in (*HOW, *OUTCOMES)}
    return {name: text for name, text in settings_of(short).items() if len(text) <= 60}


def _changed(folder: Path) -> float:
    times = []
    for path in (folder, *folder.glob("*.json")):
        with contextlib.suppress(OSError):  # a broken link, or gone since it was listed
            times.append(path.stat().st_mtime)
    return max(times, default=0.0)
