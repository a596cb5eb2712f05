"""The experiment of attribution: complete, and agreement of what is known."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jcos.experiments.attribution import (
    EXACT,
    PLACES,
    Attribution,
    agreement,
    agreements,
    sharpened,
)
from jcos.experiments.experiment import Settings
from jcos.experiments.samples import others_of
from jcos.experiments.sweeps import kept_in
from jcos.lab.attribution import _gradients, _values
from jcos.lab.results import rows as rows_of
from jcos.wan import Wan
from jcos.weights.checkpoint import leaves

pytestmark = pytest.mark.slow  # the whole experiment, once for all tests

SMALL = Attribution(tasks=("rotation",), puzzles=2, sharper=(1.0, 8.0), sampling=Settings(steps=2))


def test_agreement_of_the_same_and_of_the_opposite() -> None:
    effects = np.random.default_rng(0).normal(size=(2, 1, 3, 4, 5))
    rank, sign = agreement(np.stack([effects[0] ** 3, -effects[1]]), effects)
    np.testing.assert_allclose(rank[:, 0], [1, -1])
    assert sign[:, 0].tolist() == [1, 0]


def test_another_pair_is_of_the_same_task() -> None:
    """Here those of a task are the same pair twice, which agrees with itself."""
    other = others_of(["turn", "move", "turn", "move"])
    assert other.tolist() == [2, 3, 0, 1]
    one = np.random.default_rng(0).normal(size=(2, 1, 3, 4, 5))
    effects = {(p, how): np.tile(one, (2, 1, 1, 1, 1)) for p in PLACES for how in (EXACT, "run")}
    effects |= {(p, "step"): effects[p, "run"] for p in PLACES}
    np.testing.assert_allclose(agreements(effects, other)["rank"][1], 1)


def test_queries_are_sharpened_in_a_copy(small_model: Wan) -> None:
    before = {k: np.asarray(a) for k, a in leaves(small_model).items()}
    sharp = leaves(sharpened(small_model, 2.0))
    assert all((np.asarray(a) == before[k]).all() for k, a in leaves(small_model).items())
    changed = {k for k, a in sharp.items() if (np.asarray(a) != before[k]).any()}
    assert changed == {"experts.0.blocks.self_attn.norm_q.scale"}


def test_dataset_table_and_figures_are_complete(data) -> None:
    dataset, _ = data
    assert dataset["rank"].sizes == {"estimate": 3, "place": 4, "pair": 2, "seed": 1}
    assert dataset["effect"].shape == (2, 4, 2, 1, 2, 2)
    # All tokens after the last block of the last step are the whole run.
    whole = dataset["effect"].sel(how=EXACT, place="block", step=1, layer=1)
    assert np.isfinite(dataset["effect"]).all()
    assert (np.abs(whole) > 0).all()
    plain = dataset["sharp_rank"].sel(factor=1)
    heads = dataset["rank"].sel(place="heads", estimate="gradient through the run")
    np.testing.assert_allclose(plain, heads, atol=0.05)
    rows = {(r.task, r.measure, r.case) for r in rows_of(dataset)}
    title = "rank correlation with exact patches"
    assert ("rotation, other angle", title, "gradient through the run, heads") in rows
    assert {name for name, _ in SMALL.figures(dataset)} == {*PLACES, "saturated"}


def test_a_killed_run_goes_on_at_the_next_pair(small_model: Wan, data, tmp_path: Path) -> None:
    """All pairs share the programs."""
    experiment = dataclasses.replace(SMALL, sharper=(1.0,))
    programs: Any = (_gradients, _values)
    sizes = [program._cache_size() for program in programs]

    def kill(what: str, number: int, total: int) -> None:
        if (what, number) == ("patching", 1):
            raise KeyboardInterrupt

    with kept_in(tmp_path, {}):
        with pytest.raises(KeyboardInterrupt):
            experiment.run(small_model, kill)
        (first,) = tmp_path.glob("*.npz")
        made = first.stat().st_mtime_ns
        dataset = experiment.run(small_model)
    assert (first.stat().st_mtime_ns, len([*tmp_path.glob("*.npz")])) == (made, 2)
    np.testing.assert_array_equal(dataset["effect"], data[0]["effect"])
    assert [program._cache_size() for program in programs] == sizes
