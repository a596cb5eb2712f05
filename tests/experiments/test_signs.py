"""Signs of failure: known answers, and the whole experiment."""

import jax.numpy as jnp
import numpy as np
import pytest

from jcos.experiments.experiment import Settings
from jcos.experiments.signs import (
    EXPLANATIONS,
    JUDGES,
    TITLES,
    Signs,
    areas,
    by_outcome,
    explained,
    masses,
)
from jcos.lab.judges import STANDARD
from jcos.lab.measures import Mass, area

pytestmark = pytest.mark.slow  # the whole experiment, once for all tests

SMALL = Signs(tasks=("maze",), puzzles=6, seeds=(0, 1, 2), sampling=Settings(steps=2))


def test_every_judge_is_measured_at_every_step(data) -> None:
    dataset, programs = data
    assert programs == 2  # the model's runs, and the ideal denoiser's
    judges = len(STANDARD) + len(EXPLANATIONS)
    assert dataset["area"].sizes == {"denoiser": 2, "puzzle": 6, "judge": judges, "step": 2}
    known = dataset["area"].values[~np.isnan(dataset["area"].values)]
    assert ((known >= 0) & (known <= 1)).all()
    assert [name for name, _ in SMALL.figures(dataset)] == ["area", "ideal", "mass"]
    ends = dataset["solved"].values
    both = ends.any(2) & ~ends.all(2)
    np.testing.assert_array_equal(~np.isnan(dataset["area"].values[:, :, 0, 0]), both)
    table = SMALL.table(dataset)
    rows = table[table["measure"] == "AUROC of failure within a puzzle"]
    assert len(rows) == 2 * judges * both.any(1).sum()
    assert dataset["chance_area"].item() == 0.5


def test_what_a_fit_leaves_ranks_no_runs() -> None:
    """At the end every run is at one of its ends, up to remainders; in the middle blends count."""
    fails = np.array([[True, False, True]])
    right = np.array([3e-5, 1.0, 2e-5])[None, :, None]
    end = {"right": right, "wrong": 1 - right, "off": np.abs(right - 0.5) * 1e-4}
    middle = {name: np.full((1, 3, 1), 0.1) for name in end}
    middle["right"] = middle["wrong"] = np.array([0.4, 0.1, 0.4])[None, :, None]
    for mass, sign, want in ((end, 0, 0.5), (middle, 0, 1.0), (end, 1, 0.5)):
        values = -explained(mass)[EXPLANATIONS[sign]][..., 0]
        assert area(values, fails, ~fails) == want


def test_an_area_is_that_of_its_judge() -> None:
    """Whatever the order in which scores come: here the second judge alone knows who fails."""
    fails = np.array([[True, False, True]])
    known = {name: np.zeros((1, 3, 2)) for name in sorted(JUDGES)}
    known[JUDGES[1]] = -np.repeat(fails[..., None], 2, -1).astype(float)
    want = [1.0 if name == JUDGES[1] else 0.5 for name in JUDGES]
    np.testing.assert_array_equal(areas(known, fails)[0, :, 0], want)


def test_an_estimate_is_on_right_ends_on_wrong_ones_or_on_none(data) -> None:
    dataset, _ = data
    parts = np.stack([dataset[name].values for name in TITLES])
    known = ~np.isnan(parts[0])
    np.testing.assert_allclose(parts.sum(0)[known], 1, atol=1e-5)
    on = np.array([[[[0.5, 0.2, 0.1]], [[0.0, 0.9, 0.1]], [[0.0, 0.0, 0.0]]]])
    mass = masses(
        Mass(jnp.asarray(on), jnp.asarray(1 - on.sum(-1))), np.array([[True, False, True]])
    )
    np.testing.assert_allclose(mass["right"][0, :, 0], [0.6, 0.1, 0.0], rtol=1e-6)
    np.testing.assert_allclose(mass["wrong"][0, :, 0], [0.2, 0.9, 0.0], rtol=1e-6)
    values = by_outcome(mass["off"], np.array([[True, False, True]]))
    np.testing.assert_allclose(
        values[:, 0, :, 0], [[np.nan, 0, np.nan], [0.2, np.nan, 1]], atol=1e-6
    )
    assert np.isnan(by_outcome(mass["off"], np.ones((1, 3), bool))).all()
