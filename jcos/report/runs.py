"""The runs in a folder of results as planes: those of `save_planes`, and of `jcos generate`.

What is small is read at once; the pictures of a run when they are loaded, so that a damaged one
leaves the others whole.
"""

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from jcos.config import Sampling
from jcos.media import formats
from jcos.report.plane import PLANES, WIDEST, Line, Plane, saved_plane, sigma_line
from jcos.sampling import flow
from jcos.sampling.probe import Change

LATENT_FRAMES = 4
"""Frames of a film that one latent frame stands for (the first stands for one)."""


class Run(NamedTuple):
    """What is known of a run without its pictures, and how to get the `Plane` that has them.

    puzzle: a digest, where it is known. pair: equal for runs of the same puzzle and seed in several
    folders; else None.
    """

    label: str
    group: str
    prompt: str
    solved: bool | None
    steps: Sequence[int]
    lines: Sequence[Line]
    load: Callable[[], Plane]
    puzzle: str | None = None
    pair: int | None = None

    def named(self, names: Sequence[str]) -> bool:
        """Return whether a section that names its label, its group, or both means this run."""
        return not {self.label, self.group, f"{self.group}, {self.label}"}.isdisjoint(names)


def runs_of(
    folder: Path, manifest: Mapping[str, Any], tell: Callable[[str], None]
) -> Iterator[Run]:
    """Yield each run of a folder; `tell` hears what its pictures lack when they are loaded."""
    if isinstance(manifest.get("planes"), list):
        if not zipfile.is_zipfile(folder / PLANES):
            raise ValueError("its end is missing")
        puzzles = _puzzles(manifest, len(manifest["planes"]))
        for i, about in enumerate(manifest["planes"]):
            lines = [Line(**line) for line in about["lines"]]
            load = partial(_saved, folder / PLANES, i, about)
            named = {name: about[name] for name in Run._fields[:5]}
            yield Run(**named, lines=lines, load=load, puzzle=puzzles[i])
    elif manifest.get("x0") and "checkpoint" in manifest:
        for seed in manifest.get("seeds", []):
            load = partial(_generated, folder, manifest, seed, tell)
            about = f"seed {seed}", "the prompt", manifest["prompt"], None, manifest["x0"]
            yield Run(*about, [_sigma(manifest)], load)


def _puzzles(manifest: Mapping[str, Any], runs: int) -> list[str | None]:
    """Return the digest of each run's puzzle, None where the manifest has none: all seeds of a
    puzzle stand together."""
    listed = manifest.get("puzzles")
    if not isinstance(listed, list) or not listed or runs % len(listed):
        return [None] * runs
    digests = [p.get("sha256") if isinstance(p, dict) else None for p in listed]
    return [digest for digest in digests for _ in range(runs // len(listed))]


def _saved(path: Path, i: int, about: Mapping[str, Any]) -> Plane:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return saved_plane(arrays, i, about)


def _sigma(run: Mapping[str, Any]) -> Line:
    settings = {k: v for k, v in run["sampling"].items() if k != "boundary"}
    for name in ("guidance", "sigmas"):
        if settings.get(name) is not None:
            settings[name] = tuple(settings[name])
    return sigma_line(flow.schedule(Sampling(**settings)).sigmas[:-1])


def _generated(
    folder: Path, run: Mapping[str, Any], seed: int, tell: Callable[[str], None]
) -> Plane:
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
    return Plane(
        label=f"seed {seed}",
        group="the prompt",
        prompt=run["prompt"],
        steps=[*x0],
        x0=np.stack([*x0.values()]),
        video=film(f"seed-{seed}.mp4"),
        lines=[_sigma(run)],
        changes=_of_films(run, run["size"]["frames"]),
    )


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
