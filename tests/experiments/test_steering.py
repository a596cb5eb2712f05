"""Steering where its target is exact: weights alone have no bias in the norm, more particles less
in the target."""

import numpy as np

from jcos.experiments.steering import Steering
from jcos.wan import Wan


def test_bias_falls_with_particles_and_the_norm_has_none(small_model: Wan) -> None:
    experiment = Steering(puzzles=96, particles=(2, 16))
    data = experiment.run(small_model)
    mean = data.mean("puzzle")
    for method in ("resampled", "weights only"):
        one = mean.sel(method=method)
        few, many = np.abs(one["bias"]).values
        assert many < 0.5 * few
        error = data["norm"].sel(method=method).std("puzzle") / np.sqrt(96)
        assert (np.abs(one["norm"]) < 4 * error).all()
        assert one["size"].values[1] > 3 * one["size"].values[0] / 2
    assert {"bias", "effective sample size"} <= set(experiment.table(data)["measure"])
    assert {name for name, _ in experiment.figures(data)} == {"bias", "norm"}
