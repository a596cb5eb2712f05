"""What a folder of `jcos bench run` says of its samples, beside their films."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jcos.files import visible

STATE = "state"
ASIDE = {"arm": (STATE,), "arms": ("still", "truth", "official")}
"""By what a manifest is of, an arm or the scores of some: folders of book-keeping and of baselines,
which are none of a page's files."""


class Samples(NamedTuple):
    """prompts: by the name of a sample, its film's path without ending. missing: how many films
    there are of how many, if it is not all, and a sentence for each that is known to lack."""

    prompts: dict[str, str]
    missing: list[str]


def is_arm(manifest: Mapping[str, Any]) -> bool:
    return isinstance(manifest.get("arm"), dict)


def aside(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(name for kind, names in ASIDE.items() if kind in manifest for name in names)


def samples_of(folder: Path, films: Iterable[Path]) -> Samples:
    """Of an arm's folder with these films. A note that cannot be read says nothing."""
    there = {film.relative_to(folder).with_suffix("").as_posix() for film in films}
    made, failed = (_notes(folder / STATE / kind) for kind in ("made", "failed"))
    lacking = dict.fromkeys(made, "it is missing.")
    lacking |= {name: f"it failed ({about.get('reason')})." for name, about in failed.items()}
    missing = [f"{name}.mp4: {why}" for name, why in lacking.items() if name not in there]
    # Each worker of a shard has a summary of its own.
    summaries = [_note(folder / "summary.json")] if (folder / "summary.json").is_file() else []
    summaries = summaries or [_note(path) for path in sorted(folder.glob("summary-*-of-*.json"))]
    for about in summaries:
        faults = about.get("faults")
        if isinstance(faults, dict):
            missing += [f"{name}: in the benchmark, {why}." for name, why in faults.items()]
    total = sum(n for about in summaries if isinstance(n := about.get("total"), int))
    if len(there) < total:
        missing.insert(0, f"{len(there)} of {total} videos are there.")
    prompts = {name: str(about["prompt"]) for name, about in made.items() if "prompt" in about}
    return Samples(prompts, missing)


def _notes(kind: Path) -> dict[str, dict[str, Any]]:
    """By the samples' names."""
    files = visible(kind, "**/*.json")
    return {file.relative_to(kind).with_suffix("").as_posix(): _note(file) for file in files}


def _note(file: Path) -> dict[str, Any]:
    try:
        content: object = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
