"""Held-out puzzles of a task, sampled or searched into a folder with a manifest, of which a page is
made: `jcos sample` and `jcos search`."""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import jax
import numpy as np
from jaxtyping import Bool

from jcos import runs, wan
from jcos.config import Sampling, Solver
from jcos.experiments import sweeps
from jcos.experiments.answers import answers_of, blend
from jcos.files import check_room, write
from jcos.lab import outcome, tasks
from jcos.lab import search as searching
from jcos.lab.tasks import Puzzle
from jcos.media import formats
from jcos.report import explorer, trees
from jcos.report.charts import listed
from jcos.report.plane import Line, Plane, puzzle_plane, save_planes
from jcos.sampling.interventions import Interventions
from jcos.sampling.noise import distinct_seeds
from jcos.sampling.probe import Change
from jcos.staged import NONE, Progress, silent
from jcos.variants import TINY
from jcos.weights import hub
from jcos.weights.checkpoint import identify

OFF = "mass on no right answer"
ROOM = 2**22
"""Bytes that a folder takes at most, next to the pictures of runs."""


def sample(
    task: str,
    puzzles: int = 2,
    puzzle_seed: int = 0,
    seeds: Sequence[int] | SupportsIndex = (0,),
    steps: int | None = None,
    sigmas: Sequence[float] | None = None,
    *,
    out: Path,
    checkpoint: Path = TINY,
    interventions: Interventions = NONE,
    command: str = "",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Sample every puzzle with every seed, unless the folder holds these very runs; return the
    manifest, in which `solved` [P, K] and `scores` are those of the videos.

    Raises ValueError, IndexError or OSError, before weights are read, where this cannot be run, or
    the folder holds another run.
    """
    about, chosen = tasks.get(task), sweeps.held_out(tasks.get(task), puzzles, puzzle_seed)
    numbers = distinct_seeds(seeds)
    checkpoint = hub.find(checkpoint)
    config = wan.read_config(checkpoint)
    sampling = config.sampling_with(steps=steps, sigmas=sigmas)
    size = (sampling.steps, about.frames, config.dit.layers)
    probe = interventions.probe(*size, len(numbers))
    settings = _settings(task, puzzle_seed, checkpoint, sampling) | {
        "puzzles": [
            {
                "prompt": puzzle.prompt,
                "right_answers": len(puzzle.answers),
                "sha256": hashlib.sha256(repr(puzzle).encode()).hexdigest(),
            }
            for puzzle in chosen
        ],
        "seeds": numbers,
        "model": config.name,
        "numerics": dataclasses.asdict(config.numerics),
        "codec": config.codec and dataclasses.asdict(config.codec),
        "interventions": interventions.numbers(*size),
    }

    def work(manifest: Mapping[str, Any]) -> None:
        progress("reading the model", 0, 3)
        model, changes = wan.load(checkpoint), probe.changes()
        progress(f"{puzzles} puzzles × {len(numbers)} seeds × {sampling.steps} steps", 1, 3)
        how: dict[str, Any] = {"keep": range(sampling.steps), "alike": True}
        trace = sweeps.play(model, chosen, numbers, probes=[probe], sampling=sampling, **how)
        x0, latents = trace.x0[0], trace.latents[0]
        mass = jax.jit(jax.vmap(blend))(x0, answers_of(model, chosen))
        arrays = {"latents": latents, "x0": x0, "mass": mass.on, "off": mass.off}
        arrays = {name: np.asarray(a) for name, a in arrays.items()}
        arrays["x0_scores"] = sweeps.score(model, chosen, x0)[0]
        progress("pictures", 2, 3)
        scores, solved = sweeps.judge(chosen, np.asarray(model.decode(latents)))
        planes = planes_of(model, chosen, numbers, arrays, solved, sampling, changes)
        results = {"scores": scores.round(4).tolist(), "solved": solved.tolist()}
        results["changes"] = [change.to_json() for change in changes]
        save_planes(out, list(planes), {**manifest, **results})
        progress("done", 3, 3)

    videos = puzzles * len(numbers) * (sampling.steps + 1)
    room = ROOM + 15 * videos * about.frames * about.height * about.width
    return _once(out, "puzzles", settings, command, room, work)


def planes_of(
    model: wan.Wan,
    puzzles: Sequence[Puzzle],
    seeds: Sequence[int],
    arrays: Mapping[str, np.ndarray],
    solved: Bool[np.ndarray, "P K"],
    sampling: Sampling,
    changes: Sequence[Change],
) -> Iterator[Plane]:
    """Yield every run as the page shows it.

    arrays: latents [P, K, …], and of every clean estimate x0 [P, K, S, …], x0_scores, mass on each
    right answer, and off, on none of them.
    """
    steps = range(sampling.steps)
    for (p, puzzle), (k, seed) in itertools.product(enumerate(puzzles), enumerate(seeds)):
        values = {"score of x̂0": arrays["x0_scores"]}
        values |= {OFF: arrays["off"]} if len(puzzle.answers) > 1 else {}
        yield puzzle_plane(
            puzzle,
            model.decode(arrays["x0"][p, k]),
            arrays["mass"][p, k],
            label=f"seed {seed}",
            group=f"puzzle {p}",
            video=model.decode(arrays["latents"][p, k]),
            solved=bool(solved[p, k]),
            lines=[Line(name, name, steps, listed(a[p, k])) for name, a in values.items()],
            sampling=sampling,
            changes=changes,
        )


def search(
    task: str,
    preset: str = "epbs",
    seeds: int = 8,
    judge: str = "decided",
    least: float | None = None,
    first_seed: int = 0,
    puzzles: int = 4,
    puzzle_seed: int = 0,
    steps: int | None = 10,
    sigmas: Sequence[float] | None = None,
    solver: Solver | None = None,
    eta: float | None = None,
    *,
    out: Path,
    checkpoint: Path = TINY,
    command: str = "",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Search, unless the folder holds this very search; return the manifest with its results.

    Raises as `sample`.
    """
    about, chosen = tasks.get(task), sweeps.held_out(tasks.get(task), puzzles, puzzle_seed)
    preset = preset.replace("_", "-")
    if preset not in searching.PRESETS:
        known = ", ".join(name for name in searching.PRESETS if name != "chain")
        raise ValueError(f"there is no preset {preset!r}; the presets are {known}")
    if preset == "chain":
        raise ValueError(
            "a puzzle is one clip; chain makes longer videos: jcos generate --search chain"
        )
    judges = [*searching.STANDARD, "oracle"]
    method = searching.named(preset, seeds, judge, judges, least=least)
    checkpoint = hub.find(checkpoint)
    config = wan.read_config(checkpoint)
    steps = None if sigmas else steps
    sampling = config.sampling_with(steps=steps, sigmas=sigmas, solver=solver, eta=eta)
    acting = searching.sampling_of(method, sampling)
    frames = wan.latent_grid(config, about.frames, about.height, about.width)[0]
    searching.check(method, config, acting, judges, frames, searching.Probe())
    settings = _settings(task, puzzle_seed, checkpoint, sampling)
    settings |= {"preset": preset, "seeds": seeds, "judge": judge, "first_seed": first_seed}
    settings |= {"search": repr(method), "count": puzzles}

    def on_step(step: int, count: int) -> None:
        progress(f"denoising {puzzles} × {count} videos", step + 1, acting.steps)

    def work(manifest: Mapping[str, Any]) -> None:
        model = wan.load(checkpoint)
        result = searching.run(
            model,
            sweeps.conditions_of(model, chosen),
            method,
            [first_seed] * puzzles,
            judges={"oracle": searching.Scorer(chosen)},
            sampling=sampling,
            record=True,
            on_step=on_step,
        )
        videos = model.decode(result.latents)
        for i, video in enumerate(np.asarray(videos)):
            write(out / f"puzzle-{i}.webp", formats.webp(formats.upscale(video, 8)))
        right = np.stack([about.routes(puzzle)[0][-1] for puzzle in chosen])
        rows = [trees.estimates(model, result, i) for i in range(puzzles)]
        write(out / outcome.TREE, outcome.pictures(rows, chosen=videos[:, -1], right=right))
        solved = sweeps.judge(chosen, videos)[1]
        results = outcome.entries(result, method, range(puzzles), solved=solved)
        results |= {k: np.asarray(a).tolist() for k, a in result.cost._asdict().items()}
        results["title"] = f"{task}: {preset}, {seeds} seeds"
        write(out / runs.MANIFEST, runs.as_text({**manifest, **results}))

    return _once(out, "search", settings, command, ROOM, work)


# ---- what both have


def _settings(task: str, seed: int, checkpoint: Path, sampling: Sampling) -> dict[str, Any]:
    """Return what decides the results of both."""
    return {
        "task": task,
        "puzzle_seed": seed,
        "weights": identify(checkpoint),
        "sampling": dataclasses.asdict(sampling),
    }


def _once(
    out: Path,
    kind: str,
    settings: Mapping[str, Any],
    command: str,
    room: int,
    work: Callable[[Mapping[str, Any]], None],
) -> dict[str, Any]:
    """Return the manifest of a finished run, after `work` has written it with the results to a
    folder that does not hold this run yet. Work that was killed begins anew."""
    file = out / runs.MANIFEST
    if not (runs.holds(out, kind, settings) and "solved" in (runs.read(file) or {})):
        explorer.check_page(out / explorer.PAGE)
        check_room(out, room)
        manifest = {**settings, **runs.made(command)}
        with runs.begun(out, manifest, 0):
            work(manifest)
    return runs.read(file) or {}
