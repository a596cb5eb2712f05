"""Sampling as one scan over noise levels, with every clean estimate and observation returned."""

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Key

from jcos.config import DiTConfig, Numerics
from jcos.devices import memory, mesh
from jcos.model.attention import side_by_side
from jcos.model.dit import DiT
from jcos.model.layers import rounded
from jcos.sampling.checks import check_probe, swept
from jcos.sampling.flow import Plan, SolverState, clean_estimate, guide, solver_init, solver_step
from jcos.sampling.probe import Probe, Site
from jcos.sampling.trace import Trace

T = TypeVar("T")


class Condition(NamedTuple):
    """What a video is generated from.

    context: embedded prompt. negative: embedded negative prompt, of as many rows; needed for
    guidance only.
    channels: concatenated to the latent at every step (image-to-video). first: the given first
    latent frames, mostly one, of models that keep them in place (TI2V): at every step they are
    these, at timestep 0, in what the model sees, in the clean estimate and in what the solver makes
    of it.
    """

    context: Float[Array, "*axes L text"]
    negative: Float[Array, "*axes L text"] | None = None
    channels: Float[Array, "*axes F H W E"] | None = None
    first: Float[Array, "*axes given H W C"] | None = None


class Steps(NamedTuple):
    """The steps of a run that one expert makes: their numbers, noise levels, timesteps and rows of
    solver coefficients (`flow.Schedule`), and its scale of guidance."""

    number: Int[Array | np.ndarray, " S"]
    sigma: Float[Array | np.ndarray, " S"]
    timestep: Float[Array | np.ndarray, " S"]
    row: Float[Array | np.ndarray, "S 8"]
    scale: Float[Array | np.ndarray, ""] | None

    def one(self, i: int) -> "Steps":
        """The i-th of them alone."""
        at = slice(i, i + 1)
        return Steps(
            self.number[at], self.sigma[at], self.timestep[at], self.row[at], scale=self.scale
        )


def steps_of(plan: Plan, expert: int) -> Steps:
    """Of the first expert (0), which makes all of them where it is the only one, or the second."""
    split = plan.steps if plan.high_steps is None else plan.high_steps
    part = (slice(0, split), slice(split, None))[expert]
    levels = plan.schedule
    return Steps(
        np.arange(plan.steps, dtype=np.int32)[part],
        levels.sigmas[:-1][part],
        levels.timesteps[part],
        levels.table[part],
        scale=None if plan.guidance is None else plan.guidance[expert],
    )


def denoise(
    experts: Sequence[DiT],
    plan: Plan,
    condition: Condition,
    noise: Float[Array, "F H W C"],
    key: Key[Array, ""],
    probe: Probe,
) -> Trace:
    """One trajectory; call it through `run`, which binds the axes `seed` and `world`."""
    state, parts = _start(experts[0].numerics, condition, noise), []
    for number, expert in enumerate(experts):
        steps = steps_of(plan, number)
        state, part = _denoise_part(expert, steps, condition, state, key, probe)
        parts.append(part)
    return joined(parts)


def _start(numerics: Numerics, condition: Condition, noise: Float[Array, "F H W C"]) -> SolverState:
    first = _keep_first(rounded(noise, numerics.latents), condition)
    return solver_init(mesh.constrain(first))


def _denoise_part(
    expert: DiT,
    steps: Steps,
    condition: Condition,
    state: SolverState,
    key: Key[Array, ""],
    probe: Probe,
) -> tuple[SolverState, Trace]:
    """One expert's steps. Weights that lie in host memory are brought to the device."""
    expert, stored = memory.on_device(expert), expert.numerics.latents
    scale = None if steps.scale is None else jnp.asarray(steps.scale)

    def step(state: SolverState, scanned: tuple[Array, ...]) -> tuple[SolverState, tuple]:
        i, sigma, t, row = scanned
        none = jnp.int32(-1)
        site = Site(i, none, jnp.int32(0), sigma, jax.random.fold_in(key, i), state.last)
        x = _keep_first(probe.on_latents(site.at("on_latents"), state.x), condition)
        v, (observed, layer) = _velocity(expert, x, t, site, condition, probe, scale)
        # At timestep 0 the velocity of the given frame means nothing: x0 has the frame itself.
        x0 = _keep_first(clean_estimate(x, v, sigma), condition)
        x0, seen = probe.on_estimate(site.at("on_estimate"), x, x0)
        x0 = _keep_first(x0, condition)
        state = solver_step(state, x, x0, row)
        state = state._replace(x=_keep_first(rounded(state.x, stored), condition))
        observed = probe.on_step(site.at("on_step"), observed)
        return state, (x0, observed, seen, jnp.isfinite(x0).all(), layer, sigma, t)

    columns = (steps.number, steps.sigma, steps.timestep, steps.row)
    state, left = jax.lax.scan(step, state, tuple(map(jnp.asarray, columns)))
    return state, Trace(state.x, *left)


