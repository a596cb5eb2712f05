"""One layer that is observed costs one layer, and random numbers are each probe's own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jcos.config import DiTConfig, Sampling
from jcos.generation import generate
from jcos.loop import seed_keys
from jcos.model.dit import SITES, DiT
from jcos.model.slots import Slots
from jcos.sampling import flow, trajectory
from jcos.sampling.inside import Capture
from jcos.sampling.probes import Noise, Probe, SeedEnsemble, States, TokenEnergy, chain
from tests.models import CONFIG, FRAMES, LAYERS, STEPS, at

# ---- what is held

DEEP = DiTConfig(
    dim=32,
    ffn_dim=32,
    heads=2,
    layers=40,
    in_channels=4,
    out_channels=4,
    text_dim=8,
    text_len=2,
    freq_dim=16,
)
GRID = (4, 32, 32, 4)
LAYER = 4 * 16 * 16 * 32 * 4
"""Bytes of the tokens after a block."""


class Size(Probe):
    """Observes one number."""

    def on_block(self, site, tokens):
        return tokens, jnp.linalg.norm(tokens)


def held(probe: Probe) -> float:
    """Working memory and results of one step, in layers of tokens, as the compiler counts them."""
    expert = jax.eval_shape(lambda: DiT(DEEP, rngs=nnx.Rngs(0)))
    plan = flow.plan(Sampling(steps=1, shift=3.0, guidance=(2.0,)))
    text: Any = jax.ShapeDtypeStruct((1, 2, 8), jnp.float32)
    given = trajectory.Condition(text, GRID[:3], text)
    noise = jax.ShapeDtypeStruct((1, *GRID), jnp.float32)
    keys = jax.eval_shape(lambda: seed_keys((0,)))

    @jax.jit
    def run(expert, given, noise, keys, probe):
        return trajectory.run([expert], plan, given, noise, keys, probe).block_obs

    memory = run.lower(expert, given, noise, keys, probe).compile().memory_analysis()
    assert memory is not None
    return (memory.temp_size_in_bytes + memory.output_size_in_bytes) / LAYER


@pytest.mark.slow
def test_one_layer_of_forty_costs_one() -> None:
    """Its result is one layer, and it takes no other room, also with guidance; an energy is one
    number, of 32 of a token."""
    one = Capture("block", (20,))
    none, alone, both = map(held, (Size(), one, chain(one, TokenEnergy())))
    assert 1.0 <= alone - none < 1.2
    assert both - none < 1 + 40 / 32 + 0.2


def test_slots_are_filled_in_their_order() -> None:
    shapes = (jax.ShapeDtypeStruct((2,), jnp.float32), {"n": jax.ShapeDtypeStruct((), jnp.int32)})

    @jax.jit
    def fold(layers):
        kept = Slots((layers, None), shapes)

        def body(held, layer):
            return kept.put(held, (jnp.full(2, layer, jnp.float32), {"n": layer}), layer)

        return kept.observation(*jax.lax.scan(body, kept.empty(), jnp.arange(4)))

    for layers in ([2, 0], [3], [1, 3, 1], []):
        values, every = fold(jnp.array(layers, jnp.int32))
        np.testing.assert_array_equal(values, np.repeat(np.array(layers)[:, None], 2, 1))
        np.testing.assert_array_equal(every["n"], range(4))
    assert jnp.isnan(fold(jnp.array([9]))[0]).all()


# ---- random numbers


class Keys(Probe):
    """Observes its randomness after every block."""

    def on_block(self, site, tokens):
        return tokens, jax.random.key_data(site.key)


def test_keys_differ_between_layers_branches_methods_and_places_in_a_chain() -> None:
    nested = chain(Keys(), chain(Keys(), Keys()), chain(chain(Keys())), Keys())
    numbers = []
    for layer in range(3):
        for branch in range(2):
            site = at(1, 0.5)._replace(branch=jnp.int32(branch)).at("on_block", jnp.int32(layer))
            assert site.layer == layer
            numbers += jax.tree.leaves(nested.call("on_block", site, jnp.zeros((1, 1)))[1])
    site = at(1, 0.5).at("on_block", jnp.int32(0))
    ways = (
        nested.call("on_block", site, jnp.zeros((1, 1))),
        nested.on_block(site, jnp.zeros((1, 1))),
    )
    jax.tree.map(np.testing.assert_array_equal, *ways)  # as a run calls it, and by its own name
    numbers += [
        jax.random.key_data(at(1, 0.5).at(hook).key)
        for hook in ("on_latents", "on_step", "on_estimate", *(f"on_{name}" for name in SITES[:-1]))
    ]
    distinct = {tuple(np.asarray(number).tolist()) for number in numbers}
    assert len(distinct) == 3 * 2 * 5 + 2 + len(SITES)


def test_noises_of_a_chain_are_independent() -> None:
    """Their sum keeps the variance; the first is what it is alone, also behind probes that draw
    nothing there."""
    x = jax.random.normal(jax.random.key(7), (FRAMES, 40, 40, 12))
    noise = Noise.at_steps(STEPS, FRAMES, [2], strength=0.6)
    for twice in (chain(noise, noise), chain(chain(noise), chain(noise))):
        assert float(twice.call("on_latents", at(2, 0.5), x)[0].var()) == pytest.approx(1, abs=0.02)
    alone = noise.on_latents(at(2, 0.5), x)
    first = chain(States(), chain(SeedEnsemble.window(STEPS, LAYERS)), noise)
    np.testing.assert_array_equal(first.call("on_latents", at(2, 0.5), x)[0], alone)
    by_hand = 0.8 * x + 0.6 * jax.random.normal(at(2, 0.5).key, x.shape)
    np.testing.assert_allclose(alone, by_hand, atol=2e-6)


@pytest.mark.slow
def test_a_single_noise_is_drawn_of_seed_and_step_alone(model, condition) -> None:
    """What the key of the step gives, in a chain too."""
    probe = chain(Noise.at_steps(STEPS, FRAMES, [1]), States())
    x = generate(model, condition, (3,), probe=probe).estimate_obs[1][0, 1]
    worlds = jax.tree.map(lambda a: a[None], condition)
    _, (key,) = trajectory.draw(CONFIG.dit, worlds, seed_keys((3,)), None)
    want = jax.jit(lambda key: jax.random.normal(jax.random.fold_in(key, 1), x.shape))(key)
    np.testing.assert_allclose(x, want, rtol=0, atol=1e-6)
