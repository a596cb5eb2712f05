"""Of which sparse features do tokens consist, and do they act?"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import jax
import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int, UInt8

from jcos.config import WanConfig
from jcos.experiments import plots
from jcos.experiments.experiment import Picture, Place, Progress, places
from jcos.experiments.feature_study import Study
from jcos.experiments.linear_probes import identities_of, marked
from jcos.experiments.parameters import NONEMPTY, Count, Positive
from jcos.experiments.samples import puzzles_of
from jcos.experiments.store import Store
from jcos.experiments.sweeps import (
    activations_folder,
    conditions_of,
    judge,
    one_world,
    read_videos,
)
from jcos.lab import activations, dictionary
from jcos.lab.measures import GAINS
from jcos.lab.results import measure
from jcos.lab.tasks import TASKS, Puzzle, get
from jcos.sampling.inside import Steer
from jcos.sampling.trajectory import tree_stack
from jcos.wan import Wan, latent_grid

ROWS = 40_000
"""Rows that the baselines are made from."""
FLIPPED = (
    "The run solves the maze by the other route, to whose tokens the direction was added; of mazes "
    "that the run without it solves. Random directions have the same norm; means over several."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features(Store):
    """A top-k dictionary (`lab.dictionary`) of the tokens after one block: what it explains against
    baselines of equal sparsity, what its features tell, and whether a run takes another route where
    a feature of routes is added to it.

    Puzzles of odd identities train it and choose features; all measures are of the others.

    features, k: of the dictionary, and active in each token. batch, updates: of its training.
    shown: features on the page. steered: mazes with several right answers, of other identities, on
    which the feature of the route taken is added, from the first step to steer_until. strengths: in
    mean codes of that feature on the tokens of a route.
    """

    question = "Of which sparse features do tokens consist, and do they act?"
    no_clips = (
        "features are chosen by right answers, which clips do not have: `jcos run store` stores "
        "them, and jcos.lab.dictionary learns from what is stored"
    )

    tasks: tuple[str, ...] = ("maze", "tictactoe", "pattern", "rotation", "returns")
    features: int = 512
    k: int = 16
    batch: Count = 1024
    updates: Count = 2000
    shown: Count = 12
    steered: Count = 24
    steer_until: Place = 0.5
    strengths: Annotated[tuple[Positive, ...], NONEMPTY] = (1.0, 2.0, 4.0)

    def check(self, config: WanConfig) -> None:
        super().check(config)
        if len(places(self.layers, config.dit.layers, "layer")) != 1 or self.tokens is not None:
            raise ValueError("a dictionary is of one layer and of all tokens, like layers=0.8")
        if not 1 <= self.k < min(self.features, config.dit.dim):
            raise ValueError(
                f"k is {self.k}; it is below {self.features} features, {config.dit.dim} channels"
            )
        if "block" not in self.sites:
            raise ValueError(f"sites are {', '.join(self.sites)}; a dictionary is of block")
        places((self.steer_until,), self.plan(config).steps, "step")
        if next(self._with_choice(), None) is None:
            raise ValueError(
                f"{self.tasks[0]} has one right answer, and routes are steered on the first task: "
                "name one with several first, like maze"
            )
        task = get(self.tasks[0])
        grid = config.dit.tokens(*latent_grid(config, task.frames, task.height, task.width))
        runs = len(self.seeds) * min(int(self._train().sum()), activations.POOL)
        rows = runs * len(places(self.steps, self.plan(config).steps, "step")) * math.prod(grid)
        if self.batch > rows:
            raise ValueError(f"batch is {self.batch}; the training puzzles have {rows} tokens")

    def measure(self, model: Wan, progress: Progress) -> xr.Dataset:
        samples = self.samples(model)
        (layer,) = places(self.layers, model.config.dit.layers, "layer")
        train = self._train()
        with activations_folder() as folder:
            paths = self.stored(model, samples, folder, progress)
            fitting = [path for path, one in zip(paths, train, strict=True) if one]
            rows = activations.batches(fitting, self.batch, layer=layer, seed=self.puzzle_seed)
            some = np.concatenate(list(itertools.islice(rows, max(1, ROWS // self.batch))))
            learned, log = dictionary.fit(
                rows, self.features, self.k, steps=self.updates, progress=progress
            )
            learned.save(folder / "dictionary.safetensors")
            progress("reading features", 0, 1)
            study = Study(model, samples, paths, train, learned, some, layer)
            data = study.dataset(self.shown, self.seeds)
        plan = self.plan(model.config)
        known = {p.identity for p, one in zip(samples.puzzles, train, strict=True) if one}
        fresh = (p for p in self._with_choice() if p.identity not in known)
        puzzles = list(itertools.islice(fresh, self.steered))
        until = places((self.steer_until,), plan.steps, "step")[0]
        steering = {"layers": [layer], "when": range(until + 1), "steps": plan.steps}
        run = partial(self.sweep(model, progress), seeds=self.seeds[:1], chunk=None, alike=True)
        data = data.merge(
            steer(model, puzzles, study.directions("choice"), self.strengths, run, steering)
        )
        return data.assign(loss=("update", log.loss), forwards=((), self.forwards(model.config)))

    def _train(self) -> Bool[np.ndarray, " P"]:
        """Return which puzzles the dictionary learns from."""
        how = self.puzzles, self.puzzle_seed, self.several
        train = identities_of([p for task in self.tasks for p in puzzles_of(task, *how)]) % 2 == 1
        if train.all() or not train.any():
            raise ValueError("all puzzles are of one half; more puzzles are needed")
        return train

    def _with_choice(self) -> Iterator[Puzzle]:
        """Return puzzles of the first task that have several right answers, as many as there are
        among those looked through."""
        task = get(self.tasks[0])
        drawn = (task.sample((self.puzzle_seed + 1, i), "test") for i in range(100 * self.steered))
        return (puzzle for puzzle in drawn if len(puzzle.answers) > 1)

    def figures(self, data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
        steered = data["flipped_more"]
        label = str(steered.attrs["long_name"])
        yield "steered", Picture(plots.paired(steered, label), str(steered.attrs["comment"]))


def steer(
    model: Wan,
    puzzles: Sequence[Puzzle],
    directions: Mapping[str, Float[np.ndarray, "_ D"]],
    strengths: Sequence[float],
    sweep: Callable[..., Any],
    where: Mapping[str, Any],
) -> xr.Dataset:
    """Return how often a run goes over to another right answer, whose tokens get a direction.

    puzzles: with several right answers. directions: by name, several of which a mean is taken; all
    of the norm of strength 1. The first is compared with the others, puzzle by puzzle. sweep: of
    one seed. where: layers and steps, as of `Steer.at`.
    """
    dit, conditions = model.config.dit, one_world(conditions_of(model, puzzles))
    none = np.zeros((len(puzzles), math.prod(dit.tokens(*conditions.grid))), bool)

    def run(pushes: Float[np.ndarray, "Q D"], tokens: np.ndarray, what: str) -> Any:
        """Return the `endings` of every direction on every puzzle, [P, directions]."""
        each = itertools.product(pushes, tokens)
        videos = sweep(
            jax.tree.map(lambda a: np.concatenate([a] * len(pushes)), conditions),
            item_probe=tree_stack([Steer.at(model.config, d, tokens=t, **where) for d, t in each]),
            readout=read_videos,
            what=what,
        )[0, :, 0]
        return endings(puzzles, videos.reshape(len(pushes), -1, *videos.shape[1:]).swapaxes(0, 1))

    plain = run(np.zeros((1, dit.dim), np.float32), none, "runs without a direction")
    taken, solved = (a[:, 0] for a in plain)
    other = np.array([(t + 1) % len(p.answers) for p, t in zip(puzzles, taken, strict=True)])
    side = dit.patch[1] * model.codec.strides[1]
    ways = zip(puzzles, other.tolist(), taken.tolist(), strict=True)
    tokens = np.array([_tokens_of(*way, side) for way in ways])
    comparable = solved & tokens.any(1)
    pushes = [s * d for several in directions.values() for s in strengths for d in several]
    to, good = run(np.array(pushes, np.float32), tokens, "runs with a direction added")
    flips = ((to == other[:, None]) & good).T
    sizes = np.cumsum([len(strengths) * len(several) for several in directions.values()])
    parts = np.split(flips, sizes[:-1])
    mean = [part.reshape(len(strengths), -1, len(puzzles)).mean(1) for part in parts]
    every, by = np.where(comparable, np.stack(mean), np.nan), {"by": "steered"}
    less, title = every[:1] - every[1:], "takes the route it is pushed to"
    more, dims = f"{title}, more than by", "control strength pair"
    variables = {
        "flipped": measure("added strength pair", every, title, FLIPPED, **by),
        "flipped_more": measure(dims, less, more, FLIPPED, span=GAINS, **by),
    }
    labels = {"added": list(directions), "control": list(directions)[1:]}
    labels |= {"strength": list(strengths), "steered": ("pair", [p.task for p in puzzles])}
    return xr.Dataset(variables, labels)


def endings(
    puzzles: Sequence[Puzzle], videos: UInt8[np.ndarray, "P n F H W 3"]
) -> tuple[Int[np.ndarray, "P n"], Bool[np.ndarray, "P n"]]:
    """Return the right answer that each video is nearest to, and whether it solves the puzzle."""
    routes = [TASKS[puzzle.task].routes(puzzle).astype(np.float32) for puzzle in puzzles]
    nearest = [
        [np.abs(right - video).mean((1, 2, 3, 4)).argmin() for video in row]
        for right, row in zip(routes, videos, strict=True)
    ]
    return np.array(nearest), judge(puzzles, videos).solved


def _tokens_of(puzzle: Puzzle, other: int, taken: int, side: int) -> Bool[np.ndarray, " N"]:
    """Return the tokens that one answer changes and another does not; none of the first frame."""
    task = TASKS[puzzle.task]
    routes = marked(task.routes(puzzle), task.first_frame(puzzle), side)
    later = routes[other] & ~routes[taken]
    return np.concatenate([np.zeros_like(later[:1]), later]).reshape(-1)
