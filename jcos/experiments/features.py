"""Of which sparse features do tokens consist, and do they act?

A dictionary (`lab.dictionary`) is trained on the tokens of one half of the puzzles, and read on the
other half: what it explains against baselines of equal sparsity, what its features tell, and
whether a run takes another route where a feature of routes is added to it.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator

import numpy as np
import xarray as xr
from jaxtyping import Bool

from jcos.config import WanConfig
from jcos.experiments import plots
from jcos.experiments.experiment import Picture, Place, Progress, places
from jcos.experiments.feature_study import EXPLAINED, TELLS, Study
from jcos.experiments.linear_probes import READINGS, identities_of
from jcos.experiments.samples import puzzles_of
from jcos.experiments.steering import Steering, steer
from jcos.experiments.store import Store
from jcos.experiments.sweeps import activations_folder
from jcos.lab import activations, dictionary
from jcos.lab.tasks import Puzzle, get
from jcos.wan import Wan, latent_grid

ROWS = 40_000
"""Rows that the baselines are made from."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features(Store):
    """A top-k dictionary of the tokens after one block, and what its features do.

    Puzzles of odd identities train it and choose features; all measures are of the others.

    features, k: of the dictionary, and active in each token. batch, updates: of its training.
    shown: features on the page. steered: mazes with several right answers, of other identities, on
    which the feature of the route taken is added, from the first step to steer_until. strengths: in
    mean codes of that feature on the tokens of a route.
    """

    question = "Of which sparse features do tokens consist, and do they act?"

    tasks: tuple[str, ...] = ("maze", "tictactoe", "pattern", "rotation", "returns")
    features: int = 512
    k: int = 16
    batch: int = 1024
    updates: int = 2000
    shown: int = 12
    steered: int = 24
    steer_until: Place = 0.5
    strengths: tuple[float, ...] = (1.0, 2.0, 4.0)

    def check(self, config: WanConfig) -> None:
        super().check(config)
        if self.clips is not None:
            raise ValueError(
                "features are chosen by right answers, which clips do not have: `jcos run store` "
                "stores them, and jcos.lab.dictionary learns from what is stored"
            )
        if len(places(self.layers, config.dit.layers, "layer")) != 1 or self.tokens is not None:
            raise ValueError("a dictionary is of one layer and of all tokens, like layers=0.8")
        if not 1 <= self.k < min(self.features, config.dit.dim):
            raise ValueError(
                f"k is {self.k}; it is below {self.features} features, {config.dit.dim} channels"
            )
        for name in ("batch", "updates", "shown", "steered"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; at least 1 is needed")
        if "block" not in self.sites:
            raise ValueError(f"sites are {', '.join(self.sites)}; a dictionary is of block")
        places((self.steer_until,), self.plan(config).steps, "step")
        if not self.strengths or min(self.strengths) <= 0:
            raise ValueError(f"strengths are {self.strengths}; name at least one, above 0")
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
        steering = self._steering(model, study, layer, progress)
        data = data.assign(steering.variables).assign_coords(steering.labels)
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

    def _steering(self, model: Wan, study: Study, layer: int, progress: Progress) -> Steering:
        puzzles, train = study.samples.puzzles, study.train
        known = {p.identity for p, one in zip(puzzles, train, strict=True) if one}
        plan = self.plan(model.config)
        fresh = (p for p in self._with_choice() if p.identity not in known)
        until = places((self.steer_until,), plan.steps, "step")[0]
        return steer(
            model,
            list(itertools.islice(fresh, self.steered)),
            self.seeds[0],
            study.directions("choice"),
            self.strengths,
            layer=layer,
            steps=range(until + 1),
            plan=plan,
            chunk=None,
            progress=progress,
        )

    def figures(self, data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
        yield "explained", Picture(plots.lines(data, "explained", hue="explainer"), EXPLAINED)
        for reading in READINGS:
            yield reading, Picture(plots.lines(data, reading, hue="source"), TELLS)
        steered = data["flipped_more"]
        label = str(steered.attrs["long_name"])
        yield "steered", Picture(plots.paired(steered, label), str(steered.attrs["comment"]))
        for name in data["feature"].values:
            one = data.sel(feature=name)
            film = plots.film_grid(one["film"].values, [str(r) for r in one["film_of"].values])
            yield f"feature-{str(name).partition(':')[0]}", Picture(film, f"Feature {name}. {FILM}")


FILM = "The held-out runs that fire it most: final videos, tokens in red by how strongly they fire."