def joined(parts: Sequence[Trace], axis: int = 0) -> Trace:
    """A whole trajectory, of what its parts left behind. axis: that of the steps."""

    def join(*pieces: Array) -> Array:
        return jnp.concatenate(pieces, axis)

    steps = [part._replace(latents=()) for part in parts]
    return jax.tree.map(join, *steps)._replace(latents=parts[-1].latents)


def _velocity(
    expert: DiT,
    x: Array,
    t: Array,
    site: Site,
    condition: Condition,
    probe: Probe,
    scale: Array | None,
) -> tuple[Array, tuple[Any, Array]]:
    """Guided velocity, the conditional branch's observations, and the first block of either branch
    that handed on an inf or nan (−1: none)."""
    if condition.channels is not None:
        model_input = jnp.concatenate([x, condition.channels], axis=-1)
    else:
        model_input = x
    clean = None
    if condition.first is not None:
        frames, height, width = expert.cfg.tokens(*x.shape[:3])
        clean = jnp.arange(frames * height * width) < len(condition.first) * height * width

    # Devices that share the branches hold the observations of theirs; one device holds those of
    # the conditional branch alone.
    alone = scale is not None and mesh.devices(mesh.BRANCH) == 1

    def branch(number: Array, context: Array) -> tuple[Array, Any, Array]:
        here = site._replace(branch=number)

        def on_block(layer: Array, tokens: Array) -> tuple[Array, tuple[Any, Array]]:
            tokens, seen = probe.on_block(here.at("on_block", layer), tokens)
            if alone:
                seen = jax.tree.map(lambda a: jax.lax.all_gather(a, mesh.BRANCH)[0], seen)
            return tokens, (seen, jnp.isfinite(tokens).all())

        slots = (probe.slots(), None)
        v, (observed, finite) = expert(model_input, t, context, on_block, clean=clean, slots=slots)
        return v, observed, _first_false(finite)

    if scale is None:
        v, observed, layer = branch(jnp.int32(0), condition.context)
        return v, (observed, layer)
    if condition.negative is None:
        raise ValueError("guidance needs a negative prompt; this condition has none")
    both = _spread_map(branch, mesh.BRANCH, (0, 0), outputs=(0, None if alone else 0, 0))
    (v, v_negative), observed, layers = both(
        jnp.arange(2), jnp.stack([condition.context, condition.negative])
    )
    if not alone:
        observed = jax.tree.map(lambda a: a[0], observed)
    layer = jnp.where(layers < 0, jnp.max(layers), layers).min()
    return guide(v, v_negative, scale), (observed, layer)


def _first_false(flags: Bool[Array, " L"]) -> Int[Array, ""]:
    return jnp.where(flags.all(), -1, jnp.argmin(flags))


def _spread_map(
    f: Callable[..., Any],
    axis: str,
    inputs: tuple[int | None, ...],
    idle: Sequence[str] = (),
    outputs: Any = 0,
) -> Any:
    """`vmap` with a named axis, which on a mesh in use is spread over the axis of that name, unless
    that one is idle."""
    over = axis if mesh.in_use() and axis not in idle else None
    return jax.vmap(f, inputs, outputs, axis_name=axis, spmd_axis_name=over)


def _keep_first(x: Array, condition: Condition) -> Array:
    return x if condition.first is None else x.at[: len(condition.first)].set(condition.first)


