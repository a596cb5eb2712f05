"""Heads: known answers of the bookkeeping, and the whole experiment on a random model."""

import numpy as np

from jcos.experiments.heads import ALL, Case, Heads, exchanges, like, others

SMALL = Heads(puzzles=2, pairs=1, windows=2, members=2, controls=2)


def test_the_control_of_a_head_is_the_rest_of_its_layer() -> None:
    single = [Case(((k, h),), "mean", ALL, (0,)) for k in (0, 1) for h in range(3)]
    cases = [Case(), *single, Case(((0, 0),), "zero", ALL, (0,))]
    lost = np.array([0, 1, 2, 6, 10, 20, 60, 99], float).reshape(-1, 1, 1)
    mean = others(cases, lost).ravel()
    np.testing.assert_array_equal(mean, [np.nan, 4, 3.5, 1.5, 40, 35, 15, np.nan])


def test_random_heads_are_as_many_others_in_the_same_layers() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        drawn = like(((0, 1), (2, 0), (2, 3)), 4, rng)
        assert [k for k, _ in drawn] == [0, 2, 2]
        assert not {(0, 1), (2, 0), (2, 3)} & set(drawn)
        assert len(set(drawn)) == 3


def test_exchanges_have_names() -> None:
    """And come once, also of a single layer."""
    for layers, count in (([0, 1], 1 + 2 * 3 + 4), ([1], 1 + 2 * 1 + 2)):
        assert len(exchanges(layers, 2)) == len(set(exchanges(layers, 2))) == count
    named = {str(case): case.kind for case in exchanges([0, 1], 2)}
    assert named["nothing exchanged"] == "none"
    assert named["cross-attention of layer 0, head 0"] == "cross-attention, one head"
    assert named["self-attention of layer 1"] == "self-attention"
    assert named["cross-attention of all layers"] == "cross-attention, all"


def test_dataset_table_and_figures_are_complete(data, rows) -> None:
    dataset, programs = data
    assert programs == 3  # single heads, sets of heads, exchanges
    cases = 1 + 2 * (4 + 2) + 2 * 4
    assert dataset["solved"].sizes == {"case": cases, "puzzle": 2, "seed": 1}
    assert (dataset["distance"].isel(case=slice(1, None)) > 0).all()
    assert (dataset["progress_lost"].isel(case=0) == 0).all()
    for name in ("set_solved", "set_walls_less"):
        chosen_on = dataset[name].isel(puzzle=0)
        assert np.isnan(chosen_on).all()
        assert np.isfinite(dataset[name].isel(puzzle=1)).all()
    assert str(dataset["chosen_heads"].item()).count("layer") == 2
    assert dataset["flipped"].sizes == {"exchange": 1 + 2 * 3 + 4, "pair": 1, "seed": 1}
    assert ("maze", "walls intact, lost", "layer 1, head 0, mean, steps 2–3") in rows
    assert ("maze", "one agent, chosen less random heads", "") in rows
    assert {name for name, _ in SMALL.figures(dataset)} == {"heads", "exchange"}
