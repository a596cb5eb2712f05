"""In which layer of which step does the answer stand? The x̂0-lens: what the model's own head makes
of the tokens after every block.

Commitment is a front in step × layer. A tuned lens could solve the task by itself; so a map is also
fitted to other tasks only, and shuffled tokens, the step before and the mean answer are read too.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Array, Float, Int, UInt8

from jcos.config import WanConfig
from jcos.experiments import plots
from jcos.experiments.answers import Answers, answers_of, blend, chosen, shares
from jcos.experiments.experiment import Experiment, Picture, Progress, check_spread, looked_at
from jcos.experiments.parameters import Count
from jcos.experiments.sweeps import conditions_of, judge, pixels, remembered
from jcos.lab import lens, results
from jcos.lab.lens import Maps, distances, fit_lens, to_last
from jcos.lab.measures import POSITIVE, commitment_step
from jcos.lab.results import measure
from jcos.lab.tasks import Puzzle, get
from jcos.sampling import flow
from jcos.sampling.probe import Latents, Site, Tokens
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan

LENSES = ("plain", "tuned", "tuned on other tasks", "tokens shuffled")
REFERENCES = ("the step before", "the mean answer")
MASS = "How much of the estimate is the right answer that the run ends with."
LAST = "Root mean square distance from the run's own estimate, in all frames but the first."
FRONT = "First step from which on every estimate read after this layer is solved."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lenses(Experiment):
    """The clean estimate read after every block at every step: mass on the answer taken, distance
    from the run's own estimate (the last block's, where there is no guidance) and from the final
    video, solved or not; with guidance, of the conditional branch. Of clips, the distance from the
    last block's estimate alone.

    fit: training puzzles that a tuned lens is fitted to, of the task itself and, as a control, of
    the other tasks; none of them is among those it is measured on. updates: of the fit.
    """

    question = "In which layer of which step does the answer stand?"

    tasks: tuple[str, ...] = ("maze", "tictactoe", "rotation")
    fit: Count = 24
    updates: Count = 500

    def check(self, config: WanConfig) -> None:
        super().check(config)
        if self.clips is None:
            check_spread(config, self.fit)
            if len(self.tasks) < 2:
                raise ValueError("tasks names one; the control is fitted to others: name two")

    def measure(self, model: Wan, progress: Progress) -> xr.Dataset:
        samples, plan = self.samples(model), self.plan(model.config)
        play = self.sweep(model, progress)
        labels = {"step": range(plan.steps), "layer": range(model.config.dit.layers)}
        about = self.dataset(self.costs(model.config), samples, **labels)
        if not samples.judged:
            probes = [lens.Lens(reduce=to_last)]
            read = play(samples.conditions, probes=probes, readout=read_clips)
            return about.assign(to_last=distance("clip seed step layer", read[0]))
        answers, parts, films = answers_of(model, samples.puzzles), [], []
        for task, p in samples.groups.items():
            given, right = jax.tree.map(lambda a, p=p: a[p], (samples.conditions, answers))
            mean = np.asarray(right.latents)[:, 0].mean(0, keepdims=True)
            progress(f"fitting lenses, {task}", 0, 1)
            reading = play(
                given,
                probes=self.lenses(model, task),
                readout=read_puzzles,
                aux=(right, np.repeat(mean, len(p), 0)),
                what=f"reading every layer, {task}",
            )
            progress(f"judging every layer, {task}", 0, 1)
            parts.append(measures([samples.puzzles[i] for i in p], right, reading))
            films.append(film_of(task, reading))
        data = xr.concat(parts, "puzzle", data_vars="all", coords="minimal", compat="override")
        data = data.merge(xr.concat(films, "film_of", data_vars="all"))
        return data.assign(about.data_vars).assign_coords(about.coords)

    def lenses(self, model: Wan, task: str) -> "list[Reordered]":
        """Return `LENSES`: of one kind, so that one program reads all."""
        dit, drawn, (_, *strides) = model.config.dit, get(task), model.codec.strides
        size = np.array([drawn.height, drawn.width]) // strides
        frames, height, width = dit.tokens(drawn.frames, *size.tolist())
        still = np.arange(frames * height * width, dtype=np.int32)
        rng = np.random.default_rng(0)
        mixed = [row[rng.permutation(height * width)] for row in still.reshape(frames, -1)]
        others = [name for name in self.tasks if name != task]
        plain = Maps.zeros(dit.layers, dit.dim)
        tuned = [self._fitted(model, names) for names in ([task], others)]
        orders = [still, still, still, np.concatenate(mixed)]
        maps = [plain, *tuned, plain]
        return [Reordered(maps=m, order=jnp.asarray(o)) for m, o in zip(maps, orders, strict=True)]

    def _fitted(self, model: Wan, tasks: list[str]) -> Maps:
        each = -(-self.fit // len(tasks))
        seeds = [(self.puzzle_seed, i) for i in range(each)]
        puzzles = [get(task).sample(seed, "train") for task in tasks for seed in seeds]
        sampling = self.sampled(model.config)
        given = conditions_of(model, puzzles[: self.fit])
        fit = partial(fit_lens, model, given, self.seeds[:1])
        fit = partial(fit, sampling=sampling, updates=self.updates)
        shape = Maps.zeros(model.config.dit.layers, model.config.dit.dim)
        return remembered(f"lens-{'-'.join(tasks)}", shape, fit)

    def table(self, data: xr.Dataset) -> pd.DataFrame:
        return results.table(data, {"step": looked_at(data.sizes["step"], 5)})

    def figures(self, data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
        if "taken" not in data:
            yield "to_last", Picture(plots.heat(data["to_last"], "step", "layer"), LAST)
            return
        maps = {name: data["taken"].sel(lens=name) for name in LENSES[:2]}
        yield "front", Picture(plots.heat(maps, "step", "layer", xlabel="denoising step"), MASS)
        for task in data["film_of"].values:
            one = data.sel(film_of=task)
            film = one["film"].stack(map=("film_step", "layer")).transpose("map", ...)
            rows = [f"step {step}, layer {layer}" for step, layer in film["map"].values]
            caption = f"{task}: the estimate after every layer; columns are frames."
            yield f"film-{task}", Picture(plots.film_grid(film.values, rows), caption)


class Reordered(lens.Lens):
    """A lens of the tokens in another order [N]: each is read at the place of another."""

    order: Int[Array, "*sweep N"] | None = None

    def on_block(self, site: Site, tokens: Tokens) -> tuple[Tokens, Latents]:
        return tokens, super().on_block(site, tokens[self.order])[1]


class Reading(NamedTuple):
    """What is kept of a run by seed, step and layer: A answers; of the references, by seed and
    step."""

    on: Float[Any, "*K S L A"]
    to_last: Float[Any, "*K S L"]
    video: UInt8[Any, "*K S L F H W 3"]
    reference_on: Float[Any, "*K S R A"]
    final_on: Float[Any, "*K A"]


def read_clips(model: Wan, plan: flow.Plan, trace: Trace, aux: Any) -> Float[Array, "K S L"]:
    return trace.block_obs[0]


def read_puzzles(
    model: Wan, plan: flow.Plan, trace: Trace, aux: tuple[Answers, Float[Array, "F h w C"]]
) -> Reading:
    """Return what is kept of world 0."""
    (answers, mean), x0 = aux, trace.block_obs[0]
    last, end = trace.x0[0][:, :, None], trace.latents[0]
    before = jnp.roll(last, 1, 1).at[:, 0].set(jnp.nan)
    references = jnp.concatenate([before, jnp.broadcast_to(mean, last.shape)], 2)
    return Reading(
        blend(x0, answers).on,
        distances(x0, last),
        pixels(model, x0),
        blend(references, answers).on,
        blend(end, answers).on,
    )


def distance(dims: str, values: Any) -> results.Variable:
    name, about = "distance from the run's x̂0", {"units": "latent", "span": POSITIVE}
    return measure(dims, values, name, LAST, **about)


def measures(puzzles: Sequence[Puzzle], answers: Answers, reading: Reading) -> xr.Dataset:
    """Return the measures of one task's puzzles; leaves of the reading are [Q = lenses, P, …]."""
    taken = chosen(reading.final_on[0], answers)

    def mass(on: Float[np.ndarray, "P K S n A"]) -> Float[np.ndarray, "P K S n"]:
        flat = on.reshape(*on.shape[:2], -1, on.shape[-1])
        return shares(flat, answers, taken).taken.reshape(on.shape[:-1])

    solved = np.stack([judge(puzzles, video)[1] for video in reading.video[:3]])
    front = commitment_step(np.moveaxis(solved, 3, -1)).astype(float)
    front[front == solved.shape[3]] = np.nan
    each, other = "lens puzzle seed step layer", "puzzle seed step reference"
    late = {"span": (0, solved.shape[3]), "median": True, "forwards": "all_forwards"}
    first = measure("lens puzzle seed layer", front, "commitment step", FRONT, **late)
    name = "mass on the answer taken"
    judged = {
        "solved": measure(each, solved, "solved", "Share of estimates that are solved."),
        "commitment": first,
    }
    read = {
        "taken": measure(each, np.stack([mass(on) for on in reading.on]), name, MASS),
        "to_last": distance(each, reading.to_last),
        "taken_by": measure(other, mass(reading.reference_on[0]), name, MASS),
    }
    data = xr.Dataset(read, {"lens": list(LENSES), "reference": list(REFERENCES)})
    return data.merge(xr.Dataset(judged, {"lens": list(LENSES[:3])}), join="outer")


def film_of(task: str, reading: Reading) -> xr.Dataset:
    """Return the estimates of the first run by the plain lens: all layers, two steps."""
    video = reading.video[0, 0, 0]
    steps = [0, len(video) // 4]
    dims = ("film_of", "film_step", "layer", "film_frame", "row", "column", "rgb")
    return xr.Dataset({"film": (dims, video[None, steps])}, {"film_of": [task], "film_step": steps})
