"""The experiment of the Jacobian: one right answer leaves the ideal denoiser nothing to move."""

import numpy as np
import pytest

from jcos.experiments.experiment import Settings
from jcos.experiments.jacobian import Jacobian
from jcos.lab.results import IDEAL, MODEL

pytestmark = pytest.mark.slow  # the whole experiment, once for all tests

SMALL = Jacobian(puzzles=3, directions=2, sampling=Settings(steps=3))


def test_the_ideal_denoiser_has_nothing_to_decide_with_one_answer(data) -> None:
    dataset, _ = data
    assert dataset["size"].sizes == {"pixels": 2, "denoiser": 2, "puzzle": 6, "seed": 1, "step": 3}
    one = dataset.isel(puzzle=~dataset["several"].values)
    assert not one["size"].sel(denoiser=IDEAL).any()
    assert (dataset["size"].sel(denoiser=MODEL) > 0).all()
    assert np.isfinite(dataset["size"]).all()
    assert [name for name, _ in SMALL.figures(dataset)] == ["answer"]
