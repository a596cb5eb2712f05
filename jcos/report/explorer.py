"""Folders of results as one page: text and figures, the step × frame plane, curves and heat maps,
tables, settings, files.

`make` writes a folder's page, a file that opens from disk. Up to `EMBEDDED` bytes, pictures are
inside; of more they lie beside the page in `index.files/`, each loaded when it is looked at. The
words and the looks are in `explorer.html` and the style sheets; the scripts draw what moves.
"""

import dataclasses
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jcos import files
from jcos.media import formats
from jcos.report import contents, templates
from jcos.report.charts import Chart, compared
from jcos.report.contents import Place
from jcos.report.plane import Plane, telling
from jcos.report.reading import STORE, UNREADABLE, Results, distinct, read, reason
from jcos.report.templates import inside

SCRIPTS = ("page.js", "curves.js", "maps.js", "plane.js", "lanes.js", "controls.js")
PAGE, COMPARED = "index.html", "compared.html"
OURS = '<meta name="generator" content="jcos report">'
SHEET = "sheet-"
EMBEDDED = 24_000_000
"""Bytes of pictures up to which a page holds them itself."""


def make(folder: Path) -> Path:
    """Read a folder and write its page, which commands end with."""
    return write([read(folder)], folder / PAGE)


def check_page(page: Path) -> None:
    """Raise ValueError or OSError where a page cannot be written, or would replace a file that is
    none of `write`."""
    files.check_room(page.parent)
    try:
        with page.open(encoding="utf-8", errors="replace") as file:
            ours = OURS in file.read(4096)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        ours = False
    if not ours:
        raise ValueError(f"{page} is there, and no page of jcos report; choose another --out")


def write(results: Sequence[Results], page: Path, *, embedded: int = EMBEDDED) -> Path:
    """Write the page, and a folder of the same name that ends in `.files` if its pictures are more
    than `embedded` bytes. The pictures come first; each file is whole or absent."""
    check_page(page)
    home, store, results = page.parent, page.with_suffix(STORE), distinct(results)
    runs, views, payloads = [], [], {}
    for result, run in runs_in(results):
        data = data_of(run)
        if "error" in data:
            result.missing.append(f"{run.group}, {run.label}: {data['error']}")
        else:
            runs.append(run)
            views.append(data)
    size = sum(len(data["sheet"]) for data in views)
    size += sum(p.stat().st_size for r in results for p in (*r.pictures, *r.films))

    def link(path: Path) -> str:
        return relative(path, home)

    def put(path: Path) -> str:
        return inside(path.name, path.read_bytes()) if size <= embedded else link(path)

    for i, data in enumerate(views):
        sheet = store / f"{SHEET}{i}.webp"
        address = inside(sheet.name, data["sheet"]) if size <= embedded else link(sheet)
        payloads[f"view-{i}"] = data | {"sheet": address}
    for i, chart in enumerate(charts_in(results)):
        payloads[f"chart-{i}"] = data = data_of(chart)
        if "error" in data:
            results[0].missing.append(f"{chart.title}: {data['error']}")
    text = render(results, Place(put, link), runs, payloads)
    if store.is_symlink():
        store.unlink()
    for old in store.glob(f"{SHEET}*.webp"):
        old.unlink()
    for i, data in enumerate(views if size > embedded else ()):
        files.write(store / f"{SHEET}{i}.webp", data["sheet"])
    files.write(page, text)
    return page


def render(
    results: Sequence[Results],
    place: Place,
    runs: Sequence[Plane],
    payloads: Mapping[str, Any] | None = None,
) -> str:
    """Return the page as text. payloads: data of its runs and charts; without it, the page asks for
    them when they are looked at."""
    first, alone, charts = results[0], len(results) == 1, charts_in(results)
    figures = [contents.figures(result, place) for result in results]
    trees = first.trees if alone else []
    sections = contents.sections(
        *(first.sections, figures[0]) if alone else ([], {}), runs, charts, trees
    )
    missing = [
        sentence if alone else f"{result.folder.name}: {sentence}"
        for result in results
        for sentence in dict.fromkeys(result.missing)
    ]
    return templates.page(
        "explorer.html",
        SCRIPTS,
        title=" · ".join(result.title for result in results),
        live=payloads is None,
        results=results,
        alone=alone,
        about=first.manifest if alone else {},
        place=place,
        contents=contents,
        missing=missing,
        sections=sections,
        runs=runs,
        trees=trees,
        figures=figures,
        data={
            "views": stubs(runs),
            "charts": [chart.about() for chart in charts],
            "open": most_telling(runs),
        },
        payloads=payloads or {},
    )


def relative(path: Path, home: Path) -> str:
    """Return the address of a file, as seen from a page in `home`."""
    return urllib.parse.quote(os.fsencode(os.path.relpath(path.resolve(), home.resolve())))


# ---- runs and charts


def runs_in(results: Sequence[Results]) -> list[tuple[Results, Plane]]:
    """Return all runs, each with the folder that it is of. Those of several folders are named after
    theirs, and follow the run of the same puzzle and seed in the first folder, their baseline."""
    if len(results) == 1:
        return [(results[0], run) for run in results[0].runs]
    pairs: dict[tuple[Any, ...], list[tuple[Results, Plane]]] = {}
    for i, result in enumerate(results):
        for number, run in enumerate(result.runs):
            key: tuple[Any, ...] = run.group, run.label, run.puzzle
            apart = i and key not in pairs
            named = dataclasses.replace(run, label=f"{result.title}, {run.label}")
            pairs.setdefault((*key, i, number) if apart else key, []).append((result, named))
    return [
        (result, dataclasses.replace(run, pair=number if len(pair) > 1 else None))
        for number, pair in enumerate(pairs.values())
        for result, run in pair
    ]


def charts_in(results: Sequence[Results]) -> list[Chart]:
    """Return all charts; curves of the same measure in several folders share one."""
    if len(results) == 1:
        return results[0].charts
    return compared([(result.title, result.charts) for result in results])


def stubs(runs: Sequence[Plane]) -> list[dict[str, Any]]:
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


def most_telling(runs: Sequence[Plane]) -> int:
    """Return the run that the page opens with: one that holds several answers, decides late and
    ends on one of them; the first where none does."""
    scores = []
    for run in runs:
        try:
            scores.append(telling(run.lines, run.solved))
        except (ValueError, TypeError):  # lines of another making
            scores.append((False, False, 0))
    return max(range(len(runs)), key=lambda i: (scores[i], -i), default=0)


def data_of(one: Plane | Chart) -> dict[str, Any]:
    """Return what the page has of a run or a chart that is looked at, or why it cannot be read. Of
    a run, `sheet` are its pictures."""
    try:
        if isinstance(one, Chart):
            return one.drawn()
        plane = one.load()
        sheet, cell, columns = plane.sheet()
        about = plane.about()
        return {
            **{name: about[name] for name in ("steps", "changes", "answers")},
            "frames": plane.x0.shape[1],
            "sheet": sheet,
            "cell": cell,
            "columns": columns,
            "lines": about["lines"] + [line._asdict() for line in plane.distances()],
            "pictures": [inside("a.png", formats.png(p)) for p in plane.answers.values()],
            "video": plane.video is not None,
            "reference": plane.reference is not None,
        }
    except UNREADABLE as error:
        return {"error": reason(error)}
