"""A labelled dataset: its estimates, its table and its file."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from jcos.lab import results
from jcos.lab.measures import GAINS, UNBOUNDED, estimate, median_step
from jcos.lab.results import (
    IDEAL,
    MODEL,
    Row,
    case_of,
    estimates,
    groups_of,
    measure,
    of_kind,
    table,
    with_levels,
)

RNG = np.random.default_rng(0)
SOLVED = RNG.random((2, 6, 3, 4)) < 0.5
TASKS = ["maze"] * 4 + ["bounce"] * 2


def dataset(**variables) -> xr.Dataset:
    """Six puzzles of two tasks, three seeds, four steps; the model and the ideal denoiser."""
    known = {
        "solved": measure("denoiser puzzle seed step", SOLVED, "solved", "Solved or not."),
        "forwards": (("step",), [1, 2, 3, 4], {}),
        "chance_solved": (("puzzle",), [0.1, 0.2, 0.3, 0.4, 0.5, 0.7], {}),
        "still_solved": (("puzzle",), np.zeros(6), {}),
    }
    coordinates = {
        "task": ("puzzle", TASKS),
        "denoiser": [MODEL, IDEAL],
        "step": range(4),
        "seed": [0, 1, 2],
    }
    return xr.Dataset(known | variables, coordinates)


def rows_of(data: xr.Dataset, at=None) -> dict[tuple[str, str, str], Row]:
    return {(r.task, r.measure, r.case): r for r in results.rows(data, at)}


def test_an_estimate_is_over_puzzles_and_seeds_are_averaged_first() -> None:
    array = dataset()["solved"]
    cells = estimates(array)
    assert cells["mean"].dims == ("task", "denoiser", "step")
    assert cells["task"].values.tolist() == ["maze", "bounce"]
    for task, rows in (("maze", slice(0, 4)), ("bounce", slice(4, 6))):
        for i, denoiser in enumerate((MODEL, IDEAL)):
            for step in range(4):
                want = estimate(SOLVED[i, rows, :, step])
                cell = cells.sel(task=task, denoiser=denoiser, step=step)
                got = [float(cell[name]) for name in ("mean", "low", "high", "n")]
                np.testing.assert_allclose(got, want)
    turned = estimates(array.transpose("step", "seed", "denoiser", "puzzle"))
    assert turned["mean"].dims == ("task", "step", "denoiser")
    xr.testing.assert_allclose(turned.transpose("task", "denoiser", "step"), cells)


def test_a_difference_is_paired_run_by_run() -> None:
    array = dataset()["solved"]
    model, ideal = array.sel(denoiser=MODEL), array.sel(denoiser=IDEAL)
    cell = estimates(model, paired_with=ideal).sel(task="maze", step=1)
    less = SOLVED[0, :4, :, 1].astype(float) - SOLVED[1, :4, :, 1]
    want = estimate(less, GAINS)
    np.testing.assert_allclose([cell["mean"], cell["low"], cell["high"], cell["n"]], want)


def test_runs_that_rise_and_fall_together_widen_the_interval() -> None:
    values, same = np.repeat([0.1, 0.9, 0.5], 4), np.repeat([0, 1, 2], 4)
    data = xr.Dataset(
        {"score": measure("puzzle", values, "score", cluster="picture")},
        {"picture": ("puzzle", same), "task": ("puzzle", ["maze"] * 12)},
    )
    together = estimates(data["score"]).squeeze()
    want = estimate(values, groups=same)
    np.testing.assert_allclose([together["mean"], together["low"], together["high"]], want[:3])


def test_a_median_is_over_puzzles_that_have_a_step() -> None:
    steps = np.array([[3, 5], [np.nan, 8], [np.nan, np.nan], [1, 1], [2, np.nan], [9, 9]])
    steps = np.column_stack([steps, np.full(6, np.nan)])  # the third seed has none
    variable = measure("puzzle seed", steps, "commitment step", span=(0, 10), median=True)
    rows = rows_of(dataset(commitment=variable))
    want = median_step(np.array([4.0, 8.0, 1.0]), 10)
    row = rows["maze", "commitment step, median", ""]
    assert (row.value, row.low, row.high, row.n) == tuple(want)
    named = measure("puzzle", steps[:, 0], "step, median, at the end", span=(0, 10), median=True)
    assert ("maze", "step, median, at the end", "") in rows_of(dataset(named=named))


def test_runs_without_a_group_are_left_out() -> None:
    array = dataset().assign_coords(part=("puzzle", ["a", "", "b", "a", "", "b"]))["solved"]
    array.attrs["grouped_by"] = "part"
    assert {name: rows.tolist() for name, rows in groups_of(array).items()} == {
        "a": [0, 3],
        "b": [2, 5],
    }
    assert estimates(array)["n"].values.max() == 2
    array.attrs["grouped_by"] = "unknown"
    assert list(groups_of(array)) == [""]


def test_a_table_has_a_line_for_every_measure_group_and_place() -> None:
    rows = rows_of(dataset())
    assert len(rows) == 2 * 2 * 4
    row = rows["maze", "solved", "step 2"]
    assert (row.n, row.forwards, row.still) == (4, 3, 0)
    assert row.value == pytest.approx(SOLVED[0, :4, :, 2].mean())
    assert row.chance == pytest.approx(0.25), "the mean over the group's puzzles"
    ideal = rows["bounce", "solved", "step 2, ideal denoiser"]
    assert ideal.forwards == 0
    assert ideal.chance is None
    assert ideal.value == pytest.approx(SOLVED[1, 4:, :, 2].mean())


def test_a_table_lists_what_is_asked_for_and_known() -> None:
    half = np.where(np.arange(4) < 2, SOLVED[0].astype(float), np.nan)
    data = dataset(
        half=measure("puzzle seed step", half, "half"),
        hidden=measure("puzzle", np.zeros(6), "hidden", tabled=False),
    )
    cases = {(measure, case) for _, measure, case in rows_of(data, {"step": [1, 3]})}
    both = [f"step {step}{who}" for step in (1, 3) for who in ("", ", ideal denoiser")]
    assert cases == {("half", "step 1"), *(("solved", case) for case in both)}
    assert table(xr.Dataset()).columns.tolist() == list(results.Row._fields)
    assert with_levels(data)["solved"].attrs["ancillary_variables"] == "chance_solved still_solved"
    assert case_of({"case": "no noise", "denoiser": MODEL}) == "no noise"
    assert case_of({"denoiser": MODEL}) == MODEL


def test_cases_of_a_kind_get_their_steps_and_frames_as_dimensions() -> None:
    coordinates = {
        "case": ["none", "a", "b", "c", "d", "e"],
        "kind": ("case", ["none", "step", "step", "cell", "cell", "cell"]),
        "at_step": ("case", [np.nan, 2, 0, 0, 0, 1]),
        "at_frame": ("case", [np.nan, np.nan, np.nan, 0, 1, 1]),
    }
    data = xr.Dataset({"x": (("case", "puzzle"), np.arange(12.0).reshape(6, 2))}, coordinates)
    steps = of_kind(data, "step", "at_step")["x"]
    assert steps.dims == ("at_step", "puzzle")
    assert steps.sel(at_step=2).values.tolist() == [2, 3]
    cells = of_kind(data, "cell", "at_step", "at_frame")["x"].sel(puzzle=0)
    np.testing.assert_array_equal(cells.transpose("at_step", "at_frame"), [[6, 8], [np.nan, 10]])
    both = of_kind(data, ("step", "none"))
    assert both["case"].values.tolist() == ["none", "a", "b"]


def test_a_file_gives_back_the_dataset(tmp_path: Path) -> None:
    large = measure("puzzle seed step frame", RNG.normal(size=(6, 3, 4, 50)), "x", span=UNBOUNDED)
    data = dataset(large=large).assign_attrs(experiment="steps", title="When?")
    path = tmp_path / "results.nc"
    results.save(data, path)
    with results.load(path, "steps") as stored:
        xr.testing.assert_equal(stored, data)
        assert stored["solved"].dtype == bool
        assert stored["solved"].attrs == data["solved"].attrs
        assert stored.attrs["title"] == "When?"


def test_a_file_that_is_not_whole_or_another_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.nc"
    with pytest.raises(ValueError, match=r"results.nc is missing"):
        results.load(path)
    results.save(dataset().assign_attrs(experiment="steps"), path)
    with pytest.raises(ValueError, match="results of steps, not of noise"):
        results.load(path, "noise")
    monkeypatch.setattr(results, "VERSION", 2)
    with pytest.raises(ValueError, match="layout 1, not 2"):
        results.load(path)
    content = path.read_bytes()
    for part in (content[:0], content[:100], content[: len(content) // 2], b"no results" * 50):
        path.write_bytes(part)
        with pytest.raises(ValueError, match=r"results.nc is no whole file of results") as error:
            results.load(path)
        assert "\n" not in str(error.value)
