"""What does acting on early estimates buy, at equal compute?

The runs of all seeds are made once, with every judge's score of every clean estimate. Methods that
draw nothing and copy nobody are replayed on them (`lab.search.replay`); the others are run.
"""

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import pandas as pd
import xarray as xr

from jcos.config import WanConfig
from jcos.devices import mesh
from jcos.experiments import plots
from jcos.experiments.experiment import Experiment, Picture, Progress
from jcos.experiments.parameters import AtLeastTwo, Count, NonNegative
from jcos.experiments.samples import Samples, puzzles_of
from jcos.experiments.search_bank import SIGNS, Bank, add_head, ended, make_bank
from jcos.experiments.sweeps import conditions_of, judge, remembered
from jcos.experiments.watching import failure_rows
from jcos.lab import methods, results
from jcos.lab.calibration import Calibration, fit, reliability, stop
from jcos.lab.ideal import same_temperature
from jcos.lab.measures import GAINS, POSITIVE, Estimate, estimate
from jcos.lab.methods import (
    PRESETS,
    Method,
    best_of,
    calibrated,
    early_failure,
    epbs,
    evosearch,
    smc,
)
from jcos.lab.results import Row, measure
from jcos.lab.search import run
from jcos.lab.tasks import Puzzle
from jcos.sampling.probes import Probe, SeedEnsemble
from jcos.wan import Wan

