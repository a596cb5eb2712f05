"""What of a folder of results stands still on its page: figures, films, tables, settings, files;
and of several folders, in what their settings differ."""

import json
import os
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from jcos.report.markup import Fragments, Html, finite, join
from jcos.report.reading import MANIFESTS, Results, Table

PARTS = Fragments("explorer.html")
SHORT = 30
"""A table of so many rows, or so many films, are shown at once."""
ESTIMATES = ("value", "mean")
"""Columns of a table that `low` and `high` are the interval of; the first that it has."""
DATA = (".npz", ".safetensors", ".csv", ".json")
MIME = {".png": "image/png", ".webp": "image/webp", ".mp4": "video/mp4"}
WIDE = 1.9
"""Figures whose width is so many times their height have a row of their own."""
ELSEWHERE = ("planes", "changes", "question", "command", "figures", "axes")
"""Entries of a manifest that are shown elsewhere on the page, or are none of its reader's."""
OUTCOMES = ("seconds", "date", "scores", "solved", "rows", "shown_steps", "machine", "device")
"""Entries that are no settings: two runs that are to be compared may differ in them."""

Place = Callable[[str, bytes | Path], str]
"""Puts a picture or film, by its name, where the page finds it, and says where: an address."""


def relative(path: Path, home: Path) -> str:
    """The address of a file, as seen from a page in `home`."""
    return urllib.parse.quote(os.fsencode(os.path.relpath(path.resolve(), home.resolve())))


def figures(found: Results, place: Place) -> Html:
    """All pictures but those whose runs are shown."""
    drawn = [
        _figure(path, found.captions.get(path.stem), place)
        for path in found.pictures
        if not (found.views and path.stem.startswith("puzzle-"))
    ]
    return PARTS.fill("figures", figures=join(drawn)) if drawn else Html("")


def _figure(path: Path, caption: str | None, place: Place) -> Html:
    name = path.stem.replace("_", " ")
    with Image.open(path) as picture:
        width, height = picture.size
    return PARTS.fill(
        "figure",
        shape=" wide" if width > WIDE * height else "",
        src=place(path.name, path),
        file=path.name,
        alt=f"Figure: {name}",
        width=width,
        height=height,
        name=caption or name,
    )


def films(results: Sequence[Results], place: Place) -> Html:
    """All films by the folders that they lie in; those of one name in several results, as of a
    baseline and an intervention, are side by side."""
    folders: dict[Path, dict[Path, dict[int, Path]]] = {}
    for i, found in enumerate(results):
        for path in found.films:
            inside = path.relative_to(found.folder)
            folders.setdefault(inside.parent, {}).setdefault(inside, {})[i] = path
    count = sum(map(len, folders.values()))
    groups = []
    for folder, members in sorted(folders.items()):
        drawn = PARTS.fill(
            "films",
            films=join(_together(results, *member, place) for member in sorted(members.items())),
        )
        if len(folders) > 1:
            name = folder.as_posix() if folder.name else "at the top"
            how = Html(" open") if count <= SHORT else ""
            drawn = PARTS.fill("reel", name=name, count=len(members), open=how, films=drawn)
        groups.append(drawn)
    return join(groups)


def _together(
    results: Sequence[Results], inside: Path, by: Mapping[int, Path], place: Place
) -> Html:
    """The film of one name in all results."""
    prompts = (found.prompts.get(inside.with_suffix("").as_posix()) for found in results)
    prompt = next((text for text in prompts if text), "")
    if len(results) == 1:
        (path,) = by.values()
        return _film(path, inside, inside.name, prompt, place)
    drawn = [
        _film(by[i], inside, f"{found.title}: {inside.name}", "", place)
        if i in by
        else PARTS.fill("no_film", name=f"{found.title}: {inside.name} is not there")
        for i, found in enumerate(results)
    ]
    return PARTS.fill("pair", prompt=prompt, films=join(drawn))


def _film(path: Path, inside: Path, name: str, prompt: str, place: Place) -> Html:
    src = place(path.name, path)
    return PARTS.fill("film", src=src, told=inside.as_posix(), name=name, prompt=prompt)


