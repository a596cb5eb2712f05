"""`jcos search`."""

import dataclasses
import sys
from typing import Any

import numpy as np

from jcos import runs, wan
from jcos.cli import options
from jcos.cli.common import command_line
from jcos.config import Sampling
from jcos.experiments.sweeps import conditions_of, held_out, judge
from jcos.files import check_room, write
from jcos.lab import saved, search, tasks
from jcos.lab.tasks import Puzzle
from jcos.media import formats
from jcos.wan import Wan
from jcos.weights.checkpoint import identify

ROOM = 2**22
"""Bytes that a search takes, at most."""


def method_of(asked: options.Generate) -> tuple[search.Method | None, tuple[int, ...]]:
    """Return the search of `jcos generate` and its seeds; say what it will do and cost.

    Raises ValueError, in one sentence, where it is none or its seeds do not follow each other.
    """
    if asked.search is None:
        return None, asked.seeds
    first, count = (0, asked.seeds[0]) if len(asked.seeds) == 1 else (asked.seeds[0], None)
    if count is None and asked.seeds != tuple(range(first, first + len(asked.seeds))):
        raise ValueError(f"a search begins with seeds that follow each other, not {asked.seeds}")
    config = wan.read_config(asked.checkpoint, asked.profile)
    sampling = config.sampling_with(**{name: getattr(asked, name) for name in options.SAMPLING})
    if asked.search in ("threshold", "early-failure") and asked.search_least is None:
        raise ValueError(f"--search {asked.search} needs --search-least, a score of {asked.judge}")
    method = search.named(
        asked.search,
        count or len(asked.seeds),
        asked.judge,
        list(search.standard(config)),
        at=asked.search_at,
        least=asked.search_least,
    )
    print(f"Search: {search.plan_in_words(method, sampling)}", file=sys.stderr, flush=True)
    return method, (first,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search(options.Search):
    """`jcos search`, at work."""

    def run(self) -> None:
        task = tasks.get(self.task)
        if self.preset not in search.PRESETS:
            known = ", ".join(search.PRESETS)
            raise ValueError(f"there is no preset {self.preset!r}; the presets are {known}")
        if self.preset == "chain":
            raise ValueError(
                "a puzzle is one clip; chain makes longer videos: jcos generate --search chain"
            )
        if self.puzzles < 1:
            raise ValueError(f"{self.puzzles} puzzles asked for; at least 1 is needed")
        method = search.PRESETS[self.preset](self.seeds, self.judge)
        config = wan.read_config(self.checkpoint)
        sampling = config.sampling_with(steps=self.steps, solver=self.solver, eta=self.eta)
        puzzles = held_out(task, self.puzzles, self.puzzle_seed)
        settings = {
            "search": repr(method),
            "task": self.task,
            "count": self.puzzles,
            "puzzle_seed": self.puzzle_seed,
            "first_seed": self.first_seed,
            "weights": identify(self.checkpoint),
            "sampling": dataclasses.asdict(sampling),
        }
        if not runs.holds(self.out, "search", settings):
            check_room(self.out, ROOM)
            model = wan.load(self.checkpoint)
            with runs.begun(self.out, settings | runs.made(command_line()), ROOM):
                about = self._search(model, method, sampling, puzzles)
            manifest = runs.read(self.out / runs.MANIFEST) or {}
            write(self.out / runs.MANIFEST, runs.as_text(manifest | about))
        said = runs.read(self.out / runs.MANIFEST, "solved") or {}
        forwards, decodes, judged = (
            np.mean(said[name]) for name in ("forwards", "decodes", "judged")
        )
        print(
            f"Solved {sum(said['solved'])} of {len(said['solved'])}; per puzzle {forwards:.1f} "
            f"forwards (one run {sampling.steps}), {decodes:.1f} decodes, {judged:.1f} calls of "
            f"the judge; {said['seconds']:.1f} s in all. The pictures are in {self.out.resolve()}"
        )

    def _search(
        self, model: Wan, method: search.Method, sampling: Sampling, puzzles: list[Puzzle]
    ) -> dict[str, Any]:
        """Search, and write the pictures; return what the manifest says of it."""
        result = search.run(
            model,
            conditions_of(model, puzzles),
            method,
            [self.first_seed] * len(puzzles),
            judges={"oracle": search.Scorer(puzzles)},
            sampling=sampling,
            record=True,
        )
        solved = judge(puzzles, model.decode(result.latents))[1]
        for number, puzzle in enumerate(puzzles):
            self._show(model, result, number, puzzle)
        cost = {name: np.asarray(a).tolist() for name, a in result.cost._asdict().items()}
        return {"solved": solved.tolist(), "tree": [saved.as_json(g) for g in result.tree]} | cost

    def _show(self, model: Wan, result: search.Result, number: int, puzzle: Puzzle) -> None:
        """Write the estimates of all particles, a row each, those that go on first; the chosen
        video, and a right answer."""
        rows: list[np.ndarray] = []
        for generation in result.tree:
            assert generation.x0 is not None
            alive = generation.alive[number]
            kept = [int(i) for i in dict.fromkeys(generation.parents[number].tolist()) if i >= 0]
            order = kept + [int(i) for i in np.flatnonzero(alive) if i not in kept]
            rows += [*model.decode(generation.x0[number, order])]
        video = model.decode(result.latents[number])
        rows += [video, tasks.get(self.task).routes(puzzle)[0]]
        sheet = formats.contact_sheet(np.stack(rows), scale=4)
        write(self.out / f"puzzle-{number}.png", formats.png(sheet))
        write(self.out / f"puzzle-{number}.webp", formats.webp(formats.upscale(video, 8)))
