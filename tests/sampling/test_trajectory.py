"""Laws of trajectories and probes, on a small random model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcos.config import Sampling
from jcos.generation import generate, generate_worlds
from jcos.loop import seed_keys, steps
from jcos.sampling import flow, trajectory
from jcos.sampling.inside import Capture, KnockOut, Swap
from jcos.sampling.probes import (
    EstimateEnsemble,
    InWorlds,
    Noise,
    Probe,
    SeedEnsemble,
    TokenEnergy,
    chain,
)
from jcos.wan import Wan
from tests.models import CONFIG, DIT, FRAMES, LAYERS, STEPS, TOKENS, at, close, frame, randomised


@pytest.mark.slow
def test_mask_off_is_bit_equal_inside_one_program(model, condition) -> None:
    """World 1 is wiped at a step, world 0 is not: world 0 equals a run in which no world is
    touched."""
    both = trajectory.tree_stack([condition, condition])

    class InWorldOne(Noise):
        def on_latents(self, site, x):
            return jnp.where(jax.lax.axis_index("world") == 1, super().on_latents(site, x), x)

    wiped = InWorldOne.at_steps(STEPS, FRAMES, [1])
    a = generate(model, both, probe=wiped)
    b = generate(model, both, probe=wiped.replace(mask=jnp.zeros_like(wiped.mask)))
    np.testing.assert_array_equal(a.x0[0], b.x0[0])
    np.testing.assert_array_equal(a.x0[1, :, 0], b.x0[1, :, 0])
    assert float(jnp.abs(a.x0[1, :, 1] - b.x0[1, :, 1]).max()) > 0.1


def test_known_frames_go_straight_from_the_noise_to_themselves(model, condition) -> None:
    """So that the model sees them at its noise level, whatever the solver remembers."""
    known = jax.random.normal(jax.random.key(5), (2, 4, 4, 12))
    sampling = Sampling(steps=STEPS, solver="unipc", grid="unipc")
    runs = steps(model, condition.replace(known=known), (0, 1), sampling=sampling)
    assert runs.state is not None
    state, noise, first = runs.state, runs.state.x, runs.plan.schedule.sigmas[0]
    for state in runs:
        np.testing.assert_array_equal(state.x0[:, :2], np.stack([known] * 2))
        left = state.next_sigma / first  # UniPC begins just below 1
        straight = (1 - left) * known[None] + left * noise[:, :2]
        np.testing.assert_allclose(state.x[:, :2], straight, atol=1e-4)
    np.testing.assert_allclose(state.x[:, :2], np.stack([known] * 2), atol=1e-4)
    assert float(jnp.abs(state.x[0, 2] - state.x[1, 2]).max()) > 0.1


def test_strength_turns_a_latent_towards_noise_and_keeps_its_variance() -> None:
    x = jax.random.normal(jax.random.key(7), (FRAMES, 40, 40, 12))
    full = Noise.at_steps(STEPS, FRAMES, [2]).on_latents(at(2, 0.5), x)
    assert abs(float(full.mean())) < 0.02
    for strength in (0.0, 0.3, 0.9, 1.0):
        probe = Noise(jnp.zeros((STEPS, FRAMES)).at[2, 1:].set(strength))
        found = probe.on_latents(at(2, 0.5), x)
        np.testing.assert_array_equal(found[0], x[0])
        want = np.sqrt(1 - strength**2) * x[1:] + strength * full[1:]
        np.testing.assert_allclose(found[1:], want, atol=1e-5)
        assert abs(float(found.std()) - 1) < 0.02
        np.testing.assert_array_equal(probe.on_latents(at(1, 0.5), x), x)
    with pytest.raises(ValueError, match=r"strength of noise is 1.5; it lies between 0 and 1"):
        Noise.at_steps(STEPS, FRAMES, [2], strength=1.5)


def test_noise_at_its_own_level_keeps_the_estimate() -> None:
    """x = (1 − σ) x̂0 + σ ε before and after, with another ε."""
    shape, sigma = (FRAMES, 40, 40, 12), 0.3
    x0, noise = jax.random.normal(jax.random.key(1), (2, *shape))
    x = (1 - sigma) * x0 + sigma * noise
    for strength in (0.6, 1.0):
        noisy = Noise.at_steps(STEPS, FRAMES, [2], strength=strength)
        probe = noisy.replace(renoise=noisy.mask > 0)
        renewed = (probe.on_latents(at(2, sigma, x0), x) - (1 - sigma) * x0) / sigma
        assert abs(float(renewed.std()) - 1) < 0.01
        shared = float(jnp.mean(renewed * noise))
        assert shared == pytest.approx(np.sqrt(1 - strength**2), abs=0.02)


@pytest.mark.slow
def test_an_estimate_that_is_replaced_is_gone_on_with(model, condition) -> None:
    """The mean over seeds of x̂0 in the last step makes all videos equal; in the first it does not,
    but changes them."""

    class Mean(Probe):
        steps: jax.Array

        def on_estimate(self, site, x, x0):
            mean = jax.lax.pmean(x0, "seed")
            return jnp.where(self.steps[site.step], mean, x0), ()

    last, first, off = (Mean(jnp.arange(STEPS) == s) for s in (STEPS - 1, 0, -1))
    plain = generate(model, condition, (0, 1))
    ends = generate(model, condition, (0, 1), probe=last)
    close(ends.latents, jnp.stack([plain.latents.mean(0)] * 2))
    early = generate(model, condition, (0, 1), probe=first)
    close(early.x0[0, 0], plain.x0[:, 0].mean(0))
    assert float(jnp.abs(early.latents - plain.latents).max()) > 1e-2
    close(generate(model, condition, (0, 1), probe=off).latents, plain.latents)


@pytest.mark.slow
def test_a_probe_in_one_world_leaves_the_others(model: Wan, worlds: trajectory.Condition) -> None:
    both = chain(Noise.at_steps(STEPS, FRAMES, [1]), SeedEnsemble.window(STEPS, LAYERS))
    probe = chain(InWorlds(both, jnp.array([False, True])), TokenEnergy())
    trace = generate(model, worlds, (0, 1), probe=probe)
    plain = generate(model, worlds, (0, 1))
    all_of_it = generate(model, worlds, (0, 1), probe=both)
    close(trace.latents[0], plain.latents[0])
    close(trace.latents[1], all_of_it.latents[1])
    assert float(jnp.abs(trace.latents[1] - plain.latents[1]).max()) > 1e-2


class Last(Probe):
    def on_estimate(self, site, x, x0):
        return x0, site.last


@pytest.mark.slow
def test_ensemble_makes_seeds_equal_at_the_masked_layer(model, condition) -> None:
    """And `site.last` is the estimate of the step before."""
    ensemble = SeedEnsemble.window(STEPS, LAYERS, at_steps=[1], at_layers=[1])
    few = Capture("block", (2, 0, 2), jnp.array([1, 5]))
    probe = chain(ensemble, Capture("block", (0, 1, 2)), few, TokenEnergy(), Last())
    trace = generate(model, condition, (0, 1, 2), probe=probe)
    assert trace.x0.shape == (3, STEPS, FRAMES, 4, 4, 12)
    *_, before = trace.estimate_obs
    assert not before[:, 0].any()
    np.testing.assert_array_equal(before[:, 1:], trace.x0[:, :-1])
    _, features, some, energy, _ = trace.block_obs
    assert features.shape == (3, STEPS, LAYERS, TOKENS, 32)
    np.testing.assert_array_equal(some, features[:, :, [2, 0, 2]][..., [1, 5], :])
    close(energy, jnp.linalg.norm(features, axis=-1))
    spread = jnp.abs(features - features[:1]).max((0, 3, 4))
    assert spread[1, 1] < 1e-5
    assert spread[1, 2] < 1e-4  # from there on nothing differs between the seeds
    assert spread[1, 0] > 0.1
    assert (spread[2:] > 0.01).all()
    plain = generate(model, condition, (0, 1, 2), probe=Capture("block", (0, 1, 2))).block_obs
    close(features[0, 1, 1], plain[:, 1, 1].mean(0))


@pytest.mark.slow
def test_ensemble_of_one_branch_leaves_the_other(model, condition) -> None:
    sampling = Sampling(steps=STEPS, shift=3.0, guidance=(3.0,))
    both = SeedEnsemble.window(STEPS, LAYERS)
    one = both.replace(branches=jnp.array([True, False]))
    none = both.replace(branches=jnp.array([False, False]))
    plain, a, b, c = (
        generate(model, condition, (0, 1), probe=p, sampling=sampling).latents
        for p in (None, both, one, none)
    )
    close(c, plain)
    assert float(jnp.abs(a - b).max()) > 1e-3
    assert float(jnp.abs(b - plain).max()) > 1e-3


@pytest.mark.slow
def test_one_way_swap_leaves_the_donor_alone(model: Wan, worlds: trajectory.Condition) -> None:
    swap = Swap.at_layers(STEPS, LAYERS, TOKENS, [1])
    plain, patched = (generate(model, worlds, probe=p) for p in (None, swap))
    close(patched.latents[1], plain.latents[1])
    assert float(jnp.abs(patched.latents[0] - plain.latents[0]).max()) > 1e-2
    few = Swap.at_layers(STEPS, LAYERS, jnp.arange(TOKENS) < 2, [1])
    partly = generate(model, worlds, probe=few)
    assert float(jnp.abs(partly.x0[0, 0, 0] - plain.x0[0, 0, 0]).max()) > 1e-4
    assert float(jnp.abs(partly.x0[0] - patched.x0[0]).max()) > 1e-3


@pytest.mark.slow
def test_one_compile_serves_every_mask(model: Wan, condition: trajectory.Condition) -> None:
    traces = 0

    @jax.jit
    def sample(probe: Probe) -> jax.Array:
        nonlocal traces
        traces += 1
        plan = flow.plan(CONFIG.sampling)
        worlds = jax.tree.map(lambda a: a[None], condition)
        return generate_worlds(model, plan, worlds, seed_keys((0, 1)), probe).latents

    outputs = [
        sample(chain(Noise.at_steps(STEPS, FRAMES, at), SeedEnsemble.window(STEPS, LAYERS, window)))
        for at, window in (((), ()), ((1,), ()), ((2, 3), (0,)), ((), (3,)))
    ]
    assert traces == 1
    assert all(float(jnp.abs(a - outputs[0]).max()) > 1e-3 for a in outputs[1:])


def test_seeds_and_schedules_do_not_recompile(model: Wan, condition: trajectory.Condition) -> None:
    generate(model, condition, (0,))
    compiled = generate_worlds._cache_size  # type: ignore[attr-defined]
    before = compiled()
    generate(model, condition, (5,))
    for solver, grid, shift in (
        ("unipc", "unipc", 5.0),
        ("dpmpp", "dpmpp", 12.0),
        ("unipc", "diffusers", 3.0),
    ):
        sampling = dataclasses.replace(CONFIG.sampling, solver=solver, grid=grid, shift=shift)
        generate(model, condition, (0,), sampling=sampling)
    assert compiled() == before


@pytest.mark.slow
def test_guidance_of_one_is_no_guidance(model: Wan, condition: trajectory.Condition) -> None:
    sampling = Sampling(steps=STEPS, shift=3.0, guidance=(1.0,))
    close(
        generate(model, condition, sampling=sampling).latents,
        generate(model, condition).latents,
        1e-4,
    )


def test_what_is_of_two_programs_is_not_stacked(model: Wan) -> None:
    """A condition knows the grid of its latent by itself, stacked or not."""
    large = model.condition(np.zeros((16, 8, 3), np.uint8), "left", FRAMES)
    small = model.condition(frame(0), "left", FRAMES)
    assert large.grid == (FRAMES, 8, 4)
    assert trajectory.tree_stack([small, small]).grid == small.grid == (FRAMES, 4, 4)
    with pytest.raises(ValueError, match=f"{FRAMES}×4×4, {FRAMES}×8×4"):
        trajectory.tree_stack([small, large])
    heads, mean = (KnockOut.at(CONFIG, "heads", [], by=by) for by in ("zero", "mean"))
    for probes, name in (([heads, mean], "KnockOut"), ([chain(heads), chain(mean)], "Chain")):
        with pytest.raises(ValueError, match=name):
            trajectory.tree_stack(probes)


@pytest.mark.slow
def test_first_frame_stays_in_place() -> None:
    """TI2V: the given latent frame is never noised, whatever a probe does."""
    config = dataclasses.replace(DIT, in_channels=12)
    model = randomised(dataclasses.replace(CONFIG, dit=config, image="pin"))
    condition = model.condition(frame(0), "left", FRAMES)

    class Spoil(Probe):
        def on_latents(self, site, x):
            return x.at[:1].add(1.0)

        def on_estimate(self, site, x, x0):
            return x0.at[:1].add(1.0), ()

    trace, spoilt = (generate(model, condition, (0, 1), probe=p) for p in (None, Spoil()))
    close(spoilt.x0, trace.x0)
    close(spoilt.latents, trace.latents)
    for video in (*trace.latents, *trace.x0.reshape(-1, FRAMES, 4, 4, 12)):
        np.testing.assert_array_equal(video[:1], condition.first)


def test_a_probe_that_is_off_in_a_step_sends_nothing(model: Wan, worlds) -> None:
    """Its collective stands in a branch of the program, not in a choice between two results."""
    plan = flow.plan(model.config.sampling, None)

    def branches(probe: Probe) -> int:
        taken = (plan, worlds, seed_keys((0, 1)), probe)
        return str(jax.make_jaxpr(generate_worlds)(model, *taken)).count("cond[")

    for probe in (
        SeedEnsemble.window(STEPS, LAYERS),
        EstimateEnsemble(jnp.zeros(STEPS, bool), jnp.bool_(True)),
        Swap.at_layers(STEPS, LAYERS, TOKENS, [1]),
    ):
        assert branches(probe) == branches(Probe()) + 1
