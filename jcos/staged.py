"""A whole run on one device, part after part: text encoder, VAE, experts, VAE.

Each part is on the device only while it works. Latents are written as soon as they are there: a run
that was killed goes on with them.
"""

import contextlib
import dataclasses
import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8
from safetensors import SafetensorError
from safetensors.numpy import load, save

from jcos import generation, loop, runs, wan
from jcos.config import VaeConfig
from jcos.devices import mesh, sharding
from jcos.files import any_path, check_room, write
from jcos.media import formats, image
from jcos.model.text import read_prompt
from jcos.model.vae import Tiles
from jcos.sampling.interventions import Interventions
from jcos.sampling.noise import noise_from_file, seed_words
from jcos.sampling.probe import Probe
from jcos.sampling.probes import choose
from jcos.variants import Profile
from jcos.weights.checkpoint import identify

Progress = Callable[[str, int, int], None]
"""Is called with what is going on, and how many parts of how many are done."""
NONE = Interventions()
LATENTS = "latents.safetensors"
HEADER = 2**16
"""Bytes of a safetensors file beside its numbers, at most."""
PIXELS_OF_A_BYTE = 4
"""Of a film, as far as its size can be estimated."""


class Videos(NamedTuple):
    """latents: final ones, x0: clean estimates of the steps asked for, both by seed. films: files
    by seed; a seed whose latent is not finite has none."""

    latents: Float[np.ndarray, "K F h w C"]
    x0: Float[np.ndarray, "K S F h w C"]
    films: dict[int, Path]


def silent(what: str, done: int, total: int) -> None:
    """Show no progress."""


