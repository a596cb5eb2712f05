"""A whole run on one device, part after part: text encoder, VAE, experts, VAE.

Each part is on the device only while it works. Latents are written as soon as they are there: a run
that was killed goes on with them.
"""

import contextlib
import dataclasses
import hashlib
import math
import operator
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8
from safetensors import SafetensorError
from safetensors.numpy import load, save

from jcos import generation, loop, runs, wan
from jcos.config import Sampling, VaeConfig, WanConfig
from jcos.devices import memory, mesh, sharding
from jcos.files import any_path, check_room, write, write_or_keep
from jcos.media import formats, image
from jcos.model.text import read_prompt
from jcos.model.vae import Tiles
from jcos.preview import fit_preview
from jcos.sampling import flow
from jcos.sampling.checks import check_averages
from jcos.sampling.interventions import Interventions, Place, places
from jcos.sampling.noise import distinct_seeds, noise_from_file
from jcos.sampling.probe import Probe
from jcos.sampling.trace import OUTLINE, described, model_digest
from jcos.sampling.trajectory import Condition, abstract_condition
from jcos.variants import VARIANTS, Profile, at_size, variant_of, with_preset, with_profile
from jcos.wan import Wan
from jcos.weights import hub
from jcos.weights import lora as lora_files
from jcos.weights.checkpoint import abstract_model, check_target, identify
from jcos.weights.loras import Asked, parse_all

if TYPE_CHECKING:  # what a search needs is imported by those that search
    from jcos.lab.judges import Judge
    from jcos.lab.methods import Method

Progress = Callable[[str, int, int], None]
"""Is called with what is going on, and how many parts of how many are done."""
NONE = Interventions()
LATENTS, TRACE = "latents.safetensors", "trace"
HEADER = 2**16
"""Bytes of a safetensors file on top of its numbers, at most."""
PIXELS_OF_A_BYTE = 4
"""Of a film, as far as its size can be estimated."""


