"""Which sign in a clean estimate tells, among the seeds of one puzzle, the run that will fail, and
why does the middle tell more than the end?

A search chooses among seeds of the same video, so every judge that needs no answer is measured
there, step by step. Judges of latents alone also suit released models.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Float, UInt8

from jcos.config import WanConfig
from jcos.experiments import plots
from jcos.experiments.experiment import Experiment, Picture, Progress
from jcos.experiments.parameters import Count
from jcos.experiments.search_bank import scores_of
from jcos.experiments.sweeps import pixels
from jcos.lab.ideal import IdealDenoiser
from jcos.lab.judges import STANDARD
from jcos.lab.measures import Mass, answer_mass, area
from jcos.lab.results import DENOISERS, measure
from jcos.sampling import flow
from jcos.sampling.probes import Probe
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan

AREA = (
    "Chance that a run that fails has a worse sign than one of the same puzzle that is solved; of "
    "puzzles with both kinds. 0.5 tells nothing."
)
SOLVED = "Share of runs that end solved."
MASSES = "Share of the clean estimate, of puzzles with runs that fail and runs that are solved."
MIXED, OFF = EXPLANATIONS = ("blend of a right and a wrong end", "mass on no end")
"""Signs that know how the runs end: what they explain of the others."""
JUDGES = (*STANDARD, *EXPLANATIONS)
DRAWN = ("decided", "pixels", "change", MIXED)
"""Signs in figures."""
OUTCOMES = ("runs that fail", "runs that are solved")
TITLES = {
    "right": "mass on ends that are right",
    "wrong": "mass on ends that are wrong",
    "off": "mass on no end",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signs(Experiment):
    """AUROC of failure by judge and step, within a puzzle; all seeds run to the end.

    The yardstick is the ideal denoiser of the model's ends: of each puzzle it knows the finished
    videos of all seeds, right and wrong, as equally likely answers, so it fails as often as the
    model. What a judge tells of its runs follows from blending alone. The mechanism: how much of
    the clean estimate is on right ends, on wrong ones and on none, of runs that fail and others.
    """

    question = "Which sign in a clean estimate tells the seeds of a puzzle that will fail?"
    no_clips = "signs are held against right answers; clips have none: leave it out"

    tasks: tuple[str, ...] = ("maze7",)
    puzzles: Count = 128
    seeds: tuple[int, ...] = tuple(range(8))

    def check(self, config: WanConfig) -> None:
        super().check(config)
        if len(self.seeds) < 2:
            raise ValueError("the seeds of a puzzle are compared; give at least 2")

    def measure(self, model: Wan, progress: Progress) -> xr.Dataset:
        samples, sweep = self.samples(model), self.sweep(model, progress)

        def read(what: str, ends: Any = None, probe: Probe | None = None) -> Reading:
            run = sweep(samples.conditions, item_probe=probe, readout=signs, aux=ends, what=what)
            return jax.tree.map(lambda a: a[0, :, 0], run)

        runs = read("runs")
        known = IdealDenoiser(runs.ends, np.zeros(runs.ends.shape[:2], np.float32))
        each = [runs, read("runs of the ideal denoiser", runs.ends[:, None], known)]
        solved = np.stack([samples.judge(reading.video)[1] for reading in each])
        mass = [masses(reading.mass, solved[0]) for reading in each]
        signs_of = [reading.scores | explained(m) for reading, m in zip(each, mass, strict=True)]
        area = [areas(each, ~ends) for each, ends in zip(signs_of, solved, strict=True)]
        dims = "denoiser puzzle judge step"
        title = "AUROC of failure within a puzzle"
        variables = samples.levels({"solved": "solved"}) | {
            "forwards": ((), len(self.seeds) * self.forwards(model.config), {}),
            "area": measure(dims, np.stack(area), title, AREA, span=(0.0, 1.0)),
            "chance_area": ((), 0.5, {"long_name": "chance"}),
            "solved": measure("denoiser puzzle seed", solved.astype(float), "solved", SOLVED),
        }
        for name, words in TITLES.items():
            values = np.stack([by_outcome(m[name], s) for m, s in zip(mass, solved, strict=True)])
            dims = "denoiser outcome puzzle seed step"
            variables[name] = measure(dims, values, words, MASSES)
        return self.dataset(
            variables,
            samples,
            denoiser=list(DENOISERS),
            judge=list(JUDGES),
            outcome=list(OUTCOMES),
            step=range(self.plan(model.config).steps),
        )

    def figures(self, data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
        for name, denoiser in zip(("area", "ideal"), DENOISERS, strict=True):
            drawn = data.sel(denoiser=denoiser, judge=list(DRAWN))
            figure = plots.lines(drawn, "area", hue="judge")
            yield name, Picture(figure, f"The {denoiser}. {AREA}")
        model = data.sel(denoiser=DENOISERS[0])
        yield "mass", Picture(plots.lines(model, list(TITLES), "step", hue="outcome"), MASSES)


class Reading(NamedTuple):
    """What is read off the runs of a puzzle: scores [W, K, S] by judge, the mass of every clean
    estimate on the model's K ends, the ends, and the final video."""

    scores: dict[str, Float[Any, "*P K S"]]
    mass: Mass
    ends: Float[Any, "*P K F h w C"]
    video: UInt8[Any, "*P K F H W 3"]


