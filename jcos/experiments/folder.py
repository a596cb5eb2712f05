"""A folder of results: what was run, on what, by which versions; the dataset, table and figures.

It is written beside its final name and renamed, so a folder with a manifest is whole. A finished
folder is not done again, and never overwritten. Sweeps of a killed run are taken up where they
stopped.
"""

import dataclasses
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from jcos import files, runs
from jcos.config import WanConfig
from jcos.devices import sharding
from jcos.experiments.clips import digest
from jcos.experiments.experiment import Experiment, Progress, silent
from jcos.experiments.plots import to_svg
from jcos.experiments.sweeps import ACTIVATIONS, kept_in
from jcos.files import any_path, is_remote
from jcos.lab import results
from jcos.wan import Wan

DATA, TABLE, FIGURES, MANIFEST = "results.nc", "table.csv", "figures", runs.MANIFEST
FREE = ("chunk", "at_once")
"""Parameters that results do not depend on."""
ROOM = 64 * 2**20
"""Bytes that must be free on the disk before an experiment is begun."""


def describe(
    experiment: Experiment, config: WanConfig, weights: Mapping[str, str]
) -> dict[str, Any]:
    """Return all that decides what comes out, as JSON has it."""
    sampling, parameters = experiment.sampled(config), dataclasses.asdict(experiment)
    about = {
        "experiment": experiment.name,
        "parameters": {name: v for name, v in parameters.items() if name not in FREE},
        "clips": None if experiment.clips is None else digest(experiment.clips),
        "model": {"name": config.name, **weights},
        "sampling": dataclasses.asdict(sampling) | {"boundary": config.boundary},
        "numerics": dataclasses.asdict(config.numerics),
    }
    return json.loads(json.dumps(about, default=str))


def run_to(
    folder: Path,
    experiment: Experiment,
    config: WanConfig,
    load: Callable[[], Wan],
    *,
    weights: Mapping[str, str],
    command: str,
    progress: Progress = silent,
) -> bool:
    """Run an experiment into a folder; return False where it is there already.

    load: loads the model, only where there is something to run. weights: which they are
    (`checkpoint.identify`). Raises ValueError or IndexError, before weights are read, where it
    cannot be run on this model, or the folder holds other results.
    """
    folder = any_path(folder)
    experiment.check(config)
    about = describe(experiment, config, weights)
    there = runs.holds(folder, "experiment", about)
    if sharding.from_first_host(there):  # before it writes anything
        return False
    files.check_room(folder, ROOM)
    whole = folder.absolute()  # "." has no name
    unfinished = whole.with_name(f".{whole.name}.unfinished")
    with kept_in(unfinished, about):
        progress("reading the weights", 0, 1)
        model = load()
        start = time.monotonic()
        data = experiment.run(model, progress)
        about |= runs.made(command) | {
            "title": experiment.question,
            "seconds": round(time.monotonic() - start, 1),
        }
        progress("drawing and writing", 0, 1)
        if sharding.is_first_host():
            write(folder, experiment, data, about, unfinished / ACTIVATIONS)
            files.remove(unfinished)
    return True


def write(
    folder: Path,
    experiment: Experiment,
    data: xr.Dataset,
    manifest: Mapping[str, Any],
    activations: Path | None = None,
) -> None:
    """Write the whole folder, or nothing; into one that is there, the manifest last. activations: a
    folder that is moved into it, where there is one."""
    new = not folder.is_dir()
    place = None if is_remote(folder) else folder.parent if new else folder
    if place is not None:
        place.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".jcos-", dir=place))
    try:
        part.chmod(0o755)
        results.save(data, part / DATA)
        files.write(part / TABLE, experiment.table(data).to_csv(index=False, lineterminator="\n"))
        (part / FIGURES).mkdir()
        captions = {}
        for name, picture in experiment.figures(data):
            files.write(part / FIGURES / f"{name}.svg", to_svg(picture.figure))
            captions[name] = picture.caption
        about = {**manifest, "figures": captions}
        files.write(part / MANIFEST, runs.as_text(about))
        if is_remote(folder):
            if activations is not None and activations.is_dir():
                with files.fetched(activations) as there:
                    shutil.copytree(there, part / ACTIVATIONS)
            files.replace(part, folder, last=MANIFEST)
            return
        if activations is not None and activations.is_dir():
            shutil.move(activations, part / ACTIVATIONS)  # a copy where it is on another disk
        if new:
            part.rename(folder)
        else:
            (folder / MANIFEST).unlink(missing_ok=True)  # with an older one it would pass as whole
            for path in sorted(part.iterdir(), key=lambda path: path.name == MANIFEST):
                path.rename(folder / path.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)
