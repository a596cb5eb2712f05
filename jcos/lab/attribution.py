"""Which places of a run carry a result: gradients through the run, and the exact patches beside.

A place is patched by a ← a + m (other − a), with the activations of another run, or with zero. The
mask m is data of a probe, so one backward pass with respect to it at m = 0 gives Σ (other − a)
∂L/∂a for every step, layer and head or frame at once: attribution patching (Nanda 2023; AtP*, arXiv
2403.00745), a first-order estimate of what the exact patch, m = 1, changes. Where attention is
saturated the estimate fails: compare it with `patch_effects` before it is believed.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, SupportsIndex, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Key

from jcos.config import Sampling
from jcos.loop import Noise, Runs, seed_keys
from jcos.model import attention
from jcos.sampling import flow, trajectory
from jcos.sampling.inside import Inside
from jcos.sampling.interventions import places
from jcos.sampling.noise import seed_numbers
from jcos.sampling.probe import Latents, Probe, Site, Sizes
from jcos.sampling.probes import States, chain, counted
from jcos.sampling.trajectory import Condition
from jcos.wan import Wan

Place = Literal["block", "heads", "cross", "mlp"]
"""Tokens after a block, by latent frame; what the heads of self-attention return, by head; the same
of cross-attention to the prompt; hidden units of the feed-forward layer, by latent frame."""
BY_HEAD = ("heads", "cross")
Through = Literal["run", "step"]
Metric = Callable[[Latents], Array]
"""A scalar of a latent [F, H, W, C]. `jax.tree_util.Partial` of a function and arrays makes metrics
that differ in the arrays share one compiled program."""


class Cell(NamedTuple):
    """A place to patch. unit: its head or latent frame; None for all of them."""

    place: str
    step: int
    layer: int
    unit: int | None = None


class GradedPatch(Inside):
    """Turns the activations of a place towards those of the last world, or towards zero where there
    is one world.

    mask [steps, layers, heads], or latent frames at "block" and "mlp": how far, 0 to 1. In both
    branches of guidance. No gradient passes through the donor's activations.
    """

    mask: Float[Array, "*sweep S L U"]

    def made_for(self) -> Sizes:
        units = "heads" if self.place in BY_HEAD else "latent frames"
        return counted(self.mask, "steps", "layers", units)

    def act(self, site: Site, z: Array) -> tuple[Array, tuple[()]]:
        row, axis = self.mask[site.step, site.layer], int(self.place in BY_HEAD)
        several = jax.lax.axis_size("world") > 1
        other = jax.lax.all_gather(z, "world")[-1] if several else jnp.zeros_like(z)
        shape = [1] * z.ndim
        shape[axis] = z.shape[axis]
        m = jnp.repeat(row, z.shape[axis] // len(row)).reshape(shape)
        return z + m.astype(z.dtype) * (jax.lax.stop_gradient(other) - z), ()


class Detached(Probe):
    """Lets no gradient pass from a step to the steps before it."""

    def on_latents(self, site: Site, x: Latents) -> Latents:
        return jax.lax.stop_gradient(x)


def attribute(
    model: Wan,
    condition: Condition,
    metric: Metric,
    places: Sequence[str] = ("block",),
    *,
    other: Condition | None = None,
    seeds: Sequence[int] | SupportsIndex = (0,),
    through: Through = "run",
    sampling: Sampling | None = None,
    noise: Noise = None,
) -> dict[str, Float[Array, "K S L U"]]:
    """Return, for every place of each seed's run, a first-order estimate of what patching it would
    add to the metric: [seeds, steps, layers, heads or latent frames].

    other: condition of the run that activations are taken from, with the same noise. Without it
    they are set to zero: then the estimate is −(activation × gradient).
    metric: a differentiable scalar. through: "run" takes it of the final latent, and the gradient
    passes all later steps; "step" takes it of the clean estimate of the very step, and knows
    nothing of what later steps make of it. The two answer different questions.
    The cost is about five passes a step, whatever the number of places; memory hardly grows with
    the steps. Raises ValueError where the metric is no scalar, or a place or `through` unknown.
    """
    _check_places(places)
    runs, metric = _prepared(model, condition, other, metric, sampling, through)
    masks = {place: jnp.zeros(_sizes(runs, place)) for place in places}
    each = _each(runs, seeds, noise, metric)
    found = [_gradients(run, masks, through) for run in each]
    return jax.tree.map(lambda *a: jnp.stack(a), *found)


def patch_effects(
    model: Wan,
    condition: Condition,
    metric: Metric,
    cells: Sequence[Cell | tuple[Any, ...]],
    *,
    other: Condition | None = None,
    seeds: Sequence[int] | SupportsIndex = (0,),
    through: Through = "run",
    sampling: Sampling | None = None,
    noise: Noise = None,
    chunk: int | None = 8,
) -> Float[Array, "K cells"]:
    """Return what patching each cell, one at a time, adds to the metric: exactly what `attribute`
    estimates, at the price of a run for each.

    cells: (place, step, layer, unit), as in `Cell`; a fraction is of the run or of the depth.
    chunk: cells at a time. Raises IndexError for one that does not exist, otherwise as `attribute`.
    """
    if not len(cells) or {len(cell) for cell in cells} - {3, 4}:
        raise ValueError(f"cells are {cells}; give (place, step, layer, unit) of at least one")
    runs, metric = _prepared(model, condition, other, metric, sampling, through)
    rows = [_cell(runs, cell) for cell in cells]
    masks = {p: np.zeros((1 + len(rows), *_sizes(runs, p)), np.float32) for p in get_args(Place)}
    for i, cell in enumerate(rows):
        here = slice(None) if cell.unit is None else cell.unit
        masks[cell.place][1 + i, cell.step, cell.layer, here] = 1.0
    used = {cell.place for cell in rows}
    stacked = {p: jnp.asarray(mask) for p, mask in masks.items() if p in used}
    found, at = [], np.array([cell.step if through == "step" else 0 for cell in rows])
    for run in _each(runs, seeds, noise, metric):
        values = _values(run, stacked, through, chunk)
        found.append((values[1:] - values[:1])[np.arange(len(rows)), at])
    return jnp.stack(found)


def _prepared(
    model: Wan,
    condition: Condition,
    other: Condition | None,
    metric: Metric,
    sampling: Sampling | None,
    through: str,
) -> tuple[Runs, Partial]:
    if through not in get_args(Through):
        raise ValueError(f"through is {through!r}; it is one of {get_args(Through)}")
    if condition.context.ndim != 2:
        raise ValueError("the condition is stacked; attribute one run at a time")
    both = condition if other is None else trajectory.tree_stack([condition, other])
    # One that is data already stays so: a program serves all metrics of its kind.
    wrapped = metric if isinstance(metric, Partial) else Partial(metric)
    runs = Runs(model, both, None, sampling)
    shape = (*condition.grid, model.config.dit.out_channels)
    out = jax.eval_shape(wrapped, jax.ShapeDtypeStruct(shape, jnp.float32))
    if getattr(out, "shape", None) != () or not jnp.issubdtype(out.dtype, jnp.floating):
        kind = f"{out.dtype}{list(out.shape)}" if hasattr(out, "dtype") else type(out).__name__
        raise ValueError(f"the metric returns {kind}; it has to be one floating-point number")
    runs.check(1)
    return runs, wrapped


def _check_places(places: Sequence[str]) -> None:
    for place in places:
        if place not in get_args(Place):
            raise ValueError(f"there is no place {place!r}; there are {', '.join(get_args(Place))}")


def _sizes(runs: Runs, place: str) -> tuple[int, int, int]:
    dit = runs.model.config.dit
    units = dit.heads if place in BY_HEAD else dit.tokens(*runs.conditions.grid)[0]
    return runs.plan.steps, dit.layers, units


def _cell(runs: Runs, cell: Sequence[Any]) -> Cell:
    """Return a cell of this run, in whole numbers."""
    place, *numbers = cell
    _check_places([place])
    names = ("step", "layer", "head" if place in BY_HEAD else "frame")
    if numbers[2:] == [None]:
        numbers.pop()
    each = zip(numbers, _sizes(runs, place), names, strict=False)
    return Cell(place, *(places([number], size, name)[0] for number, size, name in each))


class Run(NamedTuple):
    """A run of one seed, as data, and the metric that it is judged by."""

    model: Wan
    plan: flow.Plan
    conditions: Condition
    keys: Key[Array, " 1"]
    noise: Array | None
    metric: Partial


def _each(
    runs: Runs, seeds: Sequence[int] | SupportsIndex, noise: Noise, metric: Partial
) -> list[Run]:
    """Return the run of each seed."""
    numbers = seed_numbers(seeds)
    keys, first = runs.inputs(numbers, noise)  # which lays conditions and plan out as well
    about = runs.model, runs.plan, runs.conditions
    rows = [slice(i, i + 1) for i in range(len(numbers))]
    return [Run(*about, keys[i], None if first is None else first[i], metric) for i in rows]


def _losses(
    run: Run, masks: dict[str, Array], through: Through, *, remat: bool = False
) -> Float[Array, " _"]:
    """Return the metric of world 0's final latent, [1], or of each of its clean estimates, [S]."""
    model, conditions = run.model, run.conditions
    noise, keys = trajectory.draw(model.config.dit, conditions, run.keys, run.noise)
    probe = chain(*[Detached()] * (through == "step"), *map(GradedPatch, masks, masks.values()))
    trace = trajectory.run(model.experts, run.plan, conditions, noise, keys, probe, remat=remat)
    return jax.vmap(run.metric)(trace.x0[0, 0] if through == "step" else trace.latents[0])


