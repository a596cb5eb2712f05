"""The x̂0-lens: the last block's is the run's own estimate; fitted maps bring others nearer."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import SingleDeviceSharding

import jcos
from jcos.config import Sampling
from jcos.devices import memory
from jcos.lab.lens import Lens, Maps, fit_lens, to_last
from jcos.loop import seed_keys
from jcos.model.dit import DiT
from jcos.sampling import flow, trajectory
from jcos.variants import VARIANTS
from jcos.wan import Wan
from tests.test_wan import released

TASK = jcos.tasks.get("maze")


def condition(model: Wan, i: int = 3) -> jcos.Condition:
    puzzle = TASK.sample(i, "test")
    return model.condition(TASK.first_frame(puzzle), puzzle.prompt, TASK.frames)


@pytest.mark.slow
def test_the_last_blocks_lens_is_the_runs_own_estimate(small_model: Wan) -> None:
    """Also its two known frames. Estimates are kept for some layers, or reduced on the device."""
    known = jax.random.normal(jax.random.key(0), (2, 10, 10, 12))
    given = condition(small_model).replace(known=known)
    trace = jcos.generate(small_model, given, probe=Lens())
    every = trace.block_obs
    assert every.shape == (1, 4, small_model.config.dit.layers, *trace.x0.shape[2:])
    np.testing.assert_allclose(every[:, :, -1], trace.x0, atol=2e-5)
    assert np.abs(every[:, :, 0] - trace.x0).mean() > 0.1
    some = jcos.generate(small_model, given, probe=Lens(layers=(1, 0))).block_obs
    np.testing.assert_allclose(some, every[:, :, ::-1], atol=1e-5)
    reduced = jcos.generate(small_model, given, probe=Lens(reduce=to_last)).block_obs
    apart = jnp.square((every - every[:, :, -1:])[..., 1:, :, :, :])
    np.testing.assert_allclose(reduced, jnp.sqrt(jnp.mean(apart, (-4, -3, -2, -1))), atol=1e-5)
    assert not reduced[..., -1].any()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ti2v", "i2v"])
def test_with_guidance_it_is_the_conditional_branchs(kind: str) -> None:
    """At the first step, where the guided and the unguided run have the same x; a frame that is
    given stays as it is."""
    model = released(kind)
    guided, plain = (Sampling(steps=2, guidance=g) for g in ((4.0,) * len(model.experts), None))
    picture = np.full((64, 64, 3), 90, np.uint8)
    rows = np.random.default_rng(0).normal(size=(2, 3, model.config.dit.text_dim))
    given = model.condition(picture, rows[0], 5, negative=rows[1])
    read = jcos.generate(model, given, probe=Lens((-1 + model.config.dit.layers,)), sampling=guided)
    own = jcos.generate(model, given, sampling=plain)
    np.testing.assert_allclose(read.block_obs[:, 0, 0], own.x0[:, 0], atol=1e-4)
    assert np.abs(read.block_obs[:, 0, 0] - read.x0[:, 0]).max() > 1e-3
    if given.first is not None:
        np.testing.assert_array_equal(read.block_obs[0, 1, 0, :1], given.first)


@pytest.mark.slow
def test_a_fitted_lens_is_nearer_on_another_puzzle(small_model: Wan) -> None:
    """Maps of zero are the plain lens."""
    given = jax.tree.map(lambda *a: jnp.stack(a), *(condition(small_model, i) for i in range(4)))
    layers, dim = small_model.config.dit.layers, small_model.config.dit.dim
    maps = fit_lens(small_model, given, tokens=16, updates=300)
    other = condition(small_model, 9)
    before, after = (
        np.asarray(jcos.generate(small_model, other, probe=Lens(maps=m, reduce=to_last)).block_obs)
        for m in (Maps.zeros(layers, dim), maps)
    )
    plain = jcos.generate(small_model, other, probe=Lens(reduce=to_last)).block_obs
    np.testing.assert_allclose(before, plain, atol=1e-5)
    assert (after[..., :-1] < 0.8 * before[..., :-1]).all()
    assert after[..., -1].max() < 0.2 * before[..., 0].min()


@pytest.mark.slow
def test_a_lens_is_fitted_to_one_frame_by_weights_that_wait_on_the_host(small_model: Wan) -> None:
    waiting = jax.tree.map(lambda a: a, small_model)
    host = SingleDeviceSharding(jax.devices()[0], memory_kind=memory.HOST)
    waiting.experts = jax.device_put(small_model.experts, host)
    puzzle = TASK.sample(3, "test")
    given = small_model.condition(TASK.first_frame(puzzle), puzzle.prompt, 1)
    stacked = jax.tree.map(lambda a: a[None], given)
    found, want = (
        fit_lens(m, stacked, sampling=Sampling(steps=1), tokens=2, updates=2)
        for m in (waiting, small_model)
    )
    np.testing.assert_allclose(found.bias, want.bias, atol=1e-6)
    assert np.abs(want.bias).max() > 0


def test_bad_input_is_refused(small_model: Wan) -> None:
    with pytest.raises(ValueError, match="stack them"):
        fit_lens(small_model, condition(small_model))
    with pytest.raises(IndexError, match="layer 2 is out of range"):
        jcos.generate(small_model, condition(small_model), probe=Lens(layers=(2,)))
    with pytest.raises(ValueError, match=r"Lens.layers holds float32 values"):
        jcos.generate(small_model, condition(small_model), probe=Lens(layers=(0.5,)))
    with pytest.raises(ValueError, match="made for 3 layers; this run has 2"):
        jcos.generate(small_model, condition(small_model), probe=Lens(maps=Maps.zeros(3, 32)))
    two: Any = released("i2v")
    with pytest.raises(ValueError, match="two experts"):
        fit_lens(two, condition(small_model))


@pytest.mark.slow
def test_a_reading_of_a14b_costs_little() -> None:
    """FLOPs and bytes of two blocks at 832 × 480 × 81, as the compiler counts them: at most 1.1
    times a plain step's. A reading is 8.4 MB."""
    config = VARIANTS["wan2.2-t2v-a14b"]()
    cfg, shape = dataclasses.replace(config.dit, layers=2), jax.ShapeDtypeStruct
    expert = jax.eval_shape(lambda: DiT(cfg, numerics=config.numerics, rngs=nnx.Rngs(0)))
    text: Any = shape((1, cfg.text_len, cfg.text_dim), jnp.bfloat16)
    given, plan = jcos.Condition(text, (21, 60, 104)), flow.plan(Sampling(steps=1))
    noise, keys = shape((1, 21, 60, 104, 16), jnp.float32), jax.eval_shape(lambda: seed_keys((0,)))

    @jax.jit
    def run(expert, given, noise, keys, probe):
        trace = trajectory.run([expert], plan, given, noise, keys, probe)
        return trace.latents, trace.block_obs

    def cost(probe: jcos.Probe) -> dict[str, float]:
        cost = run.lower(expert, given, noise, keys, probe).compile().cost_analysis()
        assert cost is not None
        return cost

    plain, lens = cost(jcos.Probe()), cost(Lens(reduce=to_last))
    ratios = {what: lens[what] / plain[what] for what in ("flops", "bytes accessed")}
    print(ratios)
    assert max(ratios.values()) < 1.1
    assert 8.3e6 < 4 * np.prod(noise.shape) < 8.4e6
