"""Dictionaries: a planted one is recovered, k features are active, baselines are what they say."""

import itertools
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jcos.lab import dictionary
from jcos.lab.dictionary import Dictionary, fit, pca, random, refitted

D, PLANTED, K = 24, 32, 3


def planted(rng: np.random.Generator, directions: np.ndarray, n: int) -> np.ndarray:
    """Sums of K planted directions with random positive sizes."""
    order = np.argsort(rng.random((n, len(directions))), axis=1) < K
    return (order * rng.uniform(0.5, 1.5, order.shape) @ directions + 2).astype(np.float32)


@pytest.fixture(scope="module")
def learned() -> tuple[np.ndarray, Dictionary, dictionary.Log, np.ndarray]:
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((PLANTED, D))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    batches = (planted(rng, directions, 256) for _ in itertools.count())
    found, log = fit(batches, 48, K, rate=3e-3, steps=1500)
    return directions, found, log, planted(rng, directions, 500)


@pytest.mark.slow
def test_a_planted_dictionary_is_recovered(learned) -> None:
    directions, found, log, x = learned
    alike = np.abs(directions @ np.asarray(found.decoder).T).max(1)
    assert np.mean(alike > 0.95) > 0.9
    left = np.square(x - found.decode(found.encode(x))).sum() / np.square(x - x.mean(0)).sum()
    assert left < 0.1
    assert ((np.asarray(found.encode(x)) != 0).sum(-1) == K).all()
    batched = found.encode(x.reshape(5, 100, D))
    np.testing.assert_array_equal(batched.reshape(500, -1), found.encode(x))
    assert left == pytest.approx(log.loss[-50:].mean(), abs=0.03)


@pytest.mark.slow
def test_saved_and_loaded_is_the_same(learned, tmp_path: Path) -> None:
    _, found, _, x = learned
    found.save(tmp_path / "a.safetensors")
    again = Dictionary.load(tmp_path / "a.safetensors")
    assert again.k == K
    np.testing.assert_array_equal(again.encode(x), found.encode(x))
    (tmp_path / "b").write_bytes(b"nothing")
    for name in ("b", "absent"):
        with pytest.raises(ValueError, match="holds no dictionary"):
            Dictionary.load(tmp_path / name)


def test_a_direction_is_what_one_unit_of_a_feature_adds(learned) -> None:
    _, found, _, x = learned
    codes = found.encode(x)
    more = found.decode(codes.at[:, 5].add(1.0)) - found.decode(codes)
    np.testing.assert_allclose(more, jnp.broadcast_to(found.direction(5), x.shape), atol=1e-5)


@pytest.mark.slow
def test_principal_components_explain_all_of_a_plane() -> None:
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((200, 2)) @ rng.standard_normal((2, 8)) + 1).astype(np.float32)
    both, one = pca(x, 2), pca(x, 1)
    np.testing.assert_allclose(both.decode(both.encode(x)), x, atol=1e-4)
    left = np.square(x - one.decode(one.encode(x))).sum() / np.square(x - x.mean(0)).sum()
    values = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
    assert left == pytest.approx(values[1] / values.sum(), rel=1e-3)


@pytest.mark.slow
def test_least_squares_leaves_no_more_than_the_codes_themselves() -> None:
    x = np.random.default_rng(2).standard_normal((50, 16)).astype(np.float32)
    any_one = random(x, 64, 4)
    codes = any_one.encode(x)
    best = refitted(any_one, jnp.asarray(x), codes)
    np.testing.assert_array_equal(best != 0, codes != 0)
    error, least = (np.square(x - any_one.decode(c)).sum(-1) for c in (codes, best))
    assert (least <= error + 1e-4).all()


@pytest.mark.slow
def test_more_than_half_of_the_features_may_be_active() -> None:
    x = np.random.default_rng(3).standard_normal((20, 6)).astype(np.float32)
    found, log = fit(itertools.repeat(x), 5, 4, steps=2)
    assert ((np.asarray(found.encode(x)) != 0).sum(-1) == 4).all()
    assert np.isfinite(log.loss).all()
    with pytest.raises(ValueError, match="k is 8 of 8 features"):
        fit(iter([np.zeros((4, 4), np.float32)]), 8, 8)
