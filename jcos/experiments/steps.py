"""When does the answer appear, and which answers does an estimate blend before? (Paper, section
3.1.)

Early estimates hold several answers at once, middle steps prune them, late ones polish. Any good
denoiser must do so; the ideal one (`ideal.py`), asked at the very same noisy latents, says how
much.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pandas as pd
import xarray as xr

from jcos.config import WanConfig
from jcos.experiments import plots
from jcos.experiments.answers import answers_of, chosen, shares
from jcos.experiments.clip_steps import clip_figures, clip_steps
from jcos.experiments.experiment import Experiment, Picture, Progress, looked_at
from jcos.experiments.films import film_figures, films
from jcos.experiments.samples import Samples
from jcos.experiments.sweeps import sweep
from jcos.experiments.watching import Watched, watch_answers
from jcos.lab import results
from jcos.lab.measures import (
    POSITIVE,
    UNBOUNDED,
    Estimate,
    auroc,
    commitment_step,
    held_at_once,
)
from jcos.lab.results import DENOISERS, MODEL, Row, measure, with_levels
from jcos.sampling.probes import States
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
    wrong: int = 6

    def check(self, config: WanConfig) -> None:
        super().check(config)
        if self.wrong < 0:
            raise ValueError(f"wrong is {self.wrong}; it counts answers")

    def measure(self, model: Wan, progress: Progress) -> xr.Dataset:
        samples = self.samples(model)
        if not samples.judged:
            return clip_steps(self, model, samples, progress)
        answers = answers_of(model, samples.puzzles, wrong=self.wrong)
        watched: Watched = sweep(
            model,
            samples.conditions,
            self.seeds,
            probes=[States()],
            plan=self.plan(model.config),
            readout=watch_answers,
            aux=answers,
            chunk=self.chunk,
            what="watching every step",
            progress=progress,
        )
        watched = jax.tree.map(lambda a: a[0], watched)
        progress("judging every step", 0, 1)
        both = [samples.judge(v) for v in (watched.video, watched.ideal_video)]
        scores, solved = both[0][0], np.stack([one[1] for one in both])
        taken = chosen(watched.on[:, :, -1], answers)
        on = np.stack([watched.on, watched.ideal_on])
        mass = [shares(one, answers, taken) for one in on]
        held = held_at_once(np.where(answers.right[:, None, None], on, 0))
        several, has_wrong = samples.several, np.asarray(answers.wrong).any(1)
        commitment = commitment_step(solved).astype(float)
        steps = solved.shape[-1]
        runs, each = "denoiser puzzle seed", "denoiser puzzle seed step"

        def of(which: np.ndarray, values: np.ndarray) -> np.ndarray:
            """Values of those puzzles [*axes, P, K, S], nan of the others."""
            return np.where(which[:, None, None], values, np.nan)

        variables: dict[str, Any] = samples.levels({"solved": "solved", "score": "score"})
        variables |= {
            "forwards": (("step",), [self.forwards(model.config, s + 1) for s in range(steps)], {}),
            "all_forwards": ((), self.forwards(model.config), {}),
            "solved": measure(each, solved, "solved", SOLVED),
            "score": measure("puzzle seed step", scores, "score", "Score of the clean estimate."),
            "commitment": measure(
                runs,
                np.where(commitment < steps, commitment, np.nan),
                "commitment step",
                "First step from which on every clean estimate is solved; of runs that end solved.",
                units="step",
                span=(0, steps),
                median=True,
                forwards="all_forwards",
            ),
            "taken": measure(
                each,
                np.stack([m.taken for m in mass]),
                "mass on the answer taken",
                BLEND,
                by="part",
            ),
            "others": measure(
                each,
                of(several, np.stack([m.others for m in mass])),
                "mass on other right answers",
                by="part",
            ),
            "wrong": measure(
                each,
                of(~several & has_wrong, np.stack([m.wrong for m in mass])),
                "mass on wrong answers",
                by="part",
            ),
            "off": measure("puzzle seed step", watched.off, "mass on no answer", by="part"),
            "held": measure(
                each,
                of(several, held),
                "answers held at once",
                "exp of the entropy of the shares of right answers.",
                units="answers",
                span=(1, np.inf),
                by="part",
            ),
            "held_more": measure(
                "puzzle seed step",
                of(several, held[0] - held[1]),
                "answers held at once, more than ideal",
                units="answers",
                span=UNBOUNDED,
                by="part",
            ),
            "gap": measure(
                "puzzle seed step",
                watched.gap,
                "distance to the ideal denoiser",
                "Root mean square distance of x̂0 from the ideal one at the same latent.",
                units="latent",
                span=POSITIVE,
                by="part",
            ),
            "change": (["puzzle", "seed", "step"], watched.change, {}),
            "blur": (["puzzle", "seed", "step"], watched.blur, {}),
            **one_of_each(samples, solved[0], watched.video),
        }
        for name in ("solved", "score"):
            variables[name] = with_levels(variables[name], name, variables)
        labels = {"denoiser": list(DENOISERS), "step": range(steps), "seed": list(self.seeds)}
        return xr.Dataset(variables, labels | samples.coordinates())

    def table(self, data: xr.Dataset) -> pd.DataFrame:
        looked = looked_at(data.sizes["step"])
        rows = list(results.rows(data, {"step": looked}))
        if "blur" in data:
            for task, where in results.groups_of(data["solved"]).items():
                for name, words in SIGNS.items() if predictable(data, where) else ():
                    for step in looked:
                        area = failure_auroc(data, name, where, step)
                        cost = int(data["forwards"][step])
                        title = f"AUROC of failure: {words}"
                        rows.append(Row(task, title, f"step {step}", *area, 0.5, None, cost))
        return pd.DataFrame(rows)

    def figures(self, data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
        if "solved" not in data:
            yield from clip_figures(data)
            return
        x: dict[str, Any] = {"xlabel": "denoising step"}
        solved = plots.lines(data, "solved", hue="denoiser", ylabel="x̂0 solved", **x)
        yield "solved", Picture(solved, SOLVED)
        committed = data["commitment"].drop_attrs() <= data["step"]
        committed.attrs = measure("", 0, "committed", by="part")[2]
        shown = data.assign(committed=committed)
        figure = plots.lines(shown, "committed", hue="denoiser", ylabel="committed", **x)
        yield "commitment", Picture(figure, COMMITMENT)
        names = ["taken", "others", "wrong", "off"]
        blend = plots.lines(data, names, hue="denoiser", ylabel="share of x̂0", **x)
        yield "blend", Picture(blend, BLEND)
        groups = results.groups_of(data["solved"])
        groups = {task: rows for task, rows in groups.items() if predictable(data, rows)}
        if groups:
            yield "prediction", Picture(_prediction(data, groups), PREDICTION)
        yield from film_figures(data, "the first that is solved if any is")


SOLVED = (
    "Share of puzzles whose clean estimate is solved at each step, with 95% intervals over "
    "puzzles; the ideal denoiser runs from the same noise."
)
COMMITMENT = (
    "Share of puzzles that have committed by each step: from there on every estimate is solved."
)
BLEND = (
    "How much of the clean estimate is each answer. Ideal: the same of the ideal denoiser's "
    "estimate at the same noisy latent; it has nothing on wrong answers. No answer: the rest."
)
PREDICTION = (
    "How well a reading of the estimate at a step tells runs that will fail from those that will "
    "be solved; 0.5 tells nothing."
)


def one_of_each(
    samples: Samples, solved: np.ndarray, video: np.ndarray
) -> dict[str, results.Variable]:
    """Return one run of each part: the estimates of its first puzzle that ends solved, or of its
    first. solved [P, K, S], video [P, K, S, F, H, W, 3]."""
    looked = looked_at(solved.shape[-1])
    parts = np.array(samples.coordinates()["part"][1])
    names, firsts = list(dict.fromkeys(parts)), []
    for part in names:
        inside = np.flatnonzero(parts == part)
        firsts.append(int(next((i for i in inside if solved[i, 0, -1]), inside[0])))
    return films(names, firsts, looked, video[firsts, 0][:, looked])


def predictable(data: xr.Dataset, where: np.ndarray) -> bool:
    """Return whether enough of these puzzles end solved, and enough do not."""
    good = data["solved"].sel(denoiser=MODEL)[{"puzzle": where, "step": -1}].values
    return min(int(good.sum()), int((~good).sum())) >= RARE


def failure_auroc(data: xr.Dataset, name: str, where: np.ndarray, step: int) -> Estimate:
    """Return how well a measure at a step tells the puzzles that will fail."""
    values = data[name][{"puzzle": where, "step": step}].values
    fails = ~data["solved"].sel(denoiser=MODEL)[{"puzzle": where, "step": -1}].values
    groups = np.repeat(np.arange(len(where)), values.shape[1])
    return auroc(values.ravel(), fails.ravel(), groups=groups)


def _prediction(data: xr.Dataset, groups: dict[str, np.ndarray]) -> plots.Figure:
    figure, looked = plots.panels(len(groups)), looked_at(data.sizes["step"])
    for axes, (task, where) in zip(figure.axes, groups.items(), strict=False):
        for i, (name, words) in enumerate(SIGNS.items()):
            areas = np.array([failure_auroc(data, name, where, s) for s in looked])
            fields = {f: ("step", areas[:, j]) for j, f in enumerate(("mean", "low", "high"))}
            plots.band(axes, xr.Dataset(fields, {"step": looked}), "step", words, i)
        axes.axhline(0.5, color="#777777", linestyle=":", linewidth=1, label="chance")
        plots.label_axes(axes, "denoising step", "AUROC of failure", task)
    return plots.shared_legend(figure)
