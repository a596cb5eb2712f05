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
from jcos.report.contents import Place
from jcos.report.explorer import (
    charts_in,
    frame,
    inside,
    plane_data,
    relative,
    render,
    runs_in,
    script,
)
from jcos.report.reading import UNREADABLE, Results, distinct, files_of, read, reason
from jcos.report.table import rows_of, thumbnail
from jcos.report.templates import JSON, fill
from jcos.runs import MANIFEST

HOSTS = {"127.0.0.1", "localhost"}
"""Names by which a browser of this machine asks; any other page's name could be pointed here."""
DATA = re.compile(r"(view|chart)-([0-9]{1,9})\.json")
HTML = "text/html; charset=utf-8"
RANGE = re.compile(r"bytes=([0-9]*)-([0-9]*)")
STORED = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"
"""What a file of the results may do where it is opened by itself: be looked at."""
BLOCK = 1 << 18
"""Bytes of a file that are read at a time."""


class Shelf:
    """The runs below a folder, each by a short name that its path decides.

    What is made of a run is kept as long as none of its files changes: its page without pictures,
    and the data of the runs and charts that were looked at.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder; give one with results in it, such as out")
        self.folder = folder.resolve()
        self._runs: dict[str, Path] = {}
        self._read: dict[tuple[Path, ...], tuple[object, list[Results]]] = {}

    def runs(self) -> dict[str, Path]:
        """Look for runs and return them by their names."""
        folders = {p.parent for p in self.folder.rglob(MANIFEST)}
        folders = {p for p in folders if not is_hidden(p.relative_to(self.folder))}
        self._runs = {_name(path): path for path in sorted(folders)}
        return self._runs

    def table(self) -> bytes:
        """Return the page that lists them, the newest first."""
        about = frame(self.folder.name, script(("page.js", "table.js")))
        rows = rows_of(self.folder, self.runs())
        return fill("table.html", **about, refresh=None, rows=rows).encode()

    def folders(self, names: str) -> list[Path]:
        """Return the folders of `name` or `name+name`; none where one is unknown."""
        keys = names.split("+")
        known = self._runs if all(key in self._runs for key in keys) else self.runs()
        return [known[key] for key in keys] if all(key in known for key in keys) else []

    def read(self, folders: list[Path]) -> list[Results]:
        """Return what runs hold, the first of them the baseline."""
        key, version = tuple(folders), [_version(folder) for folder in folders]
        made = self._read.get(key)
        if made is None or made[0] != version:
            made = self._read[key] = version, distinct([read(folder) for folder in folders])
        return made[1]

    def answer(self, path: str) -> tuple[bytes | Path, str] | None:
        """Return the content of an address, or the file that has it, and its type; None where there
        is nothing."""
        parts = [os.fsdecode(urllib.parse.unquote_to_bytes(part)) for part in path.split("/")[1:]]
        if parts == [""]:
            return self.table(), HTML
        folders = self.folders(parts[1]) if len(parts) > 2 and parts[0] == "run" else []
        if not folders:
            return None
        match parts[2:]:
            case [""]:
                results = self.read(folders)
                page = render(results, self._place(results))
                return page.encode(errors="backslashreplace"), HTML
            case ["explore.data", name]:
                results = self.read(folders)
                data = _data(results, name, self._place(results))
                return None if data is None else (data, "application/json")
            case ["explore.thumbnail"]:
                return thumbnail(folders[0])
            case rest:
                folder = folders[0]
                file = folder.joinpath(*rest).resolve()
                if not file.is_relative_to(folder) or not file.is_file() or is_hidden(Path(*rest)):
                    return None
                kind = mimetypes.guess_type(file.name, strict=False)[0]  # webp is no standard type
                return file, kind or "application/octet-stream"

    def _place(self, results: list[Results]) -> Place:
        """Files are linked; what is made on the way is inside the answer."""

        def link(path: Path) -> str:
            folder = next(r.folder for r in results if path.is_relative_to(r.folder))
            return f"/run/{_name(folder)}/{relative(path, folder)}"

        def put(name: str, content: bytes | Path) -> str:
            return link(content) if isinstance(content, Path) else inside(name, content)

        return Place(put, link)


def _data(results: list[Results], name: str, place: Place) -> bytes | None:
    """Return `view-3.json`, a run, or `chart-3.json`; what cannot be read says why."""
    match = DATA.fullmatch(name)
    runs, charts = runs_in(results), charts_in(results)
    if match is None or int(match[2]) >= len(runs if match[1] == "view" else charts):
        return None
    try:
        if match[1] == "chart":
            data = charts[int(match[2])].drawn()
        else:
            data, sheet = plane_data(runs[int(match[2])][1])
            data["sheet"] = place.put(f"sheet.{sheet.kind}", sheet.data)
    except UNREADABLE as error:
        data = {"error": reason(error)}
    return json.dumps(data, **JSON).encode(errors="backslashreplace")


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
                answer = shelf.answer(urllib.parse.urlsplit(self.path).path)
                if answer is None:
                    self.send_error(HTTPStatus.NOT_FOUND)
                    return
                content, kind = answer
                stored = isinstance(content, Path)
                file = content.open("rb") if stored else io.BytesIO(content)
            except (OSError, ValueError) as error:
                self.send_error(HTTPStatus.NOT_FOUND, explain=str(error))
                return
            with file, contextlib.suppress(ConnectionError):  # a player that seeks goes away
                self._send(file, kind, stored)

        def _send(self, file: io.BufferedIOBase, kind: str, stored: bool) -> None:
            """All of it, or the part that is asked for; files of the results run no script."""
            size = file.seek(0, os.SEEK_END)
            part = part_of(self.headers.get("Range"), size)
            wanted = range(size) if part is None else part
            if part is None:
                self.send_response(HTTPStatus.OK)
            elif part:
                self.send_response(HTTPStatus.PARTIAL_CONTENT)
                self.send_header("Content-Range", f"bytes {part[0]}-{part[-1]}/{size}")
            else:
                self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(wanted)))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Cache-Control", "no-cache")
            self.send_header("X-Content-Type-Options", "nosniff")
            if stored:
                self.send_header("Content-Security-Policy", STORED)
            self.end_headers()
            file.seek(wanted.start)
            left = len(wanted)
            while left and (block := file.read(min(BLOCK, left))):
                self.wfile.write(block)
                left -= len(block)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the terminal shows the address."""

    try:
        return ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise OSError(
            f"port {port} cannot be had ({error.strerror}); give another: --port"
        ) from None


def part_of(header: str | None, size: int) -> range | None:
    """The bytes that a Range header asks for: `bytes=a-b`, `bytes=a-`, or the last n, `bytes=-n`.

    Empty where the file has none of them; None, for all, where it asks for no single range.
    """
    match = RANGE.fullmatch((header or "").strip())
    if match is None or len(match[0]) > 64:
        return None
    first, last = (int(number) if number else None for number in match.groups())
    if first is None:
        return None if last is None else range(max(0, size - last), size)
    if last is not None and last < first:
        return None
    return range(min(first, size), size if last is None else min(last + 1, size))


def _name(folder: Path) -> str:
    return hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]


def _version(folder: Path) -> object:
    """Return what changes with any file of results; not with those that are being written."""
    stats = []
    for path in files_of(folder):
        if path.suffix != ".part":
            with contextlib.suppress(FileNotFoundError):  # gone since it was listed
                now = path.stat()
                stats.append((path, now.st_mtime_ns, now.st_size))
    return stats
