"""What a folder of `jcos bench run` says of its samples, beside their films."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from jcos.files import read_json, visible

STATE = "state"
ASIDE = {"arm": (STATE,), "arms": ("still", "truth", "official")}
"""By what a manifest is of, an arm or the scores of some: folders of book-keeping and of baselines,
which are none of a page's files."""


class Samples(NamedTuple):
    """prompts: by the name of a sample, its film's path without ending. missing: how many films
    there are of how many, if it is not all, and a sentence for each that is known to lack."""

    prompts: dict[str, str]
    missing: list[str]


def samples_of(folder: Path, films: Iterable[Path]) -> Samples:
    """Return what an arm's folder with these films says. A damaged note says nothing."""
    there = {film.relative_to(folder).with_suffix("").as_posix() for film in films}
    notes = folder / STATE / "made"
    made = {
        file.relative_to(notes).with_suffix("").as_posix(): read_json(file)
        for file in visible(notes, "**/*.json")
    }
    # Each worker of a shard has a summary of its own.
    files = [*folder.glob("summary.json")] or sorted(folder.glob("summary-*-of-*.json"))
    summaries = [read_json(file) for file in files]
    lacking = dict.fromkeys(made, "it is missing.")
    for about in summaries:
        failed = about.get("failed", {})
        lacking |= {name: f"it failed ({why})." for name, why in failed.items()}
    missing = [f"{name}.mp4: {why}" for name, why in lacking.items() if name not in there]
    for about in summaries:
        faults = about.get("faults", {})
        missing += [f"{name}: in the benchmark, {why}." for name, why in faults.items()]
    total = sum(about.get("total", 0) for about in summaries)
    if len(there) < total:
        missing.insert(0, f"{len(there)} of {total} videos are there.")
    prompts = {name: str(about["prompt"]) for name, about in made.items() if "prompt" in about}
    return Samples(prompts, missing)
