"""Any folder of results, read for its page: what is missing or damaged is said.

Known are what `jcos sample`, `search`, `demo`, `run`, `generate` and `bench run` write; of other
folders their CSV tables, pictures and films. Pictures of runs and values of charts are read when
they are asked for.
"""

import dataclasses
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from xml.etree import ElementTree as ET

import av
import numpy as np
import pandas as pd
from PIL import Image

from jcos.files import visible
from jcos.lab import results
from jcos.lab.outcome import TREE
from jcos.report.arms import ASIDE, samples_of
from jcos.report.charts import Chart, charts_of
from jcos.report.plane import PLANES, Plane
from jcos.report.runs import runs_of
from jcos.report.templates import finite
from jcos.report.trees import trees_of
from jcos.runs import KINDS, MANIFEST

S = TypeVar("S")
T = TypeVar("T")
DATASET, TABLE, FIGURES = "results.nc", "table.csv", "figures"
ESTIMATES = ("value", "mean")
"""Columns of a table that `low` and `high` are the interval of; the first that it has."""
STORE = ".files"
"""Ends the name of the folder beside a page that holds its pictures, if they are many."""
SAYS = {*KINDS, "command", "title"}
"""Entries of which a manifest of results has one; a model's `config.json` has none."""
LEFT = (DATASET, PLANES, TABLE, TREE, "latents.safetensors", "summary.json")
"""Files that commands leave beside the manifest."""
DRAWN = (".svg", ".png", ".webp")
UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    RecursionError,  # of JSON that is nested too deep
    SyntaxError,  # for broken PNG and XML
    Image.DecompressionBombError,
    zipfile.BadZipFile,
    zlib.error,
    av.FFmpegError,
)
"""What a missing or damaged file, or a manifest of another making, raises when it is read."""


