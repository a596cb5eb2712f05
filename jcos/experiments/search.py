"""What does acting on early estimates buy, at equal compute?

The runs of all seeds are made once, with every judge's score of every clean estimate. Methods that
draw nothing and copy nobody are replayed on them (`lab.search.replay`); the others are run.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd
import xarray as xr

from jcos.config import WanConfig
from jcos.experiments import plots
from jcos.experiments.experiment import Experiment, Picture, Progress
from jcos.experiments.search_bank import SIGNS, Bank, add_head, ended, make_bank
from jcos.experiments.sweeps import conditions_of, judge
from jcos.lab import results
from jcos.lab.measures import GAINS, POSITIVE, auroc
from jcos.lab.methods import Method, best_of, early_failure, epbs, evosearch, latsearch, smc
from jcos.lab.results import Row, measure
from jcos.lab.search import run
from jcos.lab.tasks import Puzzle, get
from jcos.sampling.probes import Probe, SeedEnsemble
from jcos.wan import Wan

QUANTILES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Of training scores: thresholds that are tried there."""
TOGETHER = 2
"""Puzzles that are searched at a time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search(Experiment):
    """Solved puzzles against forwards, for every method of search, and for one run with as many
    steps.

    Settings of a method (step, threshold, number of seeds) are those that solve most training
    puzzles within its budget; the table is of held-out ones.

    training: puzzles for that, and for the head on the tokens of the middle layer. budgets:
    forwards, on average over puzzles. drawn: puzzles for methods that cannot be replayed, for the
    paper's ensemble, for longer single runs (long: their steps), and for what a judge tells.
    """

    question = "What does acting on early estimates buy, at equal compute?"

    tasks: tuple[str, ...] = ("maze7",)
    puzzles: int = 512
    seeds: tuple[int, ...] = tuple(range(8))
    training: int = 64
    budgets: tuple[int, ...] = (16, 31, 60)
    drawn: int = 48
    long: tuple[int, ...] = (20, 50)

    def check(self, config: WanConfig) -> None:
        super().check(config)
        if self.clips is not None:
            raise ValueError("search is judged by right answers; clips have none: leave clips out")
        if len(self.tasks) != 1 or len(self.seeds) < 4:
            raise ValueError(
                f"search takes one task and at least 4 seeds; here are {len(self.tasks)} and "
                f"{len(self.seeds)}"
            )
        if min(self.training, self.drawn) < 1:
            raise ValueError(
                f"training is {self.training} and drawn {self.drawn}; each is at least 1 puzzle"
            )

    def measure(self, model: Wan, progress: Progress) -> xr.Dataset:
        task, samples = get(self.tasks[0]), self.samples(model)
        puzzles = list(samples.puzzles)
        learnt = [task.sample((self.puzzle_seed, 1, i), "train") for i in range(self.training)]
        known, bank = (
            make_bank(
                model,
                some,
                self.seeds,
                self.plan(model.config),
                chunk=self.chunk,
                what=what,
                progress=progress,
            )
            for some, what in ((learnt, "training puzzles"), (puzzles, "held-out puzzles"))
        )
        add_head(known, [bank])
        made: dict[str, tuple[np.ndarray, np.ndarray]] = {
            "one run": (bank.solved.mean(1), np.full(len(puzzles), self.forwards(model.config)))
        }
        made |= self.replayed(known, bank) | self.live(model, puzzles, progress)
        n = len(puzzles)
        rows = [[np.append(a, np.full(n - len(a), np.nan)) for a in m] for m in made.values()]
        right, spent = np.moveaxis(np.array(rows), 0, -1)
        signs = np.stack([bank.scores[name][: self.drawn] for name in (*SIGNS, "head")])
        variables = samples.levels({"solved": "solved"}) | {
            "forwards": (("case",), np.nanmean(spent, 0), {}),
            "spent": measure(
                "puzzle case", spent, "forwards per puzzle", units="passes", span=POSITIVE
            ),
            "solved": measure("puzzle case", right, "solved", SOLVED),
            "gain": measure(
                "puzzle case",
                right - right[:, :1],
                "solved, more than one run",
                "Paired by puzzle.",
                span=GAINS,
            ),
            "signs": (("judge", "first", "seed", "step"), signs.astype(np.float32), {}),
            "ended": (("first", "seed"), bank.solved[: self.drawn], {}),
        }
        labels = {"case": list(made), "judge": [*SIGNS, "head"], "seed": list(self.seeds)}
        return xr.Dataset(variables, labels | samples.coordinates())

    def replayed(self, known: Bank, bank: Bank) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return what is solved and the forwards [P] of methods that only choose, by case."""
        steps, most = known.scores["decided"].shape[-1], len(self.seeds)
        methods = {f"best of {most}, {name}": best_of(most, name) for name in bank.scores}
        methods["best of 4, oracle"] = best_of(4, "oracle")
        methods["LatSearch, decided"] = latsearch(min(6, most), spread=1.0, scale=0.5)
        for name in (*SIGNS, "head"):
            tried: dict[str, list[Method]] = {
                f"screen {count}": [epbs(count, name, at=(s + 0.5) / steps) for s in range(steps)]
                for count in (4, most)
            }
            tried["restart"] = [
                early_failure(most, name, at=(s + 0.5) / steps, least=float(least))
                for s, scores in enumerate(np.moveaxis(known.scores[name], -1, 0))
                for least in np.quantile(scores, QUANTILES)
            ]
            for kind, candidates in tried.items():
                for budget, best in known.best(candidates, self.budgets).items():
                    methods[f"{kind}, {name}, ≤ {budget}"] = best
        return {case: bank.play(method) for case, method in methods.items()}

    def live(
        self, model: Wan, puzzles: Sequence[Puzzle], progress: Progress
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return what is solved and the forwards of methods that are run, on the first puzzles."""
        made, config, some = {}, model.config, list(puzzles[: self.drawn])
        conditions = conditions_of(model, some)
        methods: dict[str, Method] = {
            "Feynman–Kac, decided": smc(8, scale=0.5),
            "EvoSearch, decided": evosearch(6),
        }
        sampling = self.sampling.of(config)
        for case, method in methods.items():
            solved, forwards = [], []
            for first in range(0, len(some), TOGETHER):
                progress(case, first, len(some))
                here = slice(first, first + TOGETHER)
                part = jax.tree.map(lambda a, h=here: a[h], conditions)
                seeds = [1000 * (first + i) for i in range(len(part.context))]
                result = run(model, part, method, seeds, sampling=sampling)
                solved.append(judge(some[here], model.decode(result.latents))[1])
                forwards.append(result.cost.forwards)
            made[case] = np.concatenate(solved).astype(float), np.concatenate(forwards)
        windows = {"first step": range(1), "half of the steps": range(sampling.steps // 2)}
        layers = config.dit.layers
        probes = [SeedEnsemble.window(sampling.steps, layers, at) for at in windows.values()]
        progress("ensembles and longer runs", 0, 1)
        means = ended(model, some, self.seeds[:3], probes, sampling).mean(2)
        passes = np.full(len(some), 3 * self.forwards(config))
        for words, values in zip(windows, means, strict=True):
            made[f"the paper's ensemble of 3, {words}"] = values, passes
        for steps in self.long:
            longer = dataclasses.replace(self.sampling, steps=steps, sigmas=None).of(config)
            right = ended(model, some, self.seeds[:1], [Probe()], longer)[0, :, 0]
            made[f"one run, {steps} steps"] = right, np.full(len(some), steps)
        return made

    def table(self, data: xr.Dataset) -> pd.DataFrame:
        rows = list(results.rows(data))
        task = str(data["task"].values[0])
        for name in data["judge"].values:
            for step, area in enumerate(areas(data, name)):
                value, low, high, n = area
                title = f"AUROC of failure: {name}"
                rows.append(Row(task, title, f"step {step}", value, low, high, n, chance=0.5))
        return pd.DataFrame(rows)

    def figures(self, data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
        yield "pareto", Picture(_pareto(data), SOLVED)
        figure = plots.panels(1, size=(4.2, 2.8))
        for i, name in enumerate(data["judge"].values):
            each = np.array([area[:3] for area in areas(data, name)])
            fields = {f: ("step", each[:, j]) for j, f in enumerate(("mean", "low", "high"))}
            plots.band(figure.axes[0], xr.Dataset(fields), "step", str(name), i)
        figure.axes[0].set(xlabel="denoising step", ylabel="AUROC of failure")
        yield "signs", Picture(plots.shared_legend(figure), SIGNS_TELL)


SOLVED = (
    "Share of held-out puzzles whose chosen video is solved, against passes through the "
    "transformer, mean over puzzles; settings were fixed on training puzzles."
)
SIGNS_TELL = (
    "How well each judge of the clean estimate tells, step by step, the runs that will fail; 0.5 "
    "tells nothing."
)


def areas(data: xr.Dataset, name: str) -> list[Any]:
    """Return how well a judge tells failures, at every step."""
    signs, fails = data["signs"].sel(judge=name).values, ~data["ended"].values.astype(bool)
    groups = np.repeat(np.arange(len(fails)), fails.shape[1])
    return [
        auroc(-signs[..., step].ravel(), fails.ravel(), groups=groups, draws=500)
        for step in range(signs.shape[-1])
    ]


def _pareto(data: xr.Dataset) -> plots.Figure:
    figure = plots.panels(1, size=(5.6, 3.6))
    (axes,) = figure.axes
    cells = results.estimates(data["solved"]).isel(task=0)
    kinds: dict[str, list[int]] = {}
    for i, case in enumerate(data["case"].values):
        kinds.setdefault(str(case).partition(", ≤")[0].partition(", 2")[0], []).append(i)
    for number, (kind, rows) in enumerate(kinds.items()):
        x = data["forwards"].values[rows]
        mean, low, high = (cells[f].values[rows] for f in ("mean", "low", "high"))
        place: dict[str, Any] = {"color": plots.COLOURS[number % 8], "linestyle": ""}
        place["marker"] = plots.MARKERS[number // 8 % 8]
        axes.errorbar(x, mean, [mean - low, high - mean], capsize=2, label=kind, **place)
    axes.set_xscale("log")
    axes.set(xlabel="forwards (mean over puzzles)", ylabel="solved")
    return plots.shared_legend(figure)