def run(
    folder: Path | str,
    prompt: str,
    picture: Path | str | UInt8[np.ndarray, "H W 3"] | None = None,
    *,
    out: Path | str,
    negative: str | None = None,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    seeds: Sequence[int] = (0,),
    x0: Sequence[int] = (),
    probe: Interventions | Probe = NONE,
    noise: str | Path | None = None,
    profile: Profile | None = None,
    text_cache: Path | None = None,
    tiles: tuple[int, int] | None = None,
    resident: bool | None = None,
    trace: bool = False,
    devices: Mesh | None = None,
    command: str = "",
    progress: Progress = silent,
    **sampling: Any,
) -> Videos:
    """Make videos of a prompt, of a first frame, or of both, with the model of a checkpoint folder.

    Writes OUT/latents.safetensors (`Videos.latents` and `.x0`), OUT/run.json, OUT/seed-N.mp4, and
    for `x0` a film of each clean estimate and a sheet of all. Latents of the same run that are
    there are not made again; videos are.

    prompt, negative: words, or the name of a file (`text.read_prompt`). size: height and width in
    pixels; with a picture its area, the shape is the picture's. frames, size, seeds, noise,
    profile, sampling (`WanConfig.sampling_with`: steps, shift, …): the model's own by default.
    x0: steps whose clean estimates are kept. probe: what is done to the runs; observations of a
    probe of your own are not kept. noise: torch, jax or a file. text_cache: folder of
    embedded prompts, with all of which the encoder is not loaded. tiles: height and width in
    latent cells of what the VAE codes at a time. resident: as in `wan.load`. trace:
    keep all of it in OUT/trace. devices: a mesh; of several hosts the first decodes and writes, and
    the others return no films.
    Raises ValueError, IndexError or OSError, before weights are read, where this cannot be run, its
    files cannot be written, or `out` holds another run.
    """
    folder, out = any_path(folder), any_path(out)
    config = wan.read_config(folder, profile)
    config = dataclasses.replace(config, sampling=config.sampling_with(**sampling))
    steps, fps = config.sampling.steps, config.clip.fps
    sizes = {} if devices is None else devices.shape
    wan.check_mesh(sizes, config, len(seeds))
    if sizes.get(mesh.WORLD, 1) > 1:
        raise ValueError(f"a mesh of world={sizes[mesh.WORLD]} for one prompt: spread over seed")
    choose(steps, x0, "step")
    if tiles is not None and not isinstance(config.codec, VaeConfig):
        raise ValueError(f"{config.name} has no VAE whose frames could be coded in tiles")
    cells = None if tiles is None else Tiles(tiles, (tiles[0] // 2, tiles[1] // 2))
    wan.check_picture(config, picture is not None)
    if isinstance(picture, str | Path):
        picture = image.read_picture(picture, profile)
    first, size = None, size or (config.clip.height, config.clip.width)
    if picture is not None:
        first = image.prepare(picture, image.rule_for(config, profile), *size)
        size = (first.shape[0], first.shape[1])
    stride = 1 if config.codec is None else config.codec.strides[0]
    frames = config.clip.frames if frames is None else frames
    frames = image.round_frames(frames, profile or "official", stride)
    grid = wan.latent_grid(config, frames, *size)
    shape = (*grid, config.dit.out_channels)
    seed_words(seeds)  # which of them are no seeds
    drawn: loop.Noise = str(noise or config.noise)
    if drawn not in ("torch", "jax"):
        if len(seeds) > 1:
            raise ValueError("noise from a file is one video's; give one seed")
        drawn = noise_from_file(drawn, shape)[None]
    if isinstance(probe, Interventions):
        done_to = probe.numbers(steps, grid[0], config.dit.layers)
        probe = probe.probe(steps, grid[0], config.dit.layers, len(seeds))
    else:
        leaves, structure = jax.tree.flatten(probe)
        done_to = {"probe": _hash(*leaves), "structure": str(structure)}
    prompts = [read_prompt(text) for text in (prompt, negative or config.negative)]
    settings = {
        "weights": identify(folder),
        "model": config.name,
        "prompt": prompts[0] if isinstance(prompts[0], str) else prompt,
        "negative": prompts[1] if isinstance(prompts[1], str) else negative,
        "embedded": [None if isinstance(p, str) else _hash(p) for p in prompts],
        "image": None if picture is None else _hash(picture),
        "size": {"height": size[0], "width": size[1], "frames": frames, "fps": fps},
        "sampling": dataclasses.asdict(config.sampling) | {"boundary": config.boundary},
        "numerics": dataclasses.asdict(config.numerics),
        "seeds": list(seeds),
        "noise": str(noise or config.noise),
        "noise file": None if isinstance(drawn, str) else _hash(drawn),
        "interventions": done_to,
        "x0": list(x0),
        "tiles": None if tiles is None else list(tiles),
    }
    done = runs.holds(out, "checkpoint", settings) and (out / LATENTS).is_file()
    done, first_host = sharding.from_first_host(done), sharding.is_first_host()
    count = len(seeds) * (1 + len(x0))
    room = HEADER + 4 * count * math.prod(shape)
    check_room(out, 0 if done else room, count * frames * math.prod(size) // PIXELS_OF_A_BYTE)
    formats.check_mp4(*size, fps)
    wan.check_vae(config, folder)
    load_part = partial(wan.load, folder, profile=profile)

    if not done:
        progress("reading the prompts", 0, steps)
        words = [text for text in prompts if isinstance(text, str)]
        rows = wan.embedder(folder, config, words, text_cache, profile)
        asked, unasked = (rows(p) if isinstance(p, str) else p for p in prompts)
        progress("coding the first frame", 0, steps)
        coder = load_part(experts=False, text=False)
        condition = coder.condition(first, asked, frames, negative=unasked, size=size, tiles=cells)
        condition = jax.device_get(condition)
        del coder, rows, asked, unasked  # with them, their weights leave the device
        changes = [change.to_json() for change in probe.changes()]
        manifest = {"checkpoint": str(folder), **settings, "changes": changes}
        manifest |= runs.made(command, sizes)
        begun = runs.begun(out, manifest, room) if first_host else contextlib.nullcontext()
        with begun, sharding.use_mesh(devices):
            progress("reading the experts", 0, steps)
            model = load_part(text=False, vae=False, resident=resident)
            start = time.monotonic()
            made = generation.generate(
                model,
                condition,
                seeds,
                probe=probe,
                sampling=config.sampling,
                noise=drawn,
                on_step=lambda step: progress("denoising", step + 1, steps),
            )
            kept = {"latents": made.latents, "x0": made.x0[:, np.array(x0, int)]}
            kept = {k: np.asarray(a, np.float32) for k, a in sharding.to_host(kept).items()}
            seconds = round(time.monotonic() - start, 1)
            del model
        if first_host:
            write(out / LATENTS, save(kept))
            manifest |= {"seconds": seconds, "date": runs.now()}
            write(out / runs.MANIFEST, runs.as_text(manifest))
        if trace:
            made.save(out / "trace")
        del made
    sizes = {"latents": (len(seeds), *shape), "x0": (len(seeds), len(x0), *shape)}
    arrays = {name: np.zeros(size, np.float32) for name, size in sizes.items()}
    try:
        if first_host:
            arrays = load((out / LATENTS).read_bytes())
    except SafetensorError as error:
        raise ValueError(f"{out / LATENTS} is damaged ({error}); remove it") from None
    arrays = sharding.from_first_host(arrays)
    coder, films = load_part(experts=False, text=False), {}
    if not first_host:
        return Videos(arrays["latents"], arrays["x0"], {})
    for i, seed in enumerate(seeds):
        progress(f"decoding seed {seed}", i, len(seeds))
        if not np.isfinite(arrays["latents"][i]).all():
            warnings.warn(f"seed {seed} has no video: its latent is not finite", stacklevel=2)
            continue
        films[seed] = out / f"seed-{seed}.mp4"
        formats.write_mp4(films[seed], coder.decode(arrays["latents"][i], cells), fps)
        if x0:
            videos = (coder.decode(latents, cells) for latents in arrays["x0"][i])
            _write_estimates(out, seed, fps, zip(x0, videos, strict=True))
    progress("decoding", len(seeds), len(seeds))
    return Videos(arrays["latents"], arrays["x0"], films)


def _write_estimates(
    out: Path, seed: int, fps: int, films: Iterable[tuple[int, UInt8[np.ndarray, "F H W 3"]]]
) -> None:
    """Write clean estimates by step as films, and a sheet (rows: steps) of some of their frames."""
    rows = []
    for step, film in films:
        formats.write_mp4(out / formats.X0_FILM.format(seed=seed, step=step), film, fps)
        shown = np.unique(np.linspace(0, len(film) - 1, 9).round().astype(int))
        thin = max(1, film.shape[2] // 240)
        rows.append(film[shown, ::thin, ::thin])
    write(out / f"seed-{seed}-x0.png", formats.png(formats.contact_sheet(np.stack(rows))))


def _hash(*arrays: Array | np.ndarray) -> str:
    return hashlib.sha256(b"".join(np.asarray(array).tobytes() for array in arrays)).hexdigest()
