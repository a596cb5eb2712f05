"""What sampling refuses, and how it says so: probes of another run, numbers that are not finite."""

import re
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcos import loop
from jcos.config import Sampling
from jcos.experiments.sweeps import sweep
from jcos.generation import check_averages, generate, generate_worlds
from jcos.loop import seed_keys, steps
from jcos.sampling import flow, trajectory
from jcos.sampling.inside import Capture, KnockOut, Patch, Steer, Swap, until
from jcos.sampling.probes import EstimateEnsemble, InWorlds, Noise, Probe, SeedEnsemble, chain
from jcos.wan import Wan
from tests.models import CONFIG, FRAMES, LAYERS, STEPS, TOKENS, at

_never = Mock(side_effect=AssertionError("this run was to be refused"))
WINDOW = SeedEnsemble.window(STEPS, LAYERS)
AVERAGED = EstimateEnsemble(jnp.ones(STEPS, bool), jnp.array(False))
STACKED = trajectory.tree_stack([Noise.at_steps(STEPS, FRAMES, [s]) for s in (0, 1)])
OTHERS: list[tuple[Probe, str]] = [
    (Noise.at_steps(20, FRAMES, [19]), "20 steps; this run has 4"),
    (Noise.at_frames(STEPS, 7, [1]), "7 latent frames; this run has 3"),
    (SeedEnsemble.window(50, LAYERS), "50 steps; this run has 4"),
    (SeedEnsemble.window(STEPS, 40), "40 layers; this run has 3"),
    (WINDOW.replace(groups=jnp.zeros(3, int)), "3 seeds; this run has 2"),
    (AVERAGED.replace(mask=jnp.ones(3, bool)), "3 steps; this run has 4"),
    (AVERAGED.replace(groups=jnp.zeros(1, int)), "1 seed; this run has 2"),
    (Swap.at_layers(STEPS, LAYERS, TOKENS, [0]), "2 worlds; this run has 1"),
    (Swap.at_layers(STEPS, LAYERS, 9, [0], receivers=[True]), "9 tokens; this run has 12"),
    (InWorlds(WINDOW, jnp.array([False, True])), "2 worlds; this run has 1"),
    (chain(WINDOW, InWorlds(Noise.at_steps(9, 3, []), jnp.array([True]))), "9 steps; this run"),
    (STACKED, r"\(2, 4, 3\) for steps × latent frames; a sweep runs stacks"),
]


@pytest.mark.parametrize(("probe", "says"), OTHERS)
def test_a_probe_of_another_run_is_refused_before_anything_is_computed(
    model: Wan, condition: trajectory.Condition, probe: Probe, says: str, monkeypatch
) -> None:
    """Two of them by every way of sampling, and in a sweep, where arrays have an axis more."""
    monkeypatch.setattr(trajectory, "advance", _never)
    monkeypatch.setattr("jcos.loop._advance", _never)
    plan, keys = flow.plan(model.config.sampling), seed_keys((0, 1))
    worlds = jax.tree.map(lambda a: a[None], condition)
    ways: list[Callable[[Probe], Any]] = [
        lambda p: generate(model, condition, (0, 1), probe=p),
        lambda p: generate(model, condition, (0, 1), probe=p, on_step=lambda step: None),
        lambda p: generate(model, worlds, (0, 1), probe=p),
        lambda p: generate_worlds(model, plan, worlds, keys, p),
        lambda p: trajectory.sweep(ways[0], trajectory.tree_stack([p, p])),
        lambda p: trajectory.sweep(ways[0], trajectory.tree_stack([p, p]), chunk=1),
    ]
    every = says.startswith(("20 steps", "9 steps"))
    for way in ways if every else ways[:1]:
        with pytest.raises(ValueError, match=says):
            way(probe)


