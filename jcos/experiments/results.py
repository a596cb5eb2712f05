"""A folder of results: what was run, on what, by which versions; arrays, table, figures.

It is written beside its final name and renamed, so a folder with a `config.json` is whole. A
finished folder is not done again, and never overwritten by another experiment's results.
"""

import csv
import dataclasses
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jcos import files
from jcos.config import WanConfig
from jcos.experiments.clips import digest
from jcos.experiments.experiment import Experiment, Findings, Row, fields_of
from jcos.experiments.plots import to_png
from jcos.experiments.puzzles import Progress
from jcos.files import local_path
from jcos.runs import as_text, holds, made
from jcos.wan import Wan

CONFIG = "config.json"
FREE = ("chunk", "at_once")
"""Parameters that results do not depend on."""
ROOM = 64 * 2**20
"""Bytes that must be free on the disk before an experiment is begun."""


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
    if finished(folder, {} if redo else about) and not redo:
        return False
    files.check_room(folder, ROOM)
    yield Progress("reading the weights", 0, 1)
    model = load()
    start = time.monotonic()
    findings = yield from experiment.run(model)
    about |= made(command) | {
        "question": experiment.question,
        "seconds": round(time.monotonic() - start, 1),
        "rows": len(findings.rows),
        "figures": {name: picture.caption for name, picture in findings.figures.items()},
        "axes": dict(experiment.axes),
    }
    yield Progress("writing", 0, 1)
    write(folder, findings, about)
    return True


def finished(folder: Path, about: Mapping[str, Any]) -> bool:
    """Return whether the folder holds these results; False where there is none.

    Raises ValueError where it holds something else.
    """
    remedy = "choose another folder, or replace results of other settings with --redo"
    return holds(folder, "experiment", about, manifest=CONFIG, remedy=remedy)


def write(folder: Path, findings: Findings, config: Mapping[str, Any]) -> None:
    """Write the whole folder, or nothing. Results that were there before are replaced, other files
    in it stay. Where it cannot be written, results go to a folder that the OSError names."""
    try:
        _write(folder, findings, config)
    except OSError as error:
        spare = Path(tempfile.mkdtemp(prefix="jcos-")) / "results"
        _write(spare, findings, config)
        raise OSError(f"{error}; the results are in {spare}: move them to {folder}") from None


def _write(folder: Path, findings: Findings, config: Mapping[str, Any]) -> None:
    new = not folder.is_dir()
    place = folder.parent if new else folder
    place.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".jcos-", dir=place))
    try:
        part.chmod(0o755)
        arrays = io.BytesIO()
        np.savez_compressed(arrays, allow_pickle=False, **findings.arrays)
        files.write(part / "arrays.npz", arrays.getvalue())
        files.write(part / "table.csv", _table(findings.rows))
        (part / "figures").mkdir()
        for name, picture in findings.figures.items():
            files.write(part / "figures" / f"{name}.png", to_png(picture.figure))
        files.write(part / CONFIG, as_text(config))
        if new:
            part.rename(folder)
            return
        (folder / CONFIG).unlink(missing_ok=True)  # with it, a folder is whole
        if os.path.lexists(folder / "figures"):
            (folder / "figures").rename(part / "old")
        for name in ("arrays.npz", "table.csv", "figures", CONFIG):
            (part / name).replace(folder / name)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _table(rows: Sequence[Row]) -> str:
    out = io.StringIO(newline="")
    table = csv.writer(out)
    table.writerow(Row._fields)
    table.writerows([_cell(value) for value in row] for row in rows)
    return out.getvalue()


def _cell(value: object) -> str:
    """Numbers to six digits; nothing where there is none."""
    if value is None or value != value:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
