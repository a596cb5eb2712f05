"""Held-out puzzles of a task, as `jcos sample` and `jcos search` run them: into a folder with a
manifest, two pictures of each puzzle, and the arrays that its page shows."""

import dataclasses
import hashlib
import io
import itertools
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Bool, UInt8

from jcos import runs, wan
from jcos.config import Sampling
from jcos.experiments.answers import answers_of, blend
from jcos.experiments.sweeps import conditions_of, held_out, judge, play, score
from jcos.files import check_room, write
from jcos.lab import search, tasks
from jcos.lab.outcome import TREE, entries, pictures
from jcos.lab.tasks import Puzzle
from jcos.media import formats
from jcos.report.charts import listed
from jcos.report.plane import Line, Plane, puzzle_plane, save_planes
from jcos.sampling.noise import seed_words
from jcos.sampling.probe import Change
from jcos.staged import Progress
from jcos.weights import hub
from jcos.weights.checkpoint import identify

if TYPE_CHECKING:
    from jcos.cli.small import Sample, Search

ARRAYS = "arrays.npz"
OFF = "mass on no right answer"
SMALL_FILES, SEARCH_FILES = 2**20, 2**22
"""Bytes that the small files of a sample, and all of a search, take at most."""


def sample_puzzles(options: "Sample", command: str, progress: Progress) -> str:
    """Sample every puzzle with every seed; return in words how many are solved.

    Of P puzzles, K seeds and S steps, arrays.npz holds latents [P, K, …], and of every clean
    estimate, x0 [P, K, S, …], its score, its mass on each right answer, and off, on none of them.
    Arrays of the same run that are there are not made again.
    Raises ValueError, IndexError or OSError, before weights are read, where this cannot be run, or
    the folder holds another run.
    """
    task, seeds, out = tasks.get(options.task), options.seeds, options.out
    puzzles = _chosen(options)
    seed_words(seeds)  # which of them are no seeds
    options = dataclasses.replace(options, checkpoint=hub.find(options.checkpoint))
    config = wan.read_config(options.checkpoint)
    sampling = config.sampling_with(steps=options.steps, sigmas=options.sigmas)
    size = (sampling.steps, task.frames, config.dit.layers)
    probe = options.probe(*size, len(seeds))
    listed_puzzles = [
        {
            "prompt": puzzle.prompt,
            "right_answers": len(puzzle.answers),
            "sha256": hashlib.sha256(repr(puzzle).encode()).hexdigest(),
        }
        for puzzle in puzzles
    ]
    settings = _settings(options, sampling) | {
        "puzzles": listed_puzzles,
        "seeds": list(seeds),
        "model": config.name,
        "numerics": dataclasses.asdict(config.numerics),
        "codec": config.codec and dataclasses.asdict(config.codec),
        "interventions": options.numbers(*size),
    }
    done = runs.holds(out, "puzzles", settings) and (out / ARRAYS).is_file()
    videos = len(puzzles) * len(seeds) * (sampling.steps + 1)
    room = SMALL_FILES + 15 * videos * task.frames * task.height * task.width
    check_room(out, 0 if done else room)
    total = len(puzzles) + 1
    progress("reading the model", 0, total)
    model = wan.load(options.checkpoint)
    changes = probe.changes()
    if not done:
        what = f"{len(puzzles)} puzzles × {len(seeds)} seeds × {sampling.steps} steps"
        progress(what, 0, total)
        about = settings | {"changes": [change.to_json() for change in changes]}
        with runs.begun(out, about | runs.made(command), room):
            how: dict[str, Any] = {"keep": range(sampling.steps), "alike": True}
            trace = play(model, puzzles, seeds, probes=[probe], sampling=sampling, **how)
            x0, file = trace.x0[0], io.BytesIO()
            mass = jax.jit(jax.vmap(blend))(x0, answers_of(model, puzzles))
            made = {"latents": trace.latents[0], "x0": x0, "mass": mass.on, "off": mass.off}
            np.savez_compressed(file, **made, x0_scores=score(model, puzzles, x0)[0])
        write(out / ARRAYS, file.getvalue())
    try:
        with (out / ARRAYS).open("rb") as file, np.load(file) as stored:
            arrays = {name: stored[name] for name in ("latents", "x0", "x0_scores", "mass", "off")}
    except (ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{out / ARRAYS} is damaged ({error}); remove it") from None
    ends = np.asarray(model.decode(arrays["latents"]))
    scores, solved = judge(puzzles, ends)
    shown = np.unique(np.linspace(0, sampling.steps - 1, 9).round().astype(int))
    for i, puzzle in enumerate(puzzles):
        progress(f"pictures of puzzle {i}", 1 + i, total)
        estimates = model.decode(arrays["x0"][i, 0, shown])
        _draw(out, i, [*estimates, ends[i, 0], task.routes(puzzle)[0]], ends[i, 0])
    planes = planes_of(model, puzzles, seeds, arrays, solved, sampling, changes)
    about = {"shown_steps": shown.tolist(), "scores": scores.round(4).tolist()}
    about["solved"] = solved.tolist()
    save_planes(out, list(planes), (runs.read(out / runs.MANIFEST) or {}) | about)
    progress("done", total, total)
    return f"Solved {int(solved.sum())} of {solved.size}"


def planes_of(
    model: wan.Wan,
    puzzles: Sequence[Puzzle],
    seeds: Sequence[int],
    arrays: Mapping[str, np.ndarray],
    solved: Bool[np.ndarray, "P K"],
    sampling: Sampling,
    changes: Sequence[Change],
) -> Iterator[Plane]:
    """Yield every run as the page shows it. arrays: as `sample_puzzles` writes them."""
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


def search_puzzles(options: "Search", command: str) -> str:
    """Search, unless the folder holds this very search; return its results in a sentence. One that
    was killed begins anew."""
    task = tasks.get(options.task)
    if options.preset not in search.PRESETS:
        known = ", ".join(search.PRESETS)
        raise ValueError(f"there is no preset {options.preset!r}; the presets are {known}")
    if options.preset == "chain":
        raise ValueError(
            "a puzzle is one clip; chain makes longer videos: jcos generate --search chain"
        )
    puzzles, judges = _chosen(options), [*search.STANDARD, "oracle"]
    method = search.named(options.preset, options.seeds, options.judge, judges, least=options.least)
    options = dataclasses.replace(options, checkpoint=hub.find(options.checkpoint))
    config = wan.read_config(options.checkpoint)
    sampling = config.sampling_with(
        steps=None if options.sigmas else options.steps,
        sigmas=options.sigmas,
        solver=options.solver,
        eta=options.eta,
    )
    acting = search.sampling_of(method, sampling)
    frames = wan.latent_grid(config, task.frames, task.height, task.width)[0]
    search.check(method, config, acting, judges, frames, search.Probe())
    settings = _settings(options, sampling) | {
        "search": repr(method),
        "count": options.puzzles,
        "first_seed": options.first_seed,
    }
    out, manifest = options.out, options.out / runs.MANIFEST
    there = runs.holds(out, "search", settings)
    if not (there and "solved" in (runs.read(manifest) or {})):
        check_room(out, SEARCH_FILES)
        model = wan.load(options.checkpoint)
        title = {"title": f"{task.name}: {options.preset}, {options.seeds} seeds"}
        with runs.begun(out, settings | title | runs.made(command), SEARCH_FILES):
            result = search.run(
                model,
                conditions_of(model, puzzles),
                method,
                [options.first_seed] * len(puzzles),
                judges={"oracle": search.Scorer(puzzles)},
                sampling=sampling,
                record=True,
            )
            videos = model.decode(result.latents)
            answers = np.stack([task.routes(puzzle)[0] for puzzle in puzzles])
            lasts = []
            for i, (video, answer) in enumerate(zip(videos, answers, strict=True)):
                particles = [
                    (_order(made, i), model.decode(x0[i]))
                    for made in result.tree
                    if (x0 := made.x0) is not None  # recorded, as all are
                ]
                lasts.append([estimates[:, -1] for _, estimates in particles])
                rows = [estimates[order] for order, estimates in particles]
                _draw(out, i, [*itertools.chain(*rows), video, answer], video)
            write(out / TREE, pictures(lasts, chosen=videos[:, -1], right=answers[:, -1]))
        solved = judge(puzzles, videos)[1]
        about = entries(result, method, range(len(puzzles)), solved=solved)
        about |= {name: np.asarray(a).tolist() for name, a in result.cost._asdict().items()}
        write(manifest, runs.as_text((runs.read(manifest) or {}) | about))
    results = runs.read(manifest, "solved") or {}
    forwards, decodes, judged = (np.mean(results[k]) for k in ("forwards", "decodes", "judged"))
    return (
        f"Solved {sum(results['solved'])} of {len(results['solved'])}; per puzzle {forwards:.1f} "
        f"forwards (one run {sampling.steps}), {decodes:.1f} decodes, {judged:.1f} calls of the "
        f"judge; {results['seconds']:.1f} s in all."
    )


def _order(generation: search.Generation, puzzle: int) -> list[int]:
    """Return the particles of a puzzle that are alive, those that go on first."""
    alive = np.flatnonzero(generation.alive[puzzle]).tolist()
    parents = [i for i in dict.fromkeys(generation.parents[puzzle].tolist()) if i >= 0]
    return parents + [i for i in alive if i not in parents]


# ---- what both have


def _chosen(options: "Sample | Search") -> list[Puzzle]:
    if options.puzzles < 1:
        raise ValueError(f"{options.puzzles} puzzles asked for; at least 1 is needed")
    return held_out(tasks.get(options.task), options.puzzles, options.puzzle_seed)


def _settings(options: "Sample | Search", sampling: Sampling) -> dict[str, Any]:
    """Return what decides the results of both."""
    return {
        "task": options.task,
        "puzzle_seed": options.puzzle_seed,
        "weights": identify(options.checkpoint),
        "sampling": dataclasses.asdict(sampling),
    }


def _draw(
    out: Path,
    number: int,
    rows: Sequence[UInt8[np.ndarray, "F H W 3"]],
    video: UInt8[np.ndarray, "F H W 3"],
) -> None:
    """Write the pictures of a puzzle: rows of frames, and the video."""
    sheet = formats.contact_sheet(np.stack(rows), scale=4)
    write(out / f"puzzle-{number}.png", formats.png(sheet))
    write(out / f"puzzle-{number}.webp", formats.webp(formats.upscale(video, 8)))
