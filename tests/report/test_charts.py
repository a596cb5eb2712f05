"""Charts come from the dimensions of a dataset: which there are, and what they show."""

import base64

import numpy as np
import pytest
import xarray as xr

from jcos.lab import results
from jcos.report.charts import Chart, charts_of, compared
from tests.report import folders


def unpacked(packed: str, *shape: int) -> np.ndarray:
    """What the page makes of packed numbers."""
    return np.frombuffer(base64.b64decode(packed), "<f4").reshape(shape)


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    return folders.dataset()


@pytest.fixture(scope="module")
def charts(data: xr.Dataset) -> dict[str, Chart]:
    found, missing = charts_of(data)
    assert not missing
    return {chart.title: chart for chart in found}


def test_what_moves_and_has_a_title_is_a_chart(charts: dict[str, Chart]) -> None:
    assert {title: chart.about()["kind"] for title, chart in charts.items()} == {
        "Solved": "curves",
        "Token energy": "map",
        "Score with noise: one step": "curves",
        "Score with noise: one cell": "map",
    }


def test_curves_are_estimates_by_task(data: xr.Dataset, charts: dict[str, Chart]) -> None:
    drawn = charts["Solved"].drawn()
    maze, bounce = drawn["panels"]
    model, ideal = maze["lines"]
    cells = results.estimates(data["solved"]).sel(task="maze", denoiser="model")
    for field in ("mean", "low", "high"):
        np.testing.assert_allclose(model[field], cells[field], rtol=1e-3)
    assert (model["label"], model["ideal"]) == ("model", False)
    assert (ideal["label"], ideal["ideal"]) == ("ideal denoiser", True)
    assert maze["levels"] == [{"label": "a random legal answer", "value": 0.25}]
    assert bounce["levels"][0]["value"] == 0.5
    assert (maze["n"], bounce["n"]) == (2, 1)
    assert (maze["flat"], bounce["flat"]) == (False, True)  # solved from the first step on
    assert drawn["range"] == [0, 1]
    assert drawn["comment"] == "What Solved means."


def test_cases_lie_where_they_change_something(data: xr.Dataset, charts: dict[str, Chart]) -> None:
    drawn = charts["Score with noise: one step"].drawn()
    assert drawn["labels"] == list(range(folders.STEPS))
    (line,) = drawn["panels"][0]["lines"]
    mazes = data["score"].isel(puzzle=[0, 1]).mean(("puzzle", "seed"))
    np.testing.assert_allclose(line["mean"], mazes[1 : 1 + folders.STEPS], rtol=1e-3)
    (level,) = drawn["panels"][0]["levels"]
    assert level["label"] == "without noise"
    assert level["value"] == pytest.approx(float(mazes[0]), rel=1e-3)
    cells = charts["Score with noise: one cell"].drawn()
    axes = {axis["name"]: axis["labels"] for axis in cells["axes"]}
    assert axes == {"task": ["all", "maze", "bounce"], "step": [0, 4, 8], "frame": [0, 1, 2, 3, 4]}


def test_of_cases_at_one_place_the_last_is_shown(data: xr.Dataset) -> None:
    """As averages over layers that begin at the same one."""
    twice = data["score"].isel(case=slice(1, 6))
    twice = twice.assign_coords(at_step=("case", [0.0, 1.0, 2.0, 2.0, 1.0]))
    (chart,), _ = charts_of(twice.to_dataset(name="score"))
    (line,) = chart.drawn()["panels"][0]["lines"]
    mazes = twice.isel(puzzle=[0, 1], case=[0, 4, 3]).mean(("puzzle", "seed"))
    np.testing.assert_allclose(line["mean"], mazes, rtol=1e-3)


def test_a_map_has_the_runs_behind_it(data: xr.Dataset, charts: dict[str, Chart]) -> None:
    drawn = charts["Token energy"].drawn()
    shape = [len(axis["labels"]) for axis in drawn["axes"]]
    assert shape == [3, folders.STEPS, folders.LAYERS, folders.FRAMES]
    means = unpacked(drawn["values"], *shape)
    energy = data["energy"]
    np.testing.assert_allclose(means[0], energy.mean(("puzzle", "seed")), rtol=1e-6)
    np.testing.assert_allclose(means[2], energy[2].mean("seed"), rtol=1e-6)
    runs = unpacked(drawn["runs"], *shape[1:], 6)
    np.testing.assert_allclose(runs[3, 2, 1], energy[:, :, 3, 2, 1].values.ravel(), rtol=1e-6)
    assert drawn["names"][5] == "bounce, puzzle 2, seed 1"


def test_many_lines_are_the_rows_of_a_map() -> None:
    values = np.random.default_rng(0).random((9, 2, 4))
    array = xr.DataArray(values, dims=("token", "puzzle", "step"), attrs={"long_name": "A"})
    (chart,), _ = charts_of(array.to_dataset(name="a"))
    assert chart.is_map
    (chart,), _ = charts_of(array[:3].to_dataset(name="a"))
    assert not chart.is_map
    assert [line["hue"] for line in chart.drawn()["panels"][0]["lines"]] == [0, 1, 2]


def test_curves_of_several_folders_share_a_chart(charts: dict[str, Chart]) -> None:
    """Also where one folder has fewer steps, and tasks of its own."""
    solved = charts["Solved"]
    some = solved.array.isel(step=[0, 3]).assign_coords(task=("puzzle", ["maze", "maze", "sum"]))
    fewer = solved._replace(array=some)
    same, *maps = compared([("a", [*charts.values()]), ("b", [fewer])])[::2]
    assert [one.title for one in maps] == ["a: Token energy"]
    panels = {panel["task"]: panel for panel in same.drawn()["panels"]}
    assert list(panels) == ["maze", "bounce", "sum"]
    lines = {line["label"]: line for line in panels["maze"]["lines"]}
    assert list(lines) == ["a, model", "a, ideal denoiser", "b, model", "b, ideal denoiser"]
    assert [line["hue"] for line in lines.values()] == [0, 0, 1, 1]
    assert [line.get("places") for line in lines.values()] == [None, None, [0, 3], [0, 3]]
    short, whole = lines["b, model"]["mean"], lines["a, model"]["mean"]
    assert short == [whole[0], None, None, whole[3], *[None] * (folders.STEPS - 4)]
    # In another order the longer run is not cut.
    (both,) = compared([("b", [fewer]), ("a", [solved])])
    drawn = both.drawn()
    assert drawn["labels"] == list(range(folders.STEPS))
    lines = {line["label"]: line for line in drawn["panels"][0]["lines"]}
    assert (lines["b, model"]["mean"], lines["a, model"]["mean"]) == (short, whole)
    assert lines["b, model"]["places"] == [0, 3]
