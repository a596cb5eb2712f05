"""Places inside the model: what a probe is given there, what goes on, and what they cost."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcos.config import Sampling
from jcos.generation import generate, generate_worlds
from jcos.loop import seed_keys
from jcos.model import attention
from jcos.model.dit import SITES, DiT
from jcos.model.layers import layer_norm, time_features
from jcos.sampling import flow, trajectory
from jcos.sampling.inside import Capture
from jcos.sampling.probes import InWorlds, Probe, TokenEnergy, chain
from jcos.wan import Wan
from tests.models import CONFIG, FRAMES, LAYERS, STEPS, TOKENS, close, frame, kind

HEADS, WIDTH = CONFIG.dit.heads, CONFIG.dit.head_dim


everything = kind(lambda site, z: (z, z), *SITES)


@pytest.mark.slow
def test_a_block_is_put_together_from_what_is_seen_inside_it(model: Wan, condition) -> None:
    expert, video = model.experts[0], jax.random.normal(jax.random.key(0), (FRAMES, 4, 4, 28))
    sites: Any = dict.fromkeys(SITES, lambda layer, z: (z, z))
    given = video, jnp.float32(500), condition.context
    v, seen = jax.jit(lambda expert: expert(*given, sites=sites))(expert)
    close(v, jax.jit(lambda expert: expert(*given)[0])(expert))

    @jax.jit
    def put_together(expert: DiT, i: int, x: jax.Array, seen: Any) -> tuple[Any, ...]:
        """Scores' result, neurons and tokens of a block that is given x."""
        time = expert.time_embedding(time_features(jnp.array([500.0]), CONFIG.dit.freq_dim))
        time = expert.time_projection(jax.nn.silu(time)).reshape(6, -1)
        block = jax.tree.map(lambda a: a[i], expert.blocks)
        shift1, scale1, gate1, shift2, scale2, gate2 = (block.modulation[...] + time)[:, None]
        h = layer_norm(x, CONFIG.dit.eps) * (1 + scale1) + shift1
        v = block.self_attn.v(h).reshape(TOKENS, HEADS, WIDTH)
        q, k = (a[i] for a in seen["attention"])
        heads = attention.attention(q, k, v, together=True)
        x = x + block.self_attn.o(seen["heads"][i].reshape(TOKENS, -1)) * gate1
        x = x + block.cross_attn.o(seen["cross"][i].reshape(TOKENS, -1))
        h = layer_norm(x, CONFIG.dit.eps) * (1 + scale2) + shift2
        neurons = block.ffn.activation(block.ffn.layers_0(h))
        return heads, neurons, x + block.ffn.layers_2(seen["mlp"][i]) * gate2

    x, inside = seen["input"], jax.device_get(seen)
    for i in range(LAYERS):
        heads, neurons, x = put_together(expert, i, x, seen)
        close(heads, inside["heads"][i])
        close(neurons, inside["mlp"][i])
        close(x, inside["block"][i])
        close(x, inside["update"][1][i])
        close(inside["input"] if i == 0 else inside["block"][i - 1], inside["update"][0][i])


@pytest.mark.slow
def test_observations_are_a_dict_by_place_of_the_conditional_branch(model: Wan, condition) -> None:
    sampling = Sampling(steps=STEPS, shift=3.0, guidance=(2.0,))
    inside = kind(lambda site, z: (z, (z, site.branch, site.layer)), "heads", "input", "mlp")
    probe = chain(TokenEnergy(), InWorlds(inside, jnp.array([True])), everything)
    trace = generate(model, condition, (0, 1), probe=probe, sampling=sampling)
    energy, some, every = trace.block_obs
    assert energy.shape == (2, STEPS, LAYERS, TOKENS)
    assert set(some) == {"heads", "input", "mlp"}
    assert set(every) == set(SITES)
    for site, shape in {"heads": (HEADS, WIDTH), "mlp": (CONFIG.dit.ffn_dim,)}.items():
        z, branch, layer = some[site]
        assert z.shape == (2, STEPS, LAYERS, TOKENS, *shape)
        assert not branch.any()
        np.testing.assert_array_equal(layer, np.broadcast_to(np.arange(LAYERS), layer.shape))
        np.testing.assert_array_equal(z, every[site])
    tokens, _, layer = some["input"]
    assert tokens.shape == (2, STEPS, TOKENS, CONFIG.dit.dim)
    assert (layer == -1).all()
    close(jnp.linalg.norm(every["block"], axis=-1), energy)
    close(trace.x0, generate(model, condition, (0, 1), sampling=sampling).x0)


