"""Why does the middle of a run tell more about its failure than the end?

Every run is held against two videos: the right answer, and its own end. A run that fails because
it held two routes and took the wrong one shows a blend of both in the middle. Beside the model
runs a denoiser that is exact but for one thing: it holds some wrong answers as likely as the right
one. It fails by chance, and what it is undecided about says nothing of how it will end.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Array, Float, UInt8

from jcos.config import WanConfig
from jcos.experiments import plots
from jcos.experiments.answers import Answers, answers_of
from jcos.experiments.experiment import Experiment, Picture, Progress, looked_at
from jcos.experiments.samples import Samples
from jcos.experiments.search_bank import SIGNS, scores_of
from jcos.experiments.sweeps import pixels, sweep
from jcos.lab import results
from jcos.lab.ideal import ideal_run
from jcos.lab.measures import POSITIVE, Estimate, answer_mass, auroc
from jcos.lab.results import DENOISERS, Row, measure
from jcos.sampling import flow
from jcos.sampling.probes import States
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan

ENDS = ("solved", "failed")
UNDECIDED = "Root mean square distance of x̂0 from pure colours, in levels of 256, by how runs end."
MASS = "Of runs that fail: how much of x̂0 is the right answer, and how much is their own end."
TELLS = (
    "How well the decidedness of x̂0 tells, step by step, the runs that will fail; 0.5: not at all."
)


class Seen(NamedTuple):
    """Of K runs, step by step: scores, by judge, of the model and of the unsure ideal denoiser;
    mass on the right answer and on the run's own end. video: the end. right: the ideal denoiser's
    posterior of the right answer at its last step."""

    scores: dict[str, Float[Any, "*K S"]]
    ideal: dict[str, Float[Any, "*K S"]]
    mass: Float[Any, "*K S 2"]
    video: UInt8[Any, "*K F H W 3"]
    right: Float[Any, "*K"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Middle(Experiment):
    """How well each sign tells failures by step, for runs of several lengths, and what failing runs
    hold in the middle.

    counts: denoising steps of runs. wrong: answers that the unsure ideal denoiser holds as likely
    as the right one.
    """

    question = "Why does the middle of a run tell more about its failure than the end?"

    tasks: tuple[str, ...] = ("maze7",)
    seeds: tuple[int, ...] = tuple(range(4))
    counts: tuple[int, ...] = (8, 20, 50)
    wrong: int = 3

    def check(self, config: WanConfig) -> None:
        super().check(config)
        if self.clips is not None or self.wrong < 1 or min(self.counts, default=0) < 3:
            raise ValueError(
                "middle needs puzzles (leave clips out), wrong of at least 1 and counts of at "
                "least 3 steps"
            )

    def measure(self, model: Wan, progress: Progress) -> xr.Dataset:
        samples, most = self.samples(model), max(self.counts)
        answers = answers_of(model, samples.puzzles, wrong=self.wrong)
        each = [self.at(model, samples, answers, count, progress) for count in self.counts]
        signs, mass = (np.stack([_filled(some[i], most) for some in each]) for i in range(2))
        fails = np.stack([some[2] for some in each])
        ended = np.stack([~fails[:, 0], fails[:, 0]])[..., None]
        undecided = np.where(ended, -signs[:, 0, 0][None], np.nan)
        held = np.where(ended[1][:, None], mass, np.nan)
        runs = "count puzzle seed step"
        title, span = "mass of failing runs", {"span": (0.0, 1.0)}
        variables = samples.levels({"solved": "solved"}) | {
            "forwards": (("count",), [self.forwards(model.config, n) for n in self.counts], {}),
            "solved": measure("denoiser count puzzle seed", (~fails).swapaxes(0, 1), "solved"),
            "undecided": measure(
                f"end {runs}", undecided, "undecided", UNDECIDED, units="levels", span=POSITIVE
            ),
            "mass": measure(f"of {runs}", held.swapaxes(0, 1), title, MASS, **span),
            "signs": (("count", "denoiser", "judge", *runs.split()[1:]), signs, {}),
        }
        labels = {"denoiser": list(DENOISERS), "judge": list(SIGNS), "end": list(ENDS)}
        labels |= {"count": [f"{n} steps" for n in self.counts], "of": ["right answer", "own end"]}
        places = {"step": range(most), "seed": list(self.seeds)}
        return xr.Dataset(variables, labels | places | samples.coordinates())

    def at(
        self, model: Wan, samples: Samples, answers: Answers, count: int, progress: Progress
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return, of runs of so many steps: signs [denoiser, judge, P, K, S], mass [2, P, K, S],
        which fail [denoiser, P, K]."""
        sampling = dataclasses.replace(self.sampling, steps=count, sigmas=None).of(model.config)
        seen: Seen = sweep(
            model,
            samples.conditions,
            self.seeds,
            probes=[States()],
            plan=flow.plan(sampling, model.config.boundary),
            readout=watch,
            aux=answers,
            chunk=self.chunk or 1,
            what=f"runs of {count} steps",
            progress=progress,
        )
        seen = jax.tree.map(lambda a: a[0], seen)
        signs = np.stack([[some[name] for name in SIGNS] for some in (seen.scores, seen.ideal)])
        fails = np.stack([~samples.judge(seen.video)[1], seen.right < 0.5])
        return signs.astype(np.float32), np.moveaxis(seen.mass, -1, 0), fails

    def table(self, data: xr.Dataset) -> pd.DataFrame:
        shown = looked_at(data.sizes["step"])
        rows = list(results.rows(data, {"step": shown}))
        for task, where in results.groups_of(data["solved"]).items():
            for count in data["count"].values:
                for denoiser in DENOISERS:
                    for name in SIGNS:
                        areas = areas_of(data.isel(puzzle=where), count, denoiser, name)
                        title = f"AUROC of failure: {name}"
                        rows += [
                            Row(task, title, results.case_of(place), *area, chance=0.5)
                            for step, area in enumerate(areas)
                            for place in [{"count": count, "step": step, "denoiser": denoiser}]
                            if area.n and np.isfinite(area.mean)
                        ]
        return pd.DataFrame(rows)

    def figures(self, data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
        groups = results.groups_of(data["solved"])
        figure = plots.panels(len(groups), size=(4.2, 2.8))
        for axes, (task, where) in zip(figure.axes, groups.items(), strict=True):
            for i, count in enumerate(data["count"].values):
                areas = areas_of(data.isel(puzzle=where), count, DENOISERS[0], "decided")
                each = np.array([area[:3] for area in areas])
                at = (np.arange(len(each)) + 1) / len(each)
                fields = {f: ("part", each[:, j]) for j, f in enumerate(("mean", "low", "high"))}
                plots.band(axes, xr.Dataset(fields, {"part": at}), "part", str(count), i)
            axes.set(xlabel="part of the run", ylabel="AUROC of failure", title=task)
        yield "areas", Picture(plots.shared_legend(figure), TELLS)
        long = data.isel(count=-1).drop_vars("count")
        yield "undecided", Picture(plots.lines(long, "undecided", hue="end"), UNDECIDED)
        yield "mass", Picture(plots.lines(long, "mass", hue="of"), MASS)


def _filled(a: np.ndarray, steps: int) -> np.ndarray:
    """Return an array [..., S] with so many steps, nan where a run has none."""
    room = [(0, 0)] * (a.ndim - 1) + [(0, steps - a.shape[-1])]
    return np.pad(a, room, constant_values=np.nan)


def areas_of(data: xr.Dataset, count: Any, denoiser: str, name: str) -> list[Estimate]:
    """Return how well a judge tells failures, at every step of runs of one length."""
    signs = data["signs"].sel(count=count, denoiser=denoiser, judge=name)
    signs = signs.transpose("puzzle", "seed", "step").values
    fails = data["solved"].sel(count=count, denoiser=denoiser).values == 0
    groups = np.repeat(np.arange(len(fails)), fails.shape[1])
    return [
        auroc(-signs[..., step].ravel(), fails.ravel(), groups=groups, draws=300)
        for step in range(int(np.isfinite(signs[0, 0]).sum()))
    ]


def watch(model: Wan, plan: flow.Plan, trace: Trace, answers: Answers) -> Seen:
    """Return what is kept of one puzzle's runs, in world 0."""
    x0, noise = trace.x0[0], trace.estimate_obs[0][:, 0]
    latents, known = jnp.asarray(answers.latents), answers.right | answers.wrong
    prior = jnp.where(jnp.asarray(known), 0.0, -jnp.inf)
    run = jax.vmap(lambda start: ideal_run(plan.schedule, start, latents, prior))(noise)

    def held(estimate: Array, end: Array) -> Array:
        return answer_mass(estimate, jnp.stack([latents[0], end]), answers.still).on

    mass = jax.vmap(jax.vmap(held, (0, None)))(x0, x0[:, -1])
    scores, ideally = (
        {name: a[0] for name, a in scores_of(model, plan, some[None]).items()}
        for some in (x0, run.x0)
    )
    right = jnp.where(jnp.asarray(answers.right), run.weights[:, -1], 0.0).sum(-1)
    return Seen(scores, ideally, mass, pixels(model, x0[:, -1]), right)
