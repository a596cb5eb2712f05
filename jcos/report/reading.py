"""Any folder of results, read for the explorer: what is missing or damaged is said.

Known are what `jcos sample`, `demo`, `run`, `generate` and `bench run` write; of other folders
their CSV tables, pictures and films.
"""

import csv
import dataclasses
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import av
import numpy as np
from PIL import Image

from jcos.files import visible
from jcos.report.arms import Samples, aside, is_arm, samples_of
from jcos.report.arrays import Trends, trends
from jcos.report.maps import Map
from jcos.report.plane import PLANES, RUN, Line, Plane, Sheet, listed
from jcos.report.runs import Arrays, planes_of
from jcos.runs import KINDS

T = TypeVar("T")
CONFIG, ARRAYS = "config.json", "arrays.npz"
BESIDE = ".files"
"""Ends the name of the folder beside a page that holds its pictures, if they are many."""
MANIFESTS = (CONFIG, RUN)
"""Each says what a folder of results holds; the first that is there counts."""
SAYS = {*KINDS, "command", "question"}
"""Entries of which a manifest of results has one; a model's `config.json` has none."""
DATA = (ARRAYS, PLANES, "table.csv", "latents.safetensors", "summary.json")
"""Files beside manifests."""
UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    SyntaxError,  # of Pillow, for a broken PNG
    zipfile.BadZipFile,
    zlib.error,
    csv.Error,
    av.FFmpegError,
)
"""What a missing or damaged file, or a manifest of another making, raises when it is read."""


class View(NamedTuple):
    """A plane as the page has it."""

    sheet: Sheet
    about: dict[str, Any]
    lines: list[Line]
    maps: list[Map]