class Table(NamedTuple):
    """A table of CSV: each cell has its number, if it is one, and its text."""

    name: str
    head: list[str]
    rows: list[list[tuple[float | None, str]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """What a folder holds.

    manifest: what was run. prompts: of films, by their paths inside without ending, where they are
    known. missing: one sentence for each thing that should be there and is not, or cannot be read.
    name: a title that replaces the manifest's.
    """

    folder: Path
    manifest: dict[str, Any]
    runs: list[Plane]
    charts: list[Chart]
    tables: list[Table]
    pictures: list[Path]
    films: list[Path]
    prompts: dict[str, str]
    files: list[Path]
    missing: list[str]
    trees: list[dict[str, Any]]
    name: str = ""

    @property
    def title(self) -> str:
        return self.name or str(
            self.manifest.get("title")
            or self.manifest.get("question")
            or self.folder.resolve().name
        )

    @property
    def captions(self) -> dict[str, Any]:
        """What is said below the figures, by their names."""
        return _dict(self.manifest.get("figures"))

    @property
    def sections(self) -> list[dict[str, Any]]:
        """Text and figures in the order of the manifest; each has a title."""
        listed = self.manifest.get("sections")
        listed = listed if isinstance(listed, list) else []
        return [section for section in listed if _dict(section).get("title")]

    @property
    def steps(self) -> int:
        """Denoising steps of a run; 0 where nothing says it, or what it says is no number."""
        about = _dict(self.manifest.get("arm")) or self.manifest
        steps = _dict(about.get("sampling")).get("steps")
        return steps if isinstance(steps, int) else 0


def check_results(folder: Path) -> None:
    """Raise ValueError where a folder has files, but no results of a command: it gets no page. A
    damaged manifest counts where the files that a command leaves lie in the same folder."""
    try:
        ours = not SAYS.isdisjoint(manifest_of(folder))
    except (ValueError, RecursionError):
        ours = any((folder / name).is_file() for name in LEFT)
    except FileNotFoundError:  # `read` refuses what is no folder, or an empty one
        ours = not folder.is_dir() or not any(folder.iterdir())
    if not ours:
        inside = sorted(p.parent for p in folder.glob(f"*/{MANIFEST}"))
        hint = "give a folder that a command made, such as out/sample"
        hint = f"give a folder in it, such as {inside[0]}, or jcos explore" if inside else hint
        raise ValueError(f"{folder} holds no results of jcos: {hint}")


def distinct(results: Sequence[Results]) -> list[Results]:
    """Return results that are compared, named after their folders where titles are the same."""
    if len({result.title for result in results}) == len(results):
        return list(results)
    paths = [result.folder.resolve() for result in results]
    above = os.path.commonpath(paths)
    pairs = zip(results, paths, strict=True)
    return [dataclasses.replace(one, name=os.path.relpath(at, above)) for one, at in pairs]


def read(folder: Path) -> Results:
    """Return everything in a folder. Raises ValueError only where it is none, or an empty one."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give one with results, such as out/sample")
    files = files_of(folder)
    if not files:
        raise ValueError(f"{folder} is empty; give a folder with results, such as out/sample")
    missing: list[str] = []

    def tried(what: str, other: T, how: Callable[..., T], *given: Any) -> T:
        try:
            return how(*given)
        except UNREADABLE as error:
            missing.append(f"{what}: {reason(error)}")
            return other

    def whole(how: Callable[[Path], S], paths: Iterable[Path]) -> list[S]:
        named = ((path.relative_to(folder).as_posix(), path) for path in paths)
        contents = [tried(name, None, how, path) for name, path in named]
        return [one for one in contents if one is not None]

    manifest = tried("The manifest", {}, manifest_of, folder)
    expected = tried("The manifest", [], _expected, manifest)
    absent = {name for name in expected if not (folder / name).is_file()}
    missing += [f"{name}: it is missing." for name in expected if name in absent]
    aside = {name for kind, names in ASIDE.items() if kind in manifest for name in names}
    files = [p for p in files if p.relative_to(folder).parts[0] not in aside]
    runs: list[Plane] = []
    if PLANES not in absent:
        file = PLANES if "planes" in manifest else "The runs"
        runs = tried(file, runs, lambda: list(runs_of(folder, manifest, missing.append)))
    charts, lacking = tried(DATASET, ([], []), _charts, folder, manifest)
    missing += lacking
    tables = whole(_table, (p for p in files if p.suffix == ".csv"))
    films = [p for p in files if p.suffix == ".mp4" and "-x0-step-" not in p.stem]
    prompts: dict[str, str] = {}
    if "arm" in manifest:
        prompts, lacking = tried("The samples", (prompts, []), samples_of, folder, films)
        missing[:0] = lacking
    trees = tried(TREE, [], trees_of, folder, manifest)
    drawn = (p for p in files if p.suffix in DRAWN and not p.stem.endswith("-x0"))
    return Results(
        folder=folder,
        manifest=manifest,
        runs=runs,
        charts=charts,
        tables=tables,
        pictures=whole(_picture, drawn),
        films=whole(_film, films),
        prompts=prompts,
        files=files,
        missing=missing,
        trees=trees,
    )


def files_of(folder: Path) -> list[Path]:
    """Return all files but hidden ones and pages."""

    def of_page(path: Path) -> bool:
        stored = any(part.endswith(STORE) for part in path.relative_to(folder).parts)
        return stored or path.suffix == ".html"

    return [p for p in visible(folder, "**/*") if p.is_file() and not of_page(p)]


def manifest_of(folder: Path) -> dict[str, Any]:
    """Return what `run.json` says. Raises FileNotFoundError, or ValueError for no JSON object."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(manifest, dict):
        raise ValueError(f"{MANIFEST} is no JSON object")
    return manifest


def _charts(folder: Path, manifest: Mapping[str, Any]) -> tuple[list[Chart], list[str]]:
    """Return `charts_of` the dataset of a folder; ValueError where it is another's."""
    if not (folder / DATASET).is_file():
        return [], []
    return charts_of(results.load(folder / DATASET, manifest.get("experiment")))


def _expected(run: Mapping[str, Any]) -> list[str]:
    """Return files that a command leaves, by what its manifest says."""
    listed = [f"{FIGURES}/{name}.svg" for name in _dict(run.get("figures"))]
    if run.get("unfinished"):
        return []
    if "experiment" in run:
        return [DATASET, TABLE, *listed]
    if "planes" in run or "puzzles" in run:
        return [PLANES, *listed]
    if "search" in run:
        return [TREE, *listed]
    if "checkpoint" in run:
        films = [f"seed-{seed}.mp4" for seed in run.get("seeds") or ()]
        return [*films, TREE] if "tree" in run and "seed" in run else films
    return listed


def reason(error: Exception) -> str:
    """Return why something is not shown, as the end of a sentence."""
    if isinstance(error, FileNotFoundError):
        return "it is missing."
    if isinstance(error, KeyError):
        return f"{error.args[0]!r} is missing."
    return f"it cannot be read ({str(error) or type(error).__name__})."


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _picture(path: Path) -> Path:
    """Return a picture that is whole."""
    if path.suffix == ".svg":
        ET.fromstring(path.read_text(encoding="utf-8"))
    else:
        with Image.open(path) as picture:
            picture.verify()
    return path


def _film(path: Path) -> Path:
    """Return a film that is whole: its boxes, of which only the heads are read, end with it."""
    size, at, boxes = path.stat().st_size, 0, []
    with path.open("rb") as file:
        while at < size:
            file.seek(at)
            head = file.read(16)
            length = int.from_bytes(head[:4])  # 1: stands behind the name; 0: to the end
            length = int.from_bytes(head[8:]) if length == 1 else length or size - at
            if length < 8:
                raise ValueError("it is no MP4")
            boxes.append(head[4:8])
            at += length
    if at > size or b"moov" not in boxes:
        raise ValueError(f"{size} bytes are there, and its end or its index is not")
    return path


def _table(path: Path) -> Table:
    """Return a table with numbers to three digits; an interval stands in the cell of its
    estimate."""
    texts = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
    numbers = {name: pd.to_numeric(texts[name], errors="coerce") for name in texts}
    values = pd.DataFrame(numbers, dtype=float).replace([np.inf, -np.inf], np.nan)
    texts = texts.where(values.isna(), values.map(_digits))
    estimate = next((name for name in ESTIMATES if name in texts), None)
    if estimate and {"low", "high"} <= {*texts}:
        known = values[[estimate, "low", "high"]].notna().all(axis=1)
        texts.loc[known, estimate] += " [" + texts["low"] + ", " + texts["high"] + "]"
        texts = texts.drop(columns=["low", "high"])
    pairs = zip(values[texts.columns].values, texts.values, strict=True)
    rows = [[*zip(map(finite, known), shown, strict=True)] for known, shown in pairs]
    return Table(path.stem, [*texts], rows)


def _digits(value: float) -> str:
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e9 else f"{value:.3g}"
