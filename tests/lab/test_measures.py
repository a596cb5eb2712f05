"""What is read off trajectories: known values and laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcos.lab.measures import (
    answer_mass,
    auroc,
    bootstrap,
    cka,
    commitment_step,
    dissimilarity,
    held_at_once,
    hsic,
    over_puzzles,
    proportion,
)


def gaussian(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def test_cka_is_one_up_to_rotation_scale_and_shift():
    x = gaussian(0, 50, 6)
    rotation, _ = jnp.linalg.qr(gaussian(1, 6, 6))
    assert abs(float(cka(x, 3 * x @ rotation + 5)) - 1) < 1e-5


def test_cka_of_unrelated_features_is_near_zero_and_symmetric():
    x, y = gaussian(0, 4000, 3), gaussian(1, 4000, 5)
    assert 0 <= float(cka(x, y)) < 0.01
    assert abs(float(cka(x, y)) - float(cka(y, x))) < 1e-6


def test_cka_equals_its_definition_by_gram_matrices():
    x, y = np.asarray(gaussian(0, 20, 4)), np.asarray(gaussian(1, 20, 7))
    centre = np.eye(20) - 1 / 20
    k, m = (centre @ a @ a.T @ centre for a in (x, y))
    want = np.sum(k * m) / np.sqrt(np.sum(k * k) * np.sum(m * m))
    assert abs(float(cka(jnp.asarray(x), jnp.asarray(y))) - want) < 1e-5


STILL, ANSWERS = gaussian(0, 2, 3, 3, 4), gaussian(1, 3, 2, 3, 3, 4)


@pytest.mark.parametrize("weights", [(1, 0, 0), (0.5, 0.5, 0), (0.2, 0.3, 0.5), (0, 0, 0)])
def test_a_blend_of_answers_has_its_weights_and_nothing_off(weights):
    blend = STILL + jnp.tensordot(jnp.array(weights, jnp.float32), ANSWERS - STILL[None], 1)
    mass = answer_mass(blend, ANSWERS, STILL)
    np.testing.assert_allclose(mass.on, weights, atol=1e-5)
    assert float(mass.off) < 1e-5


def test_what_no_answer_explains_is_off():
    change = (ANSWERS - STILL[None]).reshape(3, -1)
    basis, _ = jnp.linalg.qr(change.T)
    other = gaussian(2, change.shape[1])
    other = (other - basis @ (basis.T @ other)).reshape(STILL.shape)
    mass = answer_mass(STILL + other, ANSWERS, STILL)
    np.testing.assert_allclose(mass.on, 0, atol=1e-5)
    assert abs(float(mass.off) - 1) < 1e-5
    size = jnp.linalg.norm(other) / jnp.linalg.norm(ANSWERS[0] - STILL)
    half = answer_mass(ANSWERS[0] + other / size, ANSWERS, STILL)
    np.testing.assert_allclose(half.on, [1, 0, 0], atol=1e-5)
    assert abs(float(half.off) - 0.5) < 1e-5


def test_answers_that_depend_on_each_other_share_the_weight():
    """Four routes from two independent detours; any blend is one of the others as well."""
    a, b = gaussian(2, *STILL.shape), gaussian(3, *STILL.shape)
    routes = (
        STILL[None] + jnp.stack([a + b, a - b, b - a, -a - b]) + gaussian(4, *STILL.shape)[None]
    )
    middle = (routes[1] + routes[2]) / 2
    mass = answer_mass(middle, routes, STILL)
    np.testing.assert_allclose(mass.on, 0.25, atol=1e-4)
    assert float(mass.off) < 1e-5


@pytest.mark.parametrize(
    ("solved", "step"),
    [
        ([0, 0, 0], 3),
        ([1, 1, 1], 0),
        ([0, 1, 1], 1),
        ([1, 0, 1], 2),
        ([1, 1, 0], 3),
        ([0, 1, 0], 3),
    ],
)
def test_commitment_is_the_first_step_from_which_all_are_solved(solved, step):
    assert commitment_step(np.array([solved], bool)) == [step]


def test_commitment_keeps_leading_axes():
    solved = np.random.default_rng(0).random((4, 5, 6)) < 0.7
    each = np.stack([commitment_step(row) for row in solved])
    np.testing.assert_array_equal(commitment_step(solved), each)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I, method 3
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval(successes, n, low, high):
    found = proportion(np.arange(n) < successes)
    assert found.n == n
    assert found.mean == pytest.approx(successes / n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    assert 0 <= found.low <= found.mean <= found.high <= 1


def test_bootstrap_interval_is_that_of_the_mean():
    values = np.random.default_rng(0).normal(2.0, 3.0, 400)
    found = bootstrap(values)
    assert found.mean == pytest.approx(values.mean())
    assert found.n == 400
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.05)
    assert found.high == pytest.approx(values.mean() + half, abs=0.05)
    assert found == bootstrap(values)
    assert found != bootstrap(values, seed=1)


def test_bootstrap_of_a_constant_is_a_point():
    found = bootstrap(np.full(7, 0.25), draws=100)
    assert found[:3] == (0.25, 0.25, 0.25)


def test_bootstrap_of_a_median():
    values = np.random.default_rng(4).exponential(1.0, 500)
    found = bootstrap(values, statistic=np.median, draws=2000)
    assert found.mean == pytest.approx(np.median(values))
    # Of an exponential distribution, the median of n values spreads by 1 / √n.
    assert found.low < found.mean < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 / np.sqrt(500), rel=0.4)
    assert found.high - found.low < 0.3


@pytest.mark.parametrize(
    ("weights", "held"),
    [([1, 0, 0], 1), ([0.5, 0.5, 0], 2), ([2, 2, 2], 3), ([0.5, 0.5, -0.3], 2)],
)
def test_answers_held_at_once(weights, held):
    assert float(held_at_once(np.array(weights, float))) == pytest.approx(held)


def test_nothing_held_is_no_number():
    found = held_at_once(np.array([[0.0, -1.0], [0.2, 0.2]]))
    assert np.isnan(found[0])
    assert found[1] == pytest.approx(2)


def test_area_under_the_curve_counts_pairs_in_order():
    values = np.array([0.1, 0.4, 0.35, 0.8, 0.4])
    positive = np.array([False, False, True, True, True])
    # of the six pairs, four are in order and one is a tie
    assert auroc(values, positive).mean == pytest.approx(4.5 / 6)
    assert auroc(-values, positive).mean == pytest.approx(1.5 / 6)


def test_area_under_the_curve_has_the_interval_of_its_distribution():
    """Two normals one deviation apart: Φ(1/√2) = 0.760; values that tell nothing: 0.5."""
    rng = np.random.default_rng(0)
    positive = np.arange(600) % 2 == 0
    values = rng.normal(size=600)
    idle, apart = auroc(values, positive), auroc(values + positive, positive)
    assert idle.low < 0.5 < idle.high
    assert apart.low < 0.760 < apart.high
    assert apart.high - apart.low == pytest.approx(0.076, abs=0.015)


def test_area_under_the_curve_resamples_puzzles_not_runs():
    """Ten copies of each case tell no more than one."""
    rng = np.random.default_rng(0)
    positive, values = rng.random(80) < 0.5, rng.normal(size=80)
    once = auroc(values, positive)
    copies = auroc(values.repeat(10), positive.repeat(10), groups=np.arange(80).repeat(10))
    assert copies.mean == pytest.approx(once.mean)
    assert copies.n == once.n == 80
    assert copies.high - copies.low == pytest.approx(once.high - once.low, rel=0.05)


def test_area_under_the_curve_of_one_kind_is_no_number():
    assert np.isnan(auroc(np.arange(4.0), np.ones(4, bool)).mean)


def test_over_puzzles_chooses_the_interval():
    solved = np.arange(20) < 15
    assert over_puzzles(solved) == over_puzzles(solved[:, None]) == proportion(solved)
    seeds = np.stack([solved, ~solved], 1)
    assert over_puzzles(seeds)[:3] == (0.5, 0.5, 0.5)
    agreed = np.repeat(np.ones((9, 1), bool), 3, 1)  # no certainty: all of only nine
    assert over_puzzles(agreed) == proportion(agreed[:, 0])
    values = np.random.default_rng(0).normal(size=(20, 3))
    assert over_puzzles(values) == bootstrap(values.mean(1))


# ---- CKA without bias


def gram_hsic(x: np.ndarray, y: np.ndarray) -> float:
    """By its definition: the inner product of U-centred Gram matrices."""
    n = len(x)
    centred = []
    for gram in (x @ x.T, y @ y.T):
        np.fill_diagonal(gram, 0)
        rows = gram.sum(0, keepdims=True) / (n - 2)
        gram = gram - rows - rows.T + gram.sum() / ((n - 1) * (n - 2))
        np.fill_diagonal(gram, 0)
        centred.append(gram)
    return float((centred[0] * centred[1]).sum())


def test_hsic_is_its_definition_also_without_each_frame():
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 18, 7))
    y = 0.5 * x + noise + 3
    found = hsic(jnp.asarray(x), jnp.asarray(y), 3)
    outside = [np.arange(18) // 6 != f for f in range(3)]
    want = [gram_hsic(x[kept], y[kept]) for kept in (np.full(18, True), *outside)]
    np.testing.assert_allclose(found, want, rtol=1e-4)


def test_dissimilarity_knows_nothing_and_everything():
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(40, 32)), jnp.float32)
    rotation = jnp.asarray(np.linalg.qr(rng.normal(size=(32, 32)))[0], jnp.float32)
    np.testing.assert_allclose(dissimilarity(x, 3 * x @ rotation + 5, 4), 0, atol=1e-4)
    pairs = jnp.asarray(rng.normal(size=(200, 2, 40, 32)), jnp.float32)
    free = jax.jit(jax.vmap(lambda pair: dissimilarity(pair[0], pair[1], 4)))(pairs)
    np.testing.assert_allclose(free.mean(0), 1, atol=0.01)
    biased = jax.vmap(lambda pair: cka(pair[0], pair[1]))(pairs)
    assert biased.mean() > 0.4  # which is why it is not taken here


def test_with_many_tokens_it_is_cka():
    rng = np.random.default_rng(2)
    x, noise = rng.normal(size=(2, 4000, 4)).astype(np.float32)
    x, y = jnp.asarray(x), jnp.asarray(x + noise)
    want = 1 - float(cka(x, y))
    assert float(dissimilarity(x, y, 2)[0]) == pytest.approx(want, abs=2e-3)
