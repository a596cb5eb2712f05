"""The runs in a folder of results as planes: of `jcos sample`, of `jcos generate`, of `Look.save`.

Each is read when it is called, so that a damaged one leaves the others whole.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image

from jcos import flow, media
from jcos.config import PixelCodec, Sampling
from jcos.report.plane import PLANES, Line, Marks, Plane, saved_plane, sigma_line
from jcos.vae import decode_pixels

Arrays = Mapping[str, Shaped[np.ndarray, "..."]]
SCORES = {"x0_scores": "score of x̂0", "off": "mass on no right answer"}
"""Arrays [puzzles, seeds, steps] of `jcos sample` that are curves."""
LATENT_FRAMES = 4
"""Frames of a film that one latent frame stands for (the first stands for one)."""
SHEET_FRAMES, SHEET_GAP = 9, 2
"""Of a film so many frames, evenly spread, are on the sheets that `jcos generate` writes, that many
pixels apart."""


def planes_of(
    folder: Path, run: Mapping[str, Any], arrays: Arrays, tell: Callable[[str], None]
) -> Iterator[tuple[str, Callable[[], Plane]]]:
    """Each run with its name, to be called for its pictures; `tell` hears what they lack."""
    if isinstance(run.get("planes"), list):
        for i, about in enumerate(run["planes"]):
            yield f"Run {i}", partial(_saved, folder / PLANES, i, about)
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
        marks=Marks.of(run.get("interventions", {})),
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
    """The pictures of the sheet and of the film; the estimates alone where that is damaged."""
    with Image.open(folder / f"seed-{seed}-x0.png") as picture:
        sheet = np.asarray(picture.convert("RGB"))
    total = run["size"]["frames"]
    frames = np.unique(np.linspace(0, total - 1, SHEET_FRAMES).round().astype(int))
    x0 = _cut(sheet, len(run["x0"]), len(frames))
    film = folder / f"seed-{seed}.mp4"
    marks = Marks.of(run.get("interventions", {}))
    hit = [f for f in frames.tolist() if -(-f // LATENT_FRAMES) in marks.frames]
    video = None
    if film.is_file():
        try:
            video = media.read_mp4(film)[frames]
        except (ValueError, IndexError) as error:
            tell(f"{film.name}: {error}.")
    if video is not None:
        thin = -(-video.shape[2] // x0.shape[3])
        video = video[:, :, ::thin, ::thin]
    return Plane(
        label=f"seed {seed}",
        group="the prompt",
        prompt=run["prompt"],
        steps=run["x0"],
        x0=x0,
        video=video,
        frames=frames.tolist(),
        lines=[_sigma(run)],
        marks=marks._replace(frames=hit),
        film=None if video is None else film.name,
    )


def _cut(
    sheet: UInt8[np.ndarray, "h w 3"], rows: int, columns: int
) -> UInt8[np.ndarray, "{rows} {columns} H W 3"]:
    """The pictures of a contact sheet."""
    height, width = sheet.shape[0] // rows, sheet.shape[1] // columns
    cells = sheet.reshape(rows, height, columns, width, 3).swapaxes(1, 2)
    edge = SHEET_GAP // 2
    return cells[:, :, edge : height - edge, edge : width - edge]
