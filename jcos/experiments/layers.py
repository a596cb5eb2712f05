"""What do tokens carry, layer by layer? (Paper, section 5.1.)

The paper looks at maps of token energy and finds background first, then objects, then what is
decided. Here that is measured: linear probes read off each token whether it is foreground, and
whether its patch will change in the answer that this run ends with.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Array, Float, Int, UInt8

from jcos.config import WanConfig
from jcos.experiments import plots
from jcos.experiments.answers import Answers, answers_of
from jcos.experiments.experiment import Experiment, Picture, Place, Progress, places
from jcos.experiments.linear_probes import (
    READINGS,
    Labels,
    fit_and_read,
    identities_of,
    labels_of,
)
from jcos.experiments.samples import Samples
from jcos.experiments.sweeps import pixels, sweep
from jcos.lab import results
from jcos.lab.ideal import ideal
from jcos.lab.measures import GAINS, POSITIVE
from jcos.lab.results import measure
from jcos.sampling import flow, probes
from jcos.sampling.probes import Site, States, TokenEnergy, TokenFeatures, Tokens
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan

ITERATIONS = 8
"""Of the subspace iteration, after which the first components stand still to the eye."""
IDEAL_SOURCE = f"{results.IDEAL} at x_s"
BY_IDEAL = ("answer", "choice")
"""Readings of which the ideal denoiser's estimate says something too."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layers(Experiment):
    """Paper, section 5.1: of the tokens after every block (conditional branch) the energy (L2 norm)
    by layer, frame and step, maps of it, maps of their first three principal components, and how
    the variance is spread over channels.

    Beyond the paper, of puzzles: how well energy, and linear probes, tell foreground from plain
    floor, and tokens whose patch will change in the run's answer from those that will not, in each
    frame after the first (area under the ROC curve within the frame, so ½ is chance); and the
    latter among contested tokens, which some right answers change and others do not: this is the
    choice among answers. For comparison: the same probes on x_s and on x̂0 (patches, and how far
    they are from the first frame's); probes fitted to the labels of other puzzles, which know
    where answers usually are and nothing of this one; and, without a probe, the estimate of the
    ideal denoiser (`ideal.py`) at x_s, which is all that x_s can tell. Probes are fitted on one
    half of the puzzles and read on the other, and the other way round; puzzles of one identity are
    never in both. With fewer than 5 puzzles in a half, probes are left out.

    Puzzles of one identity (the same up to symmetry) are averaged first and count once: the
    dimension `puzzle` of the results holds identities.

    steps: of maps and probes. layers: of maps (the paper's 0, 10, 20, 30, 39 of 40). penalty: of
    the probes' squared weights, per sample, on features of unit variance.
    """

    question = "What do tokens carry, layer by layer?"

    tasks: tuple[str, ...] = ("maze", "tictactoe", "pattern", "rotation", "returns")
    steps: tuple[Place, ...] = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)
    layers: tuple[Place, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    penalty: float = 1e-3

    def check(self, config: WanConfig) -> None:
        super().check(config)
        for name, chosen, size in (
            ("step", self.steps, self.plan(config).steps),
            ("layer", self.layers, config.dit.layers),
        ):
            if not places(chosen, size, name):
                raise ValueError(f"no {name} is chosen; name at least one")
        if not self.penalty > 0:
            raise ValueError(f"penalty is {self.penalty}; it is above 0")
        frames, height, width = config.dit.patch
        if self.clips is None and (frames != 1 or height != width):
            raise ValueError(
                f"{config.name} has tokens of {frames} × {height} × {width}; probes read "
                "square ones of a single frame"
            )

    def measure(self, model: Wan, progress: Progress) -> xr.Dataset:
        samples, plan = self.samples(model), self.plan(model.config)
        steps = places(self.steps, plan.steps, "step")
        layers = places(self.layers, model.config.dit.layers, "layer")
        answers = answers_of(model, samples.puzzles) if samples.judged else None
        grid = model.config.dit.tokens(*samples.latent)
        parts, films = [], []
        # Task by task: features of all of them need not be held at once.
        for task, p in samples.groups.items():
            readout: Readout = sweep(
                model,
                jax.tree.map(lambda a, p=p: a[p], samples.conditions),
                self.seeds,
                probes=[token_probe(model, samples, layers)],
                plan=plan,
                readout=read_puzzles if samples.judged else read_tokens,
                aux=(
                    np.tile(np.array(steps, np.int32), (len(p), 1)),
                    jax.tree.map(lambda a, p=p: a[p], answers),
                ),
                chunk=self.chunk,
                what=f"watching tokens of {task}",
                progress=progress,
            )
            readout = jax.tree.map(lambda a: a[0], readout)
            films.append(film_of(readout, steps, layers, grid))
            progress(f"fitting linear probes, {task}", 0, 1)
            part, identities = token_measures(readout), np.arange(len(p))
            if readout.video is not None:
                puzzles = [samples.puzzles[i] for i in p]
                identities = identities_of(puzzles)
                side = model.config.dit.patch[1] * model.codec.strides[1]
                labels = labels_of(puzzles, readout.video, side)
                read = probe_measures(readout, labels, identities, steps, self.penalty)
                part = xr.merge([part, read], join="outer", compat="no_conflicts")
            parts.append(by_identity(part, identities))
        data = xr.concat(parts, "puzzle", data_vars="all", coords="minimal", compat="override")
        tasks = np.repeat(list(samples.groups), [part.sizes["puzzle"] for part in parts])
        cost = [self.forwards(model.config, s + 1) for s in range(plan.steps)]
        extra: dict[str, Any] = {"forwards": ("step", cost), "all_forwards": ((), cost[-1])}
        for name, array in data.data_vars.items():
            if array.attrs.get("chance"):
                extra[f"chance_{name}"] = ((), array.attrs["chance"], {"long_name": "chance"})
        for name, (dims, _) in films[0].items():
            extra[name] = (("film_of", *dims), np.stack([film[name][1] for film in films]))
        labels = {"film_of": list(samples.groups), "film_step": few(steps), "film_layer": layers}
        labels |= {"task": ("puzzle", tasks), "probed_step": steps}
        data = data.assign(extra).assign_coords(labels)
        return data if samples.judged else data.rename(puzzle=samples.runs)

    def table(self, data: xr.Dataset) -> pd.DataFrame:
        return results.table(data, {"step": data["probed_step"].values.tolist()})

    def figures(self, data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
        at, x = {"step": list(data["film_step"].values)}, "denoising step"
        yield "energy", Picture(plots.heat(data["energy"], "step", "layer", xlabel=x), ENERGY)
        yield "energy-frames", Picture(plots.heat(data["frame_energy"], "frame", "layer"), FRAMES)
        names, words = ["channels", "three"], ["varying channels", "three components"]
        spread = plots.lines(
            data, names, "layer", hue="step", labels=words, at=at, ylabel="share of variance"
        )
        yield "spread", Picture(spread, SPREAD)
        layers = [f"layer {layer}" for layer in data["layer"].values]
        for reading in READINGS if "by_energy" in data else ():
            fitted = data[f"{reading}_control"].notnull().any(["step", "source"])
            if not fitted.any():
                continue
            area, control = (
                data[name].isel(puzzle=np.flatnonzero(fitted)).sel(step=data["probed_step"].values)
                for name in (reading, f"{reading}_control")
            )
            drawn = list(dict.fromkeys([layers[0], layers[(len(layers) - 1) // 2], layers[-1]]))
            last = control.sel(source=layers[-1:])
            last = last.assign_coords(source=[f"{layers[-1]}, another puzzle's"])
            every = [*drawn, *area["source"].values[len(layers) :]]
            lines = xr.concat([area.sel(source=every).dropna("source", how="all"), last], "source")
            shown = data[[f"chance_{reading}"]].assign({reading: lines})
            curves = plots.lines(
                shown, reading, hue="source", xlabel=x, ylabel=f"AUROC of {reading}"
            )
            yield reading, Picture(curves, DECODED[reading])
            area = area.sel(source=layers)
            heat = plots.heat(area, "step", "source", limits=(0.5, 1), xlabel=x, ylabel=" ")
            yield f"{reading}-map", Picture(heat, f"By layer and step. {DECODED[reading]}")
        for task in data["film_of"].values:
            one = data.sel(film_of=task)
            energy = mpl.colormaps["cividis"](_stretched(one["film_energy"].values))[..., :3]
            yield f"maps-{task}", Picture(_film(one, energy), f"{task}. {MAPS}")
            colours = _stretched(one["film_components"].values)
            yield f"components-{task}", Picture(_film(one, colours), f"{task}. {COMPONENTS}")


ENERGY = "Mean L2 norm of the tokens after each block at each step."
FRAMES = "Token energy of each frame, over the mean of all frames of that layer; mean over steps."
SPREAD = (
    "How variance over tokens is spread: over how many channels, as a share of all of them, and "
    "how much of it lies in the first three principal components."
)
MAPS = "The first video, then token energy by step and layer (rows) and frame; brighter is more."
COMPONENTS = (
    "The first three principal components of the tokens as red, green and blue. Each row has "
    "another scale; colours of different rows do not compare."
)
DECODED = {
    "foreground": (
        "How well a linear probe tells foreground from plain floor within a frame; 0.5 is chance."
    ),
    "answer": (
        "How well a linear probe tells, within a frame, the tokens whose patch will change in the "
        "answer that this run ends with; 0.5 is chance. Another puzzle's: fitted to the labels of "
        "another puzzle, so that it knows only where answers usually are."
    ),
    "choice": (
        "The same among contested tokens only, which some right answers change and others do not: "
        "whether a probe knows which of the right answers this run will take."
    ),
}
SIDE = 8
"""Pixels of a token in a map, where it has no pixels of its own."""


def few(steps: Sequence[int]) -> list[int]:
    """Return the first, a middle and the last of the probed steps."""
    return sorted({steps[0], steps[len(steps) // 2], steps[-1]})


# ---- what is observed


class Spread(NamedTuple):
    """How a layer's variance over tokens is spread.

    channels: over how many it spreads evenly, (Σ v)² / Σ v², as a share of all. three: share of the
    first three principal components.
    """

    channels: Float[Any, "*S L"]
    three: Float[Any, "*S L"]


class Components(probes.Probe):
    """Observe the first three principal components of the tokens after the chosen blocks, [steps,
    chosen layers, N, 3], and the `Spread` after all of them."""

    layers: tuple[int, ...] = flax.struct.field(pytree_node=False)

    def on_block(self, site: Site, tokens: Tokens) -> tuple[Tokens, tuple[Array, Spread]]:
        del site
        centred = tokens.astype(jnp.float32)
        centred = centred - centred.mean(0, keepdims=True)
        variance = jnp.mean(jnp.square(centred), 0)
        scores = principal(centred)
        even = jnp.square(variance.sum()) / jnp.sum(jnp.square(variance)) / len(variance)
        three = jnp.mean(jnp.square(scores), 0).sum() / variance.sum()
        return tokens, (scores, Spread(even, three))

    def slots(self) -> tuple[Array, None]:
        return jnp.asarray(self.layers, jnp.int32), None


def principal(centred: Float[Array, "N D"]) -> Float[Array, "N 3"]:
    """Return the first three principal components of centred rows, by subspace iteration: the D × D
    covariance of a large model is never built."""
    start = jax.random.normal(jax.random.key(0), (centred.shape[1], 3))

    def turn(_: Int[Array, ""], basis: Float[Array, "D 3"]) -> Float[Array, "D 3"]:
        return jnp.linalg.qr(centred.T @ (centred @ basis))[0]

    return centred @ jax.lax.fori_loop(0, ITERATIONS, turn, start)


def token_probe(model: Wan, samples: Samples, layers: Sequence[int]) -> probes.Probe:
    """Return the probe of a run; of puzzles it keeps the tokens after the first frame whole."""
    watched = (TokenEnergy(), Components(tuple(layers)))
    if not samples.judged:
        return probes.chain(*watched)
    frames, height, width = model.config.dit.tokens(*samples.latent)
    later = jnp.arange(height * width, frames * height * width)
    every = tuple(range(model.config.dit.layers))
    return probes.chain(*watched, TokenFeatures(every, later), States())


class Readout(NamedTuple):
    """What is kept of a run, by seed: S steps, of which s are probed; L layers, of which l are on
    maps; n tokens in all frames but the first.

    Of puzzles only: features of the layers, then of x_s and x̂0 in patches, with their distance from
    the first frame's (in x̂0); change: how far each token of the ideal denoiser's estimate at x_s is
    from the first frame; video: the final one.
    """

    energy_by_frame: Float[Any, "*K S L F"]
    energy: Float[Any, "*K s L N"]
    components: Float[Any, "*K s l N 3"]
    spread: Spread
    features: tuple[Float[Any, "*K s L n D"], Float[Any, "*K s 2 n P"]] | None = None
    change: Float[Any, "*K s n"] | None = None
    video: UInt8[Any, "*K F H W 3"] | None = None


Aux = tuple[Int[Array, " s"], Answers | None]
"""The probed steps, and the answers of a puzzle."""


def read_tokens(model: Wan, plan: flow.Plan, trace: Trace, aux: Aux) -> Readout:
    """Return the `Readout` of a run in world 0, without what only puzzles have."""
    del plan
    steps, _ = aux
    energy, (components, spread), *_ = jax.tree.map(lambda a: a[0], trace.block_obs)
    frames = model.config.dit.tokens(*trace.latents.shape[2:5])[0]
    by_frame = energy.reshape(*energy.shape[:-1], frames, -1).mean(-1)
    return Readout(by_frame, energy[:, steps], components[:, steps], spread)


def read_puzzles(model: Wan, plan: flow.Plan, trace: Trace, aux: Aux) -> Readout:
    """Return the whole `Readout` of a run in world 0."""
    steps, answers = aux
    assert answers is not None
    tokens = trace.block_obs[2][0][:, steps].astype(jnp.float32)
    states = trace.estimate_obs[-1][0][:, steps]
    sigmas = jnp.asarray(plan.schedule.sigmas)[steps]
    over_steps = jax.vmap(partial(ideal, log_prior=answers.log_prior), (0, 0, None))
    over_seeds = jax.vmap(over_steps, (0, None, None))
    best = over_seeds(states, sigmas, jnp.asarray(answers.latents)).x0
    patches = jax.vmap(jax.vmap(jax.vmap(model.experts[0].patchify)))(
        jnp.stack([states, trace.x0[0][:, steps], best], axis=2)
    )
    count = tokens.shape[-2]
    later, first = patches[..., -count:, :], patches[:, :, 1:, : patches.shape[-2] - count, :]
    first = jnp.tile(first, (1, 1, 1, count // first.shape[-2], 1))
    distance = jnp.abs(later[:, :, :2] - first[:, :, :1])
    return read_tokens(model, plan, trace, aux)._replace(
        features=(tokens, jnp.concatenate([later[:, :, :2], distance], -1)),
        change=jnp.abs(later[:, :, 2] - first[:, :, 1]).sum(-1),
        video=pixels(model, trace.latents[0]),
    )


# ---- what is measured


def token_measures(readout: Readout) -> xr.Dataset:
    """Return energy and spread of P puzzles × K seeds."""
    by_frame = np.asarray(readout.energy_by_frame, np.float64)
    total = by_frame.mean(2)
    each, norm = "puzzle seed step layer", {"units": "norm", "span": POSITIVE}
    variables = {
        "energy": measure(each, by_frame.mean(-1), "token energy", ENERGY, **norm),
        "energy_by_frame": measure(
            f"{each} frame", by_frame, "token energy of a frame", **norm, tabled=False
        ),
        "frame_energy": measure(
            "puzzle seed layer frame",
            total / total.mean(-1, keepdims=True),
            "energy of a frame over that of all",
            FRAMES,
            span=POSITIVE,
            forwards="all_forwards",
        ),
        "channels": measure(each, readout.spread.channels, "share of channels that vary", SPREAD),
        "three": measure(each, readout.spread.three, "variance in three components", SPREAD),
    }
    steps, layers, frames = by_frame.shape[2:]
    places = {"step": range(steps), "layer": range(layers), "frame": range(frames)}
    return xr.Dataset(variables, places)


def probe_measures(
    readout: Readout,
    labels: Labels,
    identities: Int[np.ndarray, " P"],
    steps: Sequence[int],
    penalty: float,
) -> xr.Dataset:
    """Return what can be read off the tokens of P puzzles × K seeds at the probed steps."""
    assert readout.features is not None
    assert readout.change is not None
    fitted = [fit_and_read(f, labels, identities, penalty) for f in readout.features]
    probed, controls = (np.concatenate(areas, -1) for areas in zip(*fitted, strict=True))
    energy = readout.energy[..., -readout.change.shape[-1] :]
    layers = energy.shape[3]
    by_layer, by_source = "puzzle seed step layer", "puzzle seed step source"
    area = labels.auroc(energy, "foreground")
    variables = {"by_energy": measure(by_layer, area, "AUROC of foreground, by energy")}
    for (reading, words), probe, control in zip(READINGS.items(), probed, controls, strict=True):
        ideals = np.full_like(probe[..., :1], np.nan)
        if reading in BY_IDEAL:
            ideals = labels.auroc(readout.change[..., None, :], reading)
        name, places = f"AUROC of {words}", np.concatenate([probe, ideals], -1)
        variables[reading] = measure(by_source, places, name, DECODED[reading])
        places = np.concatenate([control, np.full_like(ideals, np.nan)], -1)
        variables[f"{reading}_control"] = measure(
            by_source, places, f"{name}, fitted to another puzzle's"
        )
        others = {"x0": ("x̂0", probe[..., -1:]), "ideal": (f"the {results.IDEAL}", ideals)}
        for other, (label, areas) in others.items() if reading in BY_IDEAL else ():
            variables[f"{reading}_more_than_{other}"] = measure(
                by_layer, probe[..., :layers] - areas, f"{name}, more than by {label}", span=GAINS
            )
    for _, _, attributes in variables.values():
        if attributes["valid_min"] == 0:
            attributes["chance"] = 0.5
    sources = [*(f"layer {layer}" for layer in range(layers)), "x_s", "x̂0", IDEAL_SOURCE]
    return xr.Dataset(variables, {"step": steps, "layer": range(layers), "source": sources})


def by_identity(data: xr.Dataset, identities: Int[np.ndarray, " P"]) -> xr.Dataset:
    """Return the mean over puzzles of one identity, of each over its seeds; nan is left out."""
    data = data.mean("seed", keep_attrs=True).assign_coords(identity=("puzzle", identities))
    data = data.groupby("identity").mean("puzzle", keep_attrs=True)
    return data.rename(identity="puzzle").drop_vars("puzzle")


# ---- what is drawn


def film_of(
    readout: Readout, steps: Sequence[int], layers: Sequence[int], grid: tuple[int, int, int]
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Return dimensions and values of the first run's maps, and of its video where it has one."""
    at = [steps.index(s) for s in few(steps)]
    dims = ("film_step", "film_layer", "film_frame", "row", "column")
    energy = readout.energy[0, 0][at][:, layers]
    components = readout.components[0, 0][at]
    film = {
        "film_energy": (dims, energy.reshape(*energy.shape[:2], *grid)),
        "film_components": ((*dims, "rgb"), components.reshape(*components.shape[:2], *grid, 3)),
    }
    if readout.video is not None:
        film["film"] = (("film_frame", "pixel_row", "pixel_column", "rgb"), readout.video[0, 0])
    return film


def _stretched(maps: Float[np.ndarray, "s l F h w *rgb"]) -> np.ndarray:
    """Return each map from 0, at its least value, to 1."""
    low, high = maps.min((2, 3, 4), keepdims=True), maps.max((2, 3, 4), keepdims=True)
    return (maps - low) / np.maximum(high - low, 1e-12)


def _film(data: xr.Dataset, colours: Float[np.ndarray, "s l F h w 3"]) -> plots.Figure:
    """Draw the video, if it has pixels, and a row of token maps for each step and layer."""
    side = data.sizes["pixel_row"] // data.sizes["row"] if "film" in data else SIDE
    maps = np.round(255 * colours).astype(np.uint8).repeat(side, 3).repeat(side, 4)
    maps = maps.reshape(-1, *maps.shape[2:])
    rows = [
        f"step {s}, layer {layer}"
        for s in data["film_step"].values
        for layer in data["film_layer"].values
    ]
    if "film" not in data:
        return plots.film_grid(maps, rows)
    return plots.film_grid(np.concatenate([data["film"].values[None], maps]), ["video", *rows])
