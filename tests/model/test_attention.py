"""Every kernel and every way to share a sequence computes what the reference computes."""

import logging
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jcos.config import DiTConfig, Sampling
from jcos.model import attention as module
from jcos.model.attention import KERNELS, Problem, attention, choose, using
from jcos.model.dit import DiT
from jcos.sampling import flow, trajectory
from jcos.sampling.probes import Noise
from jcos.sampling.trajectory import Condition

ON = {
    "tpu": Problem("tpu", "bfloat16", 32760, 32760, 40, 128),
    "gpu": Problem("gpu", "bfloat16", 32760, 32760, 40, 128),
    "cpu": Problem("cpu", "float32", 100, 100, 4, 32),
}


def inputs(n: int, m: int, heads: int = 2, d: int = 128) -> list[jax.Array]:
    random, shapes = np.random.default_rng(0), ((n, heads, d), (m, heads, d), (m, heads, d))
    return [jnp.asarray(random.standard_normal(shape, np.float32)) for shape in shapes]


def tiny(heads: int) -> DiT:
    cfg = DiTConfig(8 * heads, 16, heads, 2, 4, 4, text_dim=4, text_len=4, freq_dim=8)
    return DiT(cfg, rngs=nnx.Rngs(0))


def by_hand(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """In float64, and the logarithm of the denominator."""
    wide = [np.asarray(a, np.float64) for a in (q, k, v)]
    weights = np.exp(np.einsum("nhd,mhd->nhm", wide[0], wide[1]))
    total = weights.sum(-1, keepdims=True)
    return np.einsum("nhm,mhd->nhd", weights / total, wide[2]), np.log(total[..., 0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["xla", "splash"])
@pytest.mark.parametrize(("n", "m", "keys"), [(200, 130, None), (100, 700, 650)])
def test_kernels_equal_the_formula_at_lengths_that_no_tile_divides(name, n, m, keys):
    q, k, v = inputs(n, m)
    q = q * q.shape[-1] ** -0.5
    with jax.numpy_rank_promotion("allow"):
        run = jax.jit(KERNELS[name].run, static_argnums=(3, 4))
        out, top = run(q, k, v, keys, True)
        alone, _ = run(q, k, v, keys, False)
    want, want_top = by_hand(q, k[:keys], v[:keys])
    np.testing.assert_allclose(out, want, rtol=0, atol=2e-5)
    assert top is not None
    np.testing.assert_allclose(top, want_top, rtol=0, atol=2e-5)
    np.testing.assert_allclose(alone, want, rtol=0, atol=2e-5)


def test_queries_in_turns_give_the_same(monkeypatch):
    q, k, v = inputs(50, 40)
    want = jax.jit(lambda *a: attention(*a))(q, k, v)
    monkeypatch.setattr(module, "SCORES", 40 * 2 * 7)
    turns = jax.jit(lambda *a: attention(*a))(q, k, v)
    np.testing.assert_allclose(turns, want, rtol=0, atol=2e-6)
    # Held at a time: 7 queries, not 50.
    assert "50x40" not in jax.jit(lambda *a: attention(*a)).lower(q, k, v).as_text()


@pytest.mark.slow
def test_scores_of_all_runs_together_stay_below_the_limit(monkeypatch):
    """In the compiled program: however many seeds, worlds, passes of guidance and probes of a sweep
    there are, no array is larger than the scores of one of them."""
    grid, heads, tokens = (1, 48, 48), 4, 576
    model, limit = tiny(heads), heads * tokens**2
    plan = flow.plan(Sampling(2, guidance=(2.0,)))

    def largest(seeds: int, worlds: int, probes: int, by_step: int = 0) -> int:
        """Elements of the largest array."""
        rows, keys = jnp.zeros((worlds, 4, 4)), jax.random.split(jax.random.key(0), seeds)
        given = Condition(rows, grid, rows)

        def run(dit, given, noise, probe):
            if not by_step:
                return trajectory.run([dit], plan, given, noise, keys, probe)
            state = trajectory.begin(dit.numerics, given, noise)
            step = trajectory.steps_of(plan, 0).one(0)
            return trajectory.advance(dit, step, given, state, keys, probe)

        def swept(dit, given, noise, masks):
            return trajectory.sweep(lambda mask: run(dit, given, noise, Noise(mask)), masks)

        off = jnp.zeros((probes, 2, 1))
        text = jax.jit(swept).lower(model, given, jnp.zeros((seeds, *grid, 4)), off).compile()
        shapes = re.findall(r"[a-z]+\d+\[([\d,]+)\]", text.as_text() or "")
        return max(math.prod(map(int, shape.split(","))) for shape in shapes)

    assert largest(2, 2, 1) > 4 * limit  # unless it is told
    monkeypatch.setattr(module, "SCORES", limit)
    for many in ((8, 1, 1), (2, 2, 2), (2, 2, 2, 1)):
        assert largest(*many) <= limit, many


@pytest.mark.slow
@pytest.mark.parametrize("axes", [(0, None, None, None), (None, 0, 1, None), (None, 0, None, 0)])
def test_what_one_array_is_mapped_over_all_are(axes):
    """As jax's rule for mapping its cuDNN call expects: along their first dimension."""
    q, k, v = inputs(4, 6, 1, 2)
    arrays = [
        a if axis is None else jnp.stack([a, 2 * a], axis)
        for a, axis in zip((q, k, v, jnp.arange(2)), axes, strict=True)
    ]
    mapped: list = []

    def f(*arrays):
        alike = module._mapped_alike(*arrays)
        mapped.extend(alike)
        return alike

    found = jax.vmap(f, axes)(*arrays)
    assert [a.batch_dim for a in mapped] == [0, 0, 0, 0]
    for a, axis, got in zip(arrays, axes, found, strict=True):
        want = jnp.stack([a, a]) if axis is None else jnp.moveaxis(a, axis, 0)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("platform", "best", "change", "why"),
    [
        ("tpu", "splash", {"dtype": "float32"}, "from splash to xla: .* bfloat16, these are f"),
        ("tpu", "splash", {"head_dim": 64}, "heads of a multiple of 128, these are 64"),
        ("gpu", "cudnn", {"dtype": "float32"}, "from cudnn to xla: .* bfloat16 or float16"),
        ("gpu", "cudnn", {"head_dim": 256}, "at most 128; these are 256"),
        ("cpu", "xla", {}, "^$"),
    ],
)
def test_what_the_fastest_kernel_cannot_do_falls_back_and_warns_why(platform, best, change, why):
    assert choose(ON[platform]) == (best, None)
    other = ON[platform]._replace(**change)
    name, sentence = choose(other)
    assert name == "xla"
    assert re.search(why, sentence or "")
    # Nobody waits for a small problem.
    assert choose(other._replace(queries=64, keys=64)) == ("xla", None)


@pytest.mark.slow
def test_an_override_that_cannot_be_met_is_said_once(caplog):
    module._warn.cache_clear()
    q, k, v = inputs(8, 8)
    want = attention(q, k, v)
    with caplog.at_level(logging.WARNING, logger="jcos"), using("splash"):
        for _ in range(2):
            np.testing.assert_array_equal(attention(q, k, v), want)
    assert [r.message for r in caplog.records] == [
        "attention falls back from splash to xla: splash attention is for TPUs, this is a cpu"
    ]
