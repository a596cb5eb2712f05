"""How alike are tokens of neighbouring denoising steps, by layer? (arXiv 2602.10095.)

In an autoregressive Wan2.1, early and middle layers are said to give nearly the same features at
all steps, with a cosine similarity above 0.95. But a few large channels, the same in every token of
every video, make any two tokens alike. So the tokens of another seed, and of another puzzle, at the
same step are compared too; and all of it is done again with each video's mean token subtracted.
"""

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from jcos.config import WanConfig
from jcos.experiments.experiment import Experiment, Progress, places
from jcos.experiments.parameters import NONEMPTY, AtLayers, AtLeastTwo
from jcos.experiments.samples import others_of
from jcos.lab.results import measure
from jcos.sampling import flow
from jcos.sampling.inside import Capture
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan

SPAN = (-np.inf, 1.0)
"""At most 1; the interval follows from the spread alone."""
REFERENCES = ("the step before", "another seed", "another puzzle")
"""What the tokens of a step are compared with; the latter two are at the same step, the last has
the same noise."""
MEASURES = {
    "cosine": ("cosine similarity", "Of each token with the one at its place; mean over tokens."),
    "centred": ("centred cosine similarity", "The same, with the mean token subtracted."),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine(Experiment):
    """Cosine similarity of the tokens after each block between neighbouring steps.

    The conditional branch's tokens are compared on the device. layers: after which blocks, all by
    default. tokens: at most so many, evenly spread; with the layers they decide the memory: a
    run's features are held for all steps. The first step has none before.
    """

    question = "How alike are tokens of neighbouring denoising steps, by layer?"

    puzzles: AtLeastTwo = 64
    seeds: tuple[int, ...] = (0, 1)
    layers: Annotated[AtLayers, NONEMPTY] | None = None
    tokens: AtLeastTwo = 128

    def check(self, config: WanConfig) -> None:
        super().check(config)
        if len(self.seeds) < 2:
            raise ValueError("the seeds of a puzzle are compared; give at least 2")

    def measure(self, model: Wan, progress: Progress) -> xr.Dataset:
        samples, config = self.samples(model), model.config
        layers = places(self.layers, config.dit.layers, "layer")
        number = int(np.prod(config.dit.tokens(*samples.latent)))
        chosen = np.unique(np.linspace(0, number - 1, min(self.tokens, number)).astype(np.int32))
        other = others_of(samples.tasks)
        worlds = jax.tree.map(lambda a: np.concatenate([a, a[other]], 1), samples.conditions)
        raw, centred = self.sweep(model, progress)(
            worlds,
            probes=[Capture("block", jnp.asarray(layers, jnp.int32), jnp.asarray(chosen))],
            readout=read_cosines,
            what="tokens of every step",
        )
        dims = f"step layer reference {samples.runs} seed"
        variables: dict[str, Any] = {"forwards": ((), 2 * self.forwards(config), {})}
        for (name, (title, comment)), values in zip(MEASURES.items(), (raw, centred), strict=True):
            values, about = np.transpose(values[0], (2, 3, 4, 0, 1)).copy(), {"span": SPAN}
            values[:, :, -1, other == np.arange(len(other))] = np.nan  # a single one has no other
            variables[name] = measure(dims, values, title, comment, tabled=False, **about)
            mean, title = values[1:].mean(0, dtype=np.float64), f"{title}, mean over steps"
            each = dims.removeprefix("step ")
            variables[f"{name}_mean"] = measure(each, mean, title, comment, **about)
        labels = {"step": range(self.plan(config).steps), "reference": list(REFERENCES)}
        return self.dataset(variables, samples, layer=layers, **labels)


def read_cosines(model: Wan, plan: flow.Plan, trace: Trace, aux: Any) -> tuple[Array, Array]:
    """Return `cosines` of the tokens, and of their difference from the mean token."""
    tokens = trace.block_obs.astype(jnp.float32)
    return cosines(tokens), cosines(tokens - tokens.mean(-2, keepdims=True))


def cosines(x: Float[Array, "2 K S L n D"]) -> Float[Array, "K S L 3"]:
    """Return the mean cosine similarity of world 0's tokens with each of `REFERENCES`: the step
    before (nan at the first), the seed before, world 1."""
    unit = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    here, puzzle = unit
    before = jnp.roll(here, 1, 1).at[:, 0].set(jnp.nan)
    others = (before, jnp.roll(here, 1, 0), puzzle)
    return jnp.stack([(here * other).sum(-1).mean(-1) for other in others], -1)
