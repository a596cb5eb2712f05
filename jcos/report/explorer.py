"""Folders of results as one page: text and figures, the step × frame plane, curves and heat maps,
tables, settings, files.

`make` writes a folder's page, a file that opens from disk. Up to `EMBEDDED` bytes, pictures are
inside; of more they lie beside the page in `index.files/`, each loaded when it is looked at. The
words and the looks are in `explorer.html` and the style sheets; the scripts draw what moves.
"""

import base64
import hashlib
import json
import os
import shutil
import tempfile
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from jcos import files
from jcos.report import contents
from jcos.report.charts import Chart
from jcos.report.contents import MIME, Place, View
from jcos.report.plane import Plane, telling
from jcos.report.reading import STORE, UNREADABLE, Results, read, reason
from jcos.report.templates import JSON, fill, text_of

SCRIPTS = ("page.js", "curves.js", "maps.js", "plane.js", "lanes.js", "controls.js")
STYLES = ("base.css", "page.css", "plane.css")
PAGE, OTHER = "index.html", "explore.html"
OURS = '<meta name="generator" content="jcos report">'
SHEET = "sheet-"
EMBEDDED = 24_000_000
"""Bytes of pictures up to which a page holds them itself."""
FEW = 6
"""Charts that no section names are shown at once up to so many; more are folded."""
AGAIN = 4
"""Seconds after which the page of an unfinished run loads itself again."""
ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'%3E"
    "%3Cpath fill='%230072b2' d='M0 0h8v8H0z'/%3E%3Cpath fill='%23f0a83c' d='M1 5h2v2H1zM3 3h2v2H3z"
    "M5 1h2v2H5z'/%3E%3C/svg%3E"
)


def make(folder: Path) -> Path:
    """Read a folder and write its page (`page_of`), which commands end with."""
    return write([read(folder)], page_of(folder))


def page_of(folder: Path) -> Path:
    """Return where its page belongs: `index.html`, unless a page of another making has that name;
    then `explore.html`."""
    page = folder / PAGE
    return page if _ours(page) else folder / OTHER


def _ours(page: Path) -> bool:
    """Return whether a page may be written there: over none, or one of `write`."""
    try:
        with page.open(encoding="utf-8", errors="replace") as file:
            return OURS in file.read(4096)
    except FileNotFoundError:
        return True


def check_page(page: Path) -> None:
    """Raise ValueError or OSError where a page cannot be written, or would replace another file."""
    files.check_room(page.parent)
    if page.is_dir() or not _ours(page):
        raise ValueError(f"{page} is there, and no page of jcos report; choose another --out")


def write(results: Sequence[Results], page: Path, *, embedded: int = EMBEDDED) -> Path:
    """Write the page, and a folder of the same name that ends in `.files` if its pictures are more
    than `embedded` bytes. Both are complete before they get their names.

    Raises ValueError where there is a folder of that name that no page left."""
    check_page(page)
    home = page.parent
    home.mkdir(parents=True, exist_ok=True)
    store = page.with_suffix(STORE)
    if store.exists() and not all(p.name.startswith(SHEET) for p in files.visible(store)):
        raise ValueError(f"{store} holds other files than a page's pictures; give another --out")
    if store.is_symlink():
        store.unlink()
    size = sum(p.stat().st_size for r in results for p in (*r.pictures, *r.films))
    made = Path(tempfile.mkdtemp(prefix=f".{store.name}.", dir=home))
    made.chmod(0o755)
    try:
        views = list(_loaded(views_of(results), made))
        size += sum(p.stat().st_size for p in made.iterdir())

        def link(path: Path) -> str:
            return relative(path, home)

        def beside(name: str, content: bytes | Path) -> str:
            return link(content) if isinstance(content, Path) else link(store / name)

        place = Place(inside if size <= embedded else beside, link)
        text = render(results, place, [_addressed(v, made, place) for v in views])
        shutil.rmtree(store, ignore_errors=True)
        if size > embedded:
            made.rename(store)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    files.write(page, text)
    return page


