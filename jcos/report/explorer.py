"""Folders of results as one page: text and figures, the step × frame plane, curves and heat maps,
tables, settings, files.

`make` writes a folder's page, a file that opens from disk. Up to `EMBEDDED` bytes, pictures are
inside; of more they lie beside the page in `index.files/`, each loaded when it is looked at. The
words and the looks are in `explorer.html` and the style sheets; the scripts draw what moves.
"""

import base64
import hashlib
import mimetypes
import os
import shutil
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from jcos import files
from jcos.media import formats
from jcos.report import contents
from jcos.report.charts import Chart, compared
from jcos.report.contents import Place
from jcos.report.plane import Sheet, telling
from jcos.report.reading import STORE, UNREADABLE, Results, distinct, read, reason
from jcos.report.runs import Run
from jcos.report.templates import fill, text_of

SCRIPTS = ("page.js", "curves.js", "maps.js", "plane.js", "lanes.js", "controls.js")
STYLES = ("base.css", "page.css", "plane.css")
PAGE, OTHER = "index.html", "explore.html"
OURS = '<meta name="generator" content="jcos report">'
SHEET = "sheet-"
EMBEDDED = 24_000_000
"""Bytes of pictures up to which a page holds them itself."""
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
    than `embedded` bytes. The pictures come first; each file is whole or absent.

    Raises ValueError where there is a folder of that name that no page left."""
    check_page(page)
    home, store, results = page.parent, page.with_suffix(STORE), distinct(results)
    if store.exists() and not all(p.name.startswith(SHEET) for p in files.visible(store)):
        raise ValueError(f"{store} holds other files than a page's pictures; give another --out")
    if store.is_symlink():
        store.unlink()
    runs, sheets = [], []
    for result, run in runs_in(results):
        try:
            data, sheet = plane_data(run)
        except UNREADABLE as error:
            result.lacks(f"{run.group}, {run.label}", error)
            continue
        runs.append((run, data))
        sheets.append((f"{SHEET}{len(sheets)}.{sheet.kind}", sheet.data))
    size = sum(len(sheet) for _, sheet in sheets)
    size += sum(p.stat().st_size for r in results for p in (*r.pictures, *r.films))

    def link(path: Path) -> str:
        return relative(path, home)

    def beside(name: str, content: bytes | Path) -> str:
        return link(content) if isinstance(content, Path) else link(store / name)

    place = Place(inside if size <= embedded else beside, link)
    for (_, data), (name, sheet) in zip(runs, sheets, strict=True):
        data["sheet"] = place.put(name, sheet)
    text = render(results, place, runs)
    shutil.rmtree(store, ignore_errors=True)
    for name, sheet in sheets if size > embedded else ():
        files.write(store / name, sheet)
    files.write(page, text)
    return page


def render(
    results: Sequence[Results],
    place: Place,
    loaded: Sequence[tuple[Run, dict[str, Any]]] | None = None,
) -> str:
    """Return the page as text. loaded: the runs with their data; without them, runs and charts are
    asked for by the page when they are looked at."""
    first, alone, live = results[0], len(results) == 1, loaded is None
    runs = [run for _, run in runs_in(results)] if loaded is None else [run for run, _ in loaded]
    charts = charts_in(results)
    payloads = {f"view-{i}": data for i, (_, data) in enumerate(loaded or ())}
    for i, chart in enumerate([] if live else charts):
        try:
            payloads[f"chart-{i}"] = chart.drawn()
        except UNREADABLE as error:
            payloads[f"chart-{i}"] = {"error": reason(error)}
            first.lacks(chart.title, error)
    folders = [contents.folder(result, place) for result in results]
    story = (first.sections, folders[0]["figures"]) if alone else ([], {})
    trees = first.trees if alone else []
    data = {
        "views": stubs(runs),
        "charts": [chart.about() for chart in charts],
        "open": most_telling(runs),
    }
    code = script()
    missing = [
        sentence if alone else f"{result.folder.name}: {sentence}"
        for result in results
        for sentence in dict.fromkeys(result.missing)
    ]
    unfinished = first.manifest.get("unfinished") if alone else None
    return fill(
        "explorer.html",
        **frame(" · ".join(result.title for result in results), code),
        refresh=AGAIN if unfinished else None,
        unfinished=unfinished,
        live=live,
        lead=first.manifest.get("lead") if alone else None,
        facts=contents.facts(first) if alone else [],
        missing=missing,
        differences=contents.differences(results),
        sections=contents.sections(*story, runs, charts, trees),
        trees=trees,
        films=contents.films(results, place),
        folders=folders,
        alone=alone,
        data=data,
        payloads=payloads,
    )


def script(names: Sequence[str] = SCRIPTS) -> Markup:
    """Return the page's script: these files as one function, which leaves nothing behind."""
    return Markup("".join(['"use strict";\n(() => {\n', *map(text_of, names), "})();\n"]))