class Videos(NamedTuple):
    """latents: final ones, x0: clean estimates of the chosen steps, both by seed. films: files by
    seed; a seed whose latent is not finite has none."""

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
    frames: int | np.integer | None = None,
    seeds: Sequence[int] | np.ndarray = (0,),
    x0: Sequence[Place] = (),
    probe: Interventions | Probe = NONE,
    noise: str | Path | None = None,
    profile: Profile | None = None,
    text_cache: Path | None = None,
    tiles: Tiles | None = None,
    resident: bool | None = None,
    trace: bool = False,
    together: int | None = None,
    devices: Mesh | None = None,
    lora: Asked = None,
    preset: str | None = None,
    search: "Method | None" = None,
    judges: "Mapping[str, Judge] | None" = None,
    command: str = "",
    progress: Progress = silent,
    **sampling: Any,
) -> Videos:
    """Make videos of a prompt, of a first frame, or of both, with a model (`wan.load` says of what
    folders, files and names).

    Writes OUT/latents.safetensors (`Videos.latents` and `.x0`), OUT/run.json, OUT/seed-N.mp4, and
    for `x0` a film of each clean estimate and a sheet of all. Latents of the same run that are
    there are not made again, but where `trace` is yet to be stored; videos are.

    prompt, negative: words, or the name of a file (`text.read_prompt`). size: height and width in
    pixels; with a picture its area, the shape is the picture's. frames, size, seeds, noise,
    profile, sampling (`WanConfig.sampling_with`: steps, shift, …): by default the model's.
    x0: steps, or fractions of the run, whose clean estimates are stored, in this order. probe: what
    is done to the runs; observations of a probe of yours are not stored. noise: torch, jax or a
    file. text_cache: folder of embedded prompts, with all of which the encoder is not loaded.
    tiles: height and width in latent cells of what the VAE codes at a time. resident, lora: as in
    `wan.load`. trace: keep all of it in OUT/trace. together: as in `loop.steps`. devices: a mesh;
    of several hosts the first decodes and writes, and the others return no films. preset: of
    `variants.PRESETS`, for what `sampling` leaves open.
    search: a method (`jcos.search`) whose seeds begin with the first one; only the chosen video is
    stored, and run.json has the tree of who went on. A killed one goes on where it stopped.
    judges: of yours, by the names that its rows ask for.
    Raises ValueError, IndexError or OSError, before weights are read, where this cannot be run, its
    files cannot be written, or `out` holds another run.
    """
    out, sizes = any_path(out), {} if devices is None else devices.shape
    if sizes.get(mesh.WORLD, 1) > 1:
        raise ValueError(f"a mesh of world={sizes[mesh.WORLD]} for one prompt: spread over seed")
    sampling, loras = with_preset(preset, sampling), parse_all(lora)
    released = variant_of(str(folder)) if hub.is_name(folder) else None
    if released is not None:  # what it cannot do is refused before it is downloaded
        config = with_profile(VARIANTS[released](), profile or "official")
        places(x0, config.sampling_with(**sampling).steps, "step")
        wan.check_picture(config, picture is not None)
    if trace:
        check_target(out / TRACE)
    folder = hub.find(folder)
    config = stored = wan.read_config(folder, profile)
    size = size or (config.clip.height, config.clip.width)
    config = at_size(config, profile, *size)
    config = dataclasses.replace(config, sampling=config.sampling_with(**sampling))
    changed = lora_files.read(config, loras)
    steps, fps = config.sampling.steps, config.clip.fps
    if search is not None:
        steps = search.steps or steps
    seeds, x0 = distinct_seeds(seeds), [places([step], steps, "step")[0] for step in x0]
    count = len(seeds) if search is None else search.seeds
    wan.check_mesh(sizes, config, count, together)
    if tiles is not None and (min(tiles) < 1 or not isinstance(config.codec, VaeConfig)):
        raise ValueError(
            f"tiles are {tiles[0]} × {tiles[1]} cells; give at least 1 × 1, and a model with a VAE "
            f"({config.name})"
        )
    wan.check_picture(config, picture is not None)
    if isinstance(picture, str | Path):
        picture = image.read_picture(picture, profile)
    first, encoded = None, None
    if picture is not None:
        first, encoded = image.first_frame(picture, config, profile, *size)
        size = (first.shape[0], first.shape[1])
    stride = 1 if config.codec is None else config.codec.strides[0]
    frames = config.clip.frames if frames is None else operator.index(frames)
    frames = image.round_frames(frames, profile or "official", stride)
    grid = wan.latent_grid(config, frames, *size)
    shape = (*grid, config.dit.out_channels)
    drawn: loop.Noise = str(noise or config.noise)
    if drawn not in ("torch", "jax"):
        if count > 1 or search is not None:
            raise ValueError("noise from a file is one video's; give one seed")
        drawn = noise_from_file(drawn, shape)[None]
    if isinstance(probe, Interventions):
        done_to = probe.numbers(steps, grid[0], config.dit.layers)
        probe = probe.probe(steps, grid[0], config.dit.layers, count)
    else:
        leaves, structure = jax.tree.flatten(probe)
        done_to = {"probe": _hash(*leaves), "structure": described(structure)}
    plan, coding = config.sampling, False
    if judges and search is None:
        raise ValueError(f"there is no search whose rows ask for the judges {', '.join(judges)}")
    if search is not None:
        options = {"x0": bool(x0), "trace": trace, "judges": judges or {}}
        plan, coding = _check_search(search, config, seeds, grid[0], probe, **options)
    abstract, given = abstract_model(Wan, stored), abstract_condition(config, grid)
    abstract.config = config  # its shapes are the stored one's, which are traced once
    observed = loop.Runs(abstract, given, probe, plan, together=together).observed(count)
    check_averages(probe, count)
    prompts = [read_prompt(text) for text in (prompt, negative or config.negative)]
    for rows in (p for p in prompts if not isinstance(p, str)):
        most, width = config.dit.text_len, config.dit.text_dim
        if len(rows) > most or rows.shape[1] != width or not np.isfinite(rows).all():
            raise ValueError(
                f"{config.name} reads prompts of at most {most} rows of {width} finite numbers; "
                f"these have shape {rows.shape}"
            )
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
        # Of a search, the manifest's seeds are those that were chosen.
        **({"seeds": seeds} if search is None else {"first seed": seeds[0]}),
        "method": None if search is None else repr(search),
        **({"judges": {name: judge.identity for name, judge in judges.items()}} if judges else {}),
        "noise": str(noise or config.noise),
        "noise file": None if isinstance(drawn, str) else _hash(drawn),
        "interventions": done_to,
        "x0": x0,
        "tiles": None if tiles is None else list(tiles),
        "lora": lora_files.identity(changed),
    }
    complete = runs.holds(out, "checkpoint", settings) and (out / LATENTS).is_file()
    untraced = trace and not (out / TRACE / OUTLINE).is_file()
    complete, untraced = sharding.from_first_host((complete and not untraced, untraced))
    first_host = sharding.is_first_host()
    written = len(seeds) * (1 + len(x0))
    room, traced = HEADER + 4 * written * math.prod(shape), 0
    if untraced:
        of_a_step = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(observed))
        turns = count / min(count, together or count)
        traced = 4 * count * (steps + 1) * math.prod(shape) + int(steps * turns * of_a_step)
    # A search stores four arrays of every particle on the way, twice, and a frame of each in a row.
    passing = 0
    if search is not None:
        passing = 8 * count * (4 * math.prod(shape) + len(search.rows) * math.prod(shape[1:]))
    films = written * frames * math.prod(size) // PIXELS_OF_A_BYTE
    check_room(out, 0 if complete else room + traced + passing, films)
    formats.check_mp4(*size, fps)
    wan.check_vae(config, folder)
    load_part = partial(wan.load, folder, profile=profile)

    if not complete:
        progress("reading the prompts", 0, steps)
        if plan.guidance is None:  # nothing reads the negative prompt
            prompts[1] = np.zeros((0, config.dit.text_dim), np.float32)
        words = [text for text in prompts if isinstance(text, str)]
        rows = wan.embedder(folder, config, words, text_cache, profile)
        positive, unconditional = (rows(p) if isinstance(p, str) else p for p in prompts)
        progress("coding the first frame", 0, steps)
        coder = load_part(experts=False, text=False)
        options = {"negative": unconditional, "size": size, "tiles": tiles, "seen": encoded}
        condition = jax.device_get(coder.condition(first, positive, frames, **options))
        del coder, rows, positive, unconditional  # with them, their weights leave the device
        changes = [change.to_json() for change in probe.changes()]
        sigmas = flow.schedule(plan).sigmas[:-1].tolist()
        manifest = {"checkpoint": str(folder), **settings, "changes": changes, "sigmas": sigmas}
        manifest |= runs.made(command, sizes)
        begun = runs.begun(out, manifest, room) if first_host else contextlib.nullcontext()
        with begun, sharding.use_mesh(devices):
            progress("reading the experts", 0, steps)
            model = load_part(text=False, vae=coding, resident=resident, lora=loras)
            made_by = model_digest(model) if untraced else ""
            start, whole = time.monotonic(), None
            if search is not None:
                options = {"tiles": tiles, "together": together, "noise": str(drawn)}
                options |= {"probe": probe, "sampling": config.sampling, "judges": judges}
                results, about = _search(
                    model, condition, search, seeds[0], out, progress, **options
                )
                manifest |= about
                write(out / runs.MANIFEST, runs.as_text(manifest))  # latents tell no seed
            else:
                whole = generation.generate(
                    model,
                    condition,
                    seeds,
                    probe=probe,
                    sampling=config.sampling,
                    noise=drawn,
                    together=together,
                    on_step=lambda step: progress("denoising", step + 1, steps),
                )
                results = {"latents": whole.latents, "x0": whole.x0[:, np.array(x0, int)]}
            results = {k: np.asarray(a, np.float32) for k, a in sharding.to_host(results).items()}
            seconds = round(time.monotonic() - start, 1)
            del model
        if first_host:
            write_or_keep(out / LATENTS, save(results))
            manifest |= {"seconds": seconds, "date": runs.now()}
            write(out / runs.MANIFEST, runs.as_text(manifest))
        if untraced and whole is not None:  # last: latents outlive a trace that cannot be written
            whole.save(out / TRACE, made_by)
        del whole
    if search is not None:
        from jcos.lab import saved

        (out / saved.FILE).unlink(missing_ok=True)
        seeds = (runs.read(out / runs.MANIFEST) or {})["seeds"]
    kinds = {"latents": (len(seeds), *shape), "x0": (len(seeds), len(x0), *shape)}
    arrays = {name: np.zeros(kind, np.float32) for name, kind in kinds.items()}
    try:
        if first_host:
            arrays = load((out / LATENTS).read_bytes())
    except SafetensorError as error:
        raise ValueError(f"{out / LATENTS} is damaged ({error}); remove it") from None
    arrays = sharding.from_first_host(arrays)
    coder, made = load_part(experts=False, text=False), {}
    if not first_host:
        return Videos(arrays["latents"], arrays["x0"], {})
    decode = partial(coder.decode, tiles=tiles)
    for i, seed in enumerate(seeds):
        progress(f"decoding seed {seed}", i, len(seeds))
        if not np.isfinite(arrays["latents"][i]).all():
            warnings.warn(f"seed {seed} has no video: its latent is not finite", stacklevel=2)
            continue
        made[seed] = out / f"seed-{seed}.mp4"
        film = decode(arrays["latents"][i]) if search is None else _film(coder, arrays, out, tiles)
        formats.write_mp4(made[seed], film, fps)
        if x0:
            videos = map(decode, arrays["x0"][i])
            _write_estimates(out, seed, fps, zip(x0, videos, strict=True))
    progress("decoding", len(seeds), len(seeds))
    return Videos(arrays["latents"], arrays["x0"], made)


