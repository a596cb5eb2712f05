"""From conditions and seeds to trajectories: a model's runs as one program, or step by step."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Key

from jcos.config import Sampling, WanConfig
from jcos.devices import memory, mesh, sharding
from jcos.model.dit import DiT
from jcos.sampling import flow, trajectory
from jcos.sampling.flow import SolverState
from jcos.sampling.noise import seed_words, wan_noise
from jcos.sampling.probes import EstimateEnsemble, Probe, SeedEnsemble
from jcos.sampling.trajectory import Condition, Steps, Trace
from jcos.wan import Wan

Noise = Float[Array | np.ndarray, "K F h w C"] | str | None
"""The first noise of each seed, or who draws it (`first_noise`)."""


def seed_keys(seeds: Sequence[int]) -> Key[Array, " K"]:
    """One key per seed: a seed's noise does not depend on which others run beside it."""
    return jax.vmap(jax.random.key)(jnp.asarray(seed_words(seeds)))


def first_noise(
    config: WanConfig,
    seeds: Sequence[int],
    shape: tuple[int, int, int, int],
    noise: Noise = None,
) -> Float[Array, "K F h w C"] | None:
    """Return the noise that videos of these seeds begin with, whoever makes them: commands, the
    benchmark, experiments on clips, Python.

    shape: of a latent, [F, h, w, C]. noise: an array, which is taken as it is, or who draws it, by
    default `config.noise`: "torch" as all reference codes for Wan do (`noise.wan_noise`), "jax"
    from the seeds' keys inside the program, which None stands for.
    Raises ValueError where it is neither, or PyTorch does not take a seed.
    """
    drawn = config.noise if noise is None else noise
    if not isinstance(drawn, str):
        return jnp.asarray(drawn)
    if drawn not in ("torch", "jax"):
        raise ValueError(f"noise is {drawn!r}; it is torch, jax or an array [K, F, h, w, C]")
    if drawn == "jax":
        return None
    return jnp.asarray(np.stack([wan_noise(seed, shape) for seed in seeds]))


def check_averages(probe: Probe, seeds: int) -> None:
    """Raise ValueError where a probe averages over seeds, but no seed has another to average with:
    it would leave the run as it is. Masks whose values are not known yet (inside jit) pass."""
    averages = (SeedEnsemble, EstimateEnsemble)
    for part in jax.tree.leaves(probe, is_leaf=lambda p: isinstance(p, averages)):
        if not isinstance(part, averages):
            continue
        groups = jnp.zeros(seeds) if part.groups is None else part.groups
        if any(isinstance(a, Tracer) for a in (part.mask, groups)):
            continue
        if not np.any(part.mask) or groups.shape != (seeds,):  # the latter is `check_probe`'s
            continue
        sizes = np.unique(groups, return_counts=True)[1]
        if max(sizes) == 1:
            raise ValueError(
                f"{type(part).__name__} averages over seeds, but here each of {seeds} seed(s) is "
                "alone; give several seeds to average, or switch the mask off"
            )


@partial(jax.jit, static_argnames="idle")
def generate_worlds(
    model: Wan,
    plan: flow.Plan,
    conditions: Condition,
    keys: Key[Array, " K"],
    probe: Probe,
    noise: Float[Array, "K F h w C"] | None = None,
    *,
    idle: tuple[str, ...] = (),
) -> Trace:
    """`trajectory.run` with noise drawn from the seeds' keys, unless it is given; arrays of
    `conditions` have a world axis. idle: as there."""
    noise, keys = trajectory.draw(model.config.dit, conditions, keys, noise)
    return trajectory.run(model.experts, plan, conditions, noise, keys, probe, idle=idle)


