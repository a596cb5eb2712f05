"""Sampling as one scan over noise levels, with every clean estimate and observation returned."""

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple, TypeVar, no_type_check

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Key

from jcos.config import DiTConfig, Numerics, WanConfig
from jcos.devices import memory, mesh, sharding
from jcos.model.attention import side_by_side
from jcos.model.dit import DiT
from jcos.model.layers import rounded
from jcos.sampling.checks import check_probe, swept
from jcos.sampling.flow import (
    Plan,
    SolverState,
    clean_estimate,
    guide,
    solver_init,
    solver_step,
    step_noise,
)
from jcos.sampling.probe import Probe, Site
from jcos.sampling.trace import Trace

T = TypeVar("T")


@no_type_check  # its leaves may be shapes, or numpy arrays that wait on the host
class Condition(flax.struct.PyTreeNode):
    """What a video is generated from.

    context: embedded prompt. grid: frames, height and width of the latent; static.
    negative: embedded negative prompt, of as many rows; needed for guidance only.
    channels: concatenated to the latent at every step (image-to-video). first: the first latent
    frames, mostly one, of models that keep them in place (TI2V): at every step they are these, at
    timestep 0, in the model's input, in the clean estimate and in the solver's result. known: first
    latent frames of any model, which every clean estimate is made to have; the latents then go
    straight from the noise to them, so that the model always sees frames of its noise level.
    image: tokens of the image encoder, read beside the prompt in both branches (Wan2.1 I2V).
    """

    context: Float[Array, "*axes L text"]
    grid: tuple[int, int, int] = flax.struct.field(pytree_node=False)
    negative: Float[Array, "*axes L text"] | None = None
    channels: Float[Array, "*axes F H W E"] | None = None
    first: Float[Array, "*axes given H W C"] | None = None
    known: Float[Array, "*axes known H W C"] | None = None
    image: Float[Array, "*axes E image"] | None = None


def abstract_condition(config: WanConfig, grid: tuple[int, int, int]) -> Condition:
    """Return the shapes of a condition of this model, in one world."""
    shape: Any = jax.ShapeDtypeStruct
    cfg = config.dit
    text = shape((1, cfg.text_len, cfg.text_dim), config.numerics.text)
    extra = cfg.in_channels - cfg.out_channels
    channels = shape((1, *grid, extra), jnp.float32) if extra else None
    first = shape((1, 1, *grid[1:], cfg.out_channels), jnp.float32)
    vision = config.vision and shape((1, config.vision.tokens, config.vision.dim), jnp.float32)
    pinned = first if config.image == "pin" else None
    return Condition(text, grid, text, channels, pinned, image=vision)


class Steps(NamedTuple):
    """Steps of one expert: their numbers, noise levels, timesteps and rows of solver coefficients
    (`flow.Schedule`), and its scale of guidance."""

    number: Int[Array | np.ndarray, " S"]
    sigma: Float[Array | np.ndarray, " S"]
    timestep: Float[Array | np.ndarray, " S"]
    row: Float[Array | np.ndarray, "S columns"]
    scale: Float[Array | np.ndarray, ""] | None

    def one(self, i: int) -> "Steps":
        """Return the i-th step alone."""
        return Steps(*(column[i : i + 1] for column in self[:-1]), scale=self.scale)


def steps_of(plan: Plan, expert: int) -> Steps:
    """Return the steps of the first (or only) expert, 0, or of the second, 1."""
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


def run(
    experts: Sequence[DiT],
    plan: Plan,
    conditions: Condition,
    noise: Float[Array, "K F H W C"],
    keys: Key[Array, " K"],
    probe: Probe,
    *,
    idle: Sequence[str] = (),
    remat: bool = False,
) -> Trace:
    """Sample W worlds (leading axis of every array of `conditions`) × K seeds: leaves [W, K, …].

    Worlds share noise and keys. Pure: jit it, vmap it over puzzles or probes. idle: axes of a mesh
    in use over which these worlds or seeds are not spread, because their number does not divide or
    something around them is spread there. remat: recompute steps and blocks in a backward pass,
    whose memory then hardly grows with their number. Raises as `check_probe` where the probe does
    not fit.
    """
    shape = (len(conditions.context), *noise.shape[:-1])
    check_probe(probe, experts[0].cfg, plan.steps, shape)
    if plan.temperature is not None:
        noise = jnp.asarray(plan.temperature) * noise
    state, parts = begin(experts[0].numerics, conditions, noise, idle=idle), []
    for number, expert in enumerate(experts):
        steps = steps_of(plan, number)
        state, part = advance(expert, steps, conditions, state, keys, probe, idle=idle, remat=remat)
        parts.append(part)
    return joined(parts)