def _check_search(
    search: "Method",
    config: WanConfig,
    seeds: Sequence[int],
    frames: int,
    probe: Probe,
    *,
    x0: bool,
    trace: bool,
    judges: "Mapping[str, Judge]",
) -> tuple[Sampling, bool]:
    """Return how a search samples, and whether it needs the VAE. Raises ValueError, in one
    sentence, where it does not suit the model or the options."""
    from jcos.lab.judges import standard
    from jcos.lab.methods import sampling_of
    from jcos.lab.refusals import check
    from jcos.lab.search import needs_vae

    if jax.process_count() > 1:
        raise ValueError("a search runs on one host; leave out --join")
    if len(seeds) != 1:
        raise ValueError(f"a search takes its first seed, the others follow; {seeds} are given")
    if x0 or trace:
        raise ValueError(
            "a search keeps no estimates (x0) and no trace; make the chosen run again with them"
        )
    sampling = sampling_of(search, config.sampling)
    known = standard(config) | dict(judges)
    check(search, config, sampling, list(known), frames, probe)
    decodes = any(known[row.judge].decodes for row in search.rows)
    return sampling, decodes or needs_vae(search, config)


def _search(
    model: Wan,
    condition: Condition,
    method: "Method",
    seed: int,
    out: Path,
    progress: Progress,
    **options: Any,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the chosen latents, and what the manifest says of the search."""
    from jcos.lab import outcome, search

    steps = method.steps or options["sampling"].steps

    def on_step(step: int, count: int) -> None:
        progress(f"denoising {count} seed(s)", step + 1, steps)

    knobs = memory.run_knobs(model, options["sampling"].guidance is not None, method.seeds)
    what = f"a search of {method.seeds} seed(s) of {model.config.name}"
    with memory.explained(what, knobs):
        options |= {"keep": out, "record": slice(-1, None), "on_step": on_step}
        chosen = search.run(model, condition, method, seed, **options)
    arrays = {"latents": chosen.latents[None], "x0": np.zeros((1, 0, *chosen.latents.shape))}
    arrays |= {f"clip-{i}": clip for i, clip in enumerate(chosen.clips)}
    judged = [row.x0 for row in chosen.tree if row.x0 is not None]
    arrays |= {f"row-{i}": x0[0, :, -1] for i, x0 in enumerate(judged)}
    about = {"seeds": chosen.seed.tolist(), "shared": list(chosen.shared)}
    decodes = chosen.cost.decodes.tolist()
    return arrays, about | outcome.entries(chosen, method, decodes=decodes)


def _film(
    coder: Wan, arrays: Mapping[str, np.ndarray], out: Path, tiles: Tiles | None
) -> UInt8[np.ndarray, "F H W 3"]:
    """Return the video of a search, of all its clips, and write the pictures of its tree: last
    frames, those of estimates by a linear map in place of the VAE."""
    from jcos.lab import outcome

    shared = (runs.read(out / runs.MANIFEST) or {})["shared"]
    clips = [arrays[f"clip-{i}"] for i in range(len(shared))]
    film = outcome.joined(coder, [*clips, arrays["latents"][0]], shared, tiles)
    shown, rows = fit_preview(coder), sum(name.startswith("row-") for name in arrays)
    estimates = [shown(arrays[f"row-{i}"]) for i in range(rows)]
    thin = max(1, film.shape[2] // 240)
    if rows:  # none in a folder of an older jcos
        ends = {"chosen": film[None, -1, ::thin, ::thin]}
        write(out / outcome.TREE, outcome.pictures([estimates], **ends))
    return film


def _write_estimates(
    out: Path, seed: int, fps: int, films: Iterable[tuple[int, UInt8[np.ndarray, "F H W 3"]]]
) -> None:
    """Write clean estimates by step as films, and a sheet (rows: steps) of some of their frames."""
    rows = []
    for step, film in films:
        formats.write_mp4(out / formats.X0_FILM.format(seed=seed, step=step), film, fps)
        frames = np.unique(np.linspace(0, len(film) - 1, 9).round().astype(int))
        thin = max(1, film.shape[2] // 240)
        rows.append(film[frames, ::thin, ::thin])
    write(out / f"seed-{seed}-x0.png", formats.png(formats.contact_sheet(np.stack(rows))))


def _hash(*arrays: Array | np.ndarray) -> str:
    return hashlib.sha256(b"".join(np.asarray(array).tobytes() for array in arrays)).hexdigest()
