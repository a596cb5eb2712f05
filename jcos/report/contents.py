"""What of a folder of results stands still on its page: sections, figures, films, tables, settings
and files; and of several folders, the settings in which they differ."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from jcos.report import svg
from jcos.report.charts import Chart
from jcos.report.reading import UNREADABLE, Results, Table
from jcos.report.runs import Run
from jcos.report.templates import finite
from jcos.runs import MANIFEST

FEW = 6
"""Charts that no section names are shown at once up to so many; more are folded."""
SHORT = 30
"""A table of so many rows, or so many films, are shown at once."""
ESTIMATES = ("value", "mean")
"""Columns of a table that `low` and `high` are the interval of; the first that it has."""
DATA = (".nc", ".npz", ".safetensors", ".csv", ".json")
PICTURES = (".png", ".webp", ".svg", ".mp4")
"""Endings of the files that a page lists."""
WIDE, COLUMN = 1.9, 500
"""Figures whose width is so many times their height have a row of their own; so have drawings wider
than so many points."""
ELSEWHERE = (
    *("planes", "title", "question", "lead", "command", "figures", "sections", "unfinished"),
    *("changes", "tree", "alive"),
)
"""Entries of a manifest that are shown elsewhere on the page."""
OUTCOMES = ("seconds", "date", "scores", "solved", "rows", "shown_steps", "machine", "device")
"""Entries that are no settings: two runs that are to be compared may differ in them."""


class Place(NamedTuple):
    """Where a page finds what is no text. put: keeps a picture under a name, and returns its
    address. link: the address of a file of the results."""

    put: Callable[[str, bytes | Path], str]
    link: Callable[[Path], str]


class Section(NamedTuple):
    """A part of a page. more: charts that are folded."""

    id: str
    title: str
    text: Sequence[str] = ()
    runs: Sequence[int] = ()
    charts: Sequence[int] = ()
    figures: Sequence[dict[str, Any]] = ()
    more: Sequence[int] = ()


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


def folder(result: Results, place: Place) -> dict[str, Any]:
    """Return figures, tables, settings and files of a folder."""
    figures, captions = {}, result.captions
    order = {name: i for i, name in enumerate(captions)}
    ordered = sorted(result.pictures, key=lambda p: order.get(p.stem, len(order)))
    for path in ordered:
        if (result.runs or result.trees) and path.stem.startswith("puzzle-"):
            continue
        try:
            figures[path.stem] = _figure(path, captions.get(path.stem), place)
        except UNREADABLE as error:
            result.lacks(path.relative_to(result.folder).as_posix(), error)
    return {
        "title": result.title,
        "command": str(result.manifest.get("command", "")),
        "figures": figures,
        "tables": [_table(table) for table in result.tables],
        "experiment": "experiment" in result.manifest,
        "settings": [
            (key.replace("_", " "), _value(value))
            for key, value in result.manifest.items()
            if key not in ELSEWHERE
        ],
        "files": _files(result, place),
    }


def _figure(path: Path, caption: Any, place: Place) -> dict[str, Any]:
    name = path.stem.replace("_", " ")
    about = {"name": path.stem, "file": path.name, "caption": str(caption or name)}
    if path.suffix == ".svg":
        drawn, width, height = svg.inline(path, f"Figure: {name}")
        about |= {"svg": drawn, "link": place.link(path)}
        wide = width is not None and height is not None and width > min(WIDE * height, COLUMN)
    else:
        with Image.open(path) as picture:
            width, height = picture.size
        about |= {"src": place.put(path.name, path)}
        wide = width > WIDE * height
    return about | {"width": width, "height": height, "wide": wide}


def sections(
    listed: Sequence[Mapping[str, Any]],
    figures: dict[str, Any],
    runs: Sequence[Run],
    charts: Sequence[Chart],
    trees: Sequence[Any],
) -> list[Section]:
    """Return the parts of a page in their order: the sections that a manifest lists, the plane
    behind the first of them that shows runs, and what no section names. Charts and runs by their
    numbers."""

    def named(section: Mapping[str, Any], key: str) -> list[str]:
        return [str(name) for name in names] if isinstance(names := section.get(key), list) else []

    story = [
        Section(
            f"section-{i}",
            str(section["title"]),
            text=[p for p in str(section.get("text") or "").split("\n\n") if p.strip()],
            figures=[figures.pop(n) for n in named(section, "figures") if n in figures],
            charts=[k for k, c in enumerate(charts) if c.name in named(section, "charts")],
            runs=[k for k, run in enumerate(runs) if run.named(named(section, "runs"))],
        )
        for i, section in enumerate(listed)
    ]
    plane = next((i for i, section in enumerate(story, 1) if section.runs), len(story))
    used = {number for section in story for number in section.charts}
    rest = [i for i in range(len(charts)) if i not in used]
    tree = next((i for i, section in enumerate(listed, 1) if section.get("tree")), len(story))
    if trees:
        story.insert(tree, Section("search", "Who went on"))
    if runs:
        story.insert(plane + (bool(trees) and tree < plane), Section("plane", "Step by step"))
    if figures:
        story.append(Section("figures", "Figures", figures=[*figures.values()]))
    if rest:
        story.append(Section("charts", "Measured", charts=rest[:FEW], more=rest[FEW:]))
    return story


def films(results: Sequence[Results], place: Place) -> list[dict[str, Any]]:
    """Return all films by the folders that they lie in; those of one name in several results, as of
    a baseline and an intervention, stand side by side."""
    folders: dict[Path, dict[Path, dict[int, Path]]] = {}
    for i, result in enumerate(results):
        for path in result.films:
            inside = path.relative_to(result.folder)
            folders.setdefault(inside.parent, {}).setdefault(inside, {})[i] = path
    count = sum(map(len, folders.values()))
    return [
        {
            "name": parent.as_posix() if parent.name else "at the top",
            "films": [_film(results, *member, place) for member in sorted(members.items())],
            "open": count <= SHORT,
            "fold": len(folders) > 1,
        }
        for parent, members in sorted(folders.items())
    ]


def _film(
    results: Sequence[Results], inside: Path, by: Mapping[int, Path], place: Place
) -> dict[str, Any]:
    """Return the film of one name in all results."""
    prompts = (result.prompts.get(inside.with_suffix("").as_posix()) for result in results)
    sides = [
        {
            "name": inside.name if len(results) == 1 else f"{result.title}: {inside.name}",
            "src": place.put(inside.name, by[i]) if i in by else None,
            "label": inside.as_posix(),
        }
        for i, result in enumerate(results)
    ]
    return {"prompt": next((text for text in prompts if text), ""), "sides": sides}


def differences(results: Sequence[Results]) -> dict[str, Any] | None:
    """Return the settings in which folders that are compared differ."""
    every = [settings_of(result.manifest) for result in results]
    names = list(dict.fromkeys(name for settings in every for name in settings))
    differ = [n for n in names if len({settings.get(n, "–") for settings in every}) > 1]
    if len(results) < 2 or not differ:
        return None
    rows = [(n.replace("_", " "), [settings.get(n, "–") for settings in every]) for n in differ]
    return {"head": [result.title for result in results], "rows": rows}


def settings_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return what was asked for, one level deep."""
    flat: dict[str, str] = {}
    for key, value in manifest.items():
        if key in (*ELSEWHERE, *OUTCOMES):
            continue
        if isinstance(value, dict):
            flat |= {f"{key}: {name}": _value(one) for name, one in value.items()}
        else:
            flat[key] = _value(value)
    return flat


