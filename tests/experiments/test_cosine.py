"""Cosine similarity of tokens between steps: known answers, and the whole experiment."""

import jax
import numpy as np
import pytest

from jcos.experiments import cosine
from jcos.experiments.cosine import REFERENCES, Cosine
from jcos.lab.results import rows as rows_of

pytestmark = pytest.mark.slow  # the whole experiment, once for all tests

cosines = jax.jit(cosine.cosines)
SMALL = Cosine(tasks=("maze", "rotation"), puzzles=2, tokens=16, layers=(0, 1))


def test_angles_between_steps_are_measured() -> None:
    """Tokens that turn by 60° at every step, whatever their size."""
    angle = np.pi / 3 * np.arange(4)
    turn = np.stack([np.cos(angle), np.sin(angle)], -1)[None, None, :, None, None]
    size = np.arange(1, 6).reshape(1, 1, 1, 1, 5, 1)
    x = np.broadcast_to(turn * size, (2, 3, 4, 2, 5, 2))
    before, seed, puzzle = np.moveaxis(np.asarray(cosines(x)), -1, 0)
    assert before.shape == (3, 4, 2)
    assert np.isnan(before[:, 0]).all()
    np.testing.assert_allclose(before[:, 1:], 0.5, atol=1e-6)
    np.testing.assert_allclose([seed, puzzle], 1, atol=1e-6)


def test_a_constant_channel_makes_strangers_alike_until_the_mean_is_subtracted() -> None:
    rng = np.random.default_rng(0)
    pattern = rng.normal(size=(2, 2, 3, 1, 64, 256)).astype(np.float32)
    constant = np.where(np.arange(256) == 0, np.float32(100), np.float32(0))
    x = pattern + constant
    assert cosines(x)[:, 1:].min() > 0.95
    centred = cosines(x - x.mean(-2, keepdims=True))[:, 1:]
    np.testing.assert_allclose(centred, 0, atol=0.05)
    same = np.broadcast_to(x[:, :, :1], x.shape)
    centred = cosines(same - same.mean(-2, keepdims=True))[:, 1:]
    np.testing.assert_allclose(centred[..., 0], 1, atol=1e-5)
    np.testing.assert_allclose(centred[..., 1:], 0, atol=0.05)


def test_dataset_table_and_figures_are_complete(data) -> None:
    dataset, programs = data
    assert programs == 1
    sizes = {"step": 4, "layer": 2, "reference": 3, "puzzle": 4, "seed": 2}
    assert dataset["cosine"].sizes == dataset["centred"].sizes == sizes
    before = dataset["cosine"].sel(reference="the step before")
    assert np.isnan(before.sel(step=0)).all()
    assert np.isfinite(dataset["cosine"].sel(step=slice(1, None))).all()
    rows = {(r.task, r.measure, r.case): r for r in rows_of(dataset)}
    assert len(rows) == 2 * 2 * 2 * len(REFERENCES)
    row = rows["maze", "cosine similarity, mean over steps", "layer 1, the step before"]
    want = before.sel(layer=1, step=slice(1, None), puzzle=slice(0, 2)).mean()
    assert row.value == pytest.approx(float(want), abs=1e-6)
    assert (row.n, row.forwards) == (2, 8)
    seeds = dataset["cosine"].sel(reference="another seed")  # each is the other one's
    np.testing.assert_allclose(seeds.sel(seed=0), seeds.sel(seed=1), atol=1e-6)
