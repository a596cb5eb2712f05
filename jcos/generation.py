"""From conditions and seeds to trajectories: a model's runs as one program, or step by step."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import SupportsIndex

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from jcos import loop
from jcos.config import Sampling
from jcos.devices import memory, programs
from jcos.sampling import flow, trajectory
from jcos.sampling.checks import check_averages
from jcos.sampling.noise import seed_numbers
from jcos.sampling.probe import Probe
from jcos.sampling.trajectory import Condition, Trace
from jcos.wan import Wan


@partial(programs.jit, static_argnames="idle")
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
    """Run `trajectory.run` with noise drawn from the seeds' keys, unless it is passed; arrays of
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
    sigmas: Sequence[float] | np.ndarray | None = None,
    noise: loop.Noise = None,
    on_step: Callable[[int], None] | None = None,
    together: int | None = None,
) -> Trace:
    """Return one video per seed, with every step's clean estimate and what the probe observed:
    leaves [K, …], or [W, K, …] for stacked conditions (`tree_stack`).

    condition, seeds, sampling, sigmas, noise, together: as in `steps`. on_step: called with the
    number of every step that is done; without it the run is one program, unless its experts or
    seeds take turns on the device. Inside `use_mesh(mesh)` it runs on that mesh.
    Raises as `steps` before anything runs, FloatingPointError where latents of all seeds stop being
    finite (some: a warning is logged, see `Trace.finite`; a `sweep` is not checked), and
    MemoryError saying what would help where a device has too little memory.
    """
    runs = loop.Runs(model, condition, probe, sampling, sigmas, together)
    numbers = seed_numbers(seeds)
    runs.check(len(numbers))
    check_averages(runs.probe, len(numbers))
    offloaded = memory.waits(model.experts)
    seeds, worlds = len(numbers), len(runs.conditions.context)

    def knobs() -> list[str]:
        probed = bool(jax.tree.leaves(runs.observed(seeds)))
        return memory.run_knobs(model, runs.plan.guidance is not None, seeds, worlds, probed)

    with memory.explained(f"{seeds} seed(s) of {model.config.name} in {worlds} world(s)", knobs):
        if on_step is not None or offloaded or together is not None:
            runs.begin(numbers, noise)
            trace = _finish(runs, on_step)
        else:
            keys, first = runs.inputs(numbers, noise)
            trace = generate_worlds(model, runs.plan, runs.conditions, keys, runs.probe, first)
        return runs.of_video(trajectory.check_finite(trace))


_joined = jax.jit(trajectory.joined)


def _finish(runs: loop.Runs, on_step: Callable[[int], None] | None) -> Trace:
    """Make all steps one by one; return the whole trace."""
    parts: list[Trace] = []
    for state in runs:
        assert state.trace is not None
        parts.append(state.trace)
        if on_step is not None:
            jax.block_until_ready(state.solver)
            on_step(state.step)
    return _joined(parts)