def begin(
    numerics: Numerics,
    conditions: Condition,
    noise: Float[Array, "*worlds K F H W C"],
    *,
    idle: Sequence[str] = (),
) -> SolverState:
    """Return the solver's state before the first step, leaves [W, K, …]; for `advance`. noise: of
    all worlds, or of each."""

    def one(condition: Condition, noise: Array) -> SolverState:
        first = _keep_first(rounded(noise, numerics.latents), condition)
        return solver_init(mesh.constrain(first))

    world, seed = _axes(idle)
    shared = noise.ndim == 5
    conditions = mesh.constrain(conditions, world)
    noise = mesh.constrain(noise, *(world, seed)[shared:])
    state = _map_runs(one, (0, None if shared else 0), (None, 0), idle)(conditions, noise)
    return mesh.constrain(state, world, seed)


def advance(
    expert: DiT,
    steps: Steps,
    conditions: Condition,
    state: SolverState,
    keys: Key[Array, "*worlds K"],
    probe: Probe,
    *,
    idle: Sequence[str] = (),
    remat: bool = False,
) -> tuple[SolverState, Trace]:
    """Sample some steps of one expert in all worlds and with all seeds, from a state [W, K, …].
    keys: of all worlds, or of each. `joined` puts the parts of a run together."""

    def one(condition: Condition, state: SolverState, key: Array) -> tuple[SolverState, Trace]:
        return _denoise(expert, steps, condition, state, key, probe, remat)

    world, seed = _axes(idle)
    conditions = mesh.constrain(conditions, world)
    worlds, seeds = state.x.shape[:2]
    with _passes(worlds, seeds, steps.scale is not None, idle):
        over = (0, 0, None if keys.ndim == 1 else 0)
        runs = _map_runs(one, over, (None, 0, 0), idle)
        state, trace = runs(conditions, state, keys)
    # Every host reads these.
    finite, layer = mesh.constrain((trace.finite, trace.layer))
    return mesh.constrain(state, world, seed), trace._replace(finite=finite, layer=layer)


def in_turns(
    advance: Callable[[SolverState, Key[Array, "W K"]], tuple[SolverState, Trace]],
    state: SolverState,
    keys: Key[Array, "W K"],
    together: int | None,
) -> tuple[SolverState, Trace]:
    """Return a step of all seeds, of so many at a time (None: of all): less memory, the same
    runs."""
    count = keys.shape[1]
    if together is None or together >= count:
        return advance(state, keys)
    parts = []
    for first in range(0, count, together):
        here = slice(first, first + together)
        some = jax.tree.map(lambda a, at=here: a[:, at], (state, keys))
        parts.append(jax.block_until_ready(advance(*some)))  # or the next take their memory now
    return jax.tree.map(lambda *a: jnp.concatenate(a, 1), *parts)


def joined(parts: Sequence[Trace]) -> Trace:
    """Return a whole run, leaves [W, K, …], of what its parts left."""
    steps = [part._replace(latents=()) for part in parts]
    whole = jax.tree.map(lambda *pieces: jnp.concatenate(pieces, 2), *steps)
    return whole._replace(latents=parts[-1].latents)


def _denoise(
    expert: DiT,
    steps: Steps,
    condition: Condition,
    state: SolverState,
    key: Key[Array, ""],
    probe: Probe,
    remat: bool,
) -> tuple[SolverState, Trace]:
    """Sample one trajectory, with the axes `seed` and `world` bound. Weights that lie in host
    memory are brought to the device."""
    expert, stored = memory.on_device(expert), expert.numerics.latents
    scale = None if steps.scale is None else jnp.asarray(steps.scale)

    def step(state: SolverState, scanned: tuple[Array, ...]) -> tuple[SolverState, tuple]:
        i, sigma, t, row = scanned
        none = jnp.int32(-1)
        site = Site(i, none, jnp.int32(0), sigma, jax.random.fold_in(key, i), state.last)
        x, _ = probe.call("on_latents", site.at("on_latents"), state.x)
        x = _keep_first(x, condition)
        v, (block_obs, layer) = _velocity(expert, x, t, site, condition, probe, scale, remat)
        # At timestep 0 the velocity of the first frame means nothing: x0 has the frame itself.
        x0 = _estimate(clean_estimate(x, v, sigma), condition)
        x0, estimate_obs = probe.call("on_estimate", site.at("on_estimate"), x, x0)
        x0 = _estimate(x0, condition)
        state = solver_step(state, x, x0, row, step_noise(row, site.key, x))
        state = state._replace(x=_keep_first(rounded(state.x, stored), condition))
        block_obs, _ = probe.call("on_step", site.at("on_step"), block_obs)
        return state, (x0, block_obs, estimate_obs, jnp.isfinite(x0).all(), layer, sigma, t)

    body = jax.checkpoint(step) if remat else step
    state, left = jax.lax.scan(body, state, tuple(map(jnp.asarray, steps[:-1])))
    return state, Trace(state.x, *left)


