"""A run's folder: what was run, by which versions; whether two runs are the same.

Settings are the entries of a manifest, a JSON file, that decide the results. Two runs with equal
settings are the same run, and the second goes on where the first stopped.
"""

import contextlib
import datetime as dt
import json
import os
import platform
import textwrap
from collections.abc import Iterator, Mapping
from importlib import metadata
from operator import methodcaller
from pathlib import Path
from typing import Any

import jax

from jcos import files
from jcos.devices import sharding

MANIFEST = "run.json"
KINDS = ("experiment", "planes", "puzzles", "search", "checkpoint", "arm", "arms")
"""Entries that say what made a manifest: `jcos run`, `demo` (and `Look.save`), `sample` (which has
`planes` too), `search`, `generate`, `bench run`, `bench score`."""
REMEDY = "choose another --out"
SHOWN, WIDE = 4, 50
"""Differences that a message names, and characters of a value."""


def made(command: str, mesh: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Return how results come about, in which two runs of the same settings may differ."""
    return {
        "command": command,
        "date": now(),
        "versions": versions(),
        "machine": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores",
        "device": jax.devices()[0].device_kind,
        "mesh": sharding.describe(jax.sharding.get_mesh() if mesh is None else mesh),
    }


def versions() -> dict[str, str]:
    found = {name: metadata.version(name) for name in ("jcos", "jax", "flax", "numpy")}
    return found | {"python": platform.python_version()}


def now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def as_text(manifest: Mapping[str, Any]) -> str:
    text = json.dumps(manifest, indent=1, ensure_ascii=False, default=methodcaller("item"))
    return text + "\n"


def read(file: Path, kind: str | None = None) -> dict[str, Any] | None:
    """Return a manifest, or None where there is none.

    Raises ValueError where it cannot be read, or is not of this kind (one of `KINDS`).
    """
    try:
        found = files.json_object(file, "manifest of jcos; choose another folder, or remove it")
    except (FileNotFoundError, NotADirectoryError):
        return None
    sampled = kind == "planes" and "puzzles" in found  # their pictures are planes, too
    if kind is not None and (kind not in found or sampled):
        raise ValueError(f"{file} is of something else{_maker(found)}; choose another folder")
    return found


def holds(folder: Path, kind: str, settings: Mapping[str, Any]) -> bool:
    """Return whether a folder holds this run; False where it is empty but perhaps for a manifest.

    Raises ValueError where it holds another run, or something that is no run of this kind.
    """
    found = read(folder / MANIFEST, kind)
    inside = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    inside = sorted(name for name in inside if name != MANIFEST and not name.startswith("."))
    if found is None and inside:
        remedy = f"remove what is in it, or {REMEDY}" if kind == "experiment" else REMEDY
        raise ValueError(f"{folder} holds {inside[0]}, but no {MANIFEST} of a run: {remedy}")
    if found is None or not inside:
        return False
    check_same(folder, found, settings)
    return True


def check_same(
    folder: Path, found: Mapping[str, Any], settings: Mapping[str, Any], remedy: str = REMEDY
) -> None:
    """Raise ValueError where the manifest of a folder has other settings. None is as good as an
    entry that is not there: results may be older than a setting."""
    new = _flat(json.loads(as_text(settings)))
    old = _flat({name: found.get(name) for name in settings})
    differ = [_difference(k, old.get(k), new.get(k)) for k in old | new if old.get(k) != new.get(k)]
    if differ:
        shown = ([words for words in differ if "…" not in words] or differ)[:SHOWN]
        more = [f"{len(differ) - len(shown)} more"] if len(differ) > len(shown) else []
        differences = "; ".join(shown + more)
        raise ValueError(
            f"{folder} holds a run with other settings ({differences}){_maker(found)}: {remedy}"
        )


@contextlib.contextmanager
def begun(folder: Path, manifest: Mapping[str, Any], size: int) -> Iterator[None]:
    """Write the manifest before the work, and hold `size` bytes of the disk until it is done. Work
    that fails leaves nothing."""
    files.write(folder / MANIFEST, as_text(manifest))
    try:
        with files.reserved(folder, size):
            yield
    except BaseException:
        if [p.name for p in folder.iterdir()] == [MANIFEST]:
            (folder / MANIFEST).unlink()
            with contextlib.suppress(OSError):  # a link, or a place where others work
                folder.rmdir()
        raise


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return flat


def _difference(name: str, old: object, new: object) -> str:
    """Return `puzzles 64, not 32`; of long values the part where they begin to differ, of long
    lists their lengths."""
    values = [str(old), str(new)]
    if isinstance(old, list) and isinstance(new, list) and max(map(len, values)) > WIDE:
        values = [str(len(old)), str(len(new))] if len(old) != len(new) else values
    if max(map(len, values)) > WIDE:
        pairs = enumerate(zip(*values, strict=False))
        same = next((i for i, (a, b) in pairs if a != b), min(map(len, values)))
        start = max(0, same - WIDE // 2)
        values = [f"…{text[start : start + WIDE]}…" for text in values]
    return f"{name} {values[0]}, not {values[1]}"


def _maker(found: Mapping[str, Any]) -> str:
    command = textwrap.shorten(str(found.get("command") or ""), 2 * WIDE, placeholder=" …")
    return f", made by `{command}`" if command else ""
