"""The runs in a folder of results: those of `save_planes`, and of `jcos generate`.

What is small is read at once; the pictures of a run when they are loaded, so that a damaged one
leaves the others whole.
"""

import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jcos.media import formats
from jcos.report.plane import PLANES, WIDEST, Line, Plane, sigma_line
from jcos.sampling.probe import Change

CLIPS = ("x0", "video", "reference", "answers")
"""Names of arrays in `PLANES`, each followed by `_` and the number of the run."""
LATENT_FRAMES = 4
"""Frames of a film that one latent frame stands for (the first stands for one)."""


def runs_of(
    folder: Path, manifest: Mapping[str, Any], tell: Callable[[str], None]
) -> Iterator[Plane]:
    """Yield each run of a folder; `tell` hears what its pictures lack when they are loaded."""
    if isinstance(manifest.get("planes"), list):
        if not zipfile.is_zipfile(folder / PLANES):
            raise ValueError("its end is missing")
        puzzles = _puzzles(manifest, len(manifest["planes"]))
        for i, about in enumerate(manifest["planes"]):
            known = {name: about[name] for name in ("label", "group", "prompt", "solved", "steps")}
            known["lines"] = [Line(*map(line.get, Line._fields)) for line in about["lines"]]
            read = partial(_saved, folder / PLANES, i, about)
            yield Plane(**known, puzzle=puzzles[i], read=read)
    elif manifest.get("x0") and "checkpoint" in manifest:
        lines = [sigma_line(manifest["sigmas"])] if "sigmas" in manifest else []
        for seed in manifest.get("seeds", []):
            yield Plane(
                label=f"seed {seed}",
                group="the prompt",
                prompt=manifest["prompt"],
                steps=manifest["x0"],
                lines=lines,
                read=partial(_generated, folder, manifest, seed, tell),
            )


def _puzzles(manifest: Mapping[str, Any], runs: int) -> list[str | None]:
    """Return the digest of each run's puzzle, None where the manifest has none: all seeds of a
    puzzle stand together."""
    listed = manifest.get("puzzles")
    if not isinstance(listed, list) or not listed or runs % len(listed):
        return [None] * runs
    digests = [p.get("sha256") if isinstance(p, dict) else None for p in listed]
    return [digest for digest in digests for _ in range(runs // len(listed))]


def _saved(path: Path, i: int, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pictures of a run as `save_planes` left them, and what was changed in it."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        there = [n for n in CLIPS if n == "x0" or f"{n}_{i}" in arrays]
        clips = {name: arrays[f"{name}_{i}"] for name in there}
    answers = dict(zip(about["answers"], clips.pop("answers", ()), strict=True))
    changes = [Change.from_json(change) for change in about["changes"]]
    return {**clips, "answers": answers, "changes": changes}


def _generated(
    folder: Path, run: Mapping[str, Any], seed: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Return the films of the estimates and of the end, thinned; `tell` hears which are missing."""

    def film(name: str) -> UInt8[np.ndarray, "F H W 3"] | None:
        try:
            frames = formats.read_mp4(folder / name)
        except ValueError as error:
            tell(f"{name}: {error}." if (folder / name).is_file() else f"{name}: it is missing.")
            return None
        thin = -(-frames.shape[2] // WIDEST)
        return frames[:, ::thin, ::thin]

    films = {step: film(formats.X0_FILM.format(seed=seed, step=step)) for step in run["x0"]}
    x0 = {step: clip for step, clip in films.items() if clip is not None}
    if not x0:
        raise ValueError("no film of its estimates can be read")
    return {
        "steps": [*x0],
        "x0": np.stack([*x0.values()]),
        "video": film(f"seed-{seed}.mp4"),
        "changes": _of_films(run, run["size"]["frames"]),
    }


def _of_films(run: Mapping[str, Any], total: int) -> list[Change]:
    """What was changed, in frames of the film."""
    latent = [-(-frame // LATENT_FRAMES) for frame in range(total)]
    changes = []
    for change in map(Change.from_json, run.get("changes", ())):
        if change.axis == "frame":
            cells = [(s, i) for s, f in change.cells for i, of in enumerate(latent) if of == f]
            change = change._replace(size=total, cells=cells)
        changes.append(change)
    return changes
