"""Folders of results as one page: the step × frame plane, curves and heat maps on one axis,
figures, tables, settings, files.

`write` makes a file that opens from disk. Up to `EMBEDDED` bytes, pictures are inside; of more they
lie beside the page in `explore.files/`, each loaded when it is looked at. The words and the looks
are in `explorer.html` and the style sheets; the scripts move the plane.
"""

import base64
import datetime as dt
import hashlib
import json
import os
import shutil
import tempfile
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from jcos.report.arrays import Trends
from jcos.report.markup import Fragments, Html, finite, join
from jcos.report.markup import read as template
from jcos.report.reading import BESIDE, MANIFESTS, Results, Table, View

PARTS = Fragments("explorer.html")
SCRIPTS = ("explorer.js", "plane.js", "curves.js", "controls.js")
STYLES = ("base.css", "plane.css", "explorer.css")
EMBEDDED = 24_000_000
"""Bytes of pictures up to which a page holds them itself."""
SHORT = 30
"""A table of so many rows is shown at once."""
DATA = (".npz", ".safetensors", ".csv", ".json")
MIME = {".png": "image/png", ".webp": "image/webp", ".mp4": "video/mp4"}
ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'%3E"
    "%3Cpath fill='%230072b2' d='M0 0h8v8H0z'/%3E%3Cpath fill='%23f0a83c' d='M1 5h2v2H1zM3 3h2v2H3z"
    "M5 1h2v2H5z'/%3E%3C/svg%3E"
)

Place = Callable[[str, bytes | Path], str]
"""Puts a picture or film, by its name, where the page finds it, and says where: an address."""


