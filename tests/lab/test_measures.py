"""What is read off trajectories: known values and laws."""

import itertools

import jax
import numpy as np
import pytest
from scipy import special

from jcos.lab import measures
from jcos.lab.measures import (
    GAINS,
    POSITIVE,
    SCORES,
    UNBOUNDED,
    area,
    auroc,
    commitment_step,
    estimate,
    held_at_once,
    median_step,
)

cka, answer_mass = jax.jit(measures.cka), jax.jit(measures.answer_mass)
hsic, dissimilarity = (
    jax.jit(f, static_argnums=2) for f in (measures.hsic, measures.dissimilarity)
)


def gaussian(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.slow
def test_cka_is_its_definition_by_gram_matrices():
    """So it is symmetric, one up to rotation, scale and shift, and near zero where nothing is
    shared."""
    x, y = gaussian(0, 20, 4), gaussian(1, 20, 7)
    centre = np.eye(20) - 1 / 20
    k, m = (centre @ a @ a.T @ centre for a in (x, y))
    want = np.sum(k * m) / np.sqrt(np.sum(k * k) * np.sum(m * m))
    for a, b in ((x, y), (y, x)):
        assert abs(float(cka(a, b)) - want) < 1e-5
    x, (rotation, _) = gaussian(0, 50, 6), np.linalg.qr(gaussian(1, 6, 6))
    assert abs(float(cka(x, 3 * x @ rotation + 5)) - 1) < 1e-5
    assert 0 <= float(cka(gaussian(0, 4000, 3), gaussian(1, 4000, 5))) < 0.01


STILL, ANSWERS = gaussian(0, 2, 3, 3, 4), gaussian(1, 3, 2, 3, 3, 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "weights", [(1, 0, 0), (0.5, 0.5, 0), (0.2, 0.3, 0.5), (0.4, 0, 0), (0, 0, 0)]
)
def test_a_blend_of_answers_and_the_static_picture_has_its_weights(weights):
    blend = STILL + np.tensordot(np.array(weights, np.float32), ANSWERS - STILL, 1)
    mass = answer_mass(blend, ANSWERS, STILL)
    np.testing.assert_allclose(mass.on, weights, atol=2e-3)
    np.testing.assert_allclose(mass.off, 1 - sum(weights), atol=2e-3)


def test_what_no_answer_explains_is_the_rest():
    change = (ANSWERS - STILL).reshape(3, -1)
    basis, _ = np.linalg.qr(change.T)
    other = gaussian(2, change.shape[1])
    other = (other - basis @ (basis.T @ other)).reshape(STILL.shape)
    mass = answer_mass(STILL + other, ANSWERS, STILL)
    np.testing.assert_allclose(mass.on, 0, atol=1e-5)
    size = np.linalg.norm(other) / np.linalg.norm(ANSWERS[0] - STILL)
    for residual, share in ((0.5, 0.75), (1.0, 0.0), (2.0, 0.0)):
        mass = answer_mass(ANSWERS[0] + residual * other / size, ANSWERS, STILL)
        np.testing.assert_allclose(mass.on, [share, 0, 0], atol=1e-4)
        np.testing.assert_allclose(mass.off, 1 - share, atol=1e-4)


def four_routes() -> tuple[np.ndarray, np.ndarray]:
    """From two independent detours: route 0 + route 3 = route 1 + route 2."""
    start, a, b = gaussian(4, *STILL.shape), gaussian(2, *STILL.shape), gaussian(3, *STILL.shape)
    return STILL + np.stack([a + b, a - b, b - a, -a - b]) + start, start


def test_of_weights_that_make_the_same_blend_the_most_even_are_given():
    """A right answer that shares its parts with others is itself alone."""
    routes, start = four_routes()
    for k, route in enumerate(routes):
        np.testing.assert_allclose(answer_mass(route, routes, STILL).on, np.eye(4)[k], atol=1e-3)
    mass = answer_mass((routes[1] + routes[2]) / 2, routes, STILL)
    np.testing.assert_allclose(mass.on, 0.25, atol=2e-3)
    a = (routes[0] + routes[1]) / 2 - STILL - start  # half of the way is determined, half is not
    mass = answer_mass(STILL + start + a / 2, routes, STILL)
    np.testing.assert_allclose(mass.on, [0.375, 0.375, 0.125, 0.125], atol=2e-3)


def test_room_gets_no_mass_and_does_not_matter():
    estimate_ = 0.3 * ANSWERS[0] + 0.6 * ANSWERS[2] + 0.1 * STILL
    with_room = np.concatenate([ANSWERS, np.stack([STILL] * 4)])
    plain, mass = (answer_mass(estimate_, a, STILL) for a in (ANSWERS, with_room))
    np.testing.assert_array_equal(mass.on[3:], 0)
    np.testing.assert_allclose(mass.on[:3], plain.on, atol=1e-5)


def test_commitment_is_the_first_step_from_which_all_are_solved():
    solved = ["000", "111", "011", "101", "110", "010"]
    solved = np.array([[int(c) for c in row] for row in solved], bool)
    steps = [3, 0, 1, 2, 3, 3]
    assert commitment_step(solved).tolist() == steps
    assert commitment_step(solved.reshape(2, 3, 3)).ravel().tolist() == steps


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
    solved = np.arange(n) < successes
    found = estimate(solved)
    assert found == estimate(solved[:, None]) == estimate(solved.astype(float))
    assert found.n == n
    assert found.mean == pytest.approx(successes / n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    assert 0 <= found.low <= found.mean <= found.high <= 1


@pytest.mark.parametrize(("n", "least"), [(12, 0.90), (32, 0.92), (512, 0.93)])
def test_wilsons_interval_covers_the_proportion(n, least):
    """Exactly, over all outcomes; of few puzzles it swings about 95 % from one p to the next."""
    outcomes = np.arange(n + 1)
    low, high = np.array([estimate(np.arange(n) < k)[1:3] for k in outcomes]).T
    p = np.linspace(0.02, 0.98, 97)[:, None]
    chance = special.comb(n, outcomes) * p**outcomes * (1 - p) ** (n - outcomes)
    covered = (chance * ((low <= p) & (p <= high))).sum(1)
    assert covered.mean() >= 0.945
    assert covered.min() >= least


SHAPES = {
    "skewed": lambda rng, p, shape: rng.beta(0.5 * p, 0.5 * (1 - p), shape),
    "bell": lambda rng, p, shape: rng.beta(10 * p, 10 * (1 - p), shape),
    "thirds": lambda rng, p, shape: rng.binomial(2, p, shape) / 2,
    "fifths": lambda rng, p, shape: rng.binomial(5, p, shape) / 5,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("n", [12, 32, 512])
def test_the_interval_of_bounded_scores_covers_their_mean(kind, n):
    rng, draws = np.random.default_rng(n), 1000
    for p in (0.02, 0.1, 0.3, 0.5, 0.8, 0.95):
        found = np.array([estimate(v) for v in SHAPES[kind](rng, p, (draws, n))])
        covered = (found[:, 1] <= p + 1e-9) & (p <= found[:, 2] + 1e-9)
        assert covered.mean() >= 0.93 - 2 * np.sqrt(0.93 * 0.07 / draws), p


@pytest.mark.slow
@pytest.mark.parametrize("n", [12, 32, 512])
def test_the_interval_of_paired_differences_covers_their_mean(n):
    rng, draws = np.random.default_rng(n), 1000
    for won, lost in ((0.02, 0.02), (0.05, 0.0), (0.1, 0.3), (0.5, 0.5)):
        values = rng.choice([1.0, -1.0, 0.0], (draws, n), p=[won, lost, 1 - won - lost])
        found = np.array([estimate(v, GAINS) for v in values])
        mean = won - lost
        covered = (found[:, 1] <= mean) & (mean <= found[:, 2])
        assert covered.mean() >= 0.93 - 2 * np.sqrt(0.93 * 0.07 / draws), (won, lost)


@pytest.mark.parametrize("span", [SCORES, GAINS, POSITIVE, UNBOUNDED])
def test_no_interval_of_a_finite_sample_has_no_width(span):
    for n, value in itertools.product((1, 2, 12, 512), (0.0, 0.25, 1.0)):
        found = estimate(np.full(n, value), span)
        assert (found.mean, found.n) == (value, n)
        assert span[0] <= found.low <= value <= found.high <= span[1]
        assert 1e-3 < found.high - found.low < np.inf


def test_wide_samples_have_the_interval_of_student():
    values = np.random.default_rng(0).normal(2.0, 3.0, 4900)
    found = estimate(values, UNBOUNDED)
    assert found.mean == pytest.approx(values.mean())
    half = 1.9604 * values.std(ddof=1) / 70
    assert found.high - found.mean == pytest.approx(half, rel=0.03)
    assert found.mean - found.low == pytest.approx(half, rel=0.03)
    rng, covered = np.random.default_rng(1), []
    for _ in range(2000):
        few = estimate(rng.exponential(1.0, 32), POSITIVE)
        covered.append(few.low <= 1 <= few.high)
    assert np.mean(covered) >= 0.92


def test_seeds_of_a_puzzle_count_as_one_and_runs_that_cannot_tell_do_not():
    rng = np.random.default_rng(0)
    values = rng.random((20, 1))
    assert estimate(values.repeat(5, 1)) == pytest.approx(estimate(values))
    solved = rng.random((20, 3)) < 0.5
    assert estimate(solved) == estimate(solved.mean(1))
    values = np.array([[0.5, np.nan], [np.nan, np.nan], [0.25, 0.75]])
    assert estimate(values) == estimate(np.array([0.5, 0.5]))
    unknown = estimate(np.full((3, 2), np.nan))
    assert np.isnan(unknown.low)
    assert unknown.n == 0


def test_values_may_leave_their_span_by_rounding_only():
    for values, span in (
        ([1.00000012, 0.5], (-np.inf, 1.0)),
        ([1.00000012, 0.5], SCORES),
        ([-0.01, 1e4], POSITIVE),
    ):
        found = estimate(np.array(values), span)
        assert span[0] <= found.low < found.high <= span[1]
    for wrong, span in ((1.5, SCORES), (-0.5, POSITIVE)):
        with pytest.raises(ValueError, match=str(wrong)):
            estimate(np.array([0.5, wrong]), span)


def test_groups_count_as_one_where_they_rise_and_fall_together():
    rng = np.random.default_rng(0)
    each = rng.random(30)
    copies = estimate(each.repeat(10), groups=np.arange(30).repeat(10))
    assert copies[:3] == pytest.approx(estimate(each)[:3])
    assert copies.n == 300
    wrong = estimate(np.zeros(300, bool), groups=np.arange(30).repeat(10))
    assert wrong[:3] == pytest.approx(estimate(np.zeros(30, bool))[:3])


@pytest.mark.parametrize("n", [12, 32, 512])
def test_the_interval_of_a_median_covers_it(n):
    rng = np.random.default_rng(n)
    steps = np.minimum(rng.geometric(0.06, (2000, n)) - 1, 50)  # 11 or fewer with 52 %
    found = np.array([median_step(row, 50) for row in steps])
    assert ((found[:, 1] <= 11) & (found[:, 2] >= 11)).mean() >= 0.94
    assert (found[:, 1] < found[:, 2]).all()
    # Where all are alike it is known to half a step.
    assert median_step(np.zeros(40), 50)[:3] == (0, 0, 0.5)
    assert median_step(np.full(40, 7.0), 50)[:3] == (7, 6.5, 7.5)
    assert median_step(np.full(4, 7.0), 50)[:3] == (7, 0, 50)


def test_answers_held_at_once():
    mass = np.array([[1, 0, 0], [0.5, 0.5, 0], [0.2, 0.2, 0.2], [0.3, 0.3, 0], [0, 0, 0]])
    np.testing.assert_allclose(held_at_once(mass), [1, 2, 3, 2, np.nan])


def test_area_under_the_curve_counts_pairs_in_order():
    values = np.array([0.1, 0.4, 0.35, 0.8, 0.4])
    positive = np.array([False, False, True, True, True])
    # of the six pairs, four are in order and one is a tie
    for sign, want in ((1, 4.5 / 6), (-1, 1.5 / 6)):
        assert auroc(sign * values, positive).mean == pytest.approx(want)
        assert area(sign * values, positive, ~positive) == pytest.approx(want)
    positive = np.stack([positive, values > 0.3, np.zeros(5, bool)])
    found = area(np.stack([values] * 3), positive, ~positive)
    assert found[1] == 1
    assert np.isnan(found[2])


def test_area_under_the_curve_has_the_interval_of_its_distribution():
    """Two normals one deviation apart: Φ(1/√2) = 0.760; values that tell nothing: 0.5."""
    rng = np.random.default_rng(0)
    positive = np.arange(600) % 2 == 0
    values = rng.normal(size=600)
    idle, apart = auroc(values, positive), auroc(values + positive, positive)
    assert idle.low < 0.5 < idle.high
    assert apart.low < 0.760 < apart.high
    assert apart.high - apart.low == pytest.approx(0.076, abs=0.015)


def test_area_under_the_curve_resamples_puzzles_and_is_never_certain():
    """Ten copies of each case tell no more than one."""
    rng = np.random.default_rng(0)
    positive, values = rng.random(80) < 0.5, rng.normal(size=80)
    once = auroc(values, positive)
    copies = auroc(values.repeat(10), positive.repeat(10), groups=np.arange(80).repeat(10))
    assert copies.mean == pytest.approx(once.mean)
    assert copies.n == once.n == 80
    assert copies.high - copies.low == pytest.approx(once.high - once.low, rel=0.05)
    found = auroc(values := np.arange(24.0), values >= 12)
    assert (found.mean, found.high) == (1, 1)
    assert 0.5 < found.low < 0.95
    assert np.isnan(auroc(values, np.ones(24, bool)).mean)


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
    found = hsic(x, y, 3)
    outside = [np.arange(18) // 6 != f for f in range(3)]
    want = [gram_hsic(x[kept], y[kept]) for kept in (np.full(18, True), *outside)]
    np.testing.assert_allclose(found, want, rtol=1e-4)


@pytest.mark.slow
def test_dissimilarity_knows_nothing_and_everything():
    rng = np.random.default_rng(1)
    x, (rotation, _) = rng.normal(size=(40, 32)), np.linalg.qr(rng.normal(size=(32, 32)))
    np.testing.assert_allclose(dissimilarity(x, 3 * x @ rotation + 5, 4), 0, atol=1e-4)
    pairs = rng.normal(size=(200, 2, 40, 32))
    free = jax.vmap(lambda pair: dissimilarity(pair[0], pair[1], 4))(pairs)
    np.testing.assert_allclose(free.mean(0), 1, atol=0.01)
    biased = jax.vmap(lambda pair: cka(pair[0], pair[1]))(pairs)
    assert biased.mean() > 0.4  # which is why it is not taken here
    x, noise = rng.normal(size=(2, 4000, 4))  # here it has no bias
    want = 1 - float(cka(x, x + noise))
    assert float(dissimilarity(x, x + noise, 2)[0]) == pytest.approx(want, abs=2e-3)
