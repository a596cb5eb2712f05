"""The runs in a folder of results as planes: of `jcos sample`, of `jcos generate`, of `Look.save`.

What is small is read at once; the pictures of a run when they are loaded, so that a damaged one
leaves the others whole.
"""

import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image

from jcos.config import PixelCodec, Sampling
from jcos.media import formats
from jcos.model.vae import pixel_videos
from jcos.report.charts import listed
from jcos.report.plane import (
    PLANES,
    WIDEST,
    Line,
    Plane,
    answer_lines,
    saved_plane,
    sigma_line,
)
from jcos.sampling import flow
from jcos.sampling.probe import Change

ARRAYS = "arrays.npz"
"""Of `jcos sample`."""
SCORES = {"x0_scores": "score of x̂0", "off": "mass on no right answer"}
"""Arrays [puzzles, seeds, steps] of `jcos sample` that are curves."""
LATENT_FRAMES = 4
"""Frames of a film that one latent frame stands for (the first stands for one)."""
SHEET_FRAMES, SHEET_GAP = 9, 2
"""Of a film so many frames, evenly spread, are on the sheets that `jcos generate` writes, that many
pixels apart. They are shown where the films of the estimates, with all frames, are missing."""


class Run(NamedTuple):
    """What is known of a run without its pictures, and how to get the `Plane` that has them."""

    label: str
    group: str
    prompt: str
    solved: bool | None
    steps: Sequence[int]
    lines: Sequence[Line]
    load: Callable[[], Plane]


def runs_of(
    folder: Path, manifest: Mapping[str, Any], tell: Callable[[str], None]
) -> Iterator[Run]:
    """Yield each run of a folder; `tell` hears what its pictures lack when they are loaded."""
    if isinstance(manifest.get("planes"), list):
        if not zipfile.is_zipfile(folder / PLANES):
            raise ValueError("its end is missing")
        for i, about in enumerate(manifest["planes"]):
            lines = [Line(**line) for line in about["lines"]]
            load = partial(_saved, folder / PLANES, i, about)
            named = {name: about[name] for name in Run._fields[:5]}
            yield Run(**named, lines=lines, load=load)
    elif isinstance(manifest.get("puzzles"), list) and "experiment" not in manifest:
        yield from _samples(folder / ARRAYS, manifest)
    elif manifest.get("x0") and "checkpoint" in manifest:
        for seed in manifest.get("seeds", []):
            load = partial(_generated, folder, manifest, seed, tell)
            about = f"seed {seed}", "the prompt", manifest["prompt"], None, manifest["x0"]
            yield Run(*about, [_sigma(manifest)], load)


def _saved(path: Path, i: int, about: Mapping[str, Any]) -> Plane:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return saved_plane(arrays, i, about)


def _sigma(run: Mapping[str, Any]) -> Line:
    settings = {k: v for k, v in run["sampling"].items() if k != "boundary"}
    for name in ("guidance", "sigmas"):
        if settings.get(name) is not None:
            settings[name] = tuple(settings[name])
    return sigma_line(flow.schedule(Sampling(**settings)).sigmas[:-1])


def _samples(file: Path, manifest: Mapping[str, Any]) -> Iterator[Run]:
    """Runs of `jcos sample`: latents [P, K, F, h, w, C] and x0 [P, K, S, F, h, w, C] in a file,
    beside small arrays of what was measured."""
    wanted = ("x0_scores", "off", "mass", "answers", "reference")
    with zipfile.ZipFile(file) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
        small = {name: entry(file, name) for name in wanted if name in names}
        for name in ("x0", "latents"):
            if name not in names:
                raise ValueError(f"it has no array {name}")
    sigma = _sigma(manifest)
    steps = range(len(sigma.steps))
    for p, puzzle in enumerate(manifest["puzzles"]):
        answers = puzzle.get("right_answers", 1)
        for k, seed in enumerate(manifest.get("seeds", [])):
            lines, drawn = [sigma], {}
            for name, chart in SCORES.items():
                if name in small and (name != "off" or answers > 1):
                    lines.append(Line(chart, chart, steps, listed(small[name][p, k].tolist())))
            if "mass" in small and answers > 1:
                pictures = small["answers"][p, :answers] if "answers" in small else None
                mass = small["mass"][p, k, :, :answers]
                shown, drawn = answer_lines(steps, mass, pictures)
                lines += shown
            solved = bool(manifest["solved"][p][k])
            about = f"seed {seed}", f"puzzle {p}", puzzle["prompt"], solved, steps, lines
            reference = small["reference"][p] if "reference" in small else None
            more = {"reference": reference, "answers": drawn}
            yield Run(*about, partial(_sampled, file, manifest, (p, k), about, more))


