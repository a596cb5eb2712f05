"""Signs of failure: known answers, and the whole experiment."""

import numpy as np
import pytest

from jcos.experiments.experiment import Settings
from jcos.experiments.signs import Signs, within
from jcos.lab.judges import STANDARD

SMALL = Signs(tasks=("maze",), puzzles=6, seeds=(0, 1, 2), sampling=Settings(steps=2))


def test_runs_are_compared_within_a_puzzle() -> None:
    """The first puzzle is told wholly, the second half, the third has runs of one kind only."""
    fails = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
    values = np.array([[5.0, 6.0, 4.0], [-1.0, -2.0, 0.0], [1.0, 2.0, 3.0]])[..., None]
    np.testing.assert_array_equal(within(values, fails)[:, 0], [1.0, 0.5, np.nan])
    np.testing.assert_array_equal(within(0 * values, fails)[:2, 0], [0.5, 0.5])


def test_every_judge_is_measured_at_every_step(data) -> None:
    dataset, _ = data
    assert dataset["area"].sizes == {"puzzle": 6, "judge": len(STANDARD), "step": 2}
    known = dataset["area"].values[~np.isnan(dataset["area"].values)]
    assert ((known >= 0) & (known <= 1)).all()
    assert [name for name, _ in SMALL.figures(dataset)] == ["area"]
    both = dataset["solved"].values.any(1) & ~dataset["solved"].values.all(1)
    np.testing.assert_array_equal(~np.isnan(dataset["area"].values[:, 0, 0]), both)
    names = list(SMALL.table(dataset)["measure"])
    rows = names.count("AUROC of failure within a puzzle")
    assert rows == (2 * len(STANDARD) if both.any() else 0)


def test_seeds_are_compared(small_model) -> None:
    with pytest.raises(ValueError, match="give at least 2"):
        Signs(seeds=(0,)).check(small_model.config)
