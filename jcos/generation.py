"""From conditions and seeds to trajectories: a model's runs as one program, or step by step."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jcos.config import Sampling, WanConfig
from jcos.devices import memory, mesh, sharding
from jcos.model.dit import DiT
from jcos.sampling import flow, trajectory
from jcos.sampling.checks import check_probe
from jcos.sampling.flow import SolverState
from jcos.sampling.noise import seed_words
from jcos.sampling.probe import Probe
from jcos.sampling.trajectory import Condition, Steps, Trace
from jcos.wan import Wan


def seed_keys(seeds: Sequence[int] | SupportsIndex) -> Key[Array, " K"]:
    """One key per seed: a seed's noise does not depend on which others run beside it."""
    return jax.vmap(jax.random.key)(jnp.asarray(seed_words(seeds)))


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
    _check(model, plan, conditions, len(keys), probe)
    state, step_keys = _begin(model.config, conditions, keys, noise)
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


def _check(
    model: Wan, plan: flow.Plan, conditions: Condition, seeds: int, probe: Probe
) -> list[jax.ShapeDtypeStruct]:
    """As `checks.check_probe`."""
    size, guided = trajectory.size_of(conditions, seeds), plan.guidance is not None
    return check_probe(probe, model.experts[0], plan.steps, size, guided=guided)


@partial(jax.jit, static_argnames="config")
def _begin(
    config: WanConfig,
    conditions: Condition,
    keys: Key[Array, " K"],
    noise: Float[Array, "K F h w C"] | None,
) -> tuple[SolverState, Key[Array, " K"]]:
    noise, keys = trajectory.draw(config.dit, conditions, keys, noise)
    return trajectory.begin(config.numerics, conditions, noise), keys


_advance = jax.jit(trajectory.advance)


def generate(
    model: Wan,
    condition: Condition,
    seeds: Sequence[int] | SupportsIndex = (0,),
    *,
    probe: Probe | None = None,
    sampling: Sampling | None = None,
    noise: Float[Array | np.ndarray, "K F h w C"] | None = None,
    told: Callable[[int], None] | None = None,
) -> Trace:
    """One video per seed, with every step's clean estimate and what the probe observed: leaves [K,
    …].

    seeds: 3 is one seed, like [3]. sampling: the model's own by default. noise: of each seed, drawn
    from its key by default. told: called with the number of every step that is done
    (`generate_by_step`).
    Raises ValueError, IndexError or TypeError, before anything runs, where the probe does not fit
    this run (`check_probe`), and FloatingPointError where latents of all seeds stop being finite;
    where only some do, `Trace.finite` tells which, and a warning is logged. In a `sweep` nothing
    looks at that.
    """
    worlds = jax.tree.map(lambda a: a[None], condition)
    trace = generate_side_by_side(
        model, worlds, seeds, probe=probe, sampling=sampling, noise=noise, told=told
    )
    return jax.tree.map(lambda a: a[0], trace)


def generate_side_by_side(
    model: Wan,
    conditions: Condition,
    seeds: Sequence[int] | SupportsIndex = (0,),
    *,
    probe: Probe | None = None,
    sampling: Sampling | None = None,
    noise: Float[Array | np.ndarray, "K F h w C"] | None = None,
    told: Callable[[int], None] | None = None,
) -> Trace:
    """`generate` for several worlds at once (`trajectory.stack` of conditions): leaves [W, K, …].

    Inside `sharding.on(mesh)` it runs on that mesh. Raises MemoryError saying what would help where
    a device has too little memory, ValueError where runs do not divide over the mesh.
    """
    cfg, sampling = model.config, sampling or model.config.sampling
    plan, keys, asked = flow.plan(sampling, cfg.boundary), seed_keys(seeds), probe or Probe()
    given = None if noise is None else jnp.asarray(noise)
    observed = _check(model, plan, conditions, len(keys), asked)
    run = memory.Run(
        seeds=len(keys),
        worlds=len(conditions.context),
        guided=plan.guidance is not None,
        probed=any(leaf.ndim for leaf in observed),
        float32=cfg.numerics.linear == "float32",
        devices=mesh.devices(*mesh.AXES),
        resident=len(model.experts) > 1 and not memory.waits(model.experts),
    )
    if mesh.in_use():
        sharding.check_runs(cfg.dit, run.worlds, run.seeds)
        conditions, keys, given = sharding.place_runs(conditions, keys, given)
        plan, asked = sharding.place_whole(jax.tree.map(jnp.asarray, (plan, asked)))
    what = f"{run.seeds} seed(s) of {cfg.name} in {run.worlds} world(s)"
    with memory.explained(what, memory.run_knobs(run)):
        if told is not None or memory.waits(model.experts):
            trace = generate_by_step(model, plan, conditions, keys, asked, given, told)
        else:
            trace = generate_worlds(model, plan, conditions, keys, asked, given)
        return trajectory.check_finite(trace)