def frame(title: str, code: Markup) -> dict[str, Any]:
    """Return what `frame.html` has of every page. It may load pictures and films of its own, and
    run this very script."""
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src 'self' data: file:; media-src 'self' data: file:; "
        f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'"
    )
    style = Markup("".join(map(text_of, STYLES)))
    return {"title": title, "icon": ICON, "policy": policy, "style": style, "script": code}


def relative(path: Path, home: Path) -> str:
    """Return the address of a file, as seen from a page in `home`."""
    return urllib.parse.quote(os.fsencode(os.path.relpath(path.resolve(), home.resolve())))


def inside(name: str, content: bytes | Path) -> str:
    """Return a picture as an address: the page itself holds it."""
    data = content if isinstance(content, bytes) else content.read_bytes()
    kind = mimetypes.guess_type(name, strict=False)[0]  # webp is no standard type yet
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


# ---- runs and charts


def runs_in(results: Sequence[Results]) -> list[tuple[Results, Run]]:
    """Return all runs, each with the folder that it is of. Those of several folders are named after
    theirs, and follow the run of the same puzzle and seed in the first folder, their baseline."""
    if len(results) == 1:
        return [(results[0], run) for run in results[0].runs]
    pairs: dict[tuple[Any, ...], list[tuple[Results, Run]]] = {}
    for i, result in enumerate(results):
        for number, run in enumerate(result.runs):
            key: tuple[Any, ...] = run.group, run.label, run.puzzle
            apart = i and key not in pairs
            named = run._replace(label=f"{result.title}, {run.label}")
            pairs.setdefault((*key, i, number) if apart else key, []).append((result, named))
    return [
        (result, run._replace(pair=number if len(pair) > 1 else None))
        for number, pair in enumerate(pairs.values())
        for result, run in pair
    ]


def charts_in(results: Sequence[Results]) -> list[Chart]:
    """Return all charts; curves of the same measure in several folders share one."""
    if len(results) == 1:
        return results[0].charts
    return compared([(result.title, result.charts) for result in results])


def stubs(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return what the page knows of runs before they are looked at; of those with a baseline, its
    number."""
    first: dict[int, int] = {}
    known = []
    for i, run in enumerate(runs):
        stub = {name: getattr(run, name) for name in ("label", "group", "prompt", "solved")}
        stub |= {"steps": list(run.steps)}
        stub |= {} if run.pair is None else {"baseline": first.setdefault(run.pair, i)}
        known.append(stub)
    return known


def most_telling(runs: Sequence[Run]) -> int:
    """Return the run that the page opens with: one that holds several answers, decides late and
    ends on one of them; the first where none does."""
    scores = []
    for run in runs:
        try:
            scores.append(telling(run.lines, run.solved))
        except (ValueError, TypeError):  # lines of another making
            scores.append((False, False, 0))
    return max(range(len(runs)), key=lambda i: (scores[i], -i), default=0)


def plane_data(run: Run) -> tuple[dict[str, Any], Sheet]:
    """Return what the page has of a run that is looked at, and the sheet of its pictures."""
    plane = run.load()
    sheet = plane.sheet()
    lines, maps = plane.derived()
    about = plane.about()
    return {
        **{name: about[name] for name in ("steps", "changes", "answers")},
        "frames": plane.x0.shape[1],
        "cell": sheet.cell,
        "columns": sheet.columns,
        "lines": about["lines"] + [line._asdict() for line in lines],
        "maps": maps,
        "pictures": [formats.data_uri(formats.png(p)) for p in plane.answers.values()],
        "video": plane.video is not None,
        "reference": plane.reference is not None,
    }, sheet
