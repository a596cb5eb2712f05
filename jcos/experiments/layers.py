"""What do tokens carry, layer by layer? (Paper, section 5.1.)

The paper looks at maps of token energy and finds background first, then objects, then what is
decided. Here that is measured too, by linear probes.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple

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
from jcos.experiments.experiment import Experiment, Picture, Progress, places
from jcos.experiments.linear_probes import (
    READINGS,
    Labels,
    by_identity,
    fit_and_read,
    identities_of,
    labels_of,
)
from jcos.experiments.parameters import NONEMPTY, AtLayers, AtSteps, Positive
from jcos.experiments.sweeps import pixels
from jcos.lab import results
from jcos.lab.ideal import ideal
from jcos.lab.measures import GAINS, POSITIVE
from jcos.lab.results import measure
from jcos.sampling import flow, probes
from jcos.sampling.inside import Capture
from jcos.sampling.probes import Site, States, TokenEnergy, Tokens
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan

ITERATIONS = 8
"""Of the subspace iteration, after which the first components stand still to the eye."""
BY_IDEAL = ("answer", "choice")
"""Readings of which the ideal denoiser's estimate says something too."""
SIDE = 8
"""Pixels of a token in a map, where it has no pixels of its own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layers(Experiment):
    """Paper, section 5.1: of the tokens after every block (conditional branch) the energy (L2 norm)
    by layer, frame and step, maps of it and of the first three principal components, and over how
    many channels the variance is spread.

    Beyond the paper, of puzzles, the area under the ROC curve within a frame after the first (½ is
    chance) of linear probes that read `READINGS`. For comparison: the same probes on
    x_s and on x̂0 (patches, and how far they are from the first frame's); probes fitted to the
    labels of other puzzles, which know where answers usually are and nothing of this one; and,
    without a probe, the estimate of the ideal denoiser at x_s, which is all that x_s can tell.
    Probes are fitted on one half of the identities and read on the other, and the other way round;
    with fewer than 5 puzzles in a half, they are left out. Puzzles of one identity (the same up to
    symmetry) count once: the dimension `puzzle` of the results holds identities.

    steps: of maps and probes. layers: of maps (the paper's 0, 10, 20, 30, 39 of 40). penalty: of
    the probes' squared weights, per sample, on features of unit variance.
    """

    question = "What do tokens carry, layer by layer?"

    tasks: tuple[str, ...] = ("maze", "tictactoe", "pattern", "rotation", "returns")
    steps: Annotated[AtSteps, NONEMPTY] = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)
    layers: Annotated[AtLayers, NONEMPTY] = (0.0, 0.25, 0.5, 0.75, 1.0)
    penalty: Positive = 1e-3

    def check(self, config: WanConfig) -> None:
        super().check(config)
        frames, height, width = config.dit.patch
        if self.clips is None and (frames != 1 or height != width):
            raise ValueError(
                f"{config.name} has tokens of {frames} × {height} × {width}; probes read "
                "square ones of a single frame"
            )

    def measure(self, model: Wan, progress: Progress) -> xr.Dataset:
        samples, plan, dit = self.samples(model), self.plan(model.config), model.config.dit
        steps = places(self.steps, plan.steps, "step")
        layers = places(self.layers, dit.layers, "layer")
        answers = answers_of(model, samples.puzzles) if samples.judged else None
        grid = dit.tokens(*samples.latent)
        watched = [TokenEnergy(), Components(tuple(layers))]
        if samples.judged:
            later = jnp.arange(grid[1] * grid[2], math.prod(grid))
            watched += [Capture("block", tuple(range(dit.layers)), later), States()]
        parts, films = [], []
        # Task by task: features of all of them need not be held at once.
        for task, p in samples.groups.items():
            conditions, right = jax.tree.map(lambda a, p=p: a[p], (samples.conditions, answers))
            readout: Readout = self.sweep(model, progress)(
                conditions,
                probes=[probes.chain(*watched)],
                readout=read_puzzles if samples.judged else read_tokens,
                aux=(np.tile(np.array(steps, np.int32), (len(p), 1)), right),
                what=f"watching tokens of {task}",
            )
            readout = jax.tree.map(lambda a: a[0], readout)
            films.append(film_of(readout, steps, layers, grid))
            progress(f"fitting linear probes, {task}", 0, 1)
            part, identities = token_measures(readout), np.arange(len(p))
            if readout.video is not None:
                puzzles = [samples.puzzles[i] for i in p]
                identities = identities_of(puzzles)
                labels = labels_of(puzzles, readout.video, dit.patch[1] * model.codec.strides[1])
                read = probe_measures(readout, labels, identities, steps, self.penalty)
                part = xr.merge([part, read], join="outer", compat="no_conflicts")
            parts.append(by_identity(part.mean("seed", keep_attrs=True), "puzzle", identities))
        data = xr.concat(parts, "puzzle", data_vars="all", coords="minimal", compat="override")
        extra: dict[Any, Any] = {**self.costs(model.config)}
        extra |= {f"chance_{n}": ((), 0.5, {"long_name": "chance"}) for n in AREAS if n in data}
        extra |= xr.concat(films, "film_of").data_vars
        labels = {"film_of": list(samples.groups), "film_step": few(steps), "film_layer": layers}
        tasks = np.repeat(list(samples.groups), [part.sizes["puzzle"] for part in parts])
        labels |= {"task": ("puzzle", tasks), "probed_step": steps}
        data = data.assign(extra).assign_coords(labels)
        return data if samples.judged else data.rename(puzzle=samples.runs)

    def table(self, data: xr.Dataset) -> pd.DataFrame:
        return results.table(data, {"step": data["probed_step"].values.tolist()})

    def figures(self, data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
        energy = plots.heat(data["energy"], "step", "layer", xlabel="denoising step")
        yield "energy", Picture(energy, ENERGY)
        for task in data["film_of"].values:
            one = data.sel(film_of=task)
            for name, caption in FILMS.items():
                yield f"{name}-{task}", Picture(_film(one, f"film_{name}"), f"{task}. {caption}")


ENERGY = "Mean L2 norm of the tokens after each block at each step."
SPREAD = "Over how many channels the variance over tokens is spread, as a share of all of them."
FILMS = {
    "energy": "The first video, then token energy by step and layer (rows) and frame; each row "
    "has another scale, brighter is more.",
    "components": "The first three principal components of the tokens as red, green and blue. "
    "Each row has another scale; colours of different rows do not compare.",
}
AREAS = tuple(name for r in READINGS for name in (r, f"{r}_control"))
"""Measures of which ½ is chance."""


def few(steps: Sequence[int]) -> list[int]:
    """Return the first, a middle and the last of the probed steps."""
    return sorted({steps[0], steps[len(steps) // 2], steps[-1]})


# ---- what is observed


class Components(probes.Probe):
    """Observe the first three principal components of the tokens after the chosen blocks, [steps,
    chosen layers, N, 3]; and after all blocks over how many channels the variance v is spread, (Σ
    v)² / Σ v² as a share of all, [steps, layers]."""

    layers: tuple[int, ...] = flax.struct.field(pytree_node=False)

    def on_block(self, site: Site, tokens: Tokens) -> tuple[Tokens, tuple[Array, Array]]:
        centred = tokens.astype(jnp.float32)
        centred = centred - centred.mean(0, keepdims=True)
        variance = jnp.mean(jnp.square(centred), 0)
        even = jnp.square(variance.sum()) / jnp.sum(jnp.square(variance)) / len(variance)
        return tokens, (principal(centred), even)

    def slots(self) -> tuple[Array, None]:
        return jnp.asarray(self.layers, jnp.int32), None


def principal(centred: Float[Array, "N D"]) -> Float[Array, "N 3"]:
    """Return the first three principal components of centred rows, by subspace iteration: the D × D
    covariance of a large model is never built."""
    start = jax.random.normal(jax.random.key(0), (centred.shape[1], 3))

    def turn(_: Int[Array, ""], basis: Float[Array, "D 3"]) -> Float[Array, "D 3"]:
        return jnp.linalg.qr(centred.T @ (centred @ basis))[0]

    return centred @ jax.lax.fori_loop(0, ITERATIONS, turn, start)


class Readout(NamedTuple):
    """What is kept of a run, by seed: S steps, of which s are probed; L layers, of which l are on
    maps; n tokens in all frames but the first.

    channels: see `Components`. Of puzzles only: features of the layers, then of x_s and x̂0
    in patches, with their distance from the first frame's (in x̂0); change: how far each token of
    the ideal denoiser's estimate at x_s is from the first frame; video: the final one.
    """

    energy_by_frame: Float[Any, "*K S L F"]
    energy: Float[Any, "*K s L N"]
    components: Float[Any, "*K s l N 3"]
    channels: Float[Any, "*K S L"]
    features: tuple[Float[Any, "*K s L n D"], Float[Any, "*K s 2 n P"]] | None = None
    change: Float[Any, "*K s n"] | None = None
    video: UInt8[Any, "*K F H W 3"] | None = None


Aux = tuple[Int[Array, " s"], Answers | None]
"""The probed steps, and the answers of a puzzle."""


def read_tokens(model: Wan, plan: flow.Plan, trace: Trace, aux: Aux) -> Readout:
    """Return the `Readout` of a run in world 0, without what only puzzles have."""
    steps, _ = aux
    energy, (components, channels), *_ = jax.tree.map(lambda a: a[0], trace.block_obs)
    frames = model.config.dit.tokens(*trace.latents.shape[2:5])[0]
    by_frame = energy.reshape(*energy.shape[:-1], frames, -1).mean(-1)
    return Readout(by_frame, energy[:, steps], components[:, steps], channels)


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
    frames = model.config.dit.tokens(*trace.latents.shape[2:5])[0]

    def by_frame(latents: Float[Array, "K s F h w C"]) -> Float[Array, "K s F f P"]:
        patches = jax.vmap(jax.vmap(model.experts[0].patchify))(latents)
        return patches.reshape(*patches.shape[:2], frames, -1, patches.shape[-1])

    states, x0, best = map(by_frame, (states, trace.x0[0][:, steps], best))
    both = jnp.stack([states, x0], 2)[:, :, :, 1:]
    both = jnp.concatenate([both, jnp.abs(both - x0[:, :, None, :1])], -1)
    change = jnp.abs(best[:, :, 1:] - best[:, :, :1]).sum(-1)
    return read_tokens(model, plan, trace, aux)._replace(
        features=(tokens, both.reshape(*both.shape[:3], -1, both.shape[-1])),
        change=change.reshape(*change.shape[:2], -1),
        video=pixels(model, trace.latents[0]),
    )


# ---- what is measured


def token_measures(readout: Readout) -> xr.Dataset:
    """Return energy and spread of P puzzles × K seeds."""
    energy = np.asarray(readout.energy_by_frame, np.float64)
    each, norm = "puzzle seed step layer", {"units": "norm", "span": POSITIVE}
    variables = {
        "energy": measure(each, energy.mean(-1), "token energy", ENERGY, **norm),
        "energy_by_frame": measure(
            f"{each} frame", energy, "token energy of a frame", ENERGY, **norm, tabled=False
        ),
        "channels": measure(each, readout.channels, "share of channels that vary", SPREAD),
    }
    axes = zip(("step", "layer", "frame"), energy.shape[2:], strict=True)
    return xr.Dataset(variables, {name: range(size) for name, size in axes})


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
    layers, unknown = readout.energy.shape[3], np.full((*probed.shape[1:-1], 1), np.nan)
    by_layer, by_source = "puzzle seed step layer", "puzzle seed step source"
    variables = {}
    for reading, probe, control in zip(READINGS, probed, controls, strict=True):
        words, about = READINGS[reading]
        name, best = f"AUROC of {words}", unknown
        if reading in BY_IDEAL:
            best = labels.auroc(readout.change[..., None, :], reading)
            more, title = probe[..., :layers] - best, f"{name}, more than by the {results.IDEAL}"
            name_more = f"{reading}_more_than_ideal"
            variables[name_more] = measure(by_layer, more, title, about, span=GAINS)
        for key, title, areas in (
            (reading, name, (probe, best)),
            (f"{reading}_control", f"{name}, fitted to another puzzle's", (control, unknown)),
        ):
            values = np.concatenate(areas, -1)
            variables[key] = measure(by_source, values, title, about)
    sources = [f"layer {layer}" for layer in range(layers)]
    sources += ["x_s", "x̂0", f"{results.IDEAL} at x_s"]
    return xr.Dataset(variables, {"step": steps, "layer": range(layers), "source": sources})


# ---- what is drawn


def film_of(
    readout: Readout, steps: Sequence[int], layers: Sequence[int], grid: tuple[int, int, int]
) -> xr.Dataset:
    """Return the first run's maps, and its video where it has one."""
    at = [steps.index(s) for s in few(steps)]
    dims, shape = ("film_step", "film_layer", "film_frame", "row", "column"), (len(at), -1, *grid)
    energy, components = readout.energy[0, 0][at][:, layers], readout.components[0, 0][at]
    film: dict[str, Any] = {
        "film_energy": (dims, energy.reshape(shape)),
        "film_components": ((*dims, "rgb"), components.reshape(*shape, 3)),
    }
    if readout.video is not None:
        film["film"] = (("film_frame", "pixel_row", "pixel_column", "rgb"), readout.video[0, 0])
    return xr.Dataset(film)


def _film(data: xr.Dataset, name: str) -> plots.Figure:
    """Draw the video, if it has pixels, and a row of token maps for each step and layer, each from
    its least value to its largest."""
    maps = data[name].stack(map=("film_step", "film_layer")).transpose("map", ...)
    over = ["film_frame", "row", "column"]
    low, high = maps.min(over), maps.max(over)
    colours = ((maps - low) / np.maximum(high - low, 1e-12)).transpose(*maps.dims).values
    if "rgb" not in maps.dims:
        colours = mpl.colormaps["cividis"](colours)[..., :3]
    side = data.sizes["pixel_row"] // data.sizes["row"] if "film" in data else SIDE
    films = [*np.round(255 * colours).astype(np.uint8).repeat(side, 2).repeat(side, 3)]
    rows = [f"step {step}, layer {layer}" for step, layer in maps["map"].values]
    if "film" in data:
        films, rows = [data["film"].values, *films], ["video", *rows]
    return plots.film_grid(np.stack(films), rows)
