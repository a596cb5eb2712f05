"""From conditions and seeds to trajectories: a model's runs as one program, or step by step."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import SupportsIndex

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jcos import loop
from jcos.config import Sampling
from jcos.devices import memory, mesh, sharding
from jcos.sampling import flow, trajectory
from jcos.sampling.checks import check_averages
from jcos.sampling.noise import seed_numbers
from jcos.sampling.probe import Probe
from jcos.sampling.trajectory import Condition, Trace
from jcos.wan import Wan


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


def generate(
    model: Wan,
    condition: Condition,
    seeds: Sequence[int] | SupportsIndex = (0,),
    *,
    probe: Probe | None = None,
    sampling: Sampling | None = None,
    sigmas: Sequence[float] | None = None,
    noise: loop.Noise = None,
    on_step: Callable[[int], None] | None = None,
) -> Trace:
    """One video per seed, with every step's clean estimate and what the probe observed: leaves [K,
    …].

    sampling, sigmas, noise: as in `steps`. on_step: called with the number of every step that is
    done; without it the run is one program, unless its experts take turns on the device.
    seeds: 3 is one seed, like [3].
    Raises ValueError, IndexError or TypeError, before anything runs, where the probe does not fit
    this run (`check_probe`), and FloatingPointError where latents of all seeds stop being finite;
    where only some do, `Trace.finite` tells which, and a warning is logged. In a `sweep` nothing
    looks at that.
    """
    worlds = jax.tree.map(lambda a: a[None], condition)
    trace = generate_side_by_side(
        model,
        worlds,
        seeds,
        probe=probe,
        sampling=sampling,
        sigmas=sigmas,
        noise=noise,
        on_step=on_step,
    )
    return jax.tree.map(lambda a: a[0], trace)


def generate_side_by_side(
    model: Wan,
    conditions: Condition,
    seeds: Sequence[int] | SupportsIndex = (0,),
    *,
    probe: Probe | None = None,
    sampling: Sampling | None = None,
    sigmas: Sequence[float] | None = None,
    noise: loop.Noise = None,
    on_step: Callable[[int], None] | None = None,
) -> Trace:
    """`generate` for several worlds at once (`tree_stack` of conditions): leaves [W, K, …].

    Inside `sharding.use_mesh(mesh)` it runs on that mesh. Raises MemoryError saying what would help
    where a device has too little memory, ValueError where runs do not divide over the mesh.
    """
    cfg, sampling = model.config, loop.sampling_of(model, sampling, sigmas)
    plan, keys, asked = flow.plan(sampling, cfg.boundary), loop.seed_keys(seeds), probe or Probe()
    observed = loop.check(model, plan, conditions, len(keys), asked)
    check_averages(asked, len(keys))
    run = memory.Run(
        seeds=len(keys),
        worlds=len(conditions.context),
        guided=plan.guidance is not None,
        probed=any(leaf.ndim for leaf in observed),
        float32=cfg.numerics.linear == "float32",
        devices=mesh.devices(*mesh.AXES),
        resident=len(model.experts) > 1 and not memory.waits(model.experts),
    )
    what = f"{run.seeds} seed(s) of {cfg.name} in {run.worlds} world(s)"
    with memory.explained(what, memory.run_knobs(run)):
        if on_step is not None or memory.waits(model.experts):
            trace = _watched(loop.Runs(model, conditions, plan, asked), seeds, noise, on_step)
        else:
            shape = (*conditions.grid, cfg.dit.out_channels)
            given = loop.first_noise(cfg, seed_numbers(seeds), shape, noise)
            if mesh.in_use():
                sharding.check_runs(cfg.dit, run.worlds, run.seeds)
                conditions, keys, given = sharding.place_runs(conditions, keys, given)
                plan, asked = sharding.place_whole(jax.tree.map(jnp.asarray, (plan, asked)))
            trace = generate_worlds(model, plan, conditions, keys, asked, given)
        return trajectory.check_finite(trace)


def _watched(
    runs: loop.Runs,
    seeds: Sequence[int] | SupportsIndex,
    noise: loop.Noise,
    on_step: Callable[[int], None] | None,
) -> Trace:
    """All steps of `runs`, one by one."""
    runs.begin(seeds, noise)
    parts: list[Trace] = []
    for state in runs:
        assert state.trace is not None
        parts.append(state.trace)
        if on_step is not None:
            jax.block_until_ready(state.solver)
            on_step(state.step)
    return trajectory.joined(parts, 2)