def run(
    experts: Sequence[DiT],
    plan: Plan,
    conditions: Condition,
    noise: Float[Array, "K F H W C"],
    keys: Key[Array, " K"],
    probe: Probe,
    *,
    idle: Sequence[str] = (),
) -> Trace:
    """Trajectories of W worlds (leading axis of every array of `conditions`) × K seeds: leaves [W,
    K, …].

    Worlds share noise and keys. Pure: jit it, vmap it over puzzles or probes. idle: axes of a mesh
    in use that these worlds or seeds are not spread over, because their number does not divide or
    something around them is. Raises as `check_probe` where the probe does not fit this run.
    """
    shape = (len(conditions.context), *noise.shape[:-1])
    check_probe(probe, experts[0], plan.steps, shape, guided=plan.guidance is not None)

    def one(condition: Condition, noise: Array, key: Array) -> Trace:
        return denoise(experts, plan, condition, noise, key, probe)

    world, seed = (None if axis in idle else axis for axis in (mesh.WORLD, mesh.SEED))
    conditions, noise = mesh.constrain(conditions, world), mesh.constrain(noise, seed)
    seeds = _spread_map(one, mesh.SEED, (None, 0, 0), idle)
    with _passes(len(conditions.context), len(noise), plan.guidance is not None, idle):
        return _told(_spread_map(seeds, mesh.WORLD, (0, None, None), idle)(conditions, noise, keys))