def _sampled(
    file: Path,
    manifest: Mapping[str, Any],
    at: tuple[int, int],
    about: tuple[Any, ...],
    more: Mapping[str, Any],
) -> Plane:
    """The run of a puzzle and a seed, of a codec without weights."""
    codec, x0 = PixelCodec(**(manifest.get("codec") or {})), entry(file, "x0", at)
    return Plane(
        **dict(zip(Run._fields, about, strict=False)),
        x0=_decoded(codec, x0),
        video=_decoded(codec, entry(file, "latents", at)),
        changes=[Change.from_json(change) for change in manifest.get("changes", ())],
        **more,
    )


def entry(file: Path, name: str, at: tuple[int, ...] = ()) -> Shaped[np.ndarray, "..."]:
    """Return an array of an npz file, or its part at the first indices: what lies behind that part
    is not read."""
    with zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as stream:
        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else (np.lib.format.read_array_header_2_0)
        )
        shape, fortran, dtype = read(stream)
        if fortran or dtype.hasobject:
            raise ValueError(f"{name} is stored in an order that is not read")
        rest = shape[len(at) :]
        size = math.prod(rest) * dtype.itemsize
        first = size * int(np.ravel_multi_index(at, shape[: len(at)])) if at else 0
        while first:
            first -= len(stream.read(min(first, 1 << 20))) or first
        data = stream.read(size)
    if len(data) < size:
        raise ValueError(f"{name} is not whole")
    return np.frombuffer(data, dtype).reshape(rest)


def _decoded(
    codec: PixelCodec, latents: Float[np.ndarray, "*axes F h w C"]
) -> UInt8[np.ndarray, "*axes F H W 3"]:
    """Return videos of a codec without weights: no model is loaded to look at results."""
    return np.asarray(pixel_videos(codec, jnp.asarray(latents)))


def _generated(
    folder: Path, run: Mapping[str, Any], seed: int, tell: Callable[[str], None]
) -> Plane:
    """The films of the estimates and of the end, thinned; some frames of the sheet where those are
    missing or damaged."""

    def film(name: str) -> UInt8[np.ndarray, "F H W 3"] | None:
        if not (folder / name).is_file():
            return None
        try:
            frames = formats.read_mp4(folder / name)
        except ValueError as error:
            tell(f"{name}: {error}.")
            return None
        thin = -(-frames.shape[2] // WIDEST)
        return frames[:, ::thin, ::thin]

    steps, total = run["x0"], run["size"]["frames"]
    films = [film(formats.X0_FILM.format(seed=seed, step=step)) for step in steps]
    end, frames = film(f"seed-{seed}.mp4"), np.arange(total)
    whole = [clip for clip in films if clip is not None and len(clip) == total]
    if len(whole) == len(steps):
        x0 = np.stack(whole)
    else:
        frames = np.unique(np.linspace(0, total - 1, SHEET_FRAMES).round().astype(int))
        with Image.open(folder / f"seed-{seed}-x0.png") as picture:
            x0 = _cut(np.asarray(picture.convert("RGB")), len(steps), len(frames))
        tell(
            f"Seed {seed}: {len(frames)} of {total} frames are shown, those of its sheet; not all "
            "films of its estimates are there."
        )
    return Plane(
        label=f"seed {seed}",
        group="the prompt",
        prompt=run["prompt"],
        steps=steps,
        x0=x0,
        video=None if end is None else _as_large(end[frames], x0.shape[2:4]),
        frames=frames.tolist(),
        lines=[_sigma(run)],
        changes=_of_films(run, total),
        film=None if end is None else f"seed-{seed}.mp4",
    )


def _as_large(
    video: UInt8[np.ndarray, "F h w 3"], size: tuple[int, ...]
) -> UInt8[np.ndarray, "F H W 3"]:
    """Its nearest pixels in another size."""
    rows, columns = (
        np.arange(new) * old // new for new, old in zip(size, video.shape[1:3], strict=True)
    )
    return video[:, rows][:, :, columns]


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


def _cut(
    sheet: UInt8[np.ndarray, "h w 3"], rows: int, columns: int
) -> UInt8[np.ndarray, "{rows} {columns} H W 3"]:
    """The pictures of a contact sheet."""
    height, width = sheet.shape[0] // rows, sheet.shape[1] // columns
    cells = sheet.reshape(rows, height, columns, width, 3).swapaxes(1, 2)
    edge = SHEET_GAP // 2
    return cells[:, :, edge : height - edge, edge : width - edge]
