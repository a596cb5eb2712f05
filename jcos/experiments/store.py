"""What do tokens hold at chosen layers and steps? Stored, for studies that the model is not needed
for: dictionaries, probes, plots."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import xarray as xr

from jcos.config import WanConfig
from jcos.experiments import plots
from jcos.experiments.experiment import Experiment, Picture, Progress, check_spread, places
from jcos.experiments.parameters import NONEMPTY, AtLayers, AtSteps, Count
from jcos.experiments.samples import Samples
from jcos.experiments.sweeps import activations_folder
from jcos.lab import activations, results
from jcos.lab.measures import POSITIVE
from jcos.lab.results import measure
from jcos.wan import Wan

SIZE = "Root mean square of the stored channels, mean over tokens."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Store(Experiment):
    """Writes the activations of chosen layers, steps and tokens (`lab.activations`), conditional
    branch, into the folder `activations` beside the results; one file per puzzle or clip.

    layers, steps: which. sites: block, heads, cross or mlp (`activations.SITES`). tokens: at most
    so many, evenly spread over the video; None for all. chunk: puzzles in one batch, by default 8
    of the small ones and one clip. Puzzle i has the noise of seed + 1000 i; the files say which.
    """

    question = "What do tokens hold at chosen layers and steps?"

    layers: Annotated[AtLayers, NONEMPTY] = (0.8,)
    steps: Annotated[AtSteps, NONEMPTY] = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)
    sites: tuple[str, ...] = ("block",)
    tokens: Count | None = None

    def check(self, config: WanConfig) -> None:
        super().check(config)
        check_spread(config, self.at_once, len(self.seeds))
        activations.check_sites(self.sites)

    @property
    def at_once(self) -> int:
        return self.chunk or (8 if self.clips is None else 1)

    def measure(self, model: Wan, progress: Progress) -> xr.Dataset:
        samples = self.samples(model)
        with activations_folder() as folder:
            return self.described(model, samples, self.stored(model, samples, folder, progress))

    def stored(self, model: Wan, samples: Samples, folder: Path, progress: Progress) -> list[Path]:
        """Return the files, made where they are not there yet."""
        number, config = math.prod(model.config.dit.tokens(*samples.latent)), model.config
        chosen = np.linspace(0, number - 1, min(self.tokens or number, number)).astype(int)
        return activations.store(
            folder,
            model,
            jax.tree.map(lambda a: a[:, 0], samples.conditions),
            [[seed + 1000 * i for seed in self.seeds] for i in range(len(samples))],
            layers=places(self.layers, config.dit.layers, "layer"),
            at_steps=places(self.steps, self.plan(config).steps, "step"),
            tokens=np.unique(chosen).tolist(),
            sites=self.sites,
            labels={"task": samples.tasks},
            sampling=self.sampled(config),
            at_once=self.at_once,
            progress=progress,
        )

    def described(self, model: Wan, samples: Samples, paths: list[Path]) -> xr.Dataset:
        """Return how large what is stored is."""
        sizes, labels = [], {}
        for path in paths:
            with results.load(path) as data:
                read = [data[site].values[0] for site in self.sites]
                labels = {name: data[name].values for name in ("step", "layer")}
            sizes.append([np.sqrt(np.square(a).reshape(*a.shape[:3], -1).mean(-1)) for a in read])
        dims = f"{samples.runs} site seed step layer"
        variables: dict[str, Any] = {
            "size": measure(dims, sizes, "size of activations", SIZE, span=POSITIVE),
            "forwards": ((), self.forwards(model.config), {}),
        }
        return self.dataset(variables, samples, site=list(self.sites), **labels)

    def figures(self, data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
        for site in data["site"].values:
            one = data.sel(site=site)
            yield f"size-{site}", Picture(plots.lines(one, "size", hue="layer"), f"{site}: {SIZE}")