def section(found: Results, place: Place, home: Path, *, alone: bool) -> Html:
    """All of a folder that does not move; alone, its figures stand above."""
    parts = [] if alone else [figures(found, place)]
    parts += [_table(table) for table in found.tables]
    if found.tables and "experiment" in found.manifest:
        parts.append(PARTS.fill("columns"))
    parts += [_settings(found), _files(found, home)]
    if alone:
        return join(parts)
    return PARTS.fill("folder", title=found.title, command=found.command, body=join(parts))


def differences(results: Sequence[Results]) -> Html:
    """The settings in which folders that are compared differ."""
    told = [_settings_of(found.manifest) for found in results]
    names = list(dict.fromkeys(name for settings in told for name in settings))
    differ = [n for n in names if len({settings.get(n, "–") for settings in told}) > 1]
    if len(results) < 2 or not differ:
        return Html("")
    head = join(PARTS.fill("th_plain", name=found.title) for found in results)
    rows = (
        PARTS.fill(
            "difference",
            name=name.replace("_", " "),
            cells=join(PARTS.fill("td", text=settings.get(name, "–")) for settings in told),
        )
        for name in differ
    )
    return PARTS.fill("differences", head=head, rows=join(rows, "\n"))


def _settings_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    """What was asked for, one level deep."""
    found: dict[str, str] = {}
    for key, value in manifest.items():
        if key in (*ELSEWHERE, *OUTCOMES):
            continue
        if isinstance(value, dict):
            found |= {f"{key}: {name}": plain(one) for name, one in value.items()}
        else:
            found[key] = plain(value)
    return found


def _table(table: Table) -> Html:
    """Numbers to three digits; the interval of what is estimated beside it."""
    estimate = next((name for name in ESTIMATES if name in table.head), None)
    head = [name for name in table.head if not (estimate and name in ("low", "high"))]
    rows = []
    for row in table.rows:
        cells = dict(zip(table.head, row, strict=False))
        between = [_number(cells.get(end)) for end in ("low", "high")]
        drawn = []
        for name in head:
            text, value = cells.get(name, ""), _number(cells.get(name))
            if value is None:
                drawn.append(PARTS.fill("td", text=text))
                continue
            shown = _brief(value)
            if name == estimate and between[0] is not None and between[1] is not None:
                shown += f" [{_brief(between[0])}, {_brief(between[1])}]"
            drawn.append(PARTS.fill("td_number", value=value, text=shown))
        rows.append(PARTS.fill("tr", cells=join(drawn)))
    return PARTS.fill(
        "table",
        name=table.name,
        count=len(rows),
        open=Html(" open") if len(rows) <= SHORT else "",
        head=join(PARTS.fill("th", name=name) for name in head),
        rows=join(rows, "\n"),
    )


def _number(text: str | None) -> float | None:
    try:
        return finite(float(text)) if text else None
    except ValueError:
        return None


def _brief(value: float) -> str:
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e9 else f"{value:.3g}"


def _settings(found: Results) -> Html:
    """The whole manifest, but what is shown elsewhere."""
    pairs = []
    for key, value in found.manifest.items():
        if key in ELSEWHERE:
            continue
        if isinstance(value, dict):
            text = ", ".join(f"{k} {plain(v)}" for k, v in value.items())
        else:
            text = plain(value)
        pairs.append(PARTS.fill("setting", key=key.replace("_", " "), value=text))
    return PARTS.fill("settings", pairs=join(pairs, "\n")) if pairs else Html("")


def plain(value: object) -> str:
    """Text as it is, all else as JSON has it; not without end."""
    if value is None or value == []:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 5000 else f"{text[:5000]} …"


def _files(found: Results, home: Path) -> Html:
    listed = [p for p in found.files if p.suffix in (*DATA, *MIME)]
    listed.sort(key=lambda p: (p.name not in MANIFESTS, p.suffix in MIME, p.as_posix()))
    items = (
        PARTS.fill(
            "file",
            href=relative(path, home),
            name=path.relative_to(found.folder).as_posix(),
            size=_size(path.stat().st_size),
        )
        for path in listed
    )
    return PARTS.fill("files", items=join(items, "\n"), count=len(listed))


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
