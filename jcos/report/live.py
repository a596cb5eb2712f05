"""Pages made when they are asked for (`jcos explore`): for this machine only, to be read only."""

import hashlib
import json
import urllib.parse
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from jcos.report.explorer import listing, render
from jcos.report.reading import MANIFESTS, UNREADABLE, holds_results, read
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
        found = {p.parent for p in inside if not _hidden(p.parent.relative_to(self.folder))}
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
        return listing(self.folder.name, told).encode()

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
            made = self._made[name] = Made(version, text.encode(), sheets)
        return made

    def answer(self, path: str) -> tuple[bytes, str] | None:
        """Content and type of an address; None where there is nothing."""
        parts = [urllib.parse.unquote(part) for part in path.split("/")[1:]]
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
                if not file.is_relative_to(folder) or not file.is_file() or _hidden(Path(*rest)):
                    return None
                return file.read_bytes(), TYPES.get(file.suffix, "application/octet-stream")


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
            except (OSError, ValueError) as error:
                self.send_error(HTTPStatus.NOT_FOUND, explain=str(error))
                return
            if found is None:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            content, kind = found
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-cache")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the terminal shows the address."""

    try:
        return ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise OSError(
            f"port {port} cannot be had ({error.strerror}); give another: --port"
        ) from None


def _name(folder: Path) -> str:
    return hashlib.sha256(str(folder).encode()).hexdigest()[:12]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _changed(folder: Path) -> float:
    return max(p.stat().st_mtime for p in (*folder.glob("*.json"), folder))


def _version(folder: Path) -> str:
    """Changes with any file."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    told = [(p.as_posix(), s.st_mtime_ns, s.st_size) for p in files for s in [p.stat()]]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]
