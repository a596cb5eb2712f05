"""How far does the state of a step move the clean estimate?

With an exact score and one right answer, x̂0 is the same for every x_s: ∂x̂0/∂x_s = 0, and earlier
steps can change the answer only through the model's error (arXiv 2507.12549). A Jacobian above zero
is necessary for a serial use of steps, not sufficient.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Array, Float, Key

from jcos.config import WanConfig
from jcos.experiments import plots
from jcos.experiments.answers import Answers, answers_of
from jcos.experiments.experiment import Experiment, Picture, Progress, check_spread, looked_at
from jcos.experiments.parameters import Count
from jcos.experiments.swap import pair_seed
from jcos.experiments.sweeps import remembered
from jcos.generation import generate
from jcos.lab import results
from jcos.lab.attribution import jacobian, spread
from jcos.lab.ideal import ideal
from jcos.lab.measures import POSITIVE
from jcos.lab.results import DENOISERS, measure
from jcos.sampling.probe import Latents
from jcos.sampling.probes import States
from jcos.sampling.trajectory import Condition
from jcos.wan import Wan

PIXELS = ("what the answer changes", "the rest")
SIZE = (
    "Root mean square change of x̂0 for a unit random change of every value of x_s, with the "
    "condition fixed, in all frames but the first. 1: x̂0 moves as far as x_s."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Jacobian(Experiment):
    """The size of ∂x̂0/∂x_s at every step, in the values that a right answer changes and in the
    rest, for the model and the ideal denoiser at the same states.

    directions: random ones of the Jacobian-vector products.
    """

    question = "How far does the state of a step move the clean estimate?"
    no_clips = "right answers are known of puzzles; for clips call jcos.jacobian"

    tasks: tuple[str, ...] = ("maze", "rotation")
    directions: Count = 4

    def check(self, config: WanConfig) -> None:
        super().check(config)
        check_spread(config, 1)

    def measure(self, model: Wan, progress: Progress) -> xr.Dataset:
        samples, plan = self.samples(model), self.plan(model.config)
        answers, sizes = answers_of(model, samples.puzzles), []
        for i in range(len(samples)):
            progress("differentiating every step", i, len(samples))
            given, one = jax.tree.map(lambda a, i=i: a[i], (samples.conditions, answers))
            given = jax.tree.map(lambda a: a[0], given)
            sizes.append(remembered(f"sizes-{i}", 0, partial(self.sizes, model, i, given, one)))
        progress("differentiating every step", len(samples), len(samples))
        values = np.moveaxis(np.stack(sizes), 0, 2)  # [pixels, denoiser, P, K, S]
        name, about = "size of ∂x̂0/∂x_s", {"units": "1", "span": POSITIVE, "by": "part"}
        variables: dict[str, Any] = {
            "size": measure("pixels denoiser puzzle seed step", values, name, SIZE, **about),
            "forwards": ("step", [self.forwards(model.config, s + 1) for s in range(plan.steps)]),
        }
        labels = {"pixels": list(PIXELS), "denoiser": list(DENOISERS), "step": range(plan.steps)}
        return self.dataset(variables, samples, **labels)

    def sizes(
        self, model: Wan, number: int, given: Condition, answers: Answers
    ) -> Float[np.ndarray, "2 2 K S"]:
        """Return the sizes of one puzzle by pixels, denoiser, seed and step."""
        seeds = [pair_seed(model, seed, number) for seed in self.seeds]
        how: dict[str, Any] = {"sampling": self.sampled(model.config)}
        sizes = jacobian(model, given, seeds, directions=self.directions, **how)
        x = generate(model, given, seeds, probe=States(), **how).estimate_obs
        keys = jax.random.split(jax.random.key(number), self.directions)
        sigmas = jnp.asarray(self.plan(model.config).schedule.sigmas[:-1])
        best = jax.vmap(_ideally, (0, None, None, None, None))(
            x, sigmas, answers.latents, answers.log_prior, keys
        )
        still = np.asarray(answers.still)[None]
        differs = np.asarray(np.abs(np.asarray(answers.latents) - still) > 1e-4)
        changed = np.asarray(differs[np.asarray(answers.right)].any(0))[1:]
        both = np.square(np.stack([sizes, best])[:, :, :, 1:])
        means = [both[..., where].mean(-1) for where in (changed, ~changed)]
        return np.sqrt(np.stack(means))

    def table(self, data: xr.Dataset) -> pd.DataFrame:
        return results.table(data, {"step": looked_at(data.sizes["step"])})

    def figures(self, data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
        answer = data.sel(pixels=PIXELS[0])
        yield "answer", Picture(plots.lines(answer, "size", hue="denoiser"), f"{PIXELS[0]}. {SIZE}")


@jax.jit
@partial(jax.vmap, in_axes=(0, 0, None, None, None))
def _ideally(
    x: Latents,
    sigma: Float[Array, ""],
    answers: Float[Array, "A F h w C"],
    log_prior: Float[Array, " A"],
    keys: Key[Array, " n"],
) -> Latents:
    """Return the same size for the ideal denoiser, at every step."""
    return spread(lambda x: ideal(x, sigma, answers, log_prior).x0, x, keys)