def _velocity(
    expert: DiT,
    x: Array,
    t: Array,
    site: Site,
    condition: Condition,
    probe: Probe,
    scale: Array | None,
    remat: bool,
) -> tuple[Array, tuple[Any, Array]]:
    """Return the guided velocity, the conditional branch's observations, and the first block of
    either branch that handed on an inf or nan (−1: none)."""
    channels = [] if condition.channels is None else [condition.channels]
    model_input = jnp.concatenate([x, *channels], axis=-1)
    clean = None
    if condition.first is not None:
        frames, height, width = expert.cfg.tokens(*x.shape[:3])
        clean = jnp.arange(frames * height * width) < len(condition.first) * height * width

    read = expert.readout(t, condition.grid, clean)

    def estimate(tokens: Array) -> Array:
        return _estimate(clean_estimate(x, read(tokens), site.sigma), condition)

    # Devices that share the branches hold the observations of their own branch; a single device
    # holds those of the conditional branch only.
    alone = scale is not None and mesh.devices(mesh.BRANCH) == 1
    places = dict.fromkeys([*probe.sites(), "block"])

    def branch(number: Array, context: Array) -> tuple[Array, Any, Array]:
        here = site._replace(branch=number, estimate=estimate)

        def at(name: str, layer: Array, z: Any) -> tuple[Any, Any]:
            z, obs = probe.call(f"on_{name}", here.at(f"on_{name}", layer), z)
            if alone:
                obs = jax.tree.map(lambda a: jax.lax.all_gather(a, mesh.BRANCH)[0], obs)
            return z, obs

        def on_block(layer: Array, tokens: Array) -> tuple[Array, tuple[Any, Array]]:
            tokens, obs = at("block", layer, tokens)
            return tokens, (obs, jnp.isfinite(tokens).all())

        sites = {name: partial(at, name) for name in places} | {"block": on_block}
        slots: dict[str, Any] = {name: probe.slots_of(name) for name in places}
        how: dict[str, Any] = {"sites": sites, "slots": slots | {"block": (slots["block"], None)}}
        how |= {"clean": clean, "image": condition.image, "remat": remat}
        v, observed = expert(model_input, t, context, **how)
        obs, finite = observed["block"]
        obs = probe.observation(observed | {"block": obs})
        return v, obs, jnp.where(finite.all(), -1, jnp.argmin(finite))

    if scale is None:
        v, obs, layer = branch(jnp.int32(0), condition.context)
        return v, (obs, layer)
    if condition.negative is None:
        raise ValueError("guidance needs a negative prompt; this condition has none")
    both = _spread_map(branch, mesh.BRANCH, (0, 0), outputs=(0, None if alone else 0, 0))
    contexts = jnp.stack([condition.context, condition.negative])
    (v, v_negative), obs, layers = both(jnp.arange(2), contexts)
    if not alone:
        obs = jax.tree.map(lambda a: a[0], obs)
    layer = jnp.where(layers < 0, jnp.max(layers), layers).min()
    return guide(v, v_negative, scale), (obs, layer)


def _estimate(x0: Array, condition: Condition) -> Array:
    """Return the clean estimate with the frames that are kept in place and those that are known."""
    known = condition.known
    return _keep_first(x0 if known is None else x0.at[: len(known)].set(known), condition)


def _keep_first(x: Array, condition: Condition) -> Array:
    return x if condition.first is None else x.at[: len(condition.first)].set(condition.first)


def _spread_map(
    f: Callable[..., Any],
    axis: str,
    inputs: tuple[int | None, ...],
    idle: Sequence[str] = (),
    outputs: Any = 0,
) -> Any:
    """Apply `vmap` with a named axis, spread over that axis of a mesh in use unless it is idle."""
    over = axis if mesh.in_use() and axis not in idle else None
    return jax.vmap(f, inputs, outputs, axis_name=axis, spmd_axis_name=over)


def _map_runs(
    f: Callable[..., Any],
    worlds: tuple[int | None, ...],
    seeds: tuple[int | None, ...],
    idle: Sequence[str],
) -> Any:
    """Apply `vmap` over worlds and, inside, over seeds; 0 for arguments that have the axis."""
    return _spread_map(_spread_map(f, mesh.SEED, seeds, idle), mesh.WORLD, worlds, idle)


