"""Probabilities of success, and the stop that follows from them, where both are known exactly."""

import numpy as np

from jcos.lab.calibration import Calibration, fit, reliability, stop


def runs(n: int = 20_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores after two steps, the truth about success, and what happened."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(n, 2)) * [1.0, 50.0]
    chance = 1 / (1 + np.exp(-(2 * scores[:, 1] / 50 + 0.5)))
    return scores, chance, rng.random(n) < chance


def test_the_fit_finds_the_true_probability_on_any_scale() -> None:
    scores, chance, solved = runs()
    calibration = fit(scores, solved)
    said = calibration(scores)
    assert np.abs(said[:, 1] - chance).max() < 0.02
    assert np.abs(said[:, 0] - solved.mean()).max() < 0.05  # the first step tells nothing
    least = calibration.least(np.array([0.9, 0.9]))
    assert least[0] == -np.inf  # there is no score at which it would
    np.testing.assert_allclose(calibration(np.array([0, least[1]]))[1], 0.9)
    assert reliability(said[:, 1], solved).error < 0.02
    assert reliability(np.full(len(solved), 0.9), solved).error > 0.2


def test_a_score_that_falls_with_success_tells_nothing() -> None:
    scores, _, solved = runs(500)
    calibration = fit(-scores, solved)
    assert calibration.slope[1] == 0
    assert calibration.least(np.array([0.1, 0.9]))[1] == -np.inf
    assert np.isfinite(fit(solved[:, None] * 1.0, solved)(np.ones((1, 1)))).all()


def test_a_run_is_given_up_where_a_new_one_is_worth_more() -> None:
    """Two steps; half of the runs show after the first that they fail. Without a price all of
    those are given up; a new run, then, is worth 1. At a price p, it is worth 1 − 3 p: a good run
    costs 2, and a bad one before it, which comes once on average, costs 1."""
    chance = np.array([[1.0, 1.0], [0.0, 0.0]] * 10)
    solved = chance[:, 0] > 0.5
    for price in (0.0, 0.05):
        np.testing.assert_allclose(
            stop(chance, solved, price), 1 - 3 * price + price * np.array([1, 0])
        )
    assert (stop(chance, solved, 1.0)[0] < 0).all()  # too dear: nothing is given up early


def test_an_unsure_judge_gives_nothing_up() -> None:
    chance, solved = np.full((8, 3), 0.75), np.array([True, True, True, False] * 2)
    least = stop(chance, solved, 0.01)
    assert (chance >= least).all()
    assert Calibration(np.zeros(3), np.zeros(3)).least(least).tolist() == [-np.inf] * 3