def signs(
    model: Wan, plan: flow.Plan, trace: Trace, ends: Float[Array, "W K F h w C"] | None
) -> Reading:
    """Return what the runs of one puzzle show. ends: of the model, by default these runs'."""
    x0 = trace.x0
    last = x0[:, :, -1]
    ends = last if ends is None else ends
    still = jnp.broadcast_to(ends[:, :1, :1], (len(ends), 1, *ends.shape[2:]))[:, 0]
    one = jax.vmap(jax.vmap(answer_mass, (0, None, None)), (0, None, None))
    return Reading(
        scores_of(model, plan, x0, STANDARD),
        jax.vmap(one)(x0, ends, still),
        last,
        pixels(model, last),
    )


def masses(mass: Mass, right: Bool[np.ndarray, "P K"]) -> dict[str, Float[np.ndarray, "P K S"]]:
    """Return how much of the estimates is on ends that are right, on wrong ones, and on none."""
    on = mass.on
    which = {"right": right, "wrong": ~right}
    sums = {name: np.where(ends[:, None, None], on, 0).sum(-1) for name, ends in which.items()}
    return sums | {"off": np.asarray(mass.off)}


def explained(mass: Mapping[str, Float[np.ndarray, "P K S"]]) -> dict[str, np.ndarray]:
    """Return the scores of `EXPLANATIONS`. Less than a thousandth is what the fit of the masses
    leaves: such runs are equal."""
    mixed = np.minimum(mass["right"], mass["wrong"])
    return {MIXED: -np.round(mixed, 3), OFF: -np.round(mass["off"], 3)}


def by_outcome(
    values: Float[np.ndarray, "P K S"], solved: Bool[np.ndarray, "P K"]
) -> Float[np.ndarray, "2 P K S"]:
    """Return values of the runs that fail and of those that are solved, of puzzles with both; nan
    elsewhere."""
    both = solved.any(1, keepdims=True) & ~solved.all(1, keepdims=True)
    return np.stack(
        [np.where((kind & both)[..., None], values, np.nan) for kind in (~solved, solved)]
    )


def areas(
    scores: Mapping[str, Float[np.ndarray, "P K S"]], fails: Bool[np.ndarray, "P K"]
) -> Float[np.ndarray, "P J S"]:
    """Return how well each of `JUDGES` tells the runs that fail, by puzzle and step."""
    each = np.stack([-scores[name] for name in JUDGES], 1).swapaxes(2, 3)
    fails = fails[:, None, None]
    return area(each, fails, ~fails)