class Table(NamedTuple):
    name: str
    head: list[str]
    rows: list[list[str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """What was found in a folder. manifest: what was run. prompts: of films, by their paths inside
    without ending, where they are known. missing: one sentence for each thing that should be there
    and is not, or cannot be read."""

    folder: Path
    manifest: dict[str, Any]
    views: list[View]
    trends: Trends
    tables: list[Table]
    pictures: list[Path]
    films: list[Path]
    prompts: dict[str, str]
    files: list[Path]
    missing: list[str]

    @property
    def title(self) -> str:
        return str(self.manifest.get("question") or self.folder.resolve().name)

    @property
    def command(self) -> str:
        return str(self.manifest.get("command", ""))

    @property
    def captions(self) -> dict[str, Any]:
        """What is said below the figures, by their names."""
        return _dict(self.manifest.get("figures"))

    @property
    def steps(self) -> int:
        """Denoising steps of a run; 0 where nothing says it, or what it says is no number."""
        told = _dict(self.manifest.get("arm")) or self.manifest
        steps = _dict(told.get("sampling")).get("steps")
        return steps if isinstance(steps, int) else 0


def holds_results(folder: Path) -> bool:
    return any((folder / name).is_file() for name in MANIFESTS)


def check_results(folder: Path) -> None:
    """Raise ValueError where a folder has files, but no results of a command: it gets no page. A
    damaged manifest counts where the files that a command leaves lie beside it."""
    try:
        ours = not SAYS.isdisjoint(_manifest(folder))
    except ValueError:
        ours = any((folder / name).is_file() for name in DATA)
    except FileNotFoundError:  # what is no folder, or an empty one, `read` says
        ours = not folder.is_dir() or not any(folder.iterdir())
    if not ours:
        inside = sorted(p.parent for p in folder.glob("*/*") if p.name in MANIFESTS)
        hint = (
            f"give a folder in it, such as {inside[0]}, or --serve"
            if inside
            else ("give a folder that a command made, such as out/sample")
        )
        raise ValueError(f"{folder} holds no results of jcos: {hint}")


def read(folder: Path) -> Results:
    """Everything in a folder. Raises ValueError only where it is none, or an empty one."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give one with results, such as out/sample")
    files = files_of(folder)
    if not files:
        raise ValueError(f"{folder} is empty; give a folder with results, such as out/sample")
    missing: list[str] = []

    def tried(told: str, what: Callable[[], T]) -> T | None:
        try:
            return what()
        except UNREADABLE as error:
            missing.append(f"{told}: {_reason(error)}")
            return None

    def named(path: Path) -> str:
        return path.relative_to(folder).as_posix()

    manifest = tried("The manifest", lambda: _manifest(folder)) or {}
    expected = tried("The manifest", lambda: _expected(manifest)) or []
    absent = [name for name in expected if not (folder / name).is_file()]
    missing += [f"{name}: it is missing." for name in absent]
    files = [p for p in files if p.relative_to(folder).parts[0] not in aside(manifest)]
    arrays: Arrays = {}
    if (folder / ARRAYS).is_file():
        arrays = tried(ARRAYS, lambda: _npz(folder / ARRAYS)) or {}
    planes = (
        tried("The runs", lambda: list(planes_of(folder, manifest, arrays, missing.append))) or []
    )
    views = [tried(name, lambda plane=plane: view_of(plane())) for name, plane in planes or ()]
    tables = [tried(named(p), lambda p=p: _table(p)) for p in files if p.suffix == ".csv"]
    drawn = [p for p in files if p.suffix in (".png", ".webp") and not p.stem.endswith("-x0")]
    told = {sentence.partition(":")[0] for sentence in missing}
    shown = [p for p in files if p.suffix == ".mp4" and "-x0-step-" not in p.stem]
    films = _there([tried(named(p), lambda p=p: _film(p)) for p in shown if named(p) not in told])
    samples = Samples({}, [])
    if is_arm(manifest):
        samples = tried("The samples", lambda: samples_of(folder, shown)) or samples
        missing[:0] = samples.missing
    return Results(
        folder=folder,
        manifest=manifest,
        views=_there(views),
        trends=tried("Curves of the arrays", lambda: trends(arrays, manifest, missing.append))
        or Trends([], []),
        tables=_there(tables),
        pictures=_there([tried(named(p), lambda p=p: _checked(p)) for p in drawn]),
        films=films,
        prompts=samples.prompts,
        files=files,
        missing=missing,
    )


def _there(found: Sequence[T | None]) -> list[T]:
    return [one for one in found if one is not None]


def files_of(folder: Path) -> list[Path]:
    """All files but hidden ones and pages."""
    found = []
    for path in visible(folder, "**/*"):
        stored = any(part.endswith(BESIDE) for part in path.relative_to(folder).parts)
        if path.is_file() and not stored and path.suffix != ".html":
            found.append(path)
    return found


def _expected(run: Mapping[str, Any]) -> list[str]:
    """Files that a command leaves, by what its manifest says."""
    if "experiment" in run:
        return [ARRAYS, "table.csv"]
    if "planes" in run:
        return [PLANES]
    if "puzzles" in run:
        return [ARRAYS]
    if "checkpoint" in run:
        return [f"seed-{seed}.mp4" for seed in run.get("seeds") or ()]
    return []


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it is missing."
    if isinstance(error, KeyError):
        return f"{error.args[0]!r} is missing."
    return f"it cannot be read ({str(error) or type(error).__name__})."


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _manifest(folder: Path) -> dict[str, Any]:
    path = next((folder / name for name in MANIFESTS if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(RUN)
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} is no JSON object")
    return found


def _npz(path: Path) -> dict[str, np.ndarray]:
    # Opened here: of a damaged one, NumPy would leave the file open.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def _checked(path: Path) -> Path:
    """The picture's own path, if it is whole."""
    with Image.open(path) as picture:
        picture.verify()
    return path


def _film(path: Path) -> Path:
    """The film's own path, if all of its frames are there: an index may stand at the beginning and
    name more. They are counted, not decoded."""
    with av.open(str(path)) as film:
        if not film.streams.video:
            raise ValueError("it has no pictures")
        stream = film.streams.video[0]
        whole = sum(1 for packet in film.demux(stream) if packet.size and not packet.is_corrupt)
        if whole < stream.frames:  # 0 where the format does not say
            raise ValueError(f"{whole} of its {stream.frames} frames are there")
    return path


def _table(path: Path) -> Table:
    with path.open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    return Table(path.stem, head, rows)


def view_of(plane: Plane) -> View:
    """A plane as the page has it, with what follows from its pictures."""
    lines, apart = plane.derived()
    about = plane.about()
    del about["lines"]
    about["video"], about["reference"] = plane.video is not None, plane.reference is not None
    return View(
        plane.sheet(),
        about,
        [line._replace(values=listed(line.values)) for line in (*plane.lines, *lines)],
        [apart] if len(plane.x0) > 1 else [],
    )
