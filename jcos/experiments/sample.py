"""A few puzzles of one task, sampled with or without an intervention: every clean estimate, its
score and its mass on each right answer."""

import dataclasses
import hashlib
import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from jcos import runs, wan
from jcos.config import Sampling
from jcos.experiments.answers import answers_of, blend
from jcos.experiments.sweeps import held_out, play, score
from jcos.files import check_room, write
from jcos.lab import tasks
from jcos.lab.tasks import Puzzle
from jcos.media import formats
from jcos.sampling.interventions import Interventions
from jcos.sampling.noise import seed_words
from jcos.staged import Progress, silent
from jcos.weights.checkpoint import identify

ARRAYS = "arrays.npz"
ROOM = 2**20
"""Bytes that the small files of a run take, at most."""
NONE = Interventions()


class Sampled(NamedTuple):
    """Runs of a folder, of P puzzles by K seeds and S steps.

    mass: of every clean estimate on each right answer; off: on none of them.
    """

    model: wan.Wan
    sampling: Sampling
    puzzles: Sequence[Puzzle]
    solved: Bool[np.ndarray, "P K"]
    latents: Float[np.ndarray, "P K f h w C"]
    x0: Float[np.ndarray, "P K S f h w C"]
    x0_scores: Float[np.ndarray, "P K S"]
    mass: Float[np.ndarray, "P K S A"]
    off: Float[np.ndarray, "P K S"]


def run(
    name: str,
    out: Path,
    *,
    puzzles: int = 2,
    puzzle_seed: int = 0,
    seeds: Sequence[int] = (0,),
    steps: int | None = None,
    sigmas: Sequence[float] | None = None,
    interventions: Interventions = NONE,
    checkpoint: Path = wan.TINY,
    command: str = "",
    progress: Progress = silent,
) -> Sampled:
    """Return the runs of held-out puzzles of a task.

    Writes OUT/arrays.npz, OUT/run.json, and OUT/puzzle-N.{png,webp}. Arrays of the same run that
    are there are not made again. steps, sigmas: as in `WanConfig.sampling_with`.
    Raises ValueError, IndexError or OSError, before weights are read, where this cannot be run, or
    `out` holds another run.
    """
    task = tasks.get(name)
    if puzzles < 1:
        raise ValueError(f"{puzzles} puzzles asked for; at least 1 is needed")
    seed_words(seeds)  # which of them are no seeds
    config = wan.read_config(checkpoint)
    sampling = config.sampling_with(steps=steps, sigmas=sigmas)
    size = (sampling.steps, task.frames, config.dit.layers)
    probe = interventions.probe(*size, len(seeds))
    chosen = held_out(task, puzzles, puzzle_seed)
    listed = [
        {
            "prompt": puzzle.prompt,
            "right_answers": len(puzzle.answers),
            "sha256": hashlib.sha256(repr(puzzle).encode()).hexdigest(),
        }
        for puzzle in chosen
    ]
    settings = {
        "task": name,
        "puzzle_seed": puzzle_seed,
        "puzzles": listed,
        "seeds": list(seeds),
        "model": config.name,
        "weights": identify(checkpoint),
        "sampling": dataclasses.asdict(sampling),
        "numerics": dataclasses.asdict(config.numerics),
        "codec": config.codec and dataclasses.asdict(config.codec),
        "interventions": interventions.numbers(*size),
    }
    done = runs.holds(out, "puzzles", settings) and (out / ARRAYS).is_file()
    videos = puzzles * len(seeds) * (sampling.steps + 1)
    room = ROOM + 15 * videos * task.frames * task.height * task.width
    check_room(out, 0 if done else room)
    progress("reading the model", 0, puzzles + 1)
    model = wan.load(checkpoint)
    if not done:
        runs_of = f"{puzzles} puzzles × {len(seeds)} seeds × {sampling.steps} steps"
        progress(runs_of, 0, puzzles + 1)
        manifest = settings | {"changes": [change.to_json() for change in probe.changes()]}
        with runs.begun(out, manifest | runs.made(command), room):
            trace = play(
                model,
                chosen,
                seeds,
                probes=[probe],
                sampling=sampling,
                keep=range(sampling.steps),
                alike=True,
            )
            x0, arrays = trace.x0[0], io.BytesIO()
            mass = jax.jit(jax.vmap(blend))(x0, answers_of(model, chosen))
            np.savez_compressed(
                arrays,
                latents=trace.latents[0],
                x0=x0,
                x0_scores=score(model, chosen, x0)[0],
                mass=mass.on,
                off=mass.off,
            )
        write(out / ARRAYS, arrays.getvalue())
    try:
        with (out / ARRAYS).open("rb") as file, np.load(file) as stored:
            arrays = {name: stored[name] for name in Sampled._fields[4:]}
    except (ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{out / ARRAYS} is damaged ({error}); remove it") from None
    latents, x0 = arrays["latents"], arrays["x0"]
    scores, solved = score(model, chosen, latents)
    shown = np.unique(np.linspace(0, sampling.steps - 1, 9).round().astype(int))
    for i, puzzle in enumerate(chosen):
        progress(f"pictures of puzzle {i}", 1 + i, puzzles + 1)
        video = model.decode(latents[i, 0])
        rows = [*model.decode(x0[i, 0, shown]), video, task.routes(puzzle)[0]]
        sheet = formats.contact_sheet(np.stack(rows), scale=4)
        write(out / f"puzzle-{i}.png", formats.png(sheet))
        write(out / f"puzzle-{i}.webp", formats.webp(formats.upscale(video, 8)))
    manifest = (runs.read(out / runs.MANIFEST) or {}) | {
        "shown_steps": shown.tolist(),
        "scores": scores.round(4).tolist(),
        "solved": solved.tolist(),
    }
    write(out / runs.MANIFEST, runs.as_text(manifest))
    progress("done", puzzles + 1, puzzles + 1)
    return Sampled(model, sampling, chosen, solved, **arrays)