def _loaded(views: Sequence[View], made: Path) -> Iterator[tuple[View, dict[str, Any]]]:
    """Yield each run with what the page has of it, its sheet in a folder; what fails is said."""
    for i, view in enumerate(views):
        try:
            data, sheet = plane_data(view.run.load())
            name = f"{SHEET}{i}.{data['sheet']}"
            (made / name).write_bytes(sheet)
            yield view, data | {"sheet": name}
        except UNREADABLE as error:
            view.result.lacks(f"{view.run.group}, {view.run.label}", error)


def _addressed(
    view: tuple[View, dict[str, Any]], made: Path, place: Place
) -> tuple[View, dict[str, Any]]:
    about, data = view
    name = data["sheet"]
    return about, data | {"sheet": place.put(name, (made / name).read_bytes())}


def render(
    results: Sequence[Results],
    place: Place,
    views: Sequence[tuple[View, dict[str, Any]]] | None = None,
) -> str:
    """Return the page as text. views: the runs with their data; without them, runs and charts are
    asked for by the page when they are looked at."""
    first, alone, live = results[0], len(results) == 1, views is None
    runs = views_of(results) if views is None else [view for view, _ in views]
    drawings = drawings_of(results)
    payloads = {}
    if views is not None:
        payloads = {f"view-{i}": data for i, (_, data) in enumerate(views)}
        for i, drawing in enumerate(drawings):
            try:
                payloads[f"chart-{i}"] = drawing.load()
            except UNREADABLE as error:
                payloads[f"chart-{i}"] = {"error": reason(error)}
                first.lacks(drawing.about["title"], error)
    folders = [contents.folder(result, place) for result in results]
    abouts = [drawing.about for drawing in drawings]
    sections = contents.sections(first, folders[0], runs, abouts) if alone else []
    used = {number for section in sections for number in section["charts"]}
    data = {
        "views": [view.stub for view in runs],
        "charts": abouts,
        "steps": max(result.steps for result in results),
        "open": most_telling(runs),
        "live": live,
    }
    code = script()
    missing = [
        sentence if alone else f"{result.folder.name}: {sentence}"
        for result in results
        for sentence in dict.fromkeys(result.missing)
    ]
    return fill(
        "explorer.html",
        policy=policy(code),
        title=first.title if alone else " · ".join(result.title for result in results),
        icon=ICON,
        style=Markup("".join(map(text_of, STYLES))),
        refresh=AGAIN if alone and first.manifest.get("unfinished") else None,
        unfinished=first.manifest.get("unfinished") if alone else None,
        live=live,
        lead=first.manifest.get("lead") if alone else None,
        facts=contents.facts(first) if alone else [],
        command=first.command if alone else "",
        missing=missing,
        differences=contents.differences(results),
        sections=sections,
        few=FEW,
        rest=[i for i in range(len(abouts)) if i not in used],
        plane=bool(runs),
        trees=first.trees if alone else [],
        first=next((i for i, section in enumerate(sections) if section["runs"]), None),
        films=contents.films(results, place),
        folders=folders,
        alone=alone,
        data=data,
        payloads=payloads,
        script=code,
    )


def script() -> Markup:
    """Return the page's script: all files as one function, which leaves nothing behind."""
    return Markup("".join(['"use strict";\n(() => {\n', *map(text_of, SCRIPTS), "})();\n"]))


