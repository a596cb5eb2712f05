"""Folders of results as one page: the step × frame plane, curves and heat maps on one axis,
figures, tables, settings, files.

`make` writes a folder's page, a file that opens from disk. Up to `EMBEDDED` bytes, pictures are
inside; of more they lie beside the page in `index.files/`, each loaded when it is looked at. The
words and the looks are in `explorer.html` and the style sheets; the scripts move the plane; what
does not move is in `sections.py`.
"""

import base64
import datetime as dt
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from jcos import files
from jcos.report.arrays import Trends
from jcos.report.markup import Fragments, Html, join
from jcos.report.markup import read as template
from jcos.report.reading import BESIDE, Results, View, read
from jcos.report.sections import MIME, Place, differences, figures, films, relative, section

PARTS = Fragments("explorer.html")
SCRIPTS = ("explorer.js", "plane.js", "curves.js", "maps.js", "controls.js")
STYLES = ("base.css", "plane.css", "explorer.css")
PAGE, OTHER = "index.html", "explore.html"
OURS = '<meta name="generator" content="jcos report">'
SHEET = "sheet-"
EMBEDDED = 24_000_000
"""Bytes of pictures up to which a page holds them itself."""
ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'%3E"
    "%3Cpath fill='%230072b2' d='M0 0h8v8H0z'/%3E%3Cpath fill='%23f0a83c' d='M1 5h2v2H1zM3 3h2v2H3z"
    "M5 1h2v2H5z'/%3E%3C/svg%3E"
)


def make(folder: Path) -> Path:
    """Reads a folder and writes its page (`page_of`), which commands end with."""
    return write([read(folder)], page_of(folder))


def page_of(folder: Path) -> Path:
    """Where its page belongs: `index.html`, unless a page of another making, such as the demo's,
    has that name; then `explore.html`."""
    page = folder / PAGE
    return page if _ours(page) else folder / OTHER


def _ours(page: Path) -> bool:
    """Whether a page may be written there: over none, or one of `write`."""
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
    """Writes the page, and a folder of the same name that ends in `.files` if its pictures are more
    than `embedded` bytes. Both are complete before they get their names.

    Raises ValueError where there is a folder of that name that no page left."""
    check_page(page)
    page.parent.mkdir(parents=True, exist_ok=True)
    store = page.with_suffix(BESIDE)
    if store.exists() and not all(p.name.startswith(SHEET) for p in files.visible(store)):
        raise ValueError(f"{store} holds other files than a page's pictures; give another --out")
    pictures = [p for r in results for p in (*r.pictures, *r.films)]
    if store.is_symlink():
        store.unlink()
    size = sum(len(v.sheet.data) for r in results for v in r.views)
    size += sum(p.stat().st_size for p in pictures)
    if size <= embedded:
        files.write(page, render(results, inside, page.parent))
        shutil.rmtree(store, ignore_errors=True)
        return page
    made = Path(tempfile.mkdtemp(prefix=f".{store.name}.", dir=page.parent))
    made.chmod(0o755)
    try:
        text = render(results, _Beside(made, store), page.parent)
        shutil.rmtree(store, ignore_errors=True)
        made.rename(store)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    files.write(page, text)
    return page


def render(results: Sequence[Results], place: Place, home: Path, *, live: bool = False) -> Html:
    """The page as text; `home`: the folder that it lies in, from which files are linked."""
    title = results[0].title if len(results) == 1 else " · ".join(r.title for r in results)
    code, views, alone = script(), _views(results), len(results) == 1
    trends = results[0].trends if alone else _side_by_side(results)
    data = plane_data(views, trends, max(r.steps for r in results), place)
    return PARTS.fill(
        "page",
        policy=policy(code),
        title=title,
        icon=ICON,
        style=Html("".join(map(template, STYLES))),
        live=Html(' data-live=""') if live else "",
        back=PARTS.fill("back") if live else "",
        lead=_lead(results[0]) if alone else "",
        missing=join([_missing(results), differences(results)]),
        figures=figures(results[0], place) if alone else "",
        plane=PARTS.fill("plane") if views or any(trends) else "",
        sections=join(
            [films(results, place), *(section(r, place, home, alone=alone) for r in results)]
        ),
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
        figures="",
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
        kind = "png" if view.sheet.data.startswith(b"\x89PNG") else "webp"
        src = place(f"{SHEET}{i}.{kind}", view.sheet.data)
        if src.startswith("data:"):  # read only when it is looked at
            sheets.append(PARTS.fill("sheet", id=f"{SHEET}{i}", src=src))
            src = f"#{SHEET}{i}"
        about = {
            "sheet": src,
            "cell": view.sheet.cell,
            "columns": view.sheet.columns,
            "lines": [line._asdict() for line in view.lines],
            "maps": [one.told() for one in view.maps],
        }
        told.append(view.about | about)
    data = {
        "views": told,
        "lines": [line._asdict() for line in trends.lines],
        "maps": [one.told() for one in trends.maps],
        "steps": steps,
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), default=list)
    return {"json": Html(text.replace("<", "\\u003c")), "sheets": join(sheets)}


def _views(results: Sequence[Results]) -> list[View]:
    """Of several folders, the runs are named after theirs, and follow the run of the same puzzle
    and seed in the first folder, their baseline."""
    if len(results) == 1:
        return results[0].views
    first, *others = results
    groups: list[list[View]] = [[_named(first, view)] for view in first.views]
    place = {_key(view): i for i, view in reversed(list(enumerate(first.views)))}
    for found in others:
        for view in found.views:
            at = place.get(_key(view))
            named = _named(found, view)
            groups.append([named]) if at is None else groups[at].append(named)
    views = []
    for group in groups:
        start = len(views)
        matched = len(group) > 1
        views += [v._replace(about=v.about | {"baseline": start}) if matched else v for v in group]
    return views


def _side_by_side(results: Sequence[Results]) -> Trends:
    """The curves of several folders in the same charts, and their maps, named after them."""
    found = Trends([], [])
    for r in results:
        lines, maps = r.trends
        found.lines.extend(one._replace(label=f"{r.title}, {one.label}") for one in lines)
        found.maps.extend(one._replace(title=f"{r.title}: {one.title}") for one in maps)
    return found


def _key(view: View) -> tuple[str, str]:
    return view.about["group"], view.about["label"]


def _named(found: Results, view: View) -> View:
    return view._replace(about=view.about | {"label": f"{found.title}, {view.about['label']}"})


def inside(name: str, content: bytes | Path) -> str:
    """A `Place`: the page itself."""
    suffix = Path(name).suffix
    data = content if isinstance(content, bytes) else content.read_bytes()
    return f"data:{MIME[suffix]};base64,{base64.b64encode(data).decode()}"


class _Beside:
    """Puts sheets into a folder beside the page; what lies in the results already is linked."""

    def __init__(self, made: Path, store: Path) -> None:
        self.made, self.store = made, store

    def __call__(self, name: str, content: bytes | Path) -> str:
        if isinstance(content, Path):
            return relative(content, self.store.parent)
        (self.made / name).write_bytes(content)
        return relative(self.store / name, self.store.parent)


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
