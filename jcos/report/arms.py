"""What a folder of `jcos bench run` says of its samples, beside their films."""

from collections.abc import Iterable
from pathlib import Path

from jcos.files import read_json, visible

ASIDE = {"arm": ("state",), "arms": ("still", "truth", "official")}
"""By what a manifest is of, an arm or the scores of some: folders of book-keeping and of baselines,
which are none of a page's files."""


def samples_of(folder: Path, films: Iterable[Path]) -> tuple[dict[str, str], list[str]]:
    """Return what the notes and the summary in an arm's folder with these films say: prompts by the
    name of a sample, its film's path without ending; and what lacks, in sentences."""
    there = {film.relative_to(folder).with_suffix("").as_posix() for film in films}

    def noted(kind: str, what: str) -> dict[str, str]:
        notes = folder / "state" / kind
        files = {p.relative_to(notes).with_suffix(""): p for p in visible(notes, "**/*.json")}
        return {name.as_posix(): str(read_json(p).get(what, "")) for name, p in files.items()}

    prompts = noted("made", "prompt")
    lacking = dict.fromkeys(prompts, "it is missing.")
    failed = noted("failed", "reason")
    lacking |= {name: f"it failed ({why})." for name, why in failed.items()}
    missing = [f"{name}.mp4: {why}" for name, why in lacking.items() if name not in there]
    summary = read_json(folder / "summary.json")
    faults, total = summary.get("faults", {}), summary.get("total", 0)
    missing += [f"{name}: in the benchmark, {why}." for name, why in faults.items()]
    if len(there) < total:
        missing.insert(0, f"{len(there)} of {total} videos are there.")
    return prompts, missing
