"""However a seed is run, its run is the same."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcos.config import Sampling
from jcos.generation import generate
from jcos.loop import State, steps
from jcos.sampling import trajectory
from jcos.sampling.probes import Noise, Probe, SeedEnsemble, States, TokenEnergy, chain
from jcos.sampling.trajectory import Condition, tree_stack
from jcos.wan import Wan
from tests.models import CONFIG, FRAMES, LAYERS, STEPS, close, frame, randomised

NOISE = chain(Noise.at_steps(STEPS, FRAMES, [2], strength=0.5), States(), TokenEnergy())
SLOW = pytest.mark.slow
TOGETHER = SeedEnsemble.window(STEPS, LAYERS, at_steps=[1])


def outputs(trace: trajectory.Trace) -> Any:
    return trace.latents, (trace.x0, trace.finite, trace.block_obs, trace.estimate_obs)


def of_states(states: list[State]) -> Any:
    each = [(s.x0, s.finite, s.block_obs, s.estimate_obs) for s in states]
    return states[-1].x, jax.tree.map(lambda *a: jnp.stack(a, 1), *each)


def ways(
    model: Wan, condition: Condition, seeds: tuple[int, ...], probe: Probe, sampling: Sampling
) -> Iterator[Any]:
    """Runs of these seeds: alone or beside others, in worlds, sweeps, turns and pieces."""
    how: Any = {"probe": probe, "sampling": sampling}
    if not isinstance(probe, SeedEnsemble):
        alone = [outputs(generate(model, condition, np.int64(seed), **how)) for seed in seeds]
        yield jax.tree.map(lambda *a: jnp.concatenate(a), *alone)
        yield outputs(generate(model, condition, seeds, together=2, **how))
    other = model.condition(frame(1), "right", FRAMES).replace(known=condition.known)
    both = outputs(generate(model, tree_stack([other, condition]), seeds, **how))
    yield jax.tree.map(lambda a: a[1], both)
    done = []
    each = outputs(generate(model, condition, seeds, on_step=done.append, **how))
    assert done == list(range(sampling.steps))
    yield each
    swept = trajectory.sweep(
        lambda one: generate(model, one[0], seeds, probe=one[1], sampling=sampling),
        tree_stack([(other, probe), (condition, probe)]),
        chunk=1,
    )
    assert trajectory.check_finite(swept) is swept
    yield jax.tree.map(lambda a: a[1], outputs(swept))


PAIR = dataclasses.replace(CONFIG, boundary=0.8)
CASES = [
    (CONFIG, {"solver": "cps", "eta": 0.7, "temperature": 0.5}, NOISE, 2),
    pytest.param(PAIR, {"solver": "unipc", "guidance": (2.0, 3.0)}, TOGETHER, 0, marks=SLOW),
]


@pytest.mark.slow
@pytest.mark.parametrize(("config", "changes", "probe", "known"), CASES)
def test_every_way_of_running_is_the_same_run(
    config: Any, changes: Any, probe: Probe, known: int, tmp_path: Path
) -> None:
    model, sampling = randomised(config), config.sampling_with(**changes)
    condition, seeds = model.condition(frame(0), "left", FRAMES), (3, 1, 7)
    if known:
        frames = jax.random.normal(jax.random.key(5), (known, 4, 4, 12))
        condition = condition.replace(known=frames)
    want = outputs(generate(model, condition, seeds, probe=probe, sampling=sampling))
    for run in ways(model, condition, seeds, probe, sampling):
        jax.tree.map(close, run, want)
    states = []
    for state in steps(model, condition, seeds, probe=probe, sampling=sampling):
        assert (state.step, state.seeds) == (len(states), seeds)
        states.append(state)
        if state.step == 1:
            state.save(tmp_path / "state")
    jax.tree.map(close, of_states(states), want)
    start = tmp_path / "state"
    saved = [*steps(model, condition, probe=probe, sampling=sampling, start=start)]
    jax.tree.map(close, of_states([*states[:2], *saved]), want)
    assert np.all(np.diff([state.sigma for state in states]) < 0)
    assert float(jnp.abs(want[0][0] - want[0][1]).max()) > 0.1
