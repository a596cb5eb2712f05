"""Results for talks: what is written shows what was measured."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from jcos import cli
from jcos.lab import results
from jcos.lab.results import measure
from jcos.media import formats
from jcos.report import export
from jcos.report.plane import Look, Plane
from jcos.report.reading import read
from tests.report import folders


def test_a_film_of_the_steps_has_the_final_video_beside_it() -> None:
    plane = folders.plane()
    film = export.steps_film(plane, frame=-1)
    side, edge = folders.SIDE * 8, export.GAP // 2
    assert film.shape == (folders.STEPS, side + 2 * edge, 2 * (side + 2 * edge), 3)
    middle = slice(edge + 4, edge + side, 8)
    np.testing.assert_array_equal(film[3, middle, middle], plane.x0[3, -1])
    assert plane.video is not None
    final = film[3][middle, side + 2 * edge :][:, middle]
    np.testing.assert_array_equal(final, plane.video[-1])
    every = export.steps_film(plane)
    assert every.shape[0] == folders.STEPS
    assert every.shape[2] > every.shape[1]


def test_a_film_of_many_frames_goes_on_below(tmp_path: Path) -> None:
    """As of Wan's default size."""
    x0 = np.zeros((2, 81, 120, 208, 3), np.uint8)
    plane = Plane(label="seed 0", group="the prompt", steps=range(2), x0=x0)
    export.write_run(plane, tmp_path / "a.mp4")
    film = formats.read_mp4(tmp_path / "a.mp4")
    assert film.shape == (2, 2 * 5 * 128, 17 * 216, 3)
    assert film[:, 4 * 128 : 5 * 128, 13 * 216 :].min() > 250, "room of the last row is white"


def test_films_and_the_plane_are_files(tmp_path: Path) -> None:
    Look([folders.plane()]).save(tmp_path / "run", command="x")
    out = [str(tmp_path / name) for name in ("a.gif", "a.mp4", "a.png")]
    how = ["--gif", out[0], "--mp4", out[1], "--plane", out[2], "--frame", "0", "--run", "0"]
    cli.main(["export", str(tmp_path / "run"), *how])
    with Image.open(out[0]) as gif:
        assert gif.n_frames == folders.STEPS  # type: ignore[attr-defined]
    assert len(formats.read_mp4(Path(out[1]))) == folders.STEPS
    with Image.open(out[2]) as picture:
        cell = folders.SIDE * 4 + export.GAP
        assert picture.size == (folders.FRAMES * cell, (folders.STEPS + 1) * cell)


@pytest.mark.slow
def test_every_chart_is_written(tmp_path: Path) -> None:
    data = folders.experiment_folder(tmp_path / "run")
    charts = read(tmp_path / "run").charts
    for kind, begins in (("svg", b"<?xml"), ("png", b"\x89PNG")):
        made = export.write_charts(charts, tmp_path / kind, kind)
        assert [file.stem for file in made][:2] == ["00-solved", "01-token-energy"]
        assert all(file.read_bytes().startswith(begins) for file in made)
    solved, energy, *_ = export.write_charts(charts, tmp_path / "csv", "csv")
    rows = list(csv.DictReader(io.StringIO(solved.read_text())))
    (row,) = (r for r in rows if (r["task"], r["line"], r["step"]) == ("maze", "model", "3"))
    expected = float(data["solved"].sel(denoiser="model")[:2, :, 3].mean())
    assert float(row["mean"]) == pytest.approx(expected, rel=1e-3)
    assert [r["mean"] for r in rows if r["line"] == "a random legal answer"] == ["0.25", "0.5"]
    cells = list(csv.DictReader(io.StringIO(energy.read_text())))
    here = [c for c in cells if (c["step"], c["layer"], c["frame"]) == ("2", "1", "4")]
    assert [cell["task"] for cell in here] == ["all", "maze", "bounce"]
    for cell, rows in zip(here, ([0, 1, 2], [0, 1], [2]), strict=True):
        expected = float(data["energy"][rows, :, 2, 1, 4].mean())
        assert float(cell["mean"]) == pytest.approx(expected, rel=1e-4)


def test_measures_by_case_are_dots_and_medians_are_named_so(tmp_path: Path) -> None:
    case = measure("puzzle case", np.eye(2, 3), "A")
    layer = measure("puzzle layer", np.arange(6.0).reshape(2, 3), "B", median=True, span=(0, 9))
    data = xr.Dataset({"a": case, "b": layer}, {"case": [*"pqr"]}, {"experiment": "x"})
    results.save(data, tmp_path / "results.nc")
    (tmp_path / "run.json").write_text('{"experiment": "x"}')
    out = tmp_path / ".out"
    cli.main(["export", str(tmp_path), *(f"--{kind}={out}" for kind in ("svg", "png", "csv"))])
    endings = ("csv", "png", "svg")
    names = [f"{name}.{kind}" for name in ("00-b", "01-a") for kind in endings]
    assert sorted(path.name for path in out.iterdir()) == names
    assert (out / "00-b.csv").read_text().startswith("task,line,layer,median,low,high\n")
    lines = list(csv.DictReader((out / "01-a.csv").read_text().splitlines()))
    assert {line["case"]: float(line["value"]) for line in lines} == {"p": 0.5, "q": 0.5, "r": 0}
