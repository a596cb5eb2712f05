"""Pages made when they are asked for (`jcos explore`): for this machine only, to be read only."""

import contextlib
import hashlib
import io
import json
import mimetypes
import os
import re
import urllib.parse
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from jcos.files import is_hidden
from jcos.report import templates
from jcos.report.contents import Place
from jcos.report.explorer import charts_in, data_of, relative, render, runs_in
from jcos.report.reading import Results, distinct, read
from jcos.report.table import rows_of, thumbnail
from jcos.report.templates import inside
from jcos.runs import MANIFEST

HOSTS = {"127.0.0.1", "localhost"}
"""Names by which a browser of this machine asks; any other page's name could be pointed here."""
DATA = re.compile(r"(view|chart)-([0-9]{1,9})\.json")
HTML = "text/html; charset=utf-8"
RANGE = re.compile(r"bytes=([0-9]{1,20})-([0-9]{0,20})")
STORED = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"
"""What a file of the results may do where it is opened by itself: be looked at."""
BLOCK = 1 << 18
"""Bytes of a file that are read at a time."""


class Shelf:
    """The runs below a folder, each by a short name that its path decides."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder; give one with results in it, such as out")
        self.folder = folder.resolve()
        self._runs: dict[str, Path] = {}
        self._results: dict[tuple[Path, ...], list[Results]] = {}

    def runs(self) -> dict[str, Path]:
        """Look for runs and return them by their names."""
        folders = {p.parent for p in self.folder.rglob(MANIFEST)}
        folders = {p for p in folders if not is_hidden(p.relative_to(self.folder))}
        self._runs = {_name(path): path for path in sorted(folders)}
        return self._runs

    def table(self) -> bytes:
        """Return the page that lists them, the newest first."""
        rows = rows_of(self.folder, self.runs())
        scripts = ("page.js", "table.js")
        return templates.page("table.html", scripts, title=self.folder.name, rows=rows).encode()

    def folders(self, names: str) -> list[Path]:
        """Return the folders of `name` or `name+name`; none where one is unknown."""
        keys = names.split("+")
        known = self._runs if all(key in self._runs for key in keys) else self.runs()
        return [known[key] for key in keys] if all(key in known for key in keys) else []

    def read(self, folders: list[Path], anew: bool = False) -> list[Results]:
        """Return the results of runs, the first of them the baseline; as they were when their page
        was made, so that its runs and charts are those that it names."""
        key = (*folders,)
        if anew or key not in self._results:
            self._results[key] = distinct([read(folder) for folder in folders])
        return self._results[key]

    def answer(self, path: str) -> tuple[bytes | Path, str]:
        """Return the content of an address, or the file that has it, and its type. Raises
        LookupError where there is nothing."""
        parts = [os.fsdecode(urllib.parse.unquote_to_bytes(part)) for part in path.split("/")[1:]]
        if parts == [""]:
            return self.table(), HTML
        folders = self.folders(parts[1]) if len(parts) > 2 and parts[0] == "run" else []
        match parts[2:] if folders else None:
            case [""]:
                return _page(self.read(folders, anew=True)), HTML
            case ["explore.data", name]:
                return _data(self.read(folders), name), "application/json"
            case ["explore.thumbnail"]:
                return thumbnail(folders[0])
            case [*rest]:
                folder, inside = folders[0], Path(*rest)
                file = (folder / inside).resolve()
                if file.is_relative_to(folder) and file.is_file() and not is_hidden(inside):
                    kind = mimetypes.guess_type(file.name, strict=False)[0]
                    return file, kind or "application/octet-stream"
        raise LookupError(f"there is no {path}")


def _page(results: list[Results]) -> bytes:
    """Return the page of runs: files are linked, what is made on the way is inside."""

    def link(path: Path) -> str:
        folder = next(r.folder for r in results if path.is_relative_to(r.folder))
        return f"/run/{_name(folder)}/{relative(path, folder)}"

    runs = [run for _, run in runs_in(results)]
    return render(results, Place(link, link), runs).encode(errors="backslashreplace")


def _data(results: list[Results], name: str) -> bytes:
    """Return `view-3.json`, a run, or `chart-3.json`. LookupError where there is none."""
    match = DATA.fullmatch(name)
    charts = match is not None and match[1] == "chart"
    listed = charts_in(results) if charts else [run for _, run in runs_in(results)]
    if match is None or int(match[2]) >= len(listed):
        raise LookupError(f"there is no {name}")
    data = data_of(listed[int(match[2])])
    if "sheet" in data:
        data["sheet"] = inside("sheet.webp", data["sheet"])
    return json.dumps(data, **templates.JSON).encode(errors="backslashreplace")


def server(folder: Path, port: int) -> ThreadingHTTPServer:
    """Bound to the loopback address. Raises ValueError where the folder or the port is none,
    OSError where the port is taken."""
    if port not in range(2**16):
        raise ValueError(f"port is {port}; it is 0 to 65535")
    shelf = Shelf(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = (self.headers.get("Host") or "").partition(":")[0]
            if host not in HOSTS:
                self.send_error(HTTPStatus.FORBIDDEN)
                return
            try:
                content, kind = shelf.answer(urllib.parse.urlsplit(self.path).path)
                stored = isinstance(content, Path)
                file = content.open("rb") if stored else io.BytesIO(content)
            except (OSError, ValueError, LookupError) as error:
                self.send_error(HTTPStatus.NOT_FOUND, explain=str(error))
                return
            with file, contextlib.suppress(ConnectionError):  # a player that seeks goes away
                self._send(file, kind, stored)

        def _send(self, file: io.BufferedIOBase, kind: str, stored: bool) -> None:
            """All of it, or the part that is asked for; files of the results run no script."""
            size = file.seek(0, os.SEEK_END)
            part, wanted, status = part_of(self.headers.get("Range"), size), range(size), 200
            headers = {"Content-Type": kind, "Accept-Ranges": "bytes", "Cache-Control": "no-cache"}
            if part is not None:
                span = f"{part[0]}-{part[-1]}" if part else "*"
                headers["Content-Range"] = f"bytes {span}/{size}"
                wanted, status = part, 206 if part else 416
            if stored:
                headers["Content-Security-Policy"] = STORED
            headers |= {"Content-Length": str(len(wanted)), "X-Content-Type-Options": "nosniff"}
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            file.seek(wanted.start)
            for at in range(wanted.start, wanted.stop, BLOCK):
                self.wfile.write(file.read(min(BLOCK, wanted.stop - at)))

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the terminal shows the address."""

    try:
        return ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise OSError(
            f"port {port} cannot be had ({error.strerror}); give another: --port"
        ) from None


def part_of(header: str | None, size: int) -> range | None:
    """Return the bytes that a Range header asks for, `bytes=a-b` or `bytes=a-`: none where the file
    has none of them. None, for all, where it asks for anything else."""
    match = RANGE.fullmatch(header or "")
    if match is None:
        return None
    return range(min(int(match[1]), size), min(int(match[2] or size), size - 1) + 1)


def _name(folder: Path) -> str:
    return hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