def generate_by_step(
    model: Wan,
    plan: flow.Plan,
    conditions: Condition,
    keys: Key[Array, " K"],
    probe: Probe,
    noise: Float[Array, "K F h w C"] | None = None,
    told: Callable[[int], None] | None = None,
) -> Trace:
    """`generate_worlds` as the program of one step, which the host calls for every one.

    It serves both experts and any number of steps. Weights that wait in host memory (`load`,
    resident) are on the device only for the steps of their expert. told: called with the number of
    every step that is done.
    """
    state, step_keys = begin(model.config, conditions, keys, noise)
    trajectory.check_probe(probe, model.config.dit, plan, state.x.shape[:-1])
    if not mesh.in_use():
        # As it is after a step, or the second would be compiled anew.
        state = jax.device_put(state, next(iter(jax.tree.leaves(model.experts)[0].devices())))
    parts: list[Trace] = []

    def by(expert: DiT, steps: Steps, state: SolverState) -> SolverState:
        for i, number in enumerate(steps.number):
            state, part = _advance(expert, steps.one(i), conditions, state, step_keys, probe)
            parts.append(part)
            if told is not None:
                jax.block_until_ready(state)
                told(int(number))
        return jax.block_until_ready(state)  # or the next expert would come while this one works

    for number, expert in enumerate(model.experts):
        steps = jax.tree.map(np.asarray, trajectory.steps_of(plan, number))
        state = by(memory.on_device(expert), steps, state)
    return trajectory.joined(parts, 2)


@partial(jax.jit, static_argnames="config")
def begin(
    config: WanConfig,
    conditions: Condition,
    keys: Key[Array, " K"],
    noise: Float[Array, "K F h w C"] | None,
) -> tuple[SolverState, Key[Array, " K"]]:
    """Trajectories before their first step, and keys of the steps: for `trajectory.advance`."""
    noise, keys = trajectory.draw(config.dit, conditions, keys, noise)
    return trajectory.begin(config.numerics, conditions, noise), keys


_advance = jax.jit(trajectory.advance)


def generate(
    model: Wan,
    condition: Condition,
    seeds: Sequence[int] = (0,),
    *,
    probe: Probe | None = None,
    sampling: Sampling | None = None,
    noise: Noise = None,
    told: Callable[[int], None] | None = None,
) -> Trace:
    """One video per seed, with every step's clean estimate and what the probe observed: leaves [K,
    …].

    sampling: the model's own by default. noise: of each seed, or who draws it: by default what
    `jcos generate` draws (`first_noise`). told: called with the number of every step that is done
    (`generate_by_step`).
    Raises ValueError, before anything runs, where the probe is made for another run, and
    FloatingPointError where latents of all seeds stop being finite; where only some do,
    `Trace.finite` tells which, and a warning is logged. In a `sweep` nothing looks at that.
    """
    worlds = jax.tree.map(lambda a: a[None], condition)
    trace = generate_side_by_side(
        model, worlds, seeds, probe=probe, sampling=sampling, noise=noise, told=told
    )
    return jax.tree.map(lambda a: a[0], trace)


def generate_side_by_side(
    model: Wan,
    conditions: Condition,
    seeds: Sequence[int] = (0,),
    *,
    probe: Probe | None = None,
    sampling: Sampling | None = None,
    noise: Noise = None,
    told: Callable[[int], None] | None = None,
) -> Trace:
    """`generate` for several worlds at once (`trajectory.stack` of conditions): leaves [W, K, …].

    Inside `sharding.on(mesh)` it runs on that mesh. Raises MemoryError saying what would help where
    a device has too little memory, ValueError where runs do not divide over the mesh.
    """
    cfg, sampling = model.config, sampling or model.config.sampling
    plan, keys, asked = flow.plan(sampling, cfg.boundary), seed_keys(seeds), probe or Probe()
    check_averages(asked, len(seeds))
    given = first_noise(cfg, seeds, trajectory.latent_shape(cfg.dit, conditions), noise)
    run = memory.Run(
        seeds=len(seeds),
        worlds=len(conditions.context),
        guided=plan.guidance is not None,
        probed=probe is not None,
        float32=cfg.numerics.linear == "float32",
        devices=mesh.devices(*mesh.AXES),
        resident=len(model.experts) > 1 and not memory.waits(model.experts),
    )
    if mesh.in_use():
        sharding.check_runs(cfg.dit, run.worlds, run.seeds)
        conditions, keys, given = sharding.place_runs(conditions, keys, given)
        plan, asked = sharding.place_whole((plan, asked))
    what = f"{run.seeds} seed(s) of {cfg.name} in {run.worlds} world(s)"
    with memory.explained(what, memory.run_knobs(run)):
        if told is not None or memory.waits(model.experts):
            trace = generate_by_step(model, plan, conditions, keys, asked, given, told)
        else:
            trace = generate_worlds(model, plan, conditions, keys, asked, given)
        return trajectory.check_finite(trace)
