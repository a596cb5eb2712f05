"""The experiment of the x̂0-lens: complete, and its last layer is the run itself."""

import numpy as np
import pytest

from jcos.experiments.lens import LENSES, REFERENCES, Lenses
from jcos.lab.results import rows as rows_of

pytestmark = pytest.mark.slow  # the whole experiment, once for all tests

SMALL = Lenses(tasks=("maze", "rotation"), puzzles=2, fit=2, updates=5)


def test_dataset_table_and_figures_are_complete(data) -> None:
    dataset, programs = data
    assert programs == 1
    sizes = {"lens": 4, "puzzle": 4, "seed": 1, "step": 4, "layer": 2}
    assert dataset["taken"].sizes == dataset["solved"].sizes == sizes
    last = dataset["to_last"].isel(layer=-1)
    np.testing.assert_allclose(last.sel(lens="plain"), 0, atol=1e-5)
    assert (last.sel(lens="tokens shuffled") > 0).all()
    assert (dataset["to_last"].isel(layer=0).sel(lens="plain") > 0).all()
    assert np.isnan(dataset["solved"].sel(lens="tokens shuffled")).all()
    before = dataset["taken_by"].sel(reference=REFERENCES[0])
    assert np.isnan(before.sel(step=0)).all()
    assert np.isfinite(before.sel(step=1)).all()
    rows = {(r.task, r.measure, r.case): r for r in rows_of(dataset)}
    row = rows["maze", "mass on the answer taken", "plain, step 3, layer 1"]
    want = dataset["taken"].sel(lens="plain", step=3, layer=1, puzzle=slice(0, 2)).mean()
    assert row.value == pytest.approx(float(want), abs=1e-6)
    assert {r.case.split(",")[0] for r in rows.values() if r.measure == row.measure} == {
        *LENSES,
        *(f"step {s}" for s in range(4)),
    }
    figures = {name for name, _ in SMALL.figures(dataset)}
    assert figures == {"front", "film-maze", "film-rotation"}
