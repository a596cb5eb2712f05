"""What acting on early estimates buys: every method at its cost, on the same runs."""

import json

import numpy as np
import pytest
import xarray as xr

from jcos.experiments.samples import puzzles_of
from jcos.experiments.search import Search, calibration_error
from jcos.experiments.search_bank import SIGNS, Bank
from jcos.lab.methods import best_of, early_failure, epbs

pytestmark = pytest.mark.slow  # the whole experiment, once for all tests

SMALL = Search(
    tasks=("maze",), puzzles=5, training=4, drawn=3, budgets=(11, 30), long=(6,), few=5, many=8
)


def test_the_table_has_every_method_at_its_cost(data, rows) -> None:
    dataset, programs = data
    assert programs == 6  # three banks of eight seeds, ensembles, longer runs, Flow-CPS, control
    rows = {(measure, case): row for (_, measure, case), row in rows.items()}
    costs = {
        "one run": 4,
        "one run, 6 steps": 6,
        "best of 8, oracle": 32,
        "best of 4, oracle": 16,
        "best of 8, random": 32,
        "the paper's ensemble of 3, first step": 12,
        "Feynman–Kac, decided": 32,
        "EvoSearch, decided": 24,
        "8 seeds, best by random": 32,
        "8 seeds, screened": 8 * 3 + 1,
    }
    for case, cost in costs.items():
        assert rows["solved", case].forwards == cost, case
        assert rows["forwards per puzzle", case].value == cost, case
    assert rows["solved", "one run"].n == 5
    assert rows["solved", "EvoSearch, decided"].n == 3
    assert rows["solved", "8 seeds, screened"].n == 5
    for budget in SMALL.budgets:
        for kind in ("restart", "calibrated", "screen", "screen twice"):
            assert ("solved", f"{kind}, decided, ≤ {budget}") in rows
            assert rows["forwards per puzzle", f"{kind}, decided, ≤ {budget}"].value >= 4
    settings = json.loads(dataset.attrs["settings"])["maze"]
    assert settings["best of 4, oracle"] == "after step 4 of 4, of 4 by oracle: the best 1"
    error = rows["calibration error: decided", "step 3"]
    assert 0 <= error.low <= error.value <= error.high <= 1
    gain = rows["solved, more than one run", "one run"]
    assert (gain.value, gain.n) == (0, 5)
    assert {name for name, _ in SMALL.figures(dataset)} == {"pareto", "reliability"}
    for name in (*SIGNS, "head"):
        assert np.isfinite(dataset["signs"].sel(judge=name)).all()


def bank() -> Bank:
    """Two puzzles, four seeds, two steps: at step 1 a judge knows what will be solved."""
    solved = np.array([[False, True, False, False], [True, False, False, True]])
    late = np.where(solved, 1.0, 0.0)
    return Bank({"late": np.stack([1 - late, late], -1)}, solved, np.zeros((2, 4, 2, 1)))


def test_a_bank_is_played_in_disjoint_groups_of_seeds() -> None:
    solved, forwards = bank().play(best_of(2, "late"))
    np.testing.assert_array_equal(solved, [0.5, 1.0])
    np.testing.assert_array_equal(forwards, [4, 4])
    guided = bank()._replace(passes=2).play(best_of(2, "late"))
    np.testing.assert_array_equal(guided[1], [8, 8])
    np.testing.assert_array_equal(bank().play(best_of(4, "late"))[0], [1, 1])
    np.testing.assert_array_equal(bank().play(epbs(4, "late", at=0.0))[0], [0, 0])
    solved, forwards = bank().play(early_failure(4, "late", at=0.9, least=0.5))
    np.testing.assert_array_equal(solved, [1, 1])
    np.testing.assert_array_equal(forwards, [4, 2])


def test_alike_puzzles_leave_a_calibration_error_uncertain() -> None:
    each = ("puzzle", "seed", "step")
    chance = np.full((3, 4, 1), 0.75)
    ended = np.tile([True, True, True, False], (3, 1))
    data = xr.Dataset({"chance": (each, chance), "ended": (each[:2], ended)})
    for puzzles in (3, 1):
        error = calibration_error(data.isel(puzzle=slice(puzzles)), 0)
        assert error.n == puzzles
        assert error.low < error.high
        assert error.low <= error.mean <= error.high


def test_training_puzzles_have_several_answers_where_the_others_have() -> None:
    for several in (False, True):
        puzzles = puzzles_of("maze", 8, (0, 1), several, "train")
        assert not any(puzzle.held_out for puzzle in puzzles)
        assert all(len(puzzle.answers) > 1 for puzzle in puzzles) == several


def test_the_best_within_a_budget_is_chosen() -> None:
    methods = [best_of(n, "late") for n in (1, 2, 4)]
    best = bank().best(methods, (1, 2, 5, 8))
    assert {budget: method.seeds for budget, method in best.items()} == {2: 1, 5: 2, 8: 4}
