"""Folders of results become pages: what is shown is what was measured, and damage is said."""

import base64
import hashlib
import html
import io
import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import jcos
from jcos import cli
from jcos.report import explorer, live
from jcos.report.arrays import trends
from jcos.report.plane import Look, Plane, look
from jcos.report.reading import View, read
from tests.report import folders


def page_of(folder: Path, **how: int) -> str:
    return explorer.write([read(folder)], folder / "explore.html", **how).read_text()


def data_of(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def numbers(values: Any) -> np.ndarray:
    return np.array(values, np.float64)


def cells(view: View) -> np.ndarray:
    """The pictures of a sheet [rows, frames, H, W, 3]."""
    with Image.open(io.BytesIO(view.sheet)) as picture:
        sheet = np.asarray(picture.convert("RGB"))
    width, height = view.cell
    rows, columns = sheet.shape[0] // height, sheet.shape[1] // width
    return sheet.reshape(rows, height, columns, width, 3).swapaxes(1, 2)


def test_saved_planes_come_back_as_they_were(tmp_path: Path) -> None:
    saved = Look([*folders.look(1, 2), folders.changed()])
    saved.save(tmp_path, command="mine")
    found = read(tmp_path)
    assert not found.missing
    assert found.command == "mine"
    for view, plane in zip(found.views, saved, strict=True):
        rows = [*plane.x0, plane.video, plane.reference]
        np.testing.assert_array_equal(cells(view), np.stack(rows))
        assert view.about["label"] == plane.label
        assert view.about["marks"]["steps"] == list(plane.marks.steps)


def test_a_sample_is_decoded_without_its_model(tmp_path: Path) -> None:
    pixels = folders.sample_folder(tmp_path)
    found = read(tmp_path)
    assert [(v.about["group"], v.about["label"]) for v in found.views] == [
        ("puzzle 0", "seed 0"),
        ("puzzle 0", "seed 7"),
        ("puzzle 1", "seed 0"),
        ("puzzle 1", "seed 7"),
    ]
    np.testing.assert_array_equal(cells(found.views[3])[:-1], pixels[1, 1])
    charts = {line.chart: line for line in found.views[3].lines}
    assert charts["score of x̂0"].values[-1] == 1
    assert charts["noise level σ"].values[0] == 1
    one_answer = {line.chart for line in found.views[0].lines}
    assert "mass on each right answer" in set(charts) - one_answer
    assert found.views[0].about["marks"]["steps"] == [3]


def test_distances_are_those_of_the_pictures() -> None:
    x0 = np.zeros((3, 2, 4, 4, 3), np.uint8)
    x0[0, 0], x0[1, 1] = 51, 255
    (to_last, moved), heat = Plane(label="a", group="b", steps=range(3), x0=x0).derived()
    np.testing.assert_allclose(numbers(to_last.values), [0.1, 0.5, 0])
    assert moved.values == [None, pytest.approx(0.6), 0.5]
    np.testing.assert_allclose(numbers(heat.values), [[0.2, 0, 0], [0, 1, 0]])


def test_a_generated_film_is_cut_out_of_its_sheet(tmp_path: Path) -> None:
    sheet, frames = folders.generate_folder(tmp_path)
    view = read(tmp_path).views[0]
    assert view.about["steps"] == [0, 4, 11]
    assert view.about["frames"][-1] == frames - 1
    assert cells(view)[:-1].shape == sheet.shape
    inside = (slice(None), slice(None), slice(8, -8), slice(8, -8))  # WebP blurs the edges
    apart = np.abs(cells(view)[:-1][inside].astype(float) - sheet[inside])
    assert apart.max() < 12
    assert view.about["film"] == "seed-0.mp4"


def test_arrays_of_an_experiment_become_curves_and_heat_maps(tmp_path: Path) -> None:
    folders.experiment_folder(tmp_path)
    found = read(tmp_path)
    with np.load(tmp_path / "arrays.npz") as arrays:
        solved, score = arrays["solved_by_step"], arrays["score"]
        kind, step, frame = arrays["kind"], arrays["step"], arrays["frame"]
    maze, bounce, at_step = found.trends.lines
    assert (maze.chart, maze.label, bounce.label) == ("solved by step", "maze", "bounce")
    np.testing.assert_allclose(numbers(maze.values), solved[:2].mean((0, 1)), atol=1e-3)
    low, mean, high = map(numbers, (maze.low, maze.values, maze.high))
    assert ((low <= mean) & (mean <= high)).all()
    means = score[kind == "step"].mean((1, 2))
    np.testing.assert_allclose(numbers(at_step.values), means, atol=1e-3)
    (heat,) = found.trends.heats
    assert (heat.rows_are, list(heat.rows), list(heat.steps)) == (
        "frame",
        [0, 1, 2, 3, 4],
        [0, 4, 8],
    )
    here = (kind == "cell") & (step == 4) & (frame == 2)
    assert heat.values[2][1] == pytest.approx(score[here].mean(), abs=1e-3)
    np.testing.assert_allclose(numbers(heat.behind)[2, 1], score[here].ravel(), atol=1e-3)
    assert heat.names[3] == "puzzle 1, seed 1"


def test_arrays_without_numbers_make_no_trouble() -> None:
    arrays = {
        "score": np.full((2, 1, 4), np.nan),
        "words": np.array(["a"]),
        "other": np.zeros((3, 3)),
        "step": np.arange(3),
    }
    found = trends(arrays, {"sampling": {"steps": 4}})
    assert found.lines[0].values == [None] * 4
    assert not found.heats


def test_table_has_numbers_to_sort_by_and_intervals(tmp_path: Path) -> None:
    folders.experiment_folder(tmp_path)
    page = page_of(tmp_path)
    assert '<td class="n" data-v="0.125">0.125 [0.025, 0.225]</td>' in page
    assert "<td>&lt;b&gt;score&lt;/b&gt;</td>" in page
    assert '<a href="arrays.npz" download>' in page
    assert "jcos run configs/noise.py" in page


@pytest.mark.parametrize("make", [folders.sample_folder, folders.generate_folder])
def test_text_stays_text(tmp_path: Path, make: Callable[..., object]) -> None:
    folder = tmp_path / "a<b>'🦆&"
    make(folder, prompt=folders.HOSTILE)
    page = page_of(folder)
    assert "<script>window" not in page
    assert "<img src=x" not in page
    assert data_of(page)["views"][0]["prompt"] == folders.HOSTILE
    assert html.escape(folder.name) in page


def test_the_page_loads_nothing_but_itself(tmp_path: Path) -> None:
    folders.look().save(tmp_path)
    page = page_of(tmp_path)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Security-Policy" content="([^"]*)"', page)
    assert policy
    assert f"script-src &#x27;sha256-{digest}&#x27;" in policy[1]
    assert "default-src &#x27;none&#x27;" in policy[1]
    assert not re.findall(r'(?:src|href)="(?!data:|#|[\w.-]+")', page)
    assert "https:" not in page
    assert len(page) < 2_000_000


def test_large_results_lie_beside_the_page(tmp_path: Path) -> None:
    folders.generate_folder(tmp_path)
    (tmp_path / explorer.BESIDE).mkdir()
    (tmp_path / explorer.BESIDE / "old.png").touch()
    page = page_of(tmp_path, embedded=1000)
    sheets = [view["sheet"] for view in data_of(page)["views"]]
    assert sheets == ["explore.files/sheet-0.webp", "explore.files/sheet-1.webp"]
    assert {p.name for p in (tmp_path / explorer.BESIDE).iterdir()} == {
        "sheet-0.webp",
        "sheet-1.webp",
    }
    assert 'src="seed-0.mp4"' in page
    assert len(page) < 100_000
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    assert read(tmp_path).views  # what a page left is no result


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("make", "damage", "says", "views"),
    [
        (folders.sample_folder, lambda f: _truncate(f / "arrays.npz"), "arrays.npz", 0),
        (folders.sample_folder, lambda f: (f / "arrays.npz").unlink(), "arrays.npz: it is miss", 0),
        (folders.sample_folder, lambda f: _truncate(f / "run.json"), "manifest: it cannot", 0),
        (folders.sample_folder, lambda f: (f / "run.json").write_text("[1]"), "no JSON object", 0),
        (folders.generate_folder, lambda f: _truncate(f / "seed-0-x0.png"), "Seed 0", 1),
        (folders.generate_folder, lambda f: (f / "seed-1.mp4").unlink(), "seed-1.mp4: it is", 2),
        (folders.generate_folder, lambda f: _truncate(f / "seed-1.mp4"), "seed-1.mp4", 2),
        (folders.experiment_folder, lambda f: (f / "arrays.npz").unlink(), "arrays.npz", 0),
        (folders.experiment_folder, lambda f: _truncate(f / "figures/noise.png"), "noise.png", 0),
        (
            folders.experiment_folder,
            lambda f: (f / "table.csv").write_bytes(b"\xff\xfe"),
            "tabl",
            0,
        ),
        (folders.experiment_folder, lambda f: (f / "table.csv").unlink(), "table.csv: it is", 0),
    ],
)
def test_damage_is_said_and_the_rest_is_shown(
    tmp_path: Path,
    make: Callable[..., object],
    damage: Callable[[Path], object],
    says: str,
    views: int,
) -> None:
    make(tmp_path)
    damage(tmp_path)
    found = read(tmp_path)
    assert says in " ".join(found.missing)
    assert len(found.views) == views
    page = page_of(tmp_path)
    assert "Not everything could be read" in page


def test_several_folders_stand_side_by_side(tmp_path: Path) -> None:
    for name in ("plain", "noised"):
        folders.sample_folder(tmp_path / name)
    found = [read(tmp_path / name) for name in ("plain", "noised")]
    page = explorer.write(found, tmp_path / "compared.html").read_text()
    labels = [view["label"] for view in data_of(page)["views"] if view["group"] == "puzzle 0"]
    assert labels == ["plain, seed 0", "plain, seed 7", "noised, seed 0", "noised, seed 7"]
    assert 'href="plain/arrays.npz"' in page
    assert "<h2>noised</h2>" in page


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders.experiment_folder(tmp_path / "x")
    cli.main(["report", str(tmp_path / "x")])
    assert "explore.html" in capsys.readouterr().out
    assert (tmp_path / "x" / "explore.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["report"], "no folder given"),
        (["report", "none"], "none is no folder"),
        (["report", "empty"], "empty is empty"),
        (["explore", "none"], "none is no folder"),
    ],
)
def test_what_is_no_results_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert says in capsys.readouterr().err


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of a folder with an experiment in `a` and a sample in `b`."""
    folders.experiment_folder(tmp_path / "runs" / "a")
    folders.sample_folder(tmp_path / "runs" / "b")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "runs" / "b" / "out").symlink_to(tmp_path / "secret.txt")
    running = live.server(tmp_path / "runs", 0)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    thread.join()
    running.server_close()


def get(address: str, **headers: str) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
        return answer.read()


def test_live_lists_runs_and_serves_only_them(served: str, tmp_path: Path) -> None:
    listed = get(f"{served}/").decode()
    a, b = sorted(re.findall(r'href="(run/\w+/)"><b>(\w)</b>', listed), key=lambda run: run[1])
    assert "Where does noise hurt?" in get(f"{served}/{a[0]}").decode()
    page = get(f"{served}/{b[0]}").decode()
    sheet = data_of(page)["views"][2]["sheet"]
    with Image.open(io.BytesIO(get(f"{served}/{b[0]}{sheet}"))) as picture:
        assert picture.format == "PNG"
    assert len(get(f"{served}/{b[0]}arrays.npz")) == (
        (tmp_path / "runs" / "b" / "arrays.npz").stat().st_size
    )
    before = get(f"{served}/{b[0]}version")
    assert get(f"{served}/{b[0]}version") == before
    (tmp_path / "runs" / "b" / "new.csv").write_text("a\n1\n")
    assert get(f"{served}/{b[0]}version") != before
    for wrong in ("../../secret.txt", "..%2f..%2fsecret.txt", "out", "none", "%00"):
        with pytest.raises(urllib.error.HTTPError, match="404") as error:
            get(f"{served}/{b[0]}{wrong}")
        error.value.close()


def test_live_answers_to_this_machine_alone(served: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="403") as error:
        get(f"{served}/", Host="elsewhere.example:80")
    error.value.close()
    assert served.startswith("http://127.0.0.1:")


def test_a_run_shows_itself_in_a_notebook(small_model: jcos.Wan) -> None:
    task = jcos.tasks.get("maze")
    puzzle = task.sample(0, "test")
    condition = small_model.condition(task.first_frame(puzzle), puzzle.prompt, task.frames)
    trace = jcos.generate(small_model, condition, seeds=[0, 1])
    seen = look(small_model, trace, prompt=folders.HOSTILE)
    assert [plane.label for plane in seen] == ["run 0", "run 1"]
    np.testing.assert_array_equal(seen[1].video, small_model.decode(trace.latents[1]))
    shown = seen._repr_html_()
    assert "<script" not in shown
    assert "<img src=x" not in shown
    assert shown.count("data:image/png") == 2
    assert shown.count("data:image/webp") == 2
    assert len(seen[0].lines[0].values) == 4


def test_what_does_not_fit_is_refused() -> None:
    x0 = np.zeros((2, 3, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="3 steps are named, 2 are there"):
        Plane(label="a", group="b", steps=range(3), x0=x0)
    with pytest.raises(ValueError, match="video is"):
        Plane(label="a", group="b", steps=range(2), x0=x0, video=x0[0, :2])