def _passes(
    worlds: int, seeds: int, guided: bool, idle: Sequence[str] = ()
) -> AbstractContextManager[Any]:
    """Tells attention how many passes a device makes at once."""
    sizes = {mesh.WORLD: worlds, mesh.SEED: seeds, mesh.BRANCH: 2 if guided else 1}
    here = [-(-n // (1 if axis in idle else mesh.devices(axis))) for axis, n in sizes.items()]
    return side_by_side(math.prod(here))


def size_of(conditions: Condition, seeds: int) -> tuple[int, ...]:
    """Worlds, seeds, latent frames, height and width of a run; ValueError where the conditions do
    not tell the size of the video."""
    return (len(conditions.context), seeds, *_grid(conditions))


def latent_shape(cfg: DiTConfig, conditions: Condition) -> tuple[int, int, int, int]:
    """[F, h, w, C] of the latents of conditions [W, …]; ValueError where they do not tell it."""
    return (*_grid(conditions), cfg.out_channels)


def _grid(conditions: Condition) -> tuple[int, int, int]:
    if conditions.channels is None:
        raise ValueError("the size of the video is read off the image channels; there are none")
    frames, height, width = conditions.channels.shape[1:4]
    return frames, height, width


def draw(
    cfg: DiTConfig,
    conditions: Condition,
    keys: Key[Array, " K"],
    noise: Float[Array, "K F H W C"] | None,
) -> tuple[Float[Array, "K F H W C"], Key[Array, " K"]]:
    """For a `run`, of the seeds' keys: the first noise, unless it is given, and keys of the steps.

    Raises ValueError where the conditions do not tell the size of the video, or noise has another.
    """
    shape = latent_shape(cfg, conditions)
    noise_keys, step_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    if noise is None:
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(noise_keys)
    elif noise.shape[1:] != shape:
        raise ValueError(f"noise of a seed has shape {noise.shape[1:]}; this video needs {shape}")
    return noise, step_keys


def begin(
    numerics: Numerics, conditions: Condition, noise: Float[Array, "worlds K F H W C"]
) -> SolverState:
    """All trajectories of a `run` before their first step: for `advance`. noise: of each world."""
    conditions = mesh.constrain(conditions, mesh.WORLD)
    noise = mesh.constrain(noise, mesh.WORLD, mesh.SEED)
    seeds = _spread_map(partial(_start, numerics), mesh.SEED, (None, 0))
    state = _spread_map(seeds, mesh.WORLD, (0, 0))(conditions, noise)
    return mesh.constrain(state, mesh.WORLD, mesh.SEED)


def advance(
    expert: DiT,
    steps: Steps,
    conditions: Condition,
    state: SolverState,
    keys: Key[Array, "W K"],
    probe: Probe,
) -> tuple[SolverState, Trace]:
    """All trajectories of a `run` by some steps of one expert. keys: of each world. What the parts
    of a run leave is put together by `joined(parts, 2)`."""

    def one(condition: Condition, state: SolverState, key: Array) -> tuple[SolverState, Trace]:
        return _denoise_part(expert, steps, condition, state, key, probe)

    conditions = mesh.constrain(conditions, mesh.WORLD)
    seeds = _spread_map(one, mesh.SEED, (None, 0, 0))
    worlds, seed_count = state.x.shape[:2]
    with _passes(worlds, seed_count, steps.scale is not None):
        state, trace = _spread_map(seeds, mesh.WORLD, (0, 0, 0))(conditions, state, keys)
    return mesh.constrain(state, mesh.WORLD, mesh.SEED), _told(trace)


def _told(trace: Trace) -> Trace:
    """With what every host reads on each of them."""
    finite, layer = mesh.constrain((trace.finite, trace.layer))
    return trace._replace(finite=finite, layer=layer)


def sweep(f: Callable[[T], Any], values: T, *, chunk: int | None = None) -> Any:
    """f over the leading axis of `values` (probes, conditions, …) as one program, `chunk` of them
    at a time (all at once by default)."""
    total = len(jax.tree.leaves(values)[0])

    def one(value: T) -> Any:
        with swept(value, values):
            return f(value)

    with side_by_side(min(chunk or total, total)):
        if chunk is None:
            return jax.vmap(one)(values)
        return jax.lax.map(one, values, batch_size=chunk)


def tree_stack(values: Sequence[T]) -> T:
    """Pytrees of the same shape as one, with a leading axis: what `sweep` runs over."""
    return jax.tree.map(lambda *a: jnp.stack(a), *values)


def check_finite(trace: Trace) -> Trace:
    """The trace itself, if one of its runs is free of inf and nan; the others are logged.

    Runs do not touch each other unless a probe makes them, so one bad seed leaves the rest as they
    are. Raises FloatingPointError naming step and block where all runs are bad.
    Inside jit, vmap or `sweep` no number is known yet: the trace passes unseen, and whoever calls
    the whole looks at its `finite` (or calls this once more).
    """
    if isinstance(trace.finite, Tracer):
        return trace
    finite = np.asarray(trace.finite)
    if not finite.all(-1).any():
        check_steps(finite, np.asarray(trace.layer))
    for run in np.argwhere(~finite.all(-1)):
        sentence = _where_it_broke(finite, np.asarray(trace.layer), tuple(run.tolist()))
        logging.getLogger("jcos").warning(sentence)
    return trace


def check_step(step: int, steps: int, part: Trace | None, *, every: bool = False) -> None:
    """FloatingPointError naming step and block where no run is finite after a step, or not every
    one. part: what the step left, leaves [W, K, 1, …]."""
    if part is None:
        return
    finite = np.asarray(part.finite)
    if not (finite.all() if every else finite.any()):
        before = np.ones((*finite.shape[:-1], steps), bool)
        before[..., step:] = finite
        check_steps(before, np.broadcast_to(np.asarray(part.layer), before.shape))


def check_steps(finite: Bool[np.ndarray, "*runs S"], layer: Any = None) -> None:
    """FloatingPointError naming the first step and run with inf or nan in it, and the block if
    `layer` tells (as in `Trace`)."""
    if not finite.all():
        bad = np.argwhere(~finite)
        *run, _ = bad[bad[:, -1].argmin()].tolist()
        raise FloatingPointError(_where_it_broke(finite, layer, tuple(run)))


def _where_it_broke(finite: np.ndarray, layer: Any, run: tuple[int, ...]) -> str:
    step = int(np.argmin(finite[run]))
    place = ""
    if layer is not None and np.ndim(layer):
        block = int(layer[(*run, step)])
        place = f", first after block {block}" if block >= 0 else ", outside the blocks"
    return (
        f"the latent is not finite from step {step} of {finite.shape[-1]} on "
        f"(in run {run}{place}): look at the probe, the guidance scale or the weights"
    )