def write(results: Sequence[Results], page: Path, *, embedded: int = EMBEDDED) -> Path:
    """Writes the page, and `explore.files/` beside it if its pictures are more than `embedded`
    bytes. Both are complete before they get their names."""
    page.parent.mkdir(parents=True, exist_ok=True)
    store = page.parent / BESIDE
    pictures = [p for r in results for p in (*r.pictures, *r.films)]
    size = sum(len(v.sheet) for r in results for v in r.views)
    size += sum(p.stat().st_size for p in pictures)
    if size <= embedded:
        text = render(results, inside, page.parent)
    else:
        made = Path(tempfile.mkdtemp(prefix=f".{BESIDE}.", dir=page.parent))
        made.chmod(0o755)
        try:
            text = render(results, _Beside(made, page.parent), page.parent)
            shutil.rmtree(store, ignore_errors=True)
            made.rename(store)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
    beside = page.with_name(f".{page.name}.part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(page)
    return page


def render(results: Sequence[Results], place: Place, home: Path, *, live: bool = False) -> Html:
    """The page as text; `home`: the folder that it lies in, from which files are linked."""
    title = results[0].title if len(results) == 1 else " · ".join(r.title for r in results)
    code, views = script(), list(_views(results))
    lines = [line for r in results for line in r.trends.lines]
    heats = [heat for r in results for heat in r.trends.heats]
    data = plane_data(views, Trends(lines, heats), max(r.steps for r in results), place)
    return PARTS.fill(
        "page",
        policy=policy(code),
        title=title,
        icon=ICON,
        style=Html("".join(map(template, STYLES))),
        live=Html(' data-live=""') if live else "",
        back=PARTS.fill("back") if live else "",
        lead=_lead(results[0]) if len(results) == 1 else "",
        missing=_missing(results),
        plane=PARTS.fill("plane") if views or lines or heats else "",
        sections=join(_folder(r, place, home, alone=len(results) == 1) for r in results),
        data=PARTS.fill("data", **data, script=code),
    )


def listing(title: str, runs: Iterable[tuple[str, str, str, float]]) -> Html:
    """A page that lists runs: address, name, what they are, and when they were made."""
    items = [
        PARTS.fill(
            "run",
            href=href,
            name=name,
            question=question,
            when=dt.datetime.fromtimestamp(when).isoformat(" ", "minutes"),
        )
        for href, name, question, when in runs
    ]
    return PARTS.fill(
        "page",
        policy=policy(""),
        title=title,
        icon=ICON,
        style=Html("".join(map(template, STYLES))),
        live="",
        back="",
        lead="",
        missing="",
        plane=PARTS.fill("runs", items=join(items, "\n")) if items else PARTS.fill("no_runs"),
        sections="",
        data="",
    )


def script() -> Html:
    """The page's script: all files as one function, which leaves nothing behind."""
    return Html("".join(['"use strict";\n(() => {\n', *map(template, SCRIPTS), "})();\n"]))


def policy(script: str) -> str:
    """What the page may load: pictures and films of its own, and this very script."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        "default-src 'none'; img-src 'self' data: file:; media-src 'self' data: file:; "
        f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'"
    )


def plane_data(views: Sequence[View], trends: Trends, steps: int, place: Place) -> dict[str, Html]:
    """`json` and `sheets`: what the scripts read. steps: of a run, if nothing is seen of it."""
    told, sheets = [], []
    for i, view in enumerate(views):
        kind = "png" if view.sheet.startswith(b"\x89PNG") else "webp"
        src = place(f"sheet-{i}.{kind}", view.sheet)
        if src.startswith("data:"):  # read only when it is looked at
            sheets.append(PARTS.fill("sheet", id=f"sheet-{i}", src=src))
            src = f"#sheet-{i}"
        lines, heats = ([part._asdict() for part in parts] for parts in (view.lines, view.heats))
        about = {"cell": view.cell, "lines": lines, "heats": heats, "sheet": src}
        told.append(view.about | about)
    data = {
        "views": told,
        "lines": [line._asdict() for line in trends.lines],
        "heats": [heat._asdict() for heat in trends.heats],
        "steps": steps,
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), default=list)
    return {"json": Html(text.replace("<", "\\u003c")), "sheets": join(sheets)}


def _views(results: Sequence[Results]) -> Iterator[View]:
    """Of several folders, the runs are named after theirs."""
    for found in results:
        for view in found.views:
            name = f"{found.title}, {view.about['label']}"
            yield view if len(results) == 1 else view._replace(about=view.about | {"label": name})


def inside(name: str, content: bytes | Path) -> str:
    """A `Place`: the page itself."""
    suffix = Path(name).suffix
    data = content if isinstance(content, bytes) else content.read_bytes()
    return f"data:{MIME[suffix]};base64,{base64.b64encode(data).decode()}"


class _Beside:
    """Puts sheets into a folder beside the page; what lies in the results already is linked."""

    def __init__(self, store: Path, home: Path) -> None:
        self.store, self.home = store, home

    def __call__(self, name: str, content: bytes | Path) -> str:
        if isinstance(content, Path):
            return relative(content, self.home)
        (self.store / name).write_bytes(content)
        return f"{BESIDE}/{name}"


def relative(path: Path, home: Path) -> str:
    """The address of a file, as seen from a page in `home`."""
    return urllib.parse.quote(Path(os.path.relpath(path.resolve(), home.resolve())).as_posix())


def _lead(found: Results) -> Html:
    run = found.manifest
    model = run.get("model")
    name = model.get("name") if isinstance(model, dict) else model
    facts = [
        ("model {}", name),
        ("{} denoising steps", found.steps or None),
        ("{} s", run.get("seconds")),
        ("{}", run.get("device")),
        ("{}", run.get("date")),
    ]
    told = [PARTS.fill("fact", text=text.format(v)) for text, v in facts if v is not None]
    return PARTS.fill("lead", facts=join(told), command=found.command)


def _missing(results: Iterable[Results]) -> Html:
    told = [f"{r.folder.name}: {sentence}" for r in results for sentence in r.missing]
    if not told:
        return Html("")
    items = join((PARTS.fill("missing_item", text=text) for text in told), "\n")
    return PARTS.fill("missing", items=items)


def _folder(found: Results, place: Place, home: Path, *, alone: bool) -> Html:
    """All of a folder that does not move."""
    pictures = [p for p in found.pictures if not (found.views and p.stem.startswith("puzzle-"))]
    parts = []
    if pictures:
        drawn = (
            PARTS.fill(
                "figure",
                src=place(p.name, p),
                file=p.name,
                alt=f"Figure: {p.stem}",
                name=p.stem.replace("_", " "),
            )
            for p in pictures
        )
        parts.append(PARTS.fill("figures", figures=join(drawn)))
    if found.films:
        films = (PARTS.fill("film", src=place(p.name, p), name=p.name) for p in found.films)
        parts.append(PARTS.fill("films", films=join(films)))
    parts += [_table(table) for table in found.tables]
    parts += [_settings(found), _files(found, home)]
    if alone:
        return join(parts)
    return PARTS.fill("folder", title=found.title, command=found.command, body=join(parts))


def _table(table: Table) -> Html:
    """Numbers to three digits; a value's interval beside it."""
    head = [name for name in table.head if name not in ("low", "high")]
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
            if name == "value" and between[0] is not None and between[1] is not None:
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
        if key in ("planes", "question", "command"):
            continue
        if isinstance(value, dict):
            text = ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
        else:
            text = _plain(value)
        pairs.append(PARTS.fill("setting", key=key.replace("_", " "), value=text))
    return PARTS.fill("settings", pairs=join(pairs, "\n")) if pairs else Html("")


def _plain(value: object) -> str:
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
