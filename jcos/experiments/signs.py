"""Which sign in a clean estimate tells, among the seeds of one puzzle, the run that will fail?

A search chooses among seeds of the same video, so every judge that needs no answer is measured
there, step by step. Judges of latents alone also suit released models.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from jcos.config import WanConfig
from jcos.experiments import plots
from jcos.experiments.experiment import Experiment, Picture, Progress
from jcos.experiments.sweeps import conditions_of, judge, one_world, pixels, sweep
from jcos.lab.judges import STANDARD, Estimates
from jcos.lab.results import measure
from jcos.sampling import flow
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan

AREA = (
    "Chance that a run that fails has a worse sign than one of the same puzzle that is solved; of "
    "puzzles with both kinds. 0.5 tells nothing."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signs(Experiment):
    """AUROC of failure by judge and step, within a puzzle; all seeds run to the end."""

    question = "Which sign in a clean estimate tells the seeds of a puzzle that will fail?"

    tasks: tuple[str, ...] = ("maze7",)
    puzzles: int = 128
    seeds: tuple[int, ...] = tuple(range(8))

    def check(self, config: WanConfig) -> None:
        super().check(config)
        if self.clips is not None:
            raise ValueError("signs are held against right answers; clips have none: leave it out")
        if len(self.seeds) < 2:
            raise ValueError("the seeds of a puzzle are compared; give at least 2")

    def measure(self, model: Wan, progress: Progress) -> xr.Dataset:
        samples = self.samples(model)
        scores, video = sweep(
            model,
            one_world(conditions_of(model, samples.puzzles)),
            self.seeds,
            plan=self.plan(model.config),
            readout=signs,
            chunk=self.chunk,
            what="runs",
            progress=progress,
        )
        solved = judge(samples.puzzles, video[0, :, 0])[1].astype(bool)
        areas = np.stack([within(-scores[name][0, :, 0], ~solved) for name in STANDARD], 1)
        title = "AUROC of failure within a puzzle"
        variables = samples.levels({"solved": "solved"}) | {
            "forwards": ((), len(self.seeds) * self.forwards(model.config), {}),
            "area": measure("puzzle judge step", areas, title, AREA, span=(0.0, 1.0)),
            "solved": measure("puzzle seed", solved.astype(float), "solved"),
        }
        steps = range(self.plan(model.config).steps)
        labels = {"judge": list(STANDARD), "step": steps, "seed": list(self.seeds)}
        return xr.Dataset(variables, labels | samples.coordinates())

    def figures(self, data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
        figure = plots.lines(data, "area", "step", hue="judge")
        for axes in figure.axes:
            axes.axhline(0.5, color="#777777", linestyle=":", linewidth=1)
        yield "area", Picture(figure, AREA)


def within(
    values: np.ndarray,
    fails: np.ndarray,
) -> np.ndarray:
    """Return the AUROC [P, S] of values [P, N, S] for runs that fail [P, N], of each puzzle; nan
    where its runs are all of one kind."""
    a, b = values[:, :, None], values[:, None]
    pairs = (fails[:, :, None] & ~fails[:, None])[..., None]
    wins = (((a > b) + 0.5 * (a == b)) * pairs).sum((1, 2))
    count = pairs.sum((1, 2))
    return np.where(count > 0, wins / np.maximum(count, 1), np.nan)


def signs(
    model: Wan, plan: flow.Plan, trace: Trace, aux: Any
) -> tuple[Mapping[str, jax.Array], jax.Array]:
    """Return every standard judge's score [W, K, S], and the final video."""
    del aux
    x0 = trace.x0
    before = jnp.concatenate([jnp.zeros_like(x0[:, :, :1]), x0[:, :, :-1]], 2)
    known = {name: make() for name, make in STANDARD.items()}

    def at(step: int) -> Estimates:
        sigma: Any = plan.schedule.sigmas[step + 1]
        alive = jnp.ones(x0.shape[:2], bool)
        return Estimates(
            model, step, sigma, x0[:, :, step], x0[:, :, step], before[:, :, step], alive, {}
        )

    each = {
        name: jnp.stack([jnp.asarray(one(at(s))) for s in range(plan.steps)], -1)
        for name, one in known.items()
    }
    return each, pixels(model, x0[:, :, -1])