def _axes(idle: Sequence[str]) -> tuple[str | None, ...]:
    """Return the axes of a mesh that worlds and seeds are laid out over."""
    return tuple(None if axis in idle else axis for axis in (mesh.WORLD, mesh.SEED))


def _passes(
    worlds: int, seeds: int, guided: bool, idle: Sequence[str]
) -> AbstractContextManager[Any]:
    """Tell attention how many passes a device makes at once."""
    sizes = {mesh.WORLD: worlds, mesh.SEED: seeds, mesh.BRANCH: 2 if guided else 1}
    here = [-(-n // (1 if axis in idle else mesh.devices(axis))) for axis, n in sizes.items()]
    return side_by_side(math.prod(here))


def draw(
    cfg: DiTConfig,
    conditions: Condition,
    keys: Key[Array, " K"],
    noise: Float[Array, "K F H W C"] | None,
) -> tuple[Float[Array, "K F H W C"], Key[Array, " K"]]:
    """Split the seeds' keys into the first noise of a `run`, unless it is passed, and the keys of
    the steps."""
    shape = (*conditions.grid, cfg.out_channels)
    noise_keys, step_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    if noise is None:
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(noise_keys)
    return noise, step_keys


def sweep(f: Callable[[T], Any], values: T, *, chunk: int | None = None) -> Any:
    """Map f over the leading axis of `values` (probes, conditions, …) in one program, `chunk` of
    them at a time (all at once by default)."""
    total = len(jax.tree.leaves(values)[0])

    def one(value: T) -> Any:
        with swept(value, values):
            return f(value)

    with side_by_side(min(chunk or total, total)):
        if chunk is None:
            return jax.vmap(one)(values)
        return jax.lax.map(one, values, batch_size=chunk)


def tree_stack(values: Sequence[T]) -> T:
    """Stack pytrees of the same shape on a new leading axis: what `sweep` runs over. Raises
    ValueError where conditions have different grids, or probes differ in what is no array."""
    grids = {value.grid for value in values if isinstance(value, Condition)}
    if len(grids) > 1:
        sizes = ", ".join("×".join(map(str, grid)) for grid in sorted(grids))
        raise ValueError(f"conditions have latents of {sizes} cells; stack those of one size")
    if any(jax.tree.structure(value) != jax.tree.structure(values[0]) for value in values):
        kinds = ", ".join(sorted({type(value).__name__ for value in values}))
        raise ValueError(
            f"what is stacked shares one program; these ({kinds}) differ in kind, in a static "
            "field or in which fields are None: stack them apart"
        )
    return jax.tree.map(_stack, *values)


def _stack(*leaves: Any) -> Array:
    """Stack arrays: in numpy, which compiles nothing, where all have their values here."""
    if all(isinstance(a, np.ndarray) or _is_here(a) for a in leaves):
        return jnp.asarray(np.stack([np.asarray(a) for a in leaves]))
    return jnp.stack(leaves)


def _is_here(a: Any) -> bool:
    plain = isinstance(a, jax.Array) and not isinstance(a, Tracer) and not a.aval.weak_type
    is_key = plain and jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
    return plain and not is_key and a.is_fully_addressable


def check_finite(trace: Trace, *, step: int | None = None, steps: int = 0) -> Trace:
    """Return the trace itself, if one of its runs is free of inf and nan; log the others.

    step: of a part, the number of its only step, of so many; then nothing is logged, since a run
    stays bad. Runs do not touch each other unless a probe makes them, so one bad seed leaves the
    rest as they are. Raises FloatingPointError naming step and block where all runs are bad.
    Inside jit, vmap or `sweep` no number is known yet, and the trace passes unchecked: call this on
    what comes out.
    """
    if isinstance(trace.finite, Tracer):
        return trace
    finite, layers = sharding.to_host((trace.finite, trace.layer))
    bad, steps = [], steps or finite.shape[-1]
    for run in map(tuple, np.argwhere(~finite.all(-1)).tolist()):
        first = int(np.argmin(finite[run]))
        layer, number = int(layers[run][first]), first if step is None else step
        place = f"first after block {layer}" if layer >= 0 else "outside the blocks"
        sentence = (
            f"the latent is not finite from step {number} of {steps} on (in run {run}, {place}): "
            "look at the probe, the guidance scale or the weights"
        )
        bad.append((number, sentence))
    if len(bad) == finite[..., 0].size:
        raise FloatingPointError(min(bad)[1])
    for _, sentence in bad if step is None else ():
        logging.getLogger("jcos").warning(sentence)
    return trace