@pytest.mark.parametrize(
    ("probe", "seeds"),
    [
        (WINDOW, 1),
        (AVERAGED, 1),
        (chain(Noise.at_steps(STEPS, FRAMES, []), InWorlds(WINDOW, jnp.array([True]))), 1),
        (WINDOW.replace(groups=jnp.arange(2)), 2),
    ],
)
def test_an_average_of_one_seed_is_refused(
    model: Wan, condition: trajectory.Condition, probe: Probe, seeds: int
) -> None:
    """By runs and sweeps; with its mask off, or some seeds in company, it may stand there."""
    worlds = jax.tree.map(lambda a: a[None, None], condition)
    with pytest.raises(ValueError, match="averages over seeds"):
        generate(model, condition, range(seeds), probe=probe)
    with pytest.raises(ValueError, match="averages over seeds"):
        sweep(model, worlds, range(seeds), probes=[probe])
    off = WINDOW.replace(mask=jnp.zeros_like(WINDOW.mask))
    check_averages(off, 1)
    check_averages(WINDOW.replace(groups=jnp.array([0, 0, 1])), 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "probe",
    [
        WINDOW,
        AVERAGED,
        Steer.at(CONFIG, jnp.ones(CONFIG.dit.dim), [0], when=until([1, 2, 3, 4], STEPS)),
        Patch("block", jnp.zeros((4, STEPS, 1, TOKENS, 32)), jnp.arange(STEPS), jnp.array([0])),
        KnockOut.at(CONFIG, "block", [0], by="seed"),
        InWorlds(chain(KnockOut.at(CONFIG, "block", [0], by="seed")), jnp.array([True])),
    ],
)
def test_seeds_that_a_probe_tells_apart_run_at_the_same_time(
    model: Wan, condition: trajectory.Condition, probe: Probe
) -> None:
    before = loop._advance._cache_size()  # type: ignore[attr-defined]

    def swept(model: Wan, condition: trajectory.Condition, seeds: range, *, probe: Probe, **how):
        probes = trajectory.tree_stack([probe, probe])
        return trajectory.sweep(lambda p: generate(model, condition, seeds, probe=p, **how), probes)

    for call in (generate, steps, swept):
        with pytest.raises(ValueError, match=r"s(eeds apart| over seeds); leave out together=2"):
            call(model, condition, range(4), probe=probe, together=2)
    steps(model, condition, range(4), probe=probe, together=4)
    assert loop._advance._cache_size() == before  # type: ignore[attr-defined]  # none is made


def test_a_run_without_seeds_is_refused(model: Wan, condition: trajectory.Condition) -> None:
    for call in (generate, steps):
        with pytest.raises(ValueError, match="there are no seeds"):
            call(model, condition, ())


def test_guidance_needs_a_negative_prompt(model: Wan, condition: trajectory.Condition) -> None:
    sampling = Sampling(steps=STEPS, guidance=(2.0,))
    with pytest.raises(ValueError, match="needs a negative prompt"):
        generate(model, condition.replace(negative=None), sampling=sampling)


@pytest.mark.slow
def test_a_bad_seed_leaves_the_others_alone_and_is_named(
    model: Wan, condition: trajectory.Condition, caplog
) -> None:
    """Seed 1 breaks in block 2 of step 1: seed 0 is what it is without it, step and block are
    logged; alone, it is an error."""

    class Blow(Probe):
        seeds: jax.Array

        def on_block(self, site, tokens):
            here = self.seeds[jax.lax.axis_index("seed")] & (site.step == 1) & (site.layer == 2)
            return jnp.where(here, jnp.nan, tokens), ()

    good = generate(model, condition, (0, 1), probe=Blow(jnp.array([False, False])))
    trace = generate(model, condition, (0, 1), probe=Blow(jnp.array([False, True])))
    np.testing.assert_array_equal(trace.x0[0], good.x0[0])
    np.testing.assert_array_equal(trace.finite, [[True] * 4, [True, False, False, False]])
    np.testing.assert_array_equal(trace.layer, [[-1] * 4, [-1, 2, 0, 0]])
    sentence = r"from step 1 of 4 on \(in run (\(0, )?1,?\), first after block 2\)"
    assert re.search(sentence, caplog.text)
    with pytest.raises(FloatingPointError, match=r"in run \(0, 0\), first after block 2"):
        generate(model, condition, (0,), probe=Blow(jnp.array([True])))


def test_tokens_that_are_not_there_are_nan_where_numbers_are_not_known() -> None:
    """And not the features of the last one."""
    observe = jax.jit(lambda a: Capture("block", (0,), a).act(at(0, 1.0), jnp.ones((TOKENS, 2)))[1])
    seen = observe(jnp.array([TOKENS, 1, -1]))
    np.testing.assert_array_equal(jnp.isnan(seen).all(1), [True, False, True])
