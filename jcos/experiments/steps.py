"""When does the answer appear, and which answers does an estimate blend before? (Paper, section
3.1.)

Any good denoiser blends answers first and prunes them later; the ideal one (`ideal.py`), asked at
the very same noisy latents, says how much.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Array, Float

from jcos.experiments import plots, watching
from jcos.experiments.answers import answers_of, chosen, shares
from jcos.experiments.experiment import Experiment, Picture, Progress, looked_at
from jcos.experiments.parameters import NonNegative
from jcos.experiments.samples import Samples
from jcos.lab import measures, results
from jcos.lab.results import DENOISERS, MODEL, Row, measure
from jcos.sampling import flow
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan

SIGNS = {
    "change": "change from the step before",
    "blur": "distance from pure colours",
    "gap": "distance to the ideal denoiser",
}
"""What is tried as a sign of failure; all but the last can be read off any run."""
RARE = 5
"""Fewer failures, or successes, say nothing about what predicts them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps(Experiment):
    """Paper, section 3.1: the clean estimate at every step, of every puzzle.

    Measured at each step: solved or not (hence the step of commitment, from which on it is solved);
    the blend of right answers in the estimate, beside the one in the ideal denoiser's at the same
    x_s; for puzzles with one right answer the mass on wrong ones (sizes, angles: superposition);
    how well the uncertainty of early estimates predicts failure (area under the ROC curve).
    Of clips: the distance of every estimate from the last.

    wrong: how many wrong answers a puzzle with a single right one is compared with.
    """

    question = "When does the answer appear, and what do early estimates blend?"

    tasks: tuple[str, ...] = ("maze", "tictactoe", "pattern", "rotation", "returns", "bounce")
    wrong: NonNegative = 6

    def measure(self, model: Wan, progress: Progress) -> xr.Dataset:
        samples = self.samples(model)
        if not samples.judged:
            return self._clips(model, samples, progress)
        answers = answers_of(model, samples.puzzles, wrong=self.wrong)
        watched = watching.watch(self, model, samples, watching.watch_answers, progress, answers)
        (scores, solved), ideally = map(samples.judge, (watched.video, watched.ideal_video))
        solved = np.stack([solved, ideally[1]])
        steps, on = solved.shape[-1], np.stack([watched.on, watched.ideal_on])
        chosen_by_model = chosen(watched.on[:, :, -1], answers)
        mass = (shares(one, answers, chosen_by_model) for one in on)
        taken, others, wrong = map(np.stack, zip(*mass, strict=True))
        held = measures.held_at_once(np.where(answers.right[:, None, None], on, 0))
        several = samples.several[:, None, None]
        single = ~several & answers.wrong.any(1)[:, None, None]
        commitment = measures.commitment_step(solved).astype(float)
        commitment[commitment == steps] = np.nan
        of_model, each = "puzzle seed step", "denoiser puzzle seed step"
        span = {"units": "step", "span": (0, steps), "median": True, "forwards": "all_forwards"}
        of_x0 = {"comment": BLEND}
        parts = {
            "taken": (each, taken, "mass on the answer taken", of_x0),
            "others": (
                each,
                np.where(several, others, np.nan),
                "mass on other right answers",
                of_x0,
            ),
            "wrong": (each, np.where(single, wrong, np.nan), "mass on wrong answers", of_x0),
            "off": (of_model, watched.off, "mass on no answer", of_x0),
            "held": (each, np.where(several, held, np.nan), "answers held at once", HELD),
            "held_more": (
                of_model,
                np.where(several, held[0] - held[1], np.nan),
                "answers held at once, more than ideal",
                HELD | {"span": measures.UNBOUNDED},
            ),
            "gap": (of_model, watched.gap, SIGNS["gap"], GAP),
            "change": (of_model, watched.change, SIGNS["change"], CHANGE),
            "blur": (of_model, watched.blur, SIGNS["blur"], BLUR),
        }
        variables: dict[str, Any] = samples.levels({"solved": "solved", "score": "score"})
        variables |= self.costs(model.config) | {
            "solved": measure(each, solved, "solved", SOLVED),
            "score": measure(of_model, scores, "score", "Score of the clean estimate."),
            "commitment": measure(
                "denoiser puzzle seed", commitment, "commitment step", COMMITMENT, **span
            ),
        }
        for name, (dims, values, title, about) in parts.items():
            variables[name] = measure(dims, values, title, by="part", **about)
        return self.dataset(variables, samples, denoiser=list(DENOISERS), step=range(steps))

    def _clips(self, model: Wan, samples: Samples, progress: Progress) -> xr.Dataset:
        distances = watching.watch(self, model, samples, watch_distance, progress)
        variables = self.costs(model.config)
        for (name, title), values in zip(DISTANCES.items(), distances, strict=True):
            about = {"comment": DISTANCE, "span": measures.POSITIVE}
            variables[name] = measure("clip seed step", values, title, **about)
        return self.dataset(variables, samples, step=range(self.plan(model.config).steps))

    def table(self, data: xr.Dataset) -> pd.DataFrame:
        listed = looked_at(data.sizes["step"])
        return pd.DataFrame([*results.rows(data, {"step": listed}), *predictions(data, listed)])

    def figures(self, data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
        if "solved" not in data:
            figure = plots.lines(data, list(DISTANCES), ylabel="distance of x̂0, relative")
            yield "distance", Picture(figure, DISTANCE)
            return
        x: dict[str, Any] = {"hue": "denoiser", "xlabel": "denoising step"}
        yield "solved", Picture(plots.lines(data, "solved", ylabel="x̂0 solved", **x), SOLVED)
        names = ["taken", "others", "wrong", "off"]
        yield "blend", Picture(plots.lines(data, names, ylabel="share of x̂0", **x), BLEND)


HELD = {
    "comment": "exp of the entropy of the shares of right answers.",
    "units": "answers",
    "span": (1, np.inf),
}
GAP = {
    "comment": "Root mean square distance of x̂0 from the ideal one at the same latent.",
    "units": "latent",
    "span": measures.POSITIVE,
}
CHANGE = GAP | {"comment": "Root mean square change of x̂0.", "tabled": False}
BLUR = CHANGE | {"comment": "Root mean square distance of x̂0 from a puzzle's colours."}
SOLVED = (
    "Share of puzzles whose clean estimate is solved at each step, with 95% intervals over "
    "puzzles; the ideal denoiser runs from the same noise."
)
COMMITMENT = "First step from which on every clean estimate is solved; of runs that end solved."
BLEND = (
    "How much of the clean estimate is each answer. Ideal: the same of the ideal denoiser's "
    "estimate at the same noisy latent; it has nothing on wrong answers. No answer: the rest."
)
DISTANCES = {
    "distance_to_the_end": "distance to the end",
    "distance_to_the_step_before": "distance to the step before",
}
DISTANCE = "Distance of estimates, over the norm of the last."


def watch_distance(
    model: Wan, plan: flow.Plan, trace: Trace, aux: Any
) -> tuple[Float[Array, "K S"], Float[Array, "K S"]]:
    """Return the distance of each estimate to the last and to the one before (the first: to
    nothing), over the norm of the last."""
    x0 = trace.x0[0]
    before = jnp.concatenate([jnp.zeros_like(x0[:, :1]), x0[:, :-1]], axis=1)
    size = measures.rms(x0[:, -1:])
    return measures.rms(x0 - x0[:, -1:]) / size, measures.rms(x0 - before) / size


def predictions(data: xr.Dataset, steps: Sequence[int]) -> Iterator[Row]:
    """Yield how well each sign at each step tells the puzzles that will fail, of tasks with enough
    of those and of others."""
    for task, where in results.groups_of(data["solved"]).items() if "blur" in data else ():
        one = data.isel(puzzle=where)
        fails = ~one["solved"].sel(denoiser=MODEL).values[..., -1]
        enough = min(fails.sum(), (~fails).sum()) >= RARE
        costs = data["forwards"].values
        for sign, words in SIGNS.items() if enough else ():
            yield from watching.failure_rows(task, words, one[sign].values, fails, steps, costs)
