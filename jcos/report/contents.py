"""What of folders of results stands still on their page: sections, figures, films, settings, files;
and of several folders, the settings in which they differ."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jcos.report import svg
from jcos.report.charts import Chart
from jcos.report.plane import Plane
from jcos.report.reading import UNREADABLE, Results
from jcos.report.templates import inside
from jcos.runs import MANIFEST

DATA = (".nc", ".npz", ".safetensors", ".csv", ".json")
PICTURES = (".png", ".webp", ".svg", ".mp4")
"""Endings of the files that a page lists."""
ELSEWHERE = (
    *("planes", "title", "question", "lead", "command", "figures", "sections", "unfinished"),
    *("changes", "sigmas", "tree", "alive"),
)
"""Entries of a manifest that are shown elsewhere on the page."""
OUTCOMES = (
    *("seconds", "date", "scores", "solved", "rows", "shown_steps", "machine", "device"),
    *("seed", "forwards", "decodes", "judged"),
)
"""Entries that are no settings: two runs that are to be compared may differ in them."""


class Place(NamedTuple):
    """Where a page finds files of the results. put: of a picture or film that it shows. link: of
    one to be had."""

    put: Callable[[Path], str]
    link: Callable[[Path], str]


class Section(NamedTuple):
    """A part of a page."""

    id: str
    title: str
    text: Sequence[str] = ()
    runs: Sequence[int] = ()
    charts: Sequence[int] = ()
    figures: Sequence[dict[str, Any]] = ()


def facts(result: Results) -> list[str]:
    """Return the line below the title: model, steps, time."""
    run = result.manifest
    model = run.get("model")
    name = model.get("name") if isinstance(model, dict) else model
    steps = f"{result.steps} denoising steps" if result.steps else None
    seconds = run.get("seconds")
    took = f"{round(seconds, 1):,g} s" if isinstance(seconds, int | float) else None
    day = str(run.get("date") or "")[:10]
    return [str(fact) for fact in (name, steps, took, run.get("device"), day) if fact]


def figures(result: Results, place: Place) -> dict[str, dict[str, Any]]:
    """Return the figures of a folder by their names, those with a caption first. Pictures of
    puzzles are left out where the page shows their runs."""
    shown, captions = {}, result.captions
    order = {name: i for i, name in enumerate(captions)}
    for path in sorted(result.pictures, key=lambda p: order.get(p.stem, len(order))):
        if (result.runs or result.trees) and path.stem.startswith("puzzle-"):
            continue
        name, drawn = path.stem.replace("_", " "), path.suffix == ".svg"
        shown[path.stem] = {
            "name": name,
            "caption": str(captions.get(path.stem) or name),
            "src": inside(path.name, svg.styled(path)) if drawn else place.put(path),
            "link": place.link(path),
            "drawn": drawn,
        }
    return shown


def sections(
    listed: Sequence[Mapping[str, Any]],
    figures: dict[str, Any],
    runs: Sequence[Plane],
    charts: Sequence[Chart],
    trees: Sequence[Any],
) -> list[Section]:
    """Return the parts of a page in their order: the sections that a manifest lists, the plane
    behind the first of them that shows runs, and what no section names. Charts and runs by their
    numbers."""

    def named(section: Mapping[str, Any], key: str) -> list[str]:
        return [str(name) for name in names] if isinstance(names := section.get(key), list) else []

    story: list[Section] = []
    waiting = [Section("plane", "Step by step")] * bool(runs)
    waiting += [Section("search", "Who went on")] * bool(trees)
    for i, section in enumerate(listed):
        text = str(section.get("text") or "").split("\n\n")
        part = Section(
            f"section-{i}",
            str(section["title"]),
            text=[paragraph for paragraph in text if paragraph.strip()],
            figures=[figures.pop(n) for n in named(section, "figures") if n in figures],
            charts=[k for k, c in enumerate(charts) if c.name in named(section, "charts")],
            runs=[k for k, run in enumerate(runs) if run.group in named(section, "runs")],
        )
        here = {"plane": part.runs, "search": section.get("tree")}
        story += [part, *(one for one in waiting if here[one.id])]
        waiting = [one for one in waiting if not here[one.id]]
    story += waiting
    used = {number for section in story for number in section.charts}
    rest = [i for i in range(len(charts)) if i not in used]
    if figures:
        story.append(Section("figures", "Figures", figures=[*figures.values()]))
    if rest:
        story.append(Section("charts", "Measured", charts=rest))
    return story


def strip_of(run: Plane) -> list[tuple[int, str]]:
    """Return `Plane.strip` of a run; nothing where its pictures cannot be read."""
    try:
        return run.load().strip()
    except UNREADABLE:
        return []


def films(results: Sequence[Results]) -> dict[str, dict[Path, list[Path | None]]]:
    """Return all films by the folders that they lie in, then by their paths inside; of each the
    file in every result, None where there is none: they stand side by side."""
    folders: dict[Path, dict[Path, list[Path | None]]] = defaultdict(dict)
    for i, result in enumerate(results):
        for path in result.films:
            within = path.relative_to(result.folder)
            folders[within.parent].setdefault(within, [None] * len(results))[i] = path
    return {
        parent.as_posix() if parent.name else "at the top": dict(sorted(members.items()))
        for parent, members in sorted(folders.items())
    }


def prompt_of(results: Sequence[Results], film: Path) -> str:
    """Return the prompt of a film, by its path inside; empty where none is known."""
    prompts = (result.prompts.get(film.with_suffix("").as_posix()) for result in results)
    return next(filter(None, prompts), "")


def differences(results: Sequence[Results]) -> list[tuple[str, list[str]]]:
    """Return the settings in which folders that are compared differ, with their values."""
    every = [settings_of(result.manifest) for result in results]
    names = dict.fromkeys(name for settings in every for name in settings)
    rows = [(name, [settings.get(name, "–") for settings in every]) for name in names]
    return [(name, values) for name, values in rows if len({*values}) > 1]


def settings_of(manifest: Mapping[str, Any], but: Sequence[str] = OUTCOMES) -> dict[str, str]:
    """Return what a run was asked for, one level deep; without `but`, also what came out."""
    flat: dict[str, str] = {}
    for key, value in manifest.items():
        if key in ELSEWHERE or key in but:
            continue
        entries = value if isinstance(value, dict) else {"": value}
        named = {f"{key}: {name}" if name else key: one for name, one in entries.items()}
        flat |= {name.replace("_", " "): _value(one) for name, one in named.items()}
    return flat


def _value(value: object) -> str:
    """Return text as it is, all else as JSON has it; not without end."""
    if value is None or value == []:
        return "none"
    if isinstance(value, dict):
        value = ", ".join(f"{key} {_value(one)}" for key, one in value.items())
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 5000 else f"{text[:5000]} …"


def files_of(result: Results) -> list[tuple[Path, str, int]]:
    """Return path, name and size of each file that a page lists, data before pictures."""
    listed = [p for p in result.files if p.suffix in (*DATA, *PICTURES)]
    listed.sort(key=lambda p: (p.name != MANIFEST, p.suffix in PICTURES, p.as_posix()))
    return [(p, p.relative_to(result.folder).as_posix(), p.stat().st_size) for p in listed]
