"""The runs in a folder of results as planes: of `jcos sample`, of `jcos generate`, of `Look.save`.

Each is read when it is called, so that a damaged one leaves the others whole.
"""

import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image

from jcos.config import PixelCodec, Sampling
from jcos.media import formats
from jcos.model.vae import decode_pixels
from jcos.report.plane import PLANES, WIDEST, Line, Plane, saved_plane, sigma_line
from jcos.sampling import flow
from jcos.sampling.probe import Change

Arrays = Mapping[str, Shaped[np.ndarray, "..."]]
SCORES = {"x0_scores": "score of x̂0", "off": "mass on no right answer"}
"""Arrays [puzzles, seeds, steps] of `jcos sample` that are curves."""
LATENT_FRAMES = 4
"""Frames of a film that one latent frame stands for (the first stands for one)."""
SHEET_FRAMES, SHEET_GAP = 9, 2
"""Of a film so many frames, evenly spread, are on the sheets that `jcos generate` writes, that many
pixels apart. They are shown where the films of the estimates, with all frames, are missing."""


def planes_of(
    folder: Path, run: Mapping[str, Any], arrays: Arrays, tell: Callable[[str], None]
) -> Iterator[tuple[str, Callable[[], Plane]]]:
    """Each run with its name, to be called for its pictures; `tell` hears what they lack."""
    if isinstance(run.get("planes"), list):
        file = folder / PLANES
        if file.is_file() and not zipfile.is_zipfile(file):
            tell(f"{PLANES}: it cannot be read (its end is missing).")
        elif file.is_file():  # where it is missing, that is said already
            for i, about in enumerate(run["planes"]):
                yield f"Run {i}", partial(_saved, file, i, about)
    elif isinstance(run.get("puzzles"), list) and "x0" in arrays:
        seeds = run.get("seeds", [])
        for p in range(len(run["puzzles"])):
            for k in range(len(seeds)):
                yield f"Puzzle {p}, seed {seeds[k]}", partial(_sampled, run, arrays, p, k)
    elif run.get("x0") and "checkpoint" in run:
        for seed in run.get("seeds", []):
            yield f"Seed {seed}", partial(_generated, folder, run, seed, tell)


def _saved(path: Path, i: int, about: Mapping[str, Any]) -> Plane:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return saved_plane(arrays, i, about)


def _sigma(run: Mapping[str, Any]) -> Line:
    settings = {k: v for k, v in run["sampling"].items() if k != "boundary"}
    if settings.get("guidance") is not None:
        settings["guidance"] = tuple(settings["guidance"])
    return sigma_line(flow.schedule(Sampling(**settings)).sigmas[:-1])


def _sampled(run: Mapping[str, Any], arrays: Arrays, p: int, k: int) -> Plane:
    """x0 [P, K, S, F, h, w, C] and latents [P, K, F, h, w, C], of a codec without weights."""
    puzzle, codec = run["puzzles"][p], PixelCodec(**run.get("codec", {}))
    x0 = arrays["x0"][p, k]
    steps, answers = range(len(x0)), puzzle.get("right_answers", 1)
    lines = [_sigma(run)]
    for name, chart in SCORES.items():
        if name in arrays and (name != "off" or answers > 1):
            lines.append(Line(chart, chart, steps, arrays[name][p, k].tolist()))
    if "mass" in arrays and answers > 1:
        mass = arrays["mass"][p, k, :, :answers]
        lines += [
            Line("mass on each right answer", f"answer {a}", steps, values)
            for a, values in enumerate(mass.T.tolist())
        ]
    return Plane(
        label=f"seed {run['seeds'][k]}",
        group=f"puzzle {p}",
        prompt=puzzle["prompt"],
        steps=steps,
        x0=_decoded(codec, x0),
        video=_decoded(codec, arrays["latents"][p, k]),
        reference=arrays["reference"][p] if "reference" in arrays else None,
        solved=bool(run["solved"][p][k]),
        lines=lines,
        changes=[Change.from_json(change) for change in run.get("changes", ())],
    )


def _decoded(
    codec: PixelCodec, latents: Float[np.ndarray, "*axes F h w C"]
) -> UInt8[np.ndarray, "*axes F H W 3"]:
    """`Wan.decode` of a codec without weights: no model is loaded to look at results."""
    flat = jnp.asarray(latents.reshape(-1, *latents.shape[-3:]))
    video = jnp.clip(jnp.round(decode_pixels(codec, flat)), 0, 255).astype(jnp.uint8)
    return np.asarray(video).reshape(*latents.shape[:-3], *video.shape[1:])


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

    kept, total = run["x0"], run["size"]["frames"]
    films = [film(formats.X0_FILM.format(seed=seed, step=step)) for step in kept]
    end, frames = film(f"seed-{seed}.mp4"), np.arange(total)
    whole = [clip for clip in films if clip is not None and len(clip) == total]
    if len(whole) == len(kept):
        x0 = np.stack(whole)
    else:
        frames = np.unique(np.linspace(0, total - 1, SHEET_FRAMES).round().astype(int))
        with Image.open(folder / f"seed-{seed}-x0.png") as picture:
            x0 = _cut(np.asarray(picture.convert("RGB")), len(kept), len(frames))
        tell(
            f"Seed {seed}: {len(frames)} of {total} frames are shown, those of its sheet; not all "
            "films of its estimates are there."
        )
    return Plane(
        label=f"seed {seed}",
        group="the prompt",
        prompt=run["prompt"],
        steps=kept,
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
