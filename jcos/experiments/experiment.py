"""What an experiment is: a question to a model as data, and the dataset that answers it.

A file of this folder holds one question: a frozen dataclass whose fields are its parameters, with
`check` (what could not be run is refused before anything runs), `measure` (a labelled dataset,
`lab.results`), and the `figures` and the `table` of such a dataset.
"""

import abc
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from jcos.config import Grid, PixelCodec, Sampling, Solver, WanConfig
from jcos.devices import mesh, sharding
from jcos.experiments.clips import check_clips, latent_frames, read_clips, size_of
from jcos.experiments.parameters import Count, NonNegative, check_parameters
from jcos.experiments.samples import Samples
from jcos.experiments.sweeps import sweep
from jcos.lab import results
from jcos.lab.tasks import get
from jcos.sampling import flow
from jcos.sampling.interventions import Place as Place
from jcos.sampling.interventions import places as places
from jcos.staged import Progress as Progress
from jcos.staged import silent as silent
from jcos.variants import Profile, at_size
from jcos.wan import Wan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What is sampled otherwise than the model's authors do; None leaves a setting as it is.

    solver: another than the model's own brings its own grid, unless one is given. eta: size of a
    stochastic solver's noise. temperature: of the first noise.
    guidance: one scale for all experts or one for each; 1 leaves the negative prompt out.
    sigmas: explicit noise levels or timesteps (`config.Sampling`).
    """

    steps: int | None = None
    shift: float | None = None
    solver: Solver | None = None
    grid: Grid | None = None
    guidance: tuple[float, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    eta: float | None = None
    temperature: float | None = None

    def of(self, config: WanConfig) -> Sampling:
        """Return the sampling of this model. Raises ValueError where it cannot be."""
        return config.sampling_with(**dataclasses.asdict(self))


class Picture(NamedTuple):
    """A figure and the sentence below it."""

    figure: Figure
    caption: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(abc.ABC):
    """Parameters that every experiment has.

    tasks: of the small puzzles, all with the same canvas. puzzles: held-out ones per task, of this
    puzzle_seed; only those with several right answers where `several` is on. clips: a JSON file of
    prompts with pictures instead (`clips.read_clips`), for models whose codec is a VAE; what
    needs a judge is then left out. profile: whose data types and schedule the model is loaded with,
    and whose rule prepares pictures of clips; by default its authors'. seeds: of the noise. chunk:
    runs computed at a time, by default as many as memory holds; results do not depend on it.
    """

    question: ClassVar[str]
    """One sentence, the title of the results."""
    no_clips: ClassVar[str] = ""
    """Why clips are refused, and what to do; empty where they are measured."""

    tasks: tuple[str, ...] = ("maze",)
    puzzles: Count = 64
    puzzle_seed: NonNegative = 0
    several: bool = False
    clips: Path | None = None
    profile: Profile | None = None
    seeds: tuple[int, ...] = (0,)
    sampling: Settings = Settings()
    chunk: Count | None = None

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    def check(self, config: WanConfig) -> None:
        """Raise ValueError or IndexError, in one sentence, where this cannot be run on a model of
        this configuration: it needs no weights."""
        self.sampling.of(config)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are {self.seeds}; at least one is needed, each once")
        if self.clips is not None and self.no_clips:
            raise ValueError(self.no_clips)
        if self.clips is not None:
            check_clips(config, self.clips, self.profile)
        else:
            self._check_tasks(config)
        frames = self.latent_frames(config)
        sizes = {"step": self.plan(config).steps, "layer": config.dit.layers, "frame": frames}
        check_parameters(self, sizes)

    def _check_tasks(self, config: WanConfig) -> None:
        if not isinstance(config.codec, PixelCodec):
            raise ValueError(
                f"{config.name} is no model of the small puzzles (its codec is a VAE): give "
                "it prompts with pictures, clips=FILE.json"
            )
        if not self.tasks:
            raise ValueError("tasks is empty; name at least one, or give clips")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks are {', '.join(self.tasks)}; name each once")
        canvas = {(t.frames, t.height, t.width) for t in map(get, self.tasks)}
        if len(canvas) > 1:
            raise ValueError(
                f"{', '.join(self.tasks)} are drawn on canvases of different sizes; run them "
                "one after the other"
            )

    @abc.abstractmethod
    def measure(self, model: Wan, progress: Progress) -> xr.Dataset:
        """Return all measures (`lab.results.measure`), once `check` has passed."""

    def figures(self, data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
        """Return the figures of a dataset, by name, where the charts of the page do not do."""
        yield from ()

    def table(self, data: xr.Dataset) -> pd.DataFrame:
        """Return one line for each measure, group of runs and place."""
        return results.table(data)

    def run(self, model: Wan, progress: Progress | None = None) -> xr.Dataset:
        """Check, and measure. Raises ValueError or IndexError as `check` does."""
        self.check(model.config)
        data = self.measure(model, progress or silent)
        data = data.assign_attrs(experiment=self.name, title=self.question)
        return results.with_levels(data)

    def dataset(
        self, variables: Mapping[str, results.Variable], samples: Samples, **labels: Any
    ) -> xr.Dataset:
        """Return variables with the labels of their dimensions: of runs and seeds, and others."""
        return xr.Dataset(variables, samples.coordinates() | {"seed": list(self.seeds)} | labels)

    def samples(self, model: Wan) -> Samples:
        """Return what it is run on."""
        if self.clips is not None:
            return Samples.of_clips(model, self.clips, self.profile)
        return Samples.of_tasks(model, self.tasks, self.puzzles, self.puzzle_seed, self.several)

    def sweep(self, model: Wan, progress: Progress) -> partial[Any]:
        """Return `sweeps.sweep` of this model with the seeds, plan and chunk of the experiment."""
        about: dict[str, Any] = {"seeds": self.seeds, "plan": self.plan(model.config)}
        return partial(sweep, model, chunk=self.chunk, progress=progress, **about)

    def latent_frames(self, config: WanConfig) -> int:
        """Return those of every run."""
        if self.clips is None:
            return get(self.tasks[0]).frames
        return latent_frames(config, read_clips(self.clips).frames)

    def plan(self, config: WanConfig, steps: int | None = None) -> flow.Plan:
        """Return the run. steps: another number of them, on the same grid."""
        changed = {} if steps is None else {"steps": steps, "sigmas": None}
        return flow.plan(self.sampled(config, **changed), config.boundary)

    def sampled(self, config: WanConfig, **changed: Any) -> Sampling:
        """Return the sampling of this model, at the size of its clips. changed: of `Settings`."""
        if self.clips is not None:
            config = at_size(config, self.profile, *size_of(config, self.clips))
        return dataclasses.replace(self.sampling, **changed).of(config)

    def costs(self, config: WanConfig) -> dict[str, results.Variable]:
        """Return the passes up to each step, and of the whole run, as variables."""
        steps = self.sampled(config).steps
        cost = [self.forwards(config, step + 1) for step in range(steps)]
        return {"forwards": (("step",), cost, {}), "all_forwards": ((), cost[-1], {})}

    def forwards(self, config: WanConfig, steps: int | None = None) -> int:
        """Return the passes of a trajectory, or of its first `steps`: two a step with guidance."""
        sampling = self.sampled(config)
        return (sampling.steps if steps is None else steps) * (1 + (sampling.guidance is not None))


def case_labels(cases: Sequence[Any], **columns: Any) -> dict[str, Any]:
    """Return the coordinates of the dimension `case`: the cases in words, and what is known of
    each."""
    about = {name: ("case", list(values)) for name, values in columns.items()}
    return {"case": list(map(str, cases))} | about


def check_spread(config: WanConfig, worlds: int, seeds: int = 1) -> None:
    """Raise ValueError where so many runs at a time, with so many seeds, cannot be spread over the
    mesh in use. Sweeps need no such check: they fill up what does not divide."""
    sizes = {axis: mesh.devices(axis) for axis in mesh.AXES}
    sharding.check_runs(sizes, config.dit.heads, worlds=worlds, seeds=seeds)


def window(first: float, last: float, size: int) -> list[int]:
    """Return the layers (or steps) from one fraction to another, at least one: 0.5 to 0.75 is the
    paper's 20 to 29 of 40."""
    if not 0.0 <= first <= last <= 1.0:
        raise ValueError(f"the window {first} to {last} is none: fractions of 0.0 to 1.0, in order")
    start = min(size - 1, math.floor(first * size))
    return list(range(start, max(start + 1, math.floor(last * size))))


def looked_at(steps: int, about: int = 10) -> list[int]:
    """Return about so many steps, evenly spread, with the first and the last: what tables list."""
    return sorted({int(s) for s in np.linspace(0, steps - 1, min(steps, about + 1)).round()})
