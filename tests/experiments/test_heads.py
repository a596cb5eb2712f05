"""Heads: random sets for the control, and the whole experiment on a random model."""

import numpy as np
import pytest

from jcos.experiments.heads import Heads, like
from jcos.wan import Wan

pytestmark = pytest.mark.slow  # the whole experiment, once for all tests

SMALL = Heads(puzzles=2, pairs=1, windows=2, members=2, controls=2)
CELLS = {
    (0, "head 1", "zero"): ([(0, 1)], "zero", range(4)),
    (1, "head 0", "zero"): ([(1, 0)], "zero", range(4)),
    (0, "all heads", "zero"): ([(0, 0), (0, 1)], "zero", range(4)),
    (0, "head 0", "mean, steps 0–1"): ([(0, 0)], "mean", (0, 1)),
}
"""Layer, head and how of a loss; and the heads, the way and the steps of its knock-out."""


def test_random_heads_are_as_many_others_in_the_same_layers() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        drawn = like(((0, 1), (2, 0), (2, 3)), 4, rng)
        assert [k for k, _ in drawn] == [0, 2, 2]
        assert not {(0, 1), (2, 0), (2, 3)} & set(drawn)
        assert len(set(drawn)) == 3


def test_dataset_table_and_figures_are_complete(data, rows) -> None:
    dataset, programs = data
    assert programs == 3  # single heads, sets of heads, exchanges
    known = np.isfinite(dataset["solved_lost"]).all(("puzzle", "seed"))
    assert known.shape == (2, 3, 4)  # layers; heads and all heads; zero, mean, and its windows
    assert known.values.sum() == 2 * (3 * 4 - 2)  # whole layers at all steps alone
    lost, beside = dataset["agent_lost"], dataset["agent_beside"]
    lost, beside = (a.transpose("head", ...).values for a in (lost, beside))
    assert np.nanmax(np.abs(lost)) > 0
    np.testing.assert_allclose(beside[:2], [lost[0] - lost[1], lost[1] - lost[0]], atol=1e-12)
    for name in ("set_solved", "set_walls_less"):
        chosen_on = dataset[name].isel(puzzle=0)
        assert np.isnan(chosen_on).all()
        assert np.isfinite(dataset[name].isel(puzzle=1)).all()
    assert str(dataset["chosen_heads"].item()).count("layer") == 2
    assert dataset["flipped"].sizes == {"exchange": 1 + 2 * 3 + 4, "pair": 1, "seed": 1}
    assert ("maze", "walls intact, lost", "layer 1, head 0, mean, steps 2–3") in rows
    assert ("maze", "solved, lost", "layer 1, all heads, zero") in rows
    assert ("maze", "one agent, chosen less random heads", "") in rows
    assert {name for name, _ in SMALL.figures(dataset)} == {"heads", "exchange"}


def test_a_loss_is_that_of_its_head_and_steps(small_model: Wan, data) -> None:
    dataset, samples = data[0], SMALL.samples(small_model)
    probes = [SMALL.knock_out(small_model.config, *what) for what in CELLS.values()]
    ends = SMALL._ends(small_model, samples, probes, lambda *_: None, "")["agent"]
    for (layer, head, how), end in zip(CELLS, ends, strict=True):
        lost = dataset["agent_lost"].sel(layer=layer, head=head, how=how)
        np.testing.assert_allclose(lost, dataset["agent"] - end, atol=1e-12)
