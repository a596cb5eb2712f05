"""Means over seeds: what is averaged, which runs count, and the probes that do it."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jcos.sampling.probes import Chain, EstimateEnsemble, SeedEnsemble, chain, choose

KINDS = ("tokens", "estimates", "velocities")


class Mean(NamedTuple):
    """What is averaged (one of `KINDS`, or nothing), over how many seeds, after which layers, in
    which steps."""

    kind: str = "nothing"
    members: int = 1
    layers: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()

    def __str__(self) -> str:
        parts = [f"mean {self.kind} of {self.members}"]
        parts += [_range("layer", self.layers)] if self.layers else []
        return ", ".join([*parts, self.span])

    @property
    def span(self) -> str:
        return _range("step", self.steps) if self.steps else ""


def _range(what: str, numbers: tuple[int, ...]) -> str:
    first, last = numbers[0], numbers[-1]
    if len(numbers) == 1:
        return f"{what} {first}"
    if last - first + 1 == len(numbers):
        return f"{what}s {first} to {last}"
    return f"{what}s {' '.join(map(str, numbers))}"


PLAIN = Mean()
HOW = {"one": "one goes on", "majority": "majority of all", "best": "best of all"}


class Case(NamedTuple):
    """A mean, and what counts: each member as the one that goes on ("one"), the one nearest to the
    others ("majority"), the best ("best"), or all together ("all"). Of runs without a mean, members
    says how many are compared, or in how many steps one is made ("longer")."""

    mean: Mean
    how: str
    members: int

    def __str__(self) -> str:
        return self._named(str(self.mean))

    @property
    def kind(self) -> str:
        """Its name without layers and steps."""
        return self._named(f"mean {self.mean.kind} of {self.members}")

    def _named(self, mean: str) -> str:
        if self.mean != PLAIN:
            return f"{mean}, {HOW[self.how]}" if self.how in HOW else mean
        if self.how == "longer":
            return f"one run of {self.members} steps"
        if self.how == "one":
            return "one run"
        return f"{self.members} runs" + (f", {self.how}" if self.how in HOW else "")


def groups_of(seeds: int, members: int) -> Int[np.ndarray, " K"]:
    """Return which group each seed belongs to: groups of so many in their order; a seed that is
    left over is alone."""
    number = np.arange(seeds)
    whole = seeds // members * members
    return np.where(number < whole, number // members, number).astype(np.int32)


def probe_of(mean: Mean, steps: int, layers: int, seeds: int, unconditional: bool) -> Chain:
    """Return both kinds of mean, of which one or none is on: so all means are one program."""
    at, tokens = choose(steps, mean.steps, "step"), mean.kind == "tokens"
    groups = jnp.asarray(groups_of(seeds, mean.members))
    return chain(
        SeedEnsemble(
            jnp.asarray(np.outer(at & tokens, choose(layers, mean.layers, "layer"))),
            jnp.array([True, unconditional]),
            groups,
        ),
        EstimateEnsemble(
            jnp.asarray(at & (mean.kind in ("estimates", "velocities"))),
            jnp.array(mean.kind == "velocities"),
            groups,
        ),
    )
