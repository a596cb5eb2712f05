"""Schedules as data: many of a length are one program, and what they cost and buy."""

import numpy as np
import pytest

from jcos.experiments.budget import Budget, Case, around
from jcos.wan import Wan

pytestmark = pytest.mark.slow  # the whole experiment, once for all tests

SMALL = Budget(
    tasks=("maze", "rotation"),
    puzzles=3,
    steps=(1, 4),
    lengths=(2, 4),
    shifts=(1.0, 3.0),
    middles=(0.5, 0.9),
)


def test_dataset_table_and_figures_are_complete(data, rows) -> None:
    dataset, programs = data
    assert len(SMALL.cases()) == 3 + 2 * 4
    assert programs == len({case.steps for case in SMALL.cases()}) == 3
    assert dataset["score"].shape == (11, 2, 6, 1)
    assert dict(SMALL.figures(dataset)).keys() == {"steps"}
    plain = rows["maze, one answer", "solved", "4 steps"]
    assert (plain.value, plain.still, plain.forwards) == (0, 0, 4)
    judged = [r for r in rows.values() if r.measure in ("score", "solved") and r.forwards]
    assert not [r for r in judged if r.chance is None or r.still is None]
    rotation = "rotation, one answer"
    assert rows[rotation, "score", "2 steps, half above σ 0.9"].forwards == 2
    assert rows["all tasks", "score, more than with 4 steps", "1 step"].n == 6
    # One right answer: the ideal denoiser has it in one step, whatever the schedule.
    ideal = [r for r in rows.values() if r.task == rotation and "ideal" in r.case]
    assert len(ideal) == 22
    assert {r.value for r in ideal} == {1.0}
    assert {r.forwards for r in ideal} == {0}
    # The model's own shift differs in nothing.
    spaced = [r for r in rows.values() if r.measure.endswith("own spacing")]
    same = [r for r in spaced if r.case.endswith("shift 3")]
    assert len(same) == 2
    assert {r.value for r in same} == {0.0}
    assert all(r.low < 0 < r.high for r in same)  # no difference in few puzzles is no certainty


def test_half_the_steps_above_one_half_is_shift_one(small_model: Wan, data) -> None:
    plans = [
        SMALL.plan_of(small_model, Case(kind, 4, value)).schedule
        for kind, value in (("shift", 1.0), ("middle", 0.5))
    ]
    for a, b in zip(*plans, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    a, b = (
        data[0]["score"].sel(case=f"4 steps, {name}") for name in ("shift 1", "half above σ 0.5")
    )
    np.testing.assert_allclose(a, b, atol=1e-3)


@pytest.mark.parametrize(("steps", "above"), [(2, 1), (5, 3), (8, 4)])
def test_half_of_the_levels_lie_above_the_middle(steps: int, above: int) -> None:
    levels = around(steps, 1.0, 0.8)
    assert (len(levels), levels[0], levels[above]) == (steps, 1.0, 0.8)
    assert (levels > 0.8).sum() == above
    whole = np.append(levels, 0.0)
    assert np.ptp(np.diff(whole[: above + 1])) == pytest.approx(0)
    assert np.ptp(np.diff(whole[above:])) == pytest.approx(0)
