"""A search on held-out puzzles, as `jcos search` runs it."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from jcos import runs, wan
from jcos.experiments.sweeps import conditions_of, held_out, judge
from jcos.files import check_room, write
from jcos.lab import search, tasks
from jcos.lab.outcome import TREE, entries, pictures
from jcos.media import formats
from jcos.weights.checkpoint import identify

if TYPE_CHECKING:
    from jcos.cli.small import Search

ROOM = 2**22
"""Bytes that a search takes, at most."""


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
    if options.puzzles < 1:
        raise ValueError(f"{options.puzzles} puzzles asked for; at least 1 is needed")
    judges = [*search.STANDARD, "oracle"]
    method = search.named(options.preset, options.seeds, options.judge, judges, least=options.least)
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
    puzzles = held_out(task, options.puzzles, options.puzzle_seed)
    settings = {
        "search": repr(method),
        "task": options.task,
        "count": options.puzzles,
        "puzzle_seed": options.puzzle_seed,
        "first_seed": options.first_seed,
        "weights": identify(options.checkpoint),
        "sampling": dataclasses.asdict(sampling),
    }
    out, manifest = options.out, options.out / runs.MANIFEST
    there = runs.holds(out, "search", settings)
    complete = there and "solved" in (runs.read(manifest) or {})
    if not complete:
        check_room(out, ROOM)
        model = wan.load(options.checkpoint)
        title = {"title": f"{task.name}: {options.preset}, {options.seeds} seeds"}
        with runs.begun(out, settings | title | runs.made(command), ROOM):
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
                lasts.append(list[np.ndarray]())
                rows = []
                for generation in result.tree:
                    assert generation.x0 is not None  # recorded
                    estimates = model.decode(generation.x0[i])
                    lasts[i].append(estimates[:, -1])
                    rows.append(estimates[_order(generation, i)])
                sheet = formats.contact_sheet(np.concatenate([*rows, [video, answer]]), scale=4)
                write(out / f"puzzle-{i}.png", formats.png(sheet))
                write(out / f"puzzle-{i}.webp", formats.webp(formats.upscale(video, 8)))
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
