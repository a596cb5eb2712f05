"""A folder of results: what was run, on what, by which versions; arrays, table, figures, a page.

It is written beside its final name and renamed, so a folder under that name is whole. A finished
folder is not done again, and never overwritten by another experiment's results.
"""

import base64
import csv
import dataclasses
import datetime as dt
import hashlib
import html
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jcos.checkpoint import MANIFEST
from jcos.experiments.experiment import Experiment, Findings, Row, fields_of
from jcos.experiments.plots import to_png
from jcos.experiments.puzzles import Progress
from jcos.experiments.samples import digest
from jcos.wan import Wan

CONFIG = "config.json"
FREE = ("chunk", "at_once")
"""Parameters that results do not depend on."""
IDENTITY = ("experiment", "parameters", "clips", "model", "sampling", "numerics")
"""Entries of `config.json` that decide what comes out."""


def identify(checkpoint: Path) -> dict[str, str]:
    """Which weights a checkpoint folder holds: the hash of its manifest, which lists every file's,
    or of the names and sizes of a released folder's files."""
    manifest = checkpoint / MANIFEST
    if manifest.is_file():
        return {"manifest": hashlib.sha256(manifest.read_bytes()).hexdigest()}
    files = sorted(p for p in checkpoint.rglob("*") if p.is_file())
    listed = [(p.relative_to(checkpoint).as_posix(), p.stat().st_size) for p in files]
    return {"files": hashlib.sha256(json.dumps(listed).encode()).hexdigest()}


def describe(experiment: Experiment, model: Wan, weights: Mapping[str, str]) -> dict[str, Any]:
    """All that decides what comes out, as JSON has it."""
    sampling = experiment.sampling.of(model.config)
    parameters = {k: v for k, v in fields_of(experiment).items() if k not in FREE}
    about = {
        "experiment": experiment.name,
        "parameters": parameters,
        "clips": None if experiment.clips is None else digest(experiment.clips),
        "model": {"name": model.config.name, **weights},
        "sampling": dataclasses.asdict(sampling) | {"boundary": model.config.boundary},
        "numerics": dataclasses.asdict(model.config.numerics),
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
    changed = [name for name in IDENTITY if found.get(name) != about[name]]
    if changed:
        differ = ", ".join(part for name in changed for part in _differing(name, found, about))
        raise ValueError(
            f"{folder} holds results of other settings ({differ}): choose another folder, or "
            "replace them with --redo"
        )
    return True


def _differing(name: str, found: Mapping[str, Any], about: Mapping[str, Any]) -> list[str]:
    """What differs in an entry: `puzzles 64, not 32`."""
    old, new = found.get(name), about[name]
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [f"{name} {old}, not {new}"]
    keys = [k for k in old | new if old.get(k) != new.get(k)]
    return [f"{key} {old.get(key)}, not {new.get(key)}" for key in keys]


def conduct(
    experiment: Experiment,
    model: Wan,
    folder: Path,
    *,
    weights: Mapping[str, str],
    command: str,
    redo: bool = False,
) -> Generator[Progress, None, bool]:
    """Runs an experiment into a folder; False where it is there already.

    weights: which they are (`identify`). redo: replace what is there.
    Raises ValueError or IndexError where it cannot be run on this model, or the folder holds other
    results, before anything runs.
    """
    experiment.check(model)
    about = describe(experiment, model, weights)
    if not redo and finished(folder, about):
        return False
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
        "rows": len(findings.rows),
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
        pictures = {name: to_png(picture.figure) for name, picture in findings.figures.items()}
        (beside / "figures").mkdir()
        for name, png in pictures.items():
            (beside / "figures" / f"{name}.png").write_bytes(png)
        (beside / "index.html").write_text(page(findings, pictures, config), encoding="utf-8")
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


SHORT = 60
"""A table of so many rows is shown at once."""
STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
figure { margin: 2rem 0 } img { max-width: 100%; background: white }
summary { cursor: pointer; font-weight: 600; margin: 1rem 0 }
figcaption, pre { font-size: 0.9rem; max-width: 60rem } pre { overflow-x: auto }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums }
td, th { padding: 0.15rem 0.7rem 0.15rem 0; text-align: left; border-bottom: 1px solid #8884 }
"""


def page(findings: Findings, pictures: Mapping[str, bytes], config: Mapping[str, Any]) -> str:
    """The results as one HTML file that needs nothing beside it."""
    figures = "".join(
        f'<figure id="{html.escape(name)}"><img alt="{html.escape(name)}" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        f"<figcaption>{html.escape(findings.figures[name].caption)}</figcaption></figure>"
        for name, png in pictures.items()
    )
    head = "".join(f"<th>{name}</th>" for name in Row._fields)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_short(value))}</td>" for value in row) + "</tr>"
        for row in findings.rows
    )
    title, command = html.escape(config["question"]), html.escape(config["command"])
    model = html.escape(config["model"]["name"])
    opened = " open" if len(findings.rows) <= SHORT else ""
    settings = html.escape(json.dumps(config, indent=1, ensure_ascii=False))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"
        f"<p><code>{command}</code>, {config['seconds']} s, model {model}. "
        "Bands and brackets are 95% intervals over puzzles; chance is a random legal answer, still "
        "the first frame held.</p>"
        f"{figures}<details{opened}><summary>Table, {len(findings.rows)} rows</summary>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></details>"
        f"<details><summary>Settings</summary><pre>{settings}</pre></details></html>\n"
    )


def _short(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) and value == value else _cell(value)
