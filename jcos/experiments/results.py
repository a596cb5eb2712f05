"""A folder of results: what was run, on what, by which versions; arrays, table, figures.

It is written beside its final name and renamed, so a folder under that name is whole. A finished
folder is not done again, and never overwritten by another experiment's results.
"""

import csv
import dataclasses
import datetime as dt
import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jcos.config import WanConfig
from jcos.devices import sharding
from jcos.experiments.clips import digest
from jcos.experiments.experiment import Experiment, Findings, Row, fields_of
from jcos.experiments.plots import to_png
from jcos.experiments.puzzles import Progress
from jcos.files import local_path, visible
from jcos.wan import Wan
from jcos.weights.checkpoint import MANIFEST

CONFIG = "config.json"
FREE = ("chunk", "at_once")
"""Parameters that results do not depend on."""
IDENTITY = ("experiment", "parameters", "clips", "model", "sampling", "numerics")
"""Entries of `config.json` that decide what comes out."""


def identify(checkpoint: Path) -> dict[str, str]:
    """Which weights a checkpoint folder holds: the hash of its manifest, which lists every file's;
    of a released folder, of the names and sizes of all files, and of pieces of those that hold
    weights or say what they are. A folder of results that knows names and sizes alone, of an
    earlier version, is one of other weights (`weights None`)."""
    manifest = checkpoint / MANIFEST
    if manifest.is_file():
        return {"manifest": hashlib.sha256(manifest.read_bytes()).hexdigest()}
    files = [p for p in visible(checkpoint, "**/*") if p.is_file()]
    listed = [(p.relative_to(checkpoint).as_posix(), p.stat().st_size) for p in files]
    pieces = hashlib.sha256()
    for path in files:
        if path.suffix in (".safetensors", ".pth", ".json"):
            pieces.update(_pieces(path))
    names = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
    return {"files": names, "weights": pieces.hexdigest()}


HEAD, PIECES, PIECE = 2**20, 64, 2**12
"""Bytes that are read of a file's beginning, which has the header; how many pieces besides, and
their bytes: 1.3 MB of any file. Fine-tuning changes nearly all weights."""


def _pieces(path: Path) -> bytes:
    last = max(0, path.stat().st_size - PIECE)
    with path.open("rb") as file:
        found = [file.read(HEAD)]
        for i in range(PIECES):
            file.seek(last * i // (PIECES - 1))
            found.append(file.read(PIECE))
    return b"".join(found)


def describe(
    experiment: Experiment, config: WanConfig, weights: Mapping[str, str]
) -> dict[str, Any]:
    """All that decides what comes out, as JSON has it."""
    sampling = experiment.sampling.of(config)
    parameters = {k: v for k, v in fields_of(experiment).items() if k not in FREE}
    about = {
        "experiment": experiment.name,
        "parameters": parameters,
        "clips": None if experiment.clips is None else digest(experiment.clips),
        "model": {"name": config.name, **weights},
        "sampling": dataclasses.asdict(sampling) | {"boundary": config.boundary},
        "numerics": dataclasses.asdict(config.numerics),
    }
    return json.loads(json.dumps(about))


def finished(folder: Path, about: Mapping[str, Any]) -> bool:
    """Whether the folder holds these very results; False where there is none.

    Raises ValueError where it holds something else.
    """
    if not folder.exists():
        return False
    try:
        found = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError):
        raise ValueError(
            f"{folder} exists and holds no results of an experiment; choose another folder"
        ) from None
    changed = [part for name in IDENTITY for part in _differing(name, found, about)]
    if changed:
        differ = ", ".join(changed)
        raise ValueError(
            f"{folder} holds results of other settings ({differ}): choose another folder, or "
            "replace them with --redo"
        )
    return True


def _differing(name: str, found: Mapping[str, Any], about: Mapping[str, Any]) -> list[str]:
    """What differs in an entry: `puzzles 64, not 32`. None is as good as what is not there: of
    results that are older than a parameter."""
    old, new = found.get(name), about[name]
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [f"{name} {old}, not {new}"]
    keys = [k for k in old | new if old.get(k) != new.get(k)]
    return [f"{key} {old.get(key)}, not {new.get(key)}" for key in keys]


def conduct(
    experiment: Experiment,
    config: WanConfig,
    load: Callable[[], Wan],
    folder: Path,
    *,
    weights: Mapping[str, str],
    command: str,
    redo: bool = False,
) -> Generator[Progress, None, bool]:
    """Runs an experiment into a folder; False where it is there already.

    config, load: of the model (`wan.read_config`), and what loads it, which is called only where
    there is something to run. weights: which they are (`identify`). redo: replace what is there.
    Raises ValueError or IndexError where it cannot be run on this model, or the folder holds other
    results, before weights are read.
    """
    folder = local_path(folder)
    experiment.check(config)
    about = describe(experiment, config, weights)
    if not redo and finished(folder, about):
        return False
    yield Progress("reading the weights", 0, 1)
    model = load()
    start = time.monotonic()
    findings = yield from experiment.run(model)
    made = {
        "question": experiment.question,
        "command": command,
        "seconds": round(time.monotonic() - start, 1),
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "versions": {name: metadata.version(name) for name in ("jcos", "jax", "flax", "numpy")}
        | {"python": platform.python_version()},
        "machine": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores",
        "device": jax.devices()[0].device_kind,
        "mesh": sharding.describe(jax.sharding.get_mesh()),
        "rows": len(findings.rows),
        "figures": {name: picture.caption for name, picture in findings.figures.items()},
        "axes": dict(experiment.axes),
    }
    yield Progress("writing", 0, 1)
    write(folder, findings, about | made)
    return True


def write(folder: Path, findings: Findings, config: Mapping[str, Any]) -> None:
    """The whole folder, or nothing; what was there before is replaced."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        beside.chmod(0o755)
        (beside / CONFIG).write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")
        np.savez_compressed(beside / "arrays.npz", allow_pickle=False, **findings.arrays)
        _write_table(beside / "table.csv", findings.rows)
        (beside / "figures").mkdir()
        for name, picture in findings.figures.items():
            (beside / "figures" / f"{name}.png").write_bytes(to_png(picture.figure))
        if folder.exists():
            old = beside.with_name(f"{beside.name}.old")
            folder.rename(old)
            beside.rename(folder)
            shutil.rmtree(old)
        else:
            beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _write_table(file: Path, rows: Sequence[Row]) -> None:
    with file.open("w", newline="", encoding="utf-8") as out:
        table = csv.writer(out)
        table.writerow(Row._fields)
        table.writerows([_cell(value) for value in row] for row in rows)


def _cell(value: object) -> str:
    """Numbers to six digits; nothing where there is none."""
    if value is None or value != value:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
