"""Pages made when they are asked for (`jcos explore`): for this machine only, to be read only."""

import contextlib
import hashlib
import io
import itertools
import json
import os
import re
import urllib.parse
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from jcos.files import is_hidden
from jcos.report.arms import STATE
from jcos.report.explorer import listing, render
from jcos.report.reading import MANIFESTS, UNREADABLE, files_of, holds_results, read
from jcos.report.sections import relative

HOSTS = {"127.0.0.1", "localhost"}
"""Names by which a browser of this machine asks; any other page's name could be pointed here."""
SHEETS = "explore.sheets"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".csv": "text/csv; charset=utf-8",
    ".png": "image/png",
    ".webp": "image/webp",
    ".mp4": "video/mp4",
}
RANGE = re.compile(r"bytes=([0-9]*)-([0-9]*)")
BLOCK = 1 << 18
"""Bytes of a file that are read at a time."""


class Made(NamedTuple):
    """A run's page, of its files as they were then."""

    version: str
    page: bytes
    sheets: dict[str, bytes]


class Shelf:
    """The runs below a folder, each by a short name that its path decides."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder; give one with results in it, such as out")
        self.folder = folder.resolve()
        self._made: dict[str, Made] = {}

    def runs(self) -> dict[str, Path]:
        inside = (p for name in MANIFESTS for p in self.folder.rglob(name))
        found = {p.parent for p in inside if not is_hidden(p.parent.relative_to(self.folder))}
        found |= {self.folder} if holds_results(self.folder) else set()
        return {_name(path): path for path in sorted(found)}

    def list(self) -> bytes:
        """The page that lists them, the newest first."""
        runs = sorted(self.runs().items(), key=lambda run: -_changed(run[1]))
        told = []
        for name, path in runs:
            manifest = next(path / m for m in MANIFESTS if (path / m).is_file())
            try:
                about = json.loads(manifest.read_text(encoding="utf-8"))
                question = str(about.get("question") or about.get("command") or "")
            except (*UNREADABLE, AttributeError):
                question = f"{manifest.name} cannot be read."
            shown = path.relative_to(self.folder).as_posix() if path != self.folder else path.name
            told.append((f"run/{name}/", shown, question, _changed(path)))
        return listing(self.folder.name, told).encode(errors="backslashreplace")

    def page(self, folder: Path) -> Made:
        name, version = _name(folder), _version(folder)
        made = self._made.get(name)
        if made is None or made.version != version:
            sheets: dict[str, bytes] = {}

            def place(picture: str, content: bytes | Path) -> str:
                if isinstance(content, Path):
                    return relative(content, folder)
                sheets[picture] = content
                return f"{SHEETS}/{picture}"

            text = render([read(folder)], place, folder, live=True)
            made = self._made[name] = Made(version, text.encode(errors="backslashreplace"), sheets)
        return made

    def answer(self, path: str) -> tuple[bytes | Path, str] | None:
        """Content, or the file that has it, and type of an address; None where there is nothing."""
        parts = [os.fsdecode(urllib.parse.unquote_to_bytes(part)) for part in path.split("/")[1:]]
        if parts == [""]:
            return self.list(), TYPES[".html"]
        folder = self.runs().get(parts[1]) if len(parts) > 2 and parts[0] == "run" else None
        if folder is None:
            return None
        match parts[2:]:
            case [""]:
                return self.page(folder).page, TYPES[".html"]
            case ["version"]:
                return _version(folder).encode(), "text/plain"
            case [first, name] if first == SHEETS:
                sheet = self.page(folder).sheets.get(name)
                return None if sheet is None else (sheet, TYPES[Path(name).suffix])
            case rest:
                file = folder.joinpath(*rest).resolve()
                if not file.is_relative_to(folder) or not file.is_file() or is_hidden(Path(*rest)):
                    return None
                return file, TYPES.get(file.suffix, "application/octet-stream")


def server(folder: Path, port: int) -> ThreadingHTTPServer:
    """Bound to the loopback address. Raises ValueError where the folder is none, OSError where the
    port is taken."""
    shelf = Shelf(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = (self.headers.get("Host") or "").rpartition(":")[0]
            if host not in HOSTS:
                self.send_error(HTTPStatus.FORBIDDEN)
                return
            try:
                found = shelf.answer(urllib.parse.urlsplit(self.path).path)
                if found is None:
                    self.send_error(HTTPStatus.NOT_FOUND)
                    return
                content, kind = found
                file = content.open("rb") if isinstance(content, Path) else io.BytesIO(content)
            except (OSError, ValueError) as error:
                self.send_error(HTTPStatus.NOT_FOUND, explain=str(error))
                return
            with file, contextlib.suppress(ConnectionError):  # a player that seeks goes away
                self._send(file, kind)

        def _send(self, file: io.BufferedIOBase, kind: str) -> None:
            """All of it, or the part that is asked for."""
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


def part_of(asked: str | None, size: int) -> range | None:
    """The bytes that a Range header asks for: `bytes=a-b`, `bytes=a-`, or the last n, `bytes=-n`.

    Empty where the file has none of them; None, for all, where it asks for no single range.
    """
    match = RANGE.fullmatch((asked or "").strip())
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


def _changed(folder: Path) -> float:
    return max(p.stat().st_mtime for p in (*folder.glob("*.json"), folder))


def _version(folder: Path) -> str:
    """Changes with any result; not with files that are being written, nor with the claims by which
    a benchmark's workers say that they live."""
    told = []
    for path in files_of(folder):
        claim = (STATE, "claims") in itertools.pairwise(path.relative_to(folder).parts)
        if path.suffix != ".part" and not claim:
            with contextlib.suppress(FileNotFoundError):  # gone since it was listed
                now = path.stat()
                told.append((path.as_posix(), now.st_mtime_ns, now.st_size))
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]
