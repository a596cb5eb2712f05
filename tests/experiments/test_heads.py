"""Heads: random sets for the control, and the whole experiment on a random model."""

import numpy as np

from jcos.experiments.heads import Heads, like

SMALL = Heads(puzzles=2, pairs=1, windows=2, members=2, controls=2)


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
    lost, beside = dataset["progress_lost"], dataset["progress_beside"]
    lost, beside = (a.transpose("head", ...).values for a in (lost, beside))
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