QUANTILES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Of training scores: thresholds that are tried there."""
PRICES = (1e-4, 3e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02)
"""Of a forward, in solved puzzles: what a calibrated stop is tried with."""
JUDGES = (*SIGNS, "head")
RANKED = ("decided", "change")
"""Judges whose settings are looked for."""
Made = dict[str, tuple[np.ndarray, np.ndarray]]
"""What is solved, and the forwards [P], by case."""
TOGETHER = 2
"""Puzzles that are searched at a time, at least: on a mesh as many as it has worlds."""
GAIN = "solved, more than one run", "Paired by puzzle."
BEHIND = "solved, more than the oracle of all seeds", "Paired by puzzle."
PASSES: dict[str, Any] = {
    "units": "passes",
    "comment": "Of the chosen run and all that were given up, mean over groups of seeds.",
    "span": POSITIVE,
}
STEERED = "Feynman–Kac, decided"
STEPS = 3
"""At least: after the last two steps nothing parts the copies of Feynman–Kac steering."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search(Experiment):
    """Solved puzzles against forwards, for every method of search, and for one run with as many
    steps.

    Settings of a method (step, threshold, number of seeds) are those that solve most training
    puzzles within its budget; the table is of held-out ones. Probabilities of success are fitted
    on the training puzzles, and held against the others.

    training: puzzles for that, and for the head on the tokens of the middle layer. budgets:
    forwards, on average over puzzles. drawn: puzzles for methods that cannot be replayed, for the
    paper's ensemble, and for longer single runs (long: their steps). few: puzzles that are searched
    among `many` seeds. short: steps of the eight runs of "fewer steps, more seeds". Flow-CPS has as
    its control Euler at the temperature that gives the same variance.
    """

    question = "What does acting on early estimates buy, at equal compute?"
    no_clips = "search is judged by right answers; clips have none: leave clips out"

    tasks: tuple[str, ...] = ("maze7",)
    puzzles: Count = 512
    seeds: tuple[int, ...] = tuple(range(8))
    training: AtLeastTwo = 128
    budgets: tuple[Count, ...] = (16, 31, 60)
    drawn: Count = 48
    long: tuple[Count, ...] = (20, 50)
    short: Count = 4
    few: NonNegative = 0
    many: Count = 80

    def check(self, config: WanConfig) -> None:
        super().check(config)
        if len(self.seeds) < 4:
            raise ValueError(f"search takes at least 4 seeds; here are {len(self.seeds)}")
        sampling = methods.sampling_of(smc(8), self.sampling.of(config))
        if sampling.steps < STEPS:
            raise ValueError(f"search takes at least {STEPS} steps; here are {sampling.steps}")

    def measure(self, model: Wan, progress: Progress) -> xr.Dataset:
        each = [self.of_task(model, name, progress) for name in self.tasks]
        data = xr.concat(each, "puzzle", data_vars="minimal", coords="minimal", compat="override")
        settings = {name: one.attrs for name, one in zip(self.tasks, each, strict=True)}
        return data.assign_attrs(settings=json.dumps(settings))

    def of_task(self, model: Wan, name: str, progress: Progress) -> xr.Dataset:
        """Return the dataset of one task."""
        samples = Samples.of_tasks(model, (name,), self.puzzles, self.puzzle_seed, self.several)
        puzzles = list(samples.puzzles)
        learnt = puzzles_of(name, self.training, (self.puzzle_seed, 1), self.several, "train")
        parts: dict[str, tuple[list[Puzzle], Sequence[int]]] = {
            "training puzzles": (learnt, self.seeds),
            "held-out puzzles": (puzzles, self.seeds),
        }
        if self.few:
            parts["many seeds"] = puzzles[: self.few], range(self.many)
        options: dict[str, Any] = {"chunk": self.chunk or 1, "progress": progress}
        known, bank, *wide = (
            make_bank(model, some, seeds, self.plan(model.config), f"{name}: {what}", **options)
            for what, (some, seeds) in parts.items()
        )
        add_head(known, [bank, *wide])
        runs = {judge: np.concatenate(known.scores[judge]) for judge in RANKED}
        fits = {judge: fit(scores, known.solved.ravel()) for judge, scores in runs.items()}
        settings = self.methods(known, fits)
        made: Made = {
            "one run": (bank.solved.mean(1), np.full(len(puzzles), self.forwards(model.config)))
        }
        made |= {case: bank.play(method) for case, method in settings.items()}
        for several in wide:
            made |= self.among_many(several)
        made |= self.live(model, puzzles, progress)
        n = len(puzzles)
        rows = [[np.append(a, np.full(n - len(a), np.nan)) for a in m] for m in made.values()]
        right, spent = np.moveaxis(np.array(rows), 0, -1)
        best = bank.play(best_of(len(self.seeds), "oracle"))[0]
        signs = np.stack([bank.scores[judge] for judge in JUDGES], -1)
        chance = fits["decided"](bank.scores["decided"])
        each = ("puzzle", "seed", "step", "judge")
        variables = samples.levels({"solved": "solved"}) | {
            "forwards": (("puzzle", "case"), spent, {}),
            "spent": measure("puzzle case", spent, "forwards per puzzle", **PASSES),
            "solved": measure("puzzle case", right, "solved", SOLVED),
            "gain": measure("puzzle case", right - right[:, :1], *GAIN, span=GAINS),
            "behind": measure("puzzle case", right - best[:, None], *BEHIND, span=GAINS),
            "signs": (each, signs.astype(np.float32), {}),
            "chance": (each[:-1], chance.astype(np.float32), {}),
            "ended": (("puzzle", "seed"), bank.solved, {}),
        }
        labels = {"case": list(made), "judge": list(JUDGES), "seed": list(self.seeds)}
        steps, settings = signs.shape[2], settings | self.acting()
        words = {case: methods.in_words(method, steps) for case, method in settings.items()}
        return xr.Dataset(variables, labels | samples.coordinates(), words)

    def methods(self, known: Bank, fits: dict[str, Calibration]) -> dict[str, Method]:
        """Return the methods that only choose, by case: their settings are the best ones on
        training runs."""
        steps, most = known.scores["decided"].shape[-1], len(self.seeds)
        made = {f"best of {most}, {name}": best_of(most, name) for name in known.scores}
        made["best of 4, oracle"] = best_of(4, "oracle")
        made["LatSearch, decided"] = methods.latsearch(min(6, most), spread=1.0, scale=0.5)
        made |= {f"preset {name}": PRESETS[name](most) for name in ("early-failure", "calibrated")}
        at = [(s + 0.5) / steps for s in range(steps)]
        for name in RANKED:
            scores = known.scores[name]
            stops = [stop(scores, fits[name](scores), price) for price in PRICES]
            tried: dict[str, list[Method]] = {
                "screen": [epbs(n, name, at=s) for n in range(2, most + 1) for s in at],
                "screen twice": [
                    screen_twice(n, name, *steps)
                    for n in range(4, most + 1, 2)
                    for steps in itertools.combinations(at, 2)
                ],
                "restart": [
                    early_failure(most, name, at=s, least=float(least))
                    for s, scores in zip(at, np.moveaxis(known.scores[name], -1, 0), strict=True)
                    for least in np.quantile(scores, QUANTILES)
                ],
                "calibrated": [calibrated(most, name, least=least) for least in stops],
            }
            for kind, candidates in tried.items():
                for budget, best in known.best(candidates, self.budgets).items():
                    made[f"{kind}, {name}, ≤ {budget}"] = best
        for budget in self.budgets:  # the control: the same seeds at the same steps, by chance
            if (screen := made.get(f"screen, decided, ≤ {budget}")) is not None:
                rows = (dataclasses.replace(row, judge="random") for row in screen.rows)
                made[f"screen, random, ≤ {budget}"] = dataclasses.replace(screen, rows=tuple(rows))
        return made

    def among_many(self, bank: Bank) -> Made:
        """Return what more and more seeds buy, on a few puzzles."""
        made: Made = {}
        for n in (8, 20, 40, 80):
            if n <= bank.solved.shape[1]:
                made |= {
                    f"{n} seeds, best by {name}": bank.play(best_of(n, name))
                    for name in ("oracle", "random", "decided")
                }
                made[f"{n} seeds, screened"] = bank.play(epbs(n, at=0.65))
        return made

    def acting(self) -> dict[str, Method]:
        """Return the methods that are run, by case. All particles of Feynman–Kac steering stay to
        the end, with their weights."""
        steered = smc(8, scale=0.5)
        stay = dataclasses.replace(steered.rows[-1], select="systematic", keep=8, ess=0.0)
        return {
            STEERED: dataclasses.replace(steered, rows=(*steered.rows[:-1], stay)),
            "EvoSearch, decided": evosearch(6),
            "restart in time, decided": methods.tbs(4),
            "fewer steps, more seeds, decided": best_of(8, steps=self.short),
        }

    def live(self, model: Wan, puzzles: Sequence[Puzzle], progress: Progress) -> Made:
        """Return what is solved and the forwards of methods that are run, on the first puzzles."""
        made, config, some = {}, model.config, list(puzzles[: self.drawn])
        together = max(TOGETHER, mesh.devices(mesh.WORLD))
        conditions, sampling = conditions_of(model, some), self.sampling.of(config)

        def searched(method: Method, rows: np.ndarray) -> tuple[np.ndarray, ...]:
            """Return what is solved and the forwards of some puzzles, filled up to as many as run
            together; and what is solved of all that were alive at the end, by weight."""
            filled, count = np.resize(rows, together), len(rows)
            part = jax.tree.map(lambda a: a[filled], conditions)
            result = run(model, part, method, (1000 * filled).tolist(), sampling=sampling)
            alike = [some[i] for i in rows]
            right = judge(alike, model.decode(result.latents[:count]))[1]
            ends = judge(alike, model.decode(result.particles[:count]))[1]
            drawn = np.average(ends, 1, result.weights[:count])
            return right.astype(float), result.cost.forwards[:count], drawn

        for case, method in self.acting().items():
            ends = []
            for first in range(0, len(some), together):
                progress(case, first, len(some))
                rows = np.arange(first, min(first + together, len(some)))
                name = f"{some[0].task}-{case}-{first}-{len(rows)}"
                ends.append(remembered(name, (0, 0, 0), partial(searched, method, rows)))
            solved, forwards, drawn = map(np.concatenate, zip(*ends, strict=True))
            made[case] = solved, forwards
            if case == STEERED:
                made[f"{case}, one drawn by weight"] = drawn, forwards
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
            spent = np.full(len(some), self.forwards(config, steps))
            made[f"one run, {steps} steps"] = right, spent
        noisy = dataclasses.replace(sampling, solver="cps", eta=0.9)
        cooler = dataclasses.replace(sampling, solver="euler", eta=None)
        warmth = sampling.temperature * same_temperature(noisy)
        cooler = dataclasses.replace(cooler, temperature=warmth)
        for words, other in {"Flow-CPS 0.9": noisy, "Euler as cool as that": cooler}.items():
            right = ended(model, some, self.seeds[:4], [Probe()], other)[0].mean(-1)
            made[f"one run, {words}"] = right, np.full(len(some), self.forwards(config))
        return made

    def table(self, data: xr.Dataset) -> pd.DataFrame:
        rows = list(results.rows(data))
        for task, one in by_task(data).items():
            signs, fails = one["signs"].values, ~one["ended"].values.astype(bool)
            steps = range(signs.shape[2])
            for i, name in enumerate(JUDGES):
                areas = failure_rows(task, name, -signs[..., i], fails, steps, draws=200)
                rows += areas
            for step in steps:
                error = calibration_error(one, step)
                rows.append(Row(task, "calibration error: decided", f"step {step}", *error))
        return pd.DataFrame(rows)

    def figures(self, data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
        yield "pareto", Picture(_pareto(data), SOLVED)
        yield "reliability", Picture(_reliability(data), RELIABLE)


SOLVED = (
    "Share of held-out puzzles whose chosen video is solved, against passes through the "
    "transformer, mean over puzzles; settings were fixed on training puzzles."
)
RELIABLE = (
    "Held-out runs that end solved, against the probability that the decidedness of their estimate "
    "gave; fitted on training puzzles. Each mark is a tenth of the runs."
)


def screen_twice(seeds: int, judge: str, first: float, second: float) -> Method:
    """Half of the seeds go on at one step, the best of them at another."""
    half = methods.Row(step=first, judge=judge, keep=seeds // 2)
    return Method(seeds=seeds, rows=(half, methods.Row(step=second, judge=judge)))


def by_task(data: xr.Dataset) -> dict[str, xr.Dataset]:
    """Return the puzzles of each task."""
    groups = results.groups_of(data["solved"])
    return {name: data.isel(puzzle=rows) for name, rows in groups.items()}


def calibration_error(data: xr.Dataset, step: int) -> Estimate:
    """Return the expected calibration error after a step, with an interval over puzzles
    (bootstrap). Where puzzles are all alike it is that of all measures, `measures.estimate`: one
    more puzzle as predicted and one not at all give it a width."""
    chance = data["chance"].values[..., step]
    right, rng = data["ended"].values.astype(bool), np.random.default_rng(0)
    drawn = [rng.integers(0, len(right), len(right)) for _ in range(200)]
    errors = [reliability(chance[rows].ravel(), right[rows].ravel()).error for rows in drawn]
    value = reliability(chance.ravel(), right.ravel()).error
    low, high = np.percentile(errors, [2.5, 97.5])
    if high - low < 1e-9:
        return estimate(np.full(len(right), value))
    return Estimate(value, min(float(low), value), max(float(high), value), len(right))


def _reliability(data: xr.Dataset) -> plots.Figure:
    groups = by_task(data)
    figure, steps = plots.panels(len(groups), size=(3.2, 2.8)), data.sizes["step"]
    for axes, (task, one) in zip(figure.axes, groups.items(), strict=True):
        axes.plot([0, 1], [0, 1], color="#777777", linewidth=1)
        for i, step in enumerate(sorted({int(f * (steps - 1)) for f in (0.2, 0.5, 0.8, 1)})):
            chance = one["chance"].values[..., step].ravel()
            curve = reliability(chance, one["ended"].values.ravel().astype(bool))
            mark: dict[str, Any] = {"marker": plots.MARKERS[i], "color": plots.COLOURS[i]}
            axes.plot(curve.predicted, curve.happened, label=f"step {step}", **mark)
        axes.set(xlabel="probability of success", ylabel="solved", title=task)
    return plots.shared_legend(figure)


def _pareto(data: xr.Dataset) -> plots.Figure:
    solved, spent = (results.estimates(data[name]) for name in ("solved", "spent"))
    figure = plots.panels(solved.sizes["task"], size=(6.4, 6.0))
    kinds: dict[str, list[int]] = {}
    for i, case in enumerate(data["case"].values):
        if not any(f", {name}" in case for name in JUDGES[1:]):
            kinds.setdefault(_kind(str(case)), []).append(i)
    for axes, task in zip(figure.axes, solved["task"].values, strict=True):
        for number, (kind, rows) in enumerate(kinds.items()):
            cells, x = solved.sel(task=task), spent["mean"].sel(task=task).values[rows]
            mean, low, high = (cells[f].values[rows] for f in ("mean", "low", "high"))
            place: dict[str, Any] = {"color": plots.COLOURS[number % 8], "linewidth": 1}
            place["marker"] = plots.MARKERS[number // 8 % 8]
            order = np.argsort(x)
            x, mean, low, high = (a[order] for a in (x, mean, low, high))
            axes.errorbar(x, mean, [mean - low, high - mean], capsize=2, label=kind, **place)
        axes.set_xscale("log")
        axes.set(xlabel="forwards (mean over puzzles)", ylabel="solved", title=str(task))
    return plots.shared_legend(figure)


def _kind(case: str) -> str:
    """Return a case without its numbers: what has one colour."""
    return re.sub(r" of \d+|^\d+ |, ≤ \d+|, \d+ steps", "", case).replace("seeds, best by", "many,")
