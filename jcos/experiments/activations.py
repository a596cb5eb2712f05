"""Which channels and tokens rule the norm, and what is left without them?

A few channels, the same in every token, can rule a norm and any similarity (arXiv 2402.17762; in
diffusion transformers 2505.18584).

In models that keep a given frame at timestep 0 (TI2V), that frame's tokens have another time
vector, so that their size is no sign of what they hold: energy is measured without it too. The
small model has one timestep for all tokens: there a larger first frame is no such artefact.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Float, Int, UInt8

from jcos.config import WanConfig
from jcos.experiments import plots
from jcos.experiments.experiment import Experiment, Picture, Progress, places
from jcos.experiments.linear_probes import fit_and_read, identities_of, labels_of
from jcos.experiments.parameters import NONEMPTY, AtLeastTwo, AtSteps, Count, Positive
from jcos.experiments.samples import others_of
from jcos.experiments.sweeps import pixels
from jcos.lab.measures import POSITIVE, cka
from jcos.lab.results import measure
from jcos.sampling import flow
from jcos.sampling.inside import Capture
from jcos.sampling.probe import Probe, Site, Tokens
from jcos.sampling.probes import chain
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan

CHANNELS = ("all channels", "without the largest", "without as many others")
REFERENCE = "another puzzle"
SHARE = "Share of the tokens' squared norm that lies in the channels with the largest |mean|."
SAME = "How many of the largest channels of one run's step are the largest ones over all runs."
PEAK = "Largest over median size of activations after a block; Sun et al. call 1,000 massive."
FRAME = "Mean norm of a frame's tokens over that of all."
CKA = "Linear CKA of tokens with those of another puzzle."
TOKEN = "Share of the tokens' squared norm that lies in the largest token: 1 / N if all are alike."
ENERGY = "Mean L2 norm of the tokens after each block."
LATER = "Mean L2 norm of the tokens of all frames but the first, which some models hold fixed."
PROBE = "Linear probes of what the answer changes, fitted on the other half of the puzzles."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Activations(Experiment):
    """The channels with the largest |mean over tokens| of each layer, over all runs and probed
    steps (the rule of 2605.13974); energy, CKA and linear probes with them, without them, and
    without as many others.

    steps: which are probed. largest: how many channels. tokens: at most so many, evenly spread, are
    compared; with steps and layers they decide the memory. penalty: of the linear probes, as in
    `Layers`; these are of puzzles only, and of tokens that are all compared.
    """

    question = "Which channels and tokens rule the norm, and what is left without them?"

    tasks: tuple[str, ...] = ("maze", "rotation")
    puzzles: AtLeastTwo = 64
    steps: Annotated[AtSteps, NONEMPTY] = (0.0, 0.2, 0.5, 1.0)
    largest: Count = 3
    tokens: AtLeastTwo = 256
    penalty: Positive = 1e-3

    def check(self, config: WanConfig) -> None:
        super().check(config)
        if self.largest > config.dit.dim // 2:
            raise ValueError(f"largest is {self.largest}; it is 1 to half of {config.dit.dim}")

    def measure(self, model: Wan, progress: Progress) -> xr.Dataset:
        samples, plan, dit = self.samples(model), self.plan(model.config), model.config.dit
        steps, grid = places(self.steps, plan.steps, "step"), dit.tokens(*samples.latent)
        number = math.prod(grid)
        chosen = np.unique(np.linspace(0, number - 1, min(self.tokens, number)).astype(np.int32))
        features = Capture("block", jnp.arange(dit.layers), jnp.asarray(chosen))
        read: Reading = self.sweep(model, progress)(
            samples.conditions,
            probes=[chain(Sizes(grid[0]), features)],
            readout=read_puzzles if samples.judged else read_tokens,
            aux=np.tile(np.array(steps, np.int32), (len(samples), 1)),
            what="reading tokens",
        )
        read = jax.tree.map(lambda a: a[0], read)
        progress("comparing tokens", 0, 1)
        strength = np.abs(read.mean)
        top = largest(strength.mean((0, 1, 2)), self.largest)
        random = np.where(top, -1, np.random.default_rng(0).random(top.shape))
        masks = ~np.stack([np.zeros_like(top), top, largest(random, self.largest)])
        square = np.square(read.tokens).mean(4)
        share = (square * top).sum(-1) / square.sum(-1)
        same = (largest(strength, self.largest) & top).sum(-1) / self.largest
        runs = samples.runs
        each, ratio = f"{runs} seed step layer", {"units": "ratio", "span": POSITIVE}
        variables: dict[str, Any] = {
            "share": measure(each, share, "squared norm in the largest channels", SHARE),
            "same": measure(each, same, "largest channels that are the same", SAME),
            "ratio": measure(each, read.ratio, "largest over median activation", PEAK, **ratio),
            "frames": measure(f"{each} frame", read.frames, "norm of a frame", FRAME, **ratio),
            "token": measure(each, read.token, "squared norm in the largest token", TOKEN),
            "token_frame": measure(
                each,
                read.place,
                "frame of the largest token",
                "Latent frame in which the token with the largest norm lies.",
                units="latent frame",
                span=(0.0, grid[0] - 1.0),
            ),
            "forwards": ("step", [self.forwards(model.config, s + 1) for s in steps]),
        }
        after = read.tokens[..., chosen >= grid[1] * grid[2], :]
        if after.size:
            energy, norm = np.linalg.norm(after, axis=-1).mean(-1), {"units": "norm"}
            variables["later_energy"] = measure(
                each, energy, "token energy after the first frame", LATER, span=POSITIVE, **norm
            )
        variables |= compared(read.tokens, masks, others_of(samples.tasks), each)
        if read.video is not None and len(chosen) == number:
            side, identities = dit.patch[1] * model.codec.strides[1], identities_of(samples.puzzles)
            labels = labels_of(samples.puzzles, read.video, side)
            some = (without(after, mask) for mask in masks)
            areas = [fit_and_read(a, labels, identities, self.penalty)[0][1] for a in some]
            name = "AUROC of what the answer changes"
            variables["probe"] = measure(f"channels {each}", np.stack(areas), name, PROBE)
        return self.dataset(
            variables,
            samples,
            channels=list(CHANNELS),
            reference=[REFERENCE],
            step=steps,
            layer=range(dit.layers),
            frame=range(grid[0]),
            largest=("layer", [", ".join(map(str, np.flatnonzero(row))) for row in top]),
        )

    def figures(self, data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
        mean = data.mean("step", keep_attrs=True)
        yield "energy", Picture(plots.lines(mean, "energy", "layer", hue="channels"), ENERGY)


def compared(
    tokens: Float[np.ndarray, "P K s L n D"],
    masks: Bool[np.ndarray, "3 L D"],
    other: Int[np.ndarray, " P"],
    each: str,
) -> dict[str, Any]:
    """Return energy and CKA with all channels, and without some. other: the puzzle that each is
    compared with."""
    energy, similar, alike = [], [], jax.jit(jax.vmap(cka))
    for mask in masks:
        some = without(tokens, mask)
        energy.append(np.linalg.norm(some, axis=-1).mean(-1))
        flat = (a.reshape(-1, *a.shape[-2:]) for a in (some, some[other]))
        similar.append(np.array(alike(*flat)).reshape(some.shape[:4]))
        similar[-1][other == np.arange(len(other))] = np.nan  # a single one has no other
    norm, of = {"units": "norm", "span": POSITIVE}, f"channels {each}"
    return {
        "energy": measure(of, np.stack(energy), "token energy", ENERGY, **norm),
        "cka": measure(f"channels reference {each}", np.stack(similar)[:, None], "CKA", CKA),
    }


def without(
    tokens: Float[np.ndarray, "*axes L n D"], mask: Bool[np.ndarray, "L D"]
) -> Float[np.ndarray, "*axes L n D"]:
    """Return tokens whose channels outside the mask are zero."""
    return tokens * mask[:, None].astype(np.float32)


def largest(values: Float[np.ndarray, "*axes D"], number: int) -> Bool[np.ndarray, "*axes D"]:
    """Return which are the largest of the last axis."""
    return values >= np.partition(values, -number, -1)[..., -number, None]


class Sizes(Probe):
    """Observes, of the tokens after a block, the mean of every channel [D], the largest size over
    the median size, the mean norm of each frame over that of all [F], and the largest token's share
    of the squared norm and its frame."""

    frames: int = flax.struct.field(pytree_node=False)

    def on_block(self, site: Site, tokens: Tokens) -> tuple[Tokens, tuple[Array, ...]]:
        h = tokens.astype(jnp.float32)
        size, norm = jnp.abs(h), jnp.linalg.norm(h, axis=-1)
        by_frame = norm.reshape(self.frames, -1).mean(1) / norm.mean()
        square = jnp.square(norm)
        token, place = square.max() / square.sum(), square.argmax() // (len(h) // self.frames)
        return tokens, (h.mean(0), size.max() / jnp.median(size), by_frame, token, place)


class Reading(NamedTuple):
    """What is kept of a run at the probed steps: see `Sizes`, and tokens; of puzzles the video."""

    mean: Float[Any, "*K s L D"]
    ratio: Float[Any, "*K s L"]
    frames: Float[Any, "*K s L F"]
    token: Float[Any, "*K s L"]
    place: Int[Any, "*K s L"]
    tokens: Float[Any, "*K s L n D"]
    video: UInt8[Any, "*K F H W 3"] | None = None


def read_tokens(model: Wan, plan: flow.Plan, trace: Trace, steps: Int[Array, " s"]) -> Reading:
    (mean, *sizes), tokens = jax.tree.map(lambda a: a[0][:, steps], trace.block_obs)
    return Reading(mean, *sizes, tokens=tokens.astype(jnp.float32))


def read_puzzles(model: Wan, plan: flow.Plan, trace: Trace, steps: Int[Array, " s"]) -> Reading:
    read = read_tokens(model, plan, trace, steps)
    return read._replace(video=pixels(model, trace.latents[0]))