def policy(script: str) -> str:
    """Return what the page may load: pictures and films of its own, and this very script."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        "default-src 'none'; img-src 'self' data: file:; media-src 'self' data: file:; "
        f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'"
    )


def relative(path: Path, home: Path) -> str:
    """Return the address of a file, as seen from a page in `home`."""
    return urllib.parse.quote(os.fsencode(os.path.relpath(path.resolve(), home.resolve())))


def inside(name: str, content: bytes | Path) -> str:
    """Return a picture as an address: the page itself holds it."""
    data = content if isinstance(content, bytes) else content.read_bytes()
    return f"data:{MIME[Path(name).suffix]};base64,{base64.b64encode(data).decode()}"


# ---- runs


def views_of(results: Sequence[Results]) -> list[View]:
    """Return all runs. Those of several folders are named after theirs, and follow the run of the
    same puzzle and seed in the first folder, their baseline."""
    alone = len(results) == 1
    groups: dict[tuple[Any, ...], list[View]] = {}
    for i, result in enumerate(results):
        for number, run in enumerate(result.runs):
            label = run.label if alone else f"{result.title}, {run.label}"
            stub = {"label": label, "group": run.group, "prompt": run.prompt, "solved": run.solved}
            view = View(stub | {"steps": list(run.steps)}, run, result)
            key: tuple[Any, ...] = (run.group, run.label)
            apart = alone or (i and key not in groups)
            groups.setdefault((*key, i, number) if apart else key, []).append(view)
    views: list[View] = []
    for group in groups.values():
        matched = {"baseline": len(views)} if len(group) > 1 else {}
        views += [view._replace(stub=view.stub | matched) for view in group]
    return views


def most_telling(views: Sequence[View]) -> int:
    """Return the run that the page opens with: one that holds several answers, decides late and
    ends on one of them; the first where none does."""
    scores = []
    for view in views:
        try:
            scores.append(telling(view.run.lines, view.run.solved))
        except (ValueError, TypeError):  # lines of another making
            scores.append((False, False, 0))
    return max(range(len(views)), key=lambda i: (scores[i], -i), default=0)


def plane_data(plane: Plane) -> tuple[dict[str, Any], bytes]:
    """Return what the page has of a run, and the sheet of its pictures; `sheet` is its kind."""
    sheet = plane.sheet()
    lines, maps = plane.derived()
    about = plane.about()
    pictures = [contents.png_uri(picture) for picture in plane.answers.values()]
    data = {name: about[name] for name in ("frames", "changes", "film", "answers")}
    data |= {
        "sheet": "png" if sheet.data.startswith(b"\x89PNG") else "webp",
        "cell": sheet.cell,
        "columns": sheet.columns,
        "lines": [line._asdict() for line in (*plane.lines, *lines)],
        "maps": maps,
        "pictures": pictures,
        "video": plane.video is not None,
        "reference": plane.reference is not None,
    }
    return data, sheet.data


# ---- charts


class Drawing(NamedTuple):
    """A chart on a page, of one folder or of several. about: what is known before it is drawn."""

    about: dict[str, Any]
    load: Callable[[], dict[str, Any]]


def drawings_of(results: Sequence[Results]) -> list[Drawing]:
    """Return all charts. Curves of the same measure in several folders share a chart, whose lines
    are named after the folders; maps stand one after the other."""
    if len(results) == 1:
        return [Drawing(chart.about(), chart.drawn) for chart in results[0].charts]
    maps: list[Drawing] = []
    shared: dict[tuple[str, str], list[tuple[str, Chart]]] = {}
    for result in results:
        for chart in result.charts:
            about = chart.about()
            if chart.is_map:
                titled = {"title": f"{result.title}: {chart.title}"}
                maps.append(Drawing(about | titled, lambda c=chart, t=titled: c.drawn() | t))
            else:
                shared.setdefault((chart.name, chart.title), []).append((result.title, chart))
    curves = [
        Drawing(charts[0][1].about(), lambda charts=charts: _together(charts))
        for charts in shared.values()
    ]
    return curves + maps


def _together(charts: Sequence[tuple[str, Chart]]) -> dict[str, Any]:
    drawn = [(title, chart.drawn()) for title, chart in charts]
    whole = dict(drawn[0][1])
    panels: dict[str, dict[str, Any]] = {}
    hues = 0
    for title, one in drawn:
        here = 0
        for panel in one["panels"]:
            mine: Mapping[str, Any] = {"lines": [], "flat": True, "levels": panel["levels"]}
            same = panels.setdefault(
                panel["task"], {"task": panel["task"], "n": panel["n"], **mine}
            )
            same["flat"] &= panel["flat"]
            for line in panel["lines"]:
                label = ", ".join(filter(None, (title, line["label"])))
                points = {
                    f: _along(whole["labels"], one["labels"], line[f])
                    for f in ("mean", "low", "high")
                }
                same["lines"].append(line | points | {"label": label, "hue": hues + line["hue"]})
                here = max(here, line["hue"] + 1)
        hues += here
    return whole | {"panels": list(panels.values())}


def _along(labels: Sequence[Any], places: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    """Return values at the places of another axis; None where they have none."""
    known = dict(zip(places, values, strict=True))
    return [known.get(label) for label in labels]


def json_of(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, **JSON).encode(errors="backslashreplace")
