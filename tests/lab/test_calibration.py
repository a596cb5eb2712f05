"""Probabilities of success, and the stop that follows from them, where both are known exactly."""

import numpy as np

from jcos.lab.calibration import fit, reliability, stop


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
    assert reliability(said[:, 1], solved).error < 0.02
    assert reliability(np.full(len(solved), 0.9), solved).error > 0.2


def test_a_score_that_falls_with_success_tells_nothing() -> None:
    scores, _, solved = runs(500)
    assert fit(-scores, solved).slope[1] == 0
    assert np.isfinite(fit(solved[:, None] * 1.0, solved)(np.ones((1, 1)))).all()


def test_a_run_is_given_up_where_a_new_one_is_worth_more() -> None:
    """Half of the runs show after the first of three steps that they fail. Without a price nothing
    is lost by waiting for the end; with a high one nothing is given up."""
    scores = np.array([[[2.0] * 3, [1.0] * 3]] * 10)
    assert stop(scores, scores - 1, 0.05) == [2.0, 2.0, 2.0]
    assert stop(scores, scores - 1, 0.0) == [-np.inf, -np.inf, 2.0]
    assert stop(scores, scores - 1, 1.0) == [-np.inf] * 3


def test_it_waits_where_a_later_step_tells_more() -> None:
    """The first step tells a little (0.4 or 0.6), the second all: nothing is given up before."""
    runs = [[0.0, 1.0]] * 4 + [[0.0, 0.0]] * 6 + [[1.0, 1.0]] * 6 + [[1.0, 0.0]] * 4
    scores = np.array([runs])
    assert stop(scores, scores[..., [1, 1]], 0.02) == [-np.inf, 1.0]
    assert stop(scores, scores[..., [1, 1]], 0.4) == [-np.inf, -np.inf]


def test_hard_puzzles_and_unsure_judges_are_not_begun_again() -> None:
    scores = np.repeat(np.array([0.0, 1.0]), 8).reshape(2, 4, 2)  # none or all runs are solved
    assert stop(scores, scores, 0.01) == [-np.inf] * 2
    unsure = np.random.default_rng(0).normal(size=(4, 8, 3))
    assert stop(unsure, np.full((4, 8, 3), 0.75), 0.01) == [-np.inf] * 3