@partial(jax.jit, static_argnames="through")
def _gradients(run: Run, masks: dict[str, Array], through: Through) -> dict[str, Array]:
    return jax.grad(lambda masks: _losses(run, masks, through, remat=True).sum())(masks)


@partial(jax.jit, static_argnames=("through", "chunk"))
def _values(
    run: Run, masks: dict[str, Array], through: Through, chunk: int | None
) -> Float[Array, "cells _"]:
    return trajectory.sweep(lambda m: _losses(run, m, through), masks, chunk=chunk)


# ---- how much a clean estimate depends on the state


def jacobian(
    model: Wan,
    condition: Condition,
    seeds: Sequence[int] | SupportsIndex = (0,),
    *,
    directions: int = 8,
    sampling: Sampling | None = None,
) -> Float[Array, "K S F H W C"]:
    """Return how far each value of x̂0 moves, root mean square, for a random unit change of every
    value of x_s, with the condition fixed: the size of the rows of ∂x̂0/∂x_s at every step of a run.

    The plain run's states are taken, and `directions` random Jacobian-vector products at each, with
    XLA's attention, the only one here that has forward derivatives. Zero where the step's state
    does not matter: then no earlier step can have had a say (arXiv 2507.12549).
    """
    runs = Runs(model, condition, States(), sampling)
    if not runs.single:
        raise ValueError("the condition is stacked; take one at a time")
    if directions < 1:
        raise ValueError(f"directions is {directions}; at least 1 is needed")
    found = []
    for seed in seed_numbers(seeds):
        runs.begin([seed])
        rows = []
        for state in runs:
            number, one = runs._steps[state.step]
            assert state.trace is not None
            x, key = state.trace.estimate_obs[0, 0, 0], seed_keys([seed, state.step])
            with attention.using("xla"):
                rows.append(
                    _spread(model.experts[number], one, runs.conditions, x, key, directions)
                )
        found.append(jnp.stack(rows))
    return jnp.stack(found)


@partial(jax.jit, static_argnames="directions")
def _spread(
    expert: Any,
    step: trajectory.Steps,
    conditions: Condition,
    x: Latents,
    keys: Key[Array, " 2"],
    directions: int,
) -> Latents:
    def estimate(x: Latents) -> Latents:
        state = trajectory.begin(expert.numerics, conditions, x[None])
        return trajectory.advance(expert, step, conditions, state, keys[:1], Probe())[1].x0[0, 0, 0]

    return spread(estimate, x, jax.random.split(keys[1], directions))


def spread(function: Callable[[Latents], Latents], x: Latents, keys: Key[Array, " n"]) -> Latents:
    """Return how far each value moves, root mean square over a random direction for each key."""

    def square(key: Key[Array, ""]) -> Latents:
        tangent = jax.random.normal(key, x.shape, x.dtype)
        return jnp.square(jax.jvp(function, (x,), (tangent,))[1])

    return jnp.sqrt(jax.lax.map(square, keys).mean(0))
