"""How near does steering come to its exact target, with so many particles?

Three answers that differ in nothing but their reward r (0, ½, 1) are equally likely for the ideal
denoiser, so steering towards exp(λ r) has the target softmax(λ r), and the mean of exp(λ r) is
known. The ideal denoiser answers in place of a transformer, of which only a stub runs along.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from flax import nnx
from jaxtyping import Array, Float

from jcos.config import WanConfig
from jcos.experiments import plots
from jcos.experiments.experiment import Experiment, Picture, Progress
from jcos.lab.ideal import IdealDenoiser
from jcos.lab.judges import Estimates, Judge
from jcos.lab.methods import Method, Row, Transform
from jcos.lab.results import measure
from jcos.lab.search import run
from jcos.variants import toy
from jcos.wan import Wan

REWARDS = (0.0, 0.5, 1.0)
METHODS: Mapping[str, tuple[Transform, bool]] = {
    "resampled": ("diff", True),
    "resampled, largest so far": ("max", True),
    "weights only": ("diff", False),
}
"""Feynman–Kac steering by the change of the reward; by its maximum, which has another target; and
weights of the final reward that are never resampled."""
BIAS = "Weight of the best answer among the particles, less its exact probability."
NORM = "The estimated mean of exp(λ r) over the exact one, less 1; without bias for exact weights."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steering(Experiment):
    """Bias, effective sample size and estimated norm of Feynman–Kac steering by the number of
    particles. puzzles: independent searches. scale: λ."""

    question = "How near does steering come to its exact target, with so many particles?"

    puzzles: int = 256
    particles: tuple[int, ...] = (2, 4, 8, 16, 32)
    scale: float = 3.0
    steps: int = 8

    def check(self, config: WanConfig) -> None:
        super().check(config)
        if min(self.particles, default=0) < 1 or self.steps < 4:
            raise ValueError(
                f"particles are {self.particles}, steps {self.steps}; each of the former is at "
                "least 1, and there are at least 4 steps"
            )

    def measure(self, model: Wan, progress: Progress) -> xr.Dataset:
        stub, (frames, side) = small(), (3, 8)
        cells = jnp.arange(frames * (side // 2) ** 2 * 12).reshape(frames, side // 2, side // 2, 12)
        answers = jnp.stack([jnp.where(cells % 3 == k, 0.4, 0.0) for k in range(3)])
        one = stub.condition(np.zeros((side, side, 3), np.uint8), "", frames)
        many = jax.tree.map(lambda a: jnp.broadcast_to(a, (self.puzzles, *a.shape)), one)
        exact = np.exp(self.scale * np.array(REWARDS))
        values = np.zeros((3, len(METHODS), len(self.particles), self.puzzles))
        for i, (kind, resampled) in enumerate(METHODS.values()):
            for j, count in enumerate(self.particles):
                progress(list(METHODS)[i], j, len(self.particles))
                result = run(
                    stub,
                    many,
                    self.method(count, kind, resampled=resampled),
                    [1000 * number for number in range(self.puzzles)],
                    judges={"reward": Reward(answers)},
                    probe=IdealDenoiser(answers, jnp.zeros(3)),
                )
                mass = np.asarray(shares(jnp.asarray(result.particles), answers))
                best = np.einsum("wk,wk->w", result.weights, mass[..., -1])
                norm = np.exp(result.log_norm) / exact.mean() - 1
                size = 1 / np.square(result.weights).sum(1)
                values[:, i, j] = best - exact[-1] / exact.sum(), size, norm
        dims = "method particles puzzle"
        variables: dict[str, Any] = {
            "forwards": (("particles",), [self.steps * n for n in self.particles], {}),
            "bias": measure(dims, values[0], "bias", BIAS, span=(-1.0, 1.0)),
            "size": measure(dims, values[1], "effective sample size", span=(1.0, np.inf)),
            "norm": measure(dims, values[2], "error of the norm", NORM, span=(-1.0, np.inf)),
        }
        labels = {"method": list(METHODS), "particles": list(self.particles)}
        task = ("puzzle", ["exchangeable answers"] * self.puzzles)
        return xr.Dataset(variables, labels | {"task": task})

    def method(self, count: int, kind: Transform, *, resampled: bool) -> Method:
        common: dict[str, Any] = {"judge": "reward", "transform": kind, "scale": self.scale}
        common |= {"select": "systematic", "keep": count}
        rows = [Row(step=s, ess=0.7, **common) for s in range(1, self.steps - 2)] * resampled
        last = Row(step=-1, ess=1e-9, **common)
        return Method(rows=(*rows, last), seeds=count, steps=self.steps, eta=1.0)

    def figures(self, data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
        for name, caption in (("bias", BIAS), ("norm", NORM)):
            figure = plots.lines(data, name, "particles", hue="method", ylabel=name)
            for axes in figure.axes:
                axes.set_xscale("log", base=2)
                axes.axhline(0, color="#777777", linewidth=0.8)
            yield name, Picture(figure, caption)


class Reward(Judge):
    """The rewards of answers, linear in between."""

    def __init__(self, answers: Float[Array, "3 F h w C"]):
        self.answers = answers

    def __call__(self, at: Estimates) -> Float[Array, "W K"]:
        return shares(jnp.asarray(at.x0), self.answers) @ jnp.array(REWARDS)


def shares(
    x0: Float[Array, "W K F h w C"], answers: Float[Array, "A F h w C"]
) -> Float[Array, "W K A"]:
    """Return how much of estimates is each of answers that share no cell."""
    size = jnp.sum(jnp.square(answers), (1, 2, 3, 4))
    return jnp.einsum("pkfhwc,afhwc->pka", x0, answers) / size[None, None]


def small() -> Wan:
    """Return a model of one narrow block, to stand in for one whose estimates are replaced."""
    config = toy()
    dit = dataclasses.replace(config.dit, dim=16, ffn_dim=16, heads=1, layers=1)
    return Wan(dataclasses.replace(config, dit=dit), rngs=nnx.Rngs(0))