def _table(table: Table) -> dict[str, Any]:
    """Return a table with numbers to three digits; an interval stands in the cell of its
    estimate."""
    estimate = next((name for name in ESTIMATES if name in table.head), None)
    head = [name for name in table.head if not (estimate and name in ("low", "high"))]
    rows = []
    for row in table.rows:
        cells = dict(zip(table.head, row, strict=False))
        between = [_number(cells.get(end)) for end in ("low", "high")]
        drawn = []
        for name in head:
            text, value = cells.get(name, ""), _number(cells.get(name))
            if value is not None:
                text = _brief(value)
                if name == estimate and between[0] is not None and between[1] is not None:
                    text += f" [{_brief(between[0])}, {_brief(between[1])}]"
            drawn.append((value, text))
        rows.append(drawn)
    return {"name": table.name, "head": head, "rows": rows, "open": len(rows) <= SHORT}


def _number(text: str | None) -> float | None:
    try:
        return finite(float(text)) if text else None
    except ValueError:
        return None


def _brief(value: float) -> str:
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e9 else f"{value:.3g}"


def _value(value: object) -> str:
    """Return text as it is, all else as JSON has it; not without end."""
    if value is None or value == []:
        return "none"
    if isinstance(value, dict):
        value = ", ".join(f"{key} {_value(one)}" for key, one in value.items())
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 5000 else f"{text[:5000]} …"


def _files(result: Results, place: Place) -> list[tuple[str, str, int]]:
    """Return address, name and size of each file, data before pictures."""
    listed = [p for p in result.files if p.suffix in (*DATA, *PICTURES)]
    listed.sort(key=lambda p: (p.name != MANIFEST, p.suffix in PICTURES, p.as_posix()))
    return [
        (place.link(p), p.relative_to(result.folder).as_posix(), p.stat().st_size) for p in listed
    ]