def test_probes_of_two_classes_are_two_programs() -> None:
    """Also where their fields are alike: their trees must differ, or `jit` may take one for the
    other."""

    class One(Probe):
        layer: jax.Array

    class Other(Probe):
        layer: jax.Array

    trees = [jax.tree.structure(made(jnp.int32(0))) for made in (One, Other)]
    assert trees[0] != trees[1]
    assert jax.tree.structure(kind(print, "heads")) != jax.tree.structure(kind(print, "mlp"))
    assert jax.tree.structure(One(jnp.int32(1))) == trees[0]
    ((path, _),) = jax.tree_util.tree_leaves_with_path(One(jnp.int32(0)))
    assert jax.tree_util.keystr(path) == ".layer"


def halved_at(number: int) -> Any:
    """A method that halves what is at this place, where the probe says so."""

    def method(self: Any, site: Any, z: Any) -> Any:
        del site
        return jax.tree.map(lambda a: jnp.where(self.on[number], a / 2, a), z), ()

    return method


@pytest.mark.slow
def test_what_is_returned_goes_on(model: Wan, condition) -> None:
    """Each place alone changes the run."""
    methods: dict[str, Any] = {f"on_{site}": halved_at(i) for i, site in enumerate(SITES)}
    halved: Any = type("Halved", (Probe,), {"__annotations__": {"on": jax.Array}} | methods)
    every = halved(jnp.eye(len(SITES) + 1, len(SITES), dtype=bool))  # and none
    runs = trajectory.sweep(lambda probe: generate(model, condition, probe=probe).x0, every)
    assert (jnp.abs(runs[:-1] - runs[-1:]).max((1, 2, 3, 4, 5, 6)) > 1e-3).all()


@pytest.mark.slow
def test_a_sweep_over_layers_and_heads_keeps_one_layer(model: Wan, condition) -> None:
    class One(Probe):
        layers: jax.Array
        head: jax.Array

        def slots(self):
            return self.layers

        def on_heads(self, site, z):
            return z, jnp.take(z, self.head, 1)

        def on_step(self, site, observed):
            return observed.sum(0)

    guided = Sampling(steps=STEPS, shift=3.0, guidance=(2.0,))

    def observed(probe: Probe) -> jax.Array:
        return generate(model, condition, probe=probe, sampling=guided).block_obs

    every = observed(kind(lambda _, z: (z, z), "heads"))
    probes = [One(jnp.array([n]), jnp.int32(h)) for n in range(LAYERS) for h in range(HEADS)]
    swept = jax.jit(lambda p: trajectory.sweep(observed, p))(trajectory.tree_stack(probes))
    by_hand = jnp.moveaxis(every, (2, 4), (0, 1)).reshape(LAYERS * HEADS, *swept.shape[1:])
    close(swept, by_hand)


def text_of(model: Wan, condition, probe: Probe) -> str:
    worlds = jax.tree.map(lambda a: a[None], condition)
    plan = flow.plan(CONFIG.sampling)
    jitted = jax.jit(lambda worlds: generate_worlds(model, plan, worlds, seed_keys((0, 1)), probe))
    return jitted.lower(worlds).as_text()


@pytest.mark.slow
def test_a_place_that_no_probe_uses_costs_nothing(model: Wan, condition, monkeypatch) -> None:
    """The program is that of a model that has no such places."""
    probe = chain(Capture("block", (1,)), InWorlds(chain(TokenEnergy()), jnp.array([True])))
    assert probe.sites() == ("block",)
    with_sites = [text_of(model, condition, p) for p in (Probe(), probe)]
    used = text_of(model, condition, chain(kind(lambda _, z: (2 * z, ()), "heads")))
    assert len(used.splitlines()) > len(with_sites[0].splitlines())

    def without(self, *arguments, sites, plain=DiT.__call__, **options):
        assert list(sites) == ["block"]
        return plain(self, *arguments, sites=sites, **options)

    monkeypatch.setattr(DiT, "__call__", without)
    generate_worlds.clear_cache()  # type: ignore[attr-defined]
    assert [text_of(model, condition, p) for p in (Probe(), probe)] == with_sites


@pytest.mark.slow
def test_worlds_that_exchange_what_enters_exchange_their_videos(model: Wan) -> None:
    worlds = trajectory.tree_stack([model.condition(frame(i), "left", FRAMES) for i in (0, 1)])
    ring = kind(lambda _, z: (jax.lax.ppermute(z, "world", [(0, 1), (1, 0)]), ()), "input")
    once = Sampling(steps=1, shift=3.0)
    plain, other = (generate(model, worlds, probe=p, sampling=once).latents for p in (None, ring))
    close(other, plain[::-1])
    assert float(jnp.abs(plain[0] - plain[1]).max()) > 0.1
