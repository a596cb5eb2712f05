"""Sampling as one scan over noise levels, with every clean estimate and observation returned."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jcos import mesh
from jcos.dit import DiT
from jcos.flow import Plan, SolverState, clean_estimate, guide, solver_init, solver_step
from jcos.layers import rounded
from jcos.probes import Probe, Site

T = TypeVar("T")


class Condition(NamedTuple):
    """What a video is generated from.

    context: embedded prompt. negative: embedded negative prompt, of as many rows; needed for
    guidance only.
    channels: concatenated to the latent at every step (image-to-video). first: the given first
    latent frame of models that keep it in place (TI2V): it replaces frame 0 before and after every
    step, at timestep 0.
    """

    context: Float[Array, "*axes L text"]
    negative: Float[Array, "*axes L text"] | None = None
    channels: Float[Array, "*axes F H W E"] | None = None
    first: Float[Array, "*axes 1 H W C"] | None = None


class Trace(NamedTuple):
    """What a trajectory leaves behind.

    latents: the end, [F, H, W, C]. x0: the clean estimate that every step went on with, [S, F, H,
    W, C]. observed: what the probe saw after blocks, [S, …] per observation. finite: whether each
    step's estimate is free of inf and nan, [S]. seen: what the probe saw of the estimates, [S, …].
    layer: the first block that handed on an inf or nan, [S]; −1 where none did.
    """

    latents: Float[Array, "*axes F H W C"]
    x0: Float[Array, "*axes S F H W C"]
    observed: Any
    finite: Bool[Array, "*axes S"]
    seen: Any = ()
    layer: Int[Array, "*axes S"] | int = -1


def denoise(
    experts: Sequence[DiT],
    plan: Plan,
    condition: Condition,
    noise: Float[Array, "F H W C"],
    key: Key[Array, ""],
    probe: Probe,
) -> Trace:
    """One trajectory; call it through `run`, which binds the axes `seed` and `world`."""
    stored = experts[0].numerics.latents
    steps = jnp.arange(plan.steps)
    split = plan.steps if plan.high_steps is None else plan.high_steps
    levels = plan.schedule

    def step(
        number: int, state: SolverState, scanned: tuple[Array, ...]
    ) -> tuple[SolverState, tuple]:
        i, sigma, t, row = scanned
        none = jnp.int32(-1)
        site = Site(i, none, jnp.int32(0), sigma, jax.random.fold_in(key, i), state.last)
        x = probe.on_latents(site, state.x)
        scale = None if plan.guidance is None else plan.guidance[number]
        v, (observed, layer) = _velocity(experts[number], x, t, site, condition, probe, scale)
        x0, seen = probe.on_estimate(site, x, clean_estimate(x, v, sigma))
        state = solver_step(state, x, x0, row)
        state = state._replace(x=_keep_first(rounded(state.x, stored), condition))
        return state, (x0, probe.on_step(site, observed), jnp.isfinite(x0).all(), seen, layer)

    state = solver_init(mesh.constrain(_keep_first(rounded(noise, stored), condition)))
    pieces = []
    for number, part in enumerate((slice(0, split), slice(split, None))[: len(experts)]):
        xs = tuple(
            jnp.asarray(a)[part]
            for a in (steps, levels.sigmas[:-1], levels.timesteps, levels.table)
        )
        state, piece = jax.lax.scan(lambda s, x, number=number: step(number, s, x), state, xs)
        pieces.append(piece)
    return Trace(state.x, *jax.tree.map(lambda *a: jnp.concatenate(a), *pieces))


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
    if condition.first is not None:
        frames, height, width = expert.cfg.tokens(*x.shape[:3])
        t = jnp.where(jnp.arange(frames * height * width) < height * width, 0.0, t)

    def branch(number: Array, context: Array) -> tuple[Array, Any]:
        here = site._replace(branch=number)

        def on_block(layer: Array, tokens: Array) -> tuple[Array, tuple[Any, Array]]:
            tokens, seen = probe.on_block(here._replace(layer=layer), tokens)
            return tokens, (seen, jnp.isfinite(tokens).all())

        v, (observed, finite) = expert(model_input, t, context, on_block)
        return v, (observed, _first_false(finite))

    if scale is None:
        return branch(jnp.int32(0), condition.context)
    if condition.negative is None:
        raise ValueError("guidance needs a negative prompt; this condition has none")
    (v, v_negative), (observed, layers) = _spread_map(branch, mesh.BRANCH, (0, 0))(
        jnp.arange(2), jnp.stack([condition.context, condition.negative])
    )
    layer = jnp.where(layers < 0, jnp.max(layers), layers).min()
    return guide(v, v_negative, scale), (jax.tree.map(lambda a: a[0], observed), layer)


def _first_false(flags: Bool[Array, " L"]) -> Int[Array, ""]:
    return jnp.where(flags.all(), -1, jnp.argmin(flags))


def _spread_map(f: Callable[..., Any], axis: str, inputs: tuple[int | None, ...]) -> Any:
    """`vmap` with a named axis, which on a mesh in use is spread over the axis of that name."""
    over = axis if mesh.in_use() else None
    return jax.vmap(f, in_axes=inputs, axis_name=axis, spmd_axis_name=over)


def _keep_first(x: Array, condition: Condition) -> Array:
    return x if condition.first is None else x.at[:1].set(condition.first)


def run(
    experts: Sequence[DiT],
    plan: Plan,
    conditions: Condition,
    noise: Float[Array, "K F H W C"],
    keys: Key[Array, " K"],
    probe: Probe,
) -> Trace:
    """Trajectories of W worlds (leading axis of every array of `conditions`) × K seeds: leaves [W,
    K, …].

    Worlds share noise and keys. Pure: jit it, vmap it over puzzles or probes.
    """

    def one(condition: Condition, noise: Array, key: Array) -> Trace:
        return denoise(experts, plan, condition, noise, key, probe)

    conditions = mesh.constrain(conditions, mesh.WORLD)
    noise = mesh.constrain(noise, mesh.SEED)
    seeds = _spread_map(one, mesh.SEED, (None, 0, 0))
    trace = _spread_map(seeds, mesh.WORLD, (0, None, None))(conditions, noise, keys)
    # Every host reads these.
    finite, layer = mesh.constrain((trace.finite, trace.layer))
    return trace._replace(finite=finite, layer=layer)


def sweep(f: Callable[[T], Any], values: T, *, chunk: int | None = None) -> Any:
    """f over the leading axis of `values` (probes, conditions, …) as one program, `chunk` of them
    at a time (all at once by default)."""
    return jax.vmap(f)(values) if chunk is None else jax.lax.map(f, values, batch_size=chunk)


def stack(values: Sequence[T]) -> T:
    """Pytrees of the same shape as one, with a leading axis: what `sweep` runs over."""
    return jax.tree.map(lambda *a: jnp.stack(a), *values)


def check_finite(trace: Trace) -> Trace:
    """The trace itself, if one of its runs is free of inf and nan; the others are logged.

    Runs do not touch each other unless a probe makes them, so one bad seed leaves the rest as they
    are. Raises FloatingPointError naming step and block where all runs are bad.
    """
    finite = np.asarray(trace.finite)
    if not finite.all(-1).any():
        check_steps(finite, np.asarray(trace.layer))
    for run in np.argwhere(~finite.all(-1)):
        sentence = _where_it_broke(finite, np.asarray(trace.layer), tuple(run.tolist()))
        logging.getLogger("jcos").warning(sentence)
    return trace


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
