"""Why the middle tells more than the end: every run against the right answer and its own end."""

import numpy as np
import pytest

from jcos.experiments.middle import Middle
from jcos.wan import Wan

pytestmark = pytest.mark.slow  # the whole experiment, once for all tests

SMALL = Middle(tasks=("maze",), puzzles=4, seeds=(0, 1), counts=(3, 4))


def test_runs_of_each_length_are_one_program(data) -> None:
    assert data[1] == 2


def test_what_failing_runs_hold(data) -> None:
    dataset, _ = data
    solved = dataset["solved"]
    assert solved.dims == ("denoiser", "count", "puzzle", "seed")
    undecided, mass = dataset["undecided"], dataset["mass"].sel(count="4 steps")
    assert np.isnan(undecided.sel(count="3 steps", step=3)).all()
    fails = solved.sel(denoiser="model", count="4 steps").values == 0
    assert (np.isfinite(undecided.sel(end="failed", count="4 steps", step=3)) == fails).all()
    own = mass.sel({"of": "own end"}).isel(step=-1).values[fails]
    np.testing.assert_allclose(own, 1, atol=0.02)  # the end is all of itself
    assert (mass.sum("of").values[fails] < 1.001).all()
    names = {"areas", "undecided", "mass"}
    assert {name for name, _ in SMALL.figures(dataset)} == names
    table = SMALL.table(dataset)
    assert {"solved", "undecided", "mass of failing runs"} <= set(table["measure"])


def test_the_unsure_ideal_denoiser_holds_wrong_answers_and_ends_on_one(data) -> None:
    dataset, _ = data
    signs = dataset["signs"].sel(denoiser="ideal denoiser", judge="decided", count="4 steps")
    assert (signs.isel(step=0) < signs.isel(step=3) - 1).mean() > 0.5
    assert np.isfinite(dataset["solved"].sel(denoiser="ideal denoiser")).all()


@pytest.mark.parametrize(
    ("change", "why"), [(dict(wrong=0), "wrong of at least 1"), (dict(counts=(2,)), "3 steps")]
)
def test_what_cannot_be_run_is_refused(small_model: Wan, change, why) -> None:
    with pytest.raises(ValueError, match=why):
        Middle(**change).check(small_model.config)
