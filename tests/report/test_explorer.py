"""Folders of results become pages: what is shown is what was measured, and damage is said."""

import base64
import hashlib
import html
import io
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from PIL import Image

import jcos
from jcos import cli
from jcos.experiments import plots
from jcos.experiments.sweeps import held_out
from jcos.puzzles import planes_of
from jcos.report import explorer
from jcos.report.plane import MASS, Line, Look, Plane, answer_lines, look, save_planes, telling
from jcos.report.reading import Results, check_results, distinct, read
from jcos.report.svg import styled
from jcos.sampling.probes import Noise
from tests.report import folders


def page_of(folder: Path, **how: int) -> str:
    return explorer.write([read(folder)], folder / "index.html", **how).read_text()


def data_of(page: str, part: str = "data") -> Any:
    """What the page's script reads: what is known of all runs, `view-0` or `chart-0`."""
    found = re.search(
        rf'<script type="application/json" id="{part}">(.*?)</script>', page, re.DOTALL
    )
    assert found
    return json.loads(found[1])


def numbers(values: Any) -> np.ndarray:
    return np.array(values, np.float64)


def view(found: Results, number: int) -> dict[str, Any]:
    """What the page has of a run."""
    return explorer.data_of(found.runs[number])


def cells(view: dict[str, Any]) -> np.ndarray:
    """The pictures of a sheet [rows, frames, H, W, 3]."""
    with Image.open(io.BytesIO(view["sheet"])) as picture:
        sheet = np.asarray(picture.convert("RGB"))
    (width, height), columns = view["cell"], view["columns"]
    assert sheet.shape[1] == columns * width
    found = (
        sheet.reshape(-1, height, columns, width, 3).swapaxes(1, 2).reshape(-1, height, width, 3)
    )
    frames = view["frames"]
    rows = len(view["steps"]) + view["video"] + view["reference"]
    return found[: rows * frames].reshape(rows, frames, height, width, 3)


@pytest.mark.slow
def test_a_sample_is_shown_as_its_model_decodes_it(small_model: jcos.Wan, tmp_path: Path) -> None:
    task = jcos.tasks.get("maze")
    puzzles = [
        next(p for p in held_out(task, 99) if (len(p.answers) > 1) == many) for many in (0, 1)
    ]
    rng, steps = np.random.default_rng(0), small_model.config.sampling.steps
    x0 = rng.normal(size=(2, 2, steps, 5, 10, 10, 12)).astype(np.float32)
    scores, answers = rng.random((2, 2, steps)), len(puzzles[1].answers)
    mass, solved = rng.random((2, 2, steps, answers)), np.eye(2, dtype=bool)
    arrays = {"latents": x0[:, :, -1], "x0": x0, "mass": mass}
    arrays |= {"x0_scores": scores, "off": 1 - scores}
    changes, sampling = (
        Noise.at_steps(steps, task.frames, [3]).changes(),
        small_model.config.sampling,
    )
    planes = planes_of(small_model, puzzles, (0, 7), arrays, solved, sampling, changes)
    save_planes(tmp_path, list(planes), {"puzzles": []})
    found = read(tmp_path)
    named = [(f"puzzle {p}", f"seed {k}", (k == 7) == p) for p in (0, 1) for k in (0, 7)]
    assert [(run.group, run.label, run.solved) for run in found.runs] == named
    last = view(found, 3)
    decoded = [*small_model.decode(x0[1, 1]), small_model.decode(x0[1, 1, -1])]
    np.testing.assert_array_equal(cells(last), [*decoded, task.routes(puzzles[1])[0]])
    charts = {line["chart"]: line["values"] for line in last["lines"]}
    np.testing.assert_allclose(charts["score of x̂0"], scores[1, 1], rtol=1e-3)
    assert charts["noise level σ"][0] == 1
    of_several = {MASS, "mass on no right answer"}
    assert of_several == {*charts} - {line["chart"] for line in view(found, 0)["lines"]}
    assert len(last["pictures"]) == len(last["answers"]) == min(answers, 4)
    assert last["changes"] == [changes[0].to_json()]


def test_the_page_opens_with_the_most_telling_run() -> None:
    """Several answers are held at first, one of them to the end, and it is decided late."""
    steps = range(4)

    def lines(*masses: list[float]) -> list[Line]:
        return [Line(MASS, f"answer {i}", steps, values) for i, values in enumerate(masses)]

    early = lines([0.5, 1, 1, 1], [0.5, 0, 0, 0])
    late = lines([0.5, 0.5, 0.5, 1], [0.5, 0.5, 0.5, 0])
    single = lines([1, 1, 1, 1], [0, 0, 0, 0])
    told = [telling(one, True) for one in (early, late, single)]
    assert max(told) == told[1] == (True, True, 3)
    assert min(told) == told[2]
    assert telling(late, False) < telling(early, True)
    assert telling([], True) == (False, True, 0)


def test_the_last_of_many_answers_share_a_line() -> None:
    mass = np.array([[0.1, 0.2, 0.3, 0.1, 0.1, 0.2], [0, 0, 0, 0, 1, 0]])
    pictures = np.arange(6, dtype=np.uint8)[:, None, None, None] + np.zeros((6, 2, 2, 3), np.uint8)
    lines, drawn = answer_lines([0, 1], mass, pictures)
    assert [line.label for line in lines] == [*(f"answer {i}" for i in (1, 2, 3, 4)), "2 more"]
    assert lines[0].values == [0.1, 1]
    np.testing.assert_allclose(numbers(lines[-1].values), [0.2, 0])
    assert [int(picture.max()) for picture in drawn.values()] == [4, 2, 1, 5]


def test_distances_are_those_of_the_pictures() -> None:
    x0 = np.zeros((3, 2, 4, 4, 3), np.uint8)
    x0[0, 0], x0[1, 1] = 51, 255
    to_last, moved = Plane(label="a", group="b", steps=range(3), x0=x0).distances()
    np.testing.assert_allclose(numbers(to_last.values), [0.1, 0.5, 0])
    assert moved.values == [None, pytest.approx(0.6), 0.5]


def middles(pictures: np.ndarray) -> np.ndarray:
    """Their middles: WebP and H.264 blur the edges."""
    return pictures[..., 8:-8, 8:-8, :].astype(float)


def test_generated_films_are_shown(tmp_path: Path) -> None:
    estimates, frames = folders.generate_folder(tmp_path)
    found = read(tmp_path)
    shown = view(found, 0)
    assert not found.missing
    assert (shown["steps"], shown["frames"]) == ([0, 4, 11], frames)
    assert np.abs(middles(cells(shown)[:-1]) - middles(estimates)).max() < 12
    assert [film.name for film in found.films] == ["seed-0.mp4", "seed-1.mp4"]
    noised, given = shown["changes"]
    assert noised["text"] == "noise at step 4"
    assert (given["text"], given["size"]) == ("noise in frame 1–4", frames)  # latent frame 1
    (tmp_path / "seed-0-x0-step-4.mp4").unlink()
    shown = view(found, 0)
    assert shown["steps"] == [0, 11]
    assert np.abs(middles(cells(shown)[:-1]) - middles(estimates[[0, 2]])).max() < 12
    assert found.missing == ["seed-0-x0-step-4.mp4: it is missing."]


def test_many_large_frames_lie_in_several_rows_of_a_sheet() -> None:
    """WebP has at most 16383 pixels a side."""
    rng = np.random.default_rng(0)
    x0 = np.broadcast_to(rng.integers(0, 256, (3, 90, 1, 1, 3), np.uint8), (3, 90, 100, 200, 3))
    data, _, columns = Plane(label="a", group="b", steps=range(3), x0=x0).sheet()
    with Image.open(io.BytesIO(data)) as picture:
        assert max(picture.size) <= 16383
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    i = 2 * 90 + 71
    spot = pixels[i // columns * 100 + 50, i % columns * 200 + 100]
    assert np.abs(spot - x0[2, 71, 0, 0]).max() < 16


def test_an_experiment_has_sections_figures_and_a_table_to_sort(tmp_path: Path) -> None:
    folders.experiment_folder(tmp_path)
    page = page_of(tmp_path)
    assert '<p class="lead">What noise &lt;does&gt;.</p>' in page
    assert "<p>One.</p><p>Two &lt;b&gt;.</p>" in page
    assert "<figcaption>Noise &lt;hurts&gt; late.</figcaption>" in page
    order = [
        "<h2>Late &amp; early",
        "Noise &lt;hurts&gt;",
        "<h2>Solved by step",
        "<h3>Token energy",
    ]
    assert sorted(order, key=page.index) == order
    assert page.index(order[-1]) < page.index("<table")
    for anchor in re.findall(r'<a href="#([\w-]+)">', page):
        assert f"id={anchor}" in page.replace('"', "")
    assert '<td class="n" data-v="0.125">0.125 [0.025, 0.225]</td>' in page
    assert "<td>&lt;b&gt;score&lt;/b&gt;</td>" in page
    assert '<a href="results.nc" download>' in page
    assert "jcos run configs/noise.py" in page
    assert page.count("<h3>Solved</h3>") == 1  # in its section, not once more below
    assert data_of(page, "chart-0")["name"] == "solved"


def test_a_figure_has_the_looks_of_the_page(tmp_path: Path) -> None:
    figure = Figure(figsize=(3, 2))
    axes = figure.subplots()
    axes.plot([1, 2, 3], color=plots.COLOURS[1])
    axes.imshow([[1, 2], [3, 4]])
    (tmp_path / "a.svg").write_bytes(plots.to_svg(figure))
    drawn = styled(tmp_path / "a.svg").decode()
    ET.fromstring(drawn)
    assert 'width="302.4pt" height="201.6pt"' in drawn
    for part in ("stroke: var(--s1)", "prefers-color-scheme: dark", "data:image/png;base64,"):
        assert part in drawn


def test_the_page_loads_nothing_but_itself(tmp_path: Path) -> None:
    folders.look().save(tmp_path)
    page = page_of(tmp_path)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Security-Policy" content="([^"]*)"', page)
    assert policy
    said = html.unescape(policy[1])
    assert f"script-src 'sha256-{digest}'" in said
    assert "default-src 'none'" in said
    assert not re.findall(r'(?:src|href)="(?!data:|#|[\w.-]+")', page)
    assert "https:" not in page
    assert len(page) < 2_000_000


def test_large_results_lie_beside_the_page(tmp_path: Path) -> None:
    folders.generate_folder(tmp_path)
    store = tmp_path / "index.files"
    store.mkdir()
    (store / "sheet-9.webp").touch()
    page = page_of(tmp_path, embedded=1000)
    sheets = [data_of(page, f"view-{i}")["sheet"] for i in range(2)]
    assert sheets == ["index.files/sheet-0.webp", "index.files/sheet-1.webp"]
    assert {p.name for p in store.iterdir()} == {"sheet-0.webp", "sheet-1.webp"}
    assert 'src="seed-0.mp4"' in page
    assert len(page) < 100_000
    assert all("index" not in p.as_posix() for p in read(tmp_path).files)  # they are no results


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _dataset(change: Callable[[xr.Dataset], xr.Dataset]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with xr.open_dataset(path) as data:
            changed = change(data).load()
        changed.to_netcdf(path)

    return damage


def _text(change: Callable[[str], str]) -> Callable[[Path], object]:
    return lambda path: path.write_text(change(path.read_text()))


def _bomb(path: Path) -> None:
    """A picture of more pixels than Pillow reads."""
    Image.new("1", (2**14, 2**14)).save(path)


DEEP = "[" * 10**5
OLDER = _dataset(lambda data: data.assign_attrs(jcos_results=0))
NO_RUNS = _dataset(lambda data: data.assign(energy=data.energy.mean("puzzle", keep_attrs=True)))
NO_LEVEL = _dataset(lambda data: data.drop_vars("chance_solved"))
ANOTHER = _text(lambda text: text.replace('"experiment": "noise"', '"experiment": "swap"'))
SAMPLE, FILMS, MEASURED = folders.sample_folder, folders.generate_folder, folders.experiment_folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "file", "damage", "says", "views"),
    [
        (SAMPLE, "planes.npz", _truncate, "planes.npz: it cannot be read", 0),
        (SAMPLE, "planes.npz", Path.unlink, "planes.npz: it is missing.", 0),
        (SAMPLE, "run.json", _truncate, "The manifest: it cannot be read", 0),
        (SAMPLE, "run.json", _text(lambda _: DEEP), "The manifest: it cannot be read", 0),
        (MEASURED, "large.png", _bomb, "large.png: it cannot be read", 0),
        (SAMPLE, "run.json", _text(lambda _: "[1]"), "run.json is no JSON object", 0),
        (FILMS, "seed-0-x0-step-4.mp4", _truncate, "seed-0-x0-step-4.mp4: ", 2),
        (FILMS, "seed-1.mp4", Path.unlink, "seed-1.mp4: it is missing.", 2),
        (FILMS, "seed-1.mp4", _truncate, "of 13 frames", 2),
        (MEASURED, "results.nc", Path.unlink, "results.nc: it is missing.", 0),
        (MEASURED, "results.nc", _truncate, "results.nc: it cannot be read", 0),
        (MEASURED, "results.nc", OLDER, "make the results again", 0),
        (MEASURED, "results.nc", NO_RUNS, "it has no dimension of runs", 0),
        (MEASURED, "results.nc", NO_LEVEL, "its baseline chance_solved is missing", 0),
        (MEASURED, "run.json", ANOTHER, "not of swap", 0),
        (MEASURED, "figures/noise.svg", _truncate, "figures/noise.svg: it cannot be read", 0),
        (MEASURED, "noise.svg", lambda p: p.write_text("<svg/>", "utf-16"), "noise.svg: it", 0),
        (MEASURED, "figures/noise.svg", Path.unlink, "figures/noise.svg: it is missing.", 0),
        (MEASURED, "table.csv", lambda p: p.write_bytes(b"\xff\xfe"), "table.csv: it cannot", 0),
        (MEASURED, "table.csv", Path.unlink, "table.csv: it is missing.", 0),
    ],
)
def test_damage_is_said_and_the_rest_is_shown(
    tmp_path: Path,
    make: Callable[..., object],
    file: str,
    damage: Callable[[Path], object],
    says: str,
    views: int,
) -> None:
    make(tmp_path)
    damage(tmp_path / file)
    check_results(tmp_path)
    page = page_of(tmp_path)
    told = re.search(r'<section class="missing".*?</section>', page, re.DOTALL)
    assert told
    assert says in told[0]
    sentences = re.findall("<li>(.*?)</li>", told[0])
    assert len({*sentences}) == len(sentences)  # each is said once
    shown = [i for i in range(len(data_of(page)["views"])) if data_of(page, f"view-{i}")["sheet"]]
    assert len(shown) == views


@pytest.mark.parametrize("make", [SAMPLE, FILMS, MEASURED])
def test_a_manifest_may_say_nonsense(tmp_path: Path, make: Callable[..., object]) -> None:
    make(tmp_path)
    manifest = tmp_path / "run.json"
    about = json.loads(manifest.read_text()) | {"seeds": 5}
    for steps in ("many", None, {"a": 1}):
        about["sampling"] = about["sampling"] | {"steps": steps}
        manifest.write_text(json.dumps(about))
        assert read(tmp_path).steps == 0
    assert "<summary>Settings</summary>" in page_of(tmp_path)


def test_an_interval_stands_beside_what_it_is_of(tmp_path: Path) -> None:
    """Also in the table of the benchmark, whose column is the mean; of others no column is lost."""
    for name in ("value", "mean", "median"):
        table = f"arm,{name},low,high,n\nbase,0.5,0.25,0.75,9\n"
        (tmp_path / "table.csv").write_text(table)
        page = page_of(tmp_path)
        joined = '<td class="n" data-v="0.5">0.5 [0.25, 0.75]</td>' in page
        assert joined == ("low</button>" not in page) == (name != "median")


@pytest.mark.parametrize("names", [("plain", "noised"), ("day 1/base", "day 2/base")])
def test_compared_folders_of_one_title_have_names_apart(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    for name in names:
        folders.sample_folder(tmp_path / name)
    assert [one.title for one in distinct([read(tmp_path / n) for n in names])] == [*names]


def test_folders_are_compared_run_by_run(tmp_path: Path) -> None:
    """Runs of different puzzles are no pair."""
    folders.sample_folder(tmp_path / "plain", noise=())
    folders.sample_folder(tmp_path / "noised", seed=6)
    cli.main(["report", str(tmp_path / "plain"), str(tmp_path / "noised")])
    page = (tmp_path / "plain" / "compared.html").read_text()
    views = data_of(page)["views"]
    labels = [f"{name}, seed {seed}" for seed in (0, 7) for name in ("plain", "noised")]
    assert [view["label"] for view in views] == labels * 2
    assert [view["baseline"] for view in views] == [0, 0, 2, 2, 4, 4, 6, 6]
    changed = [bool(data_of(page, f"view-{i}")["changes"]) for i in range(4)]
    assert changed == [False, True, False, True]
    assert 'href="../noised/planes.npz"' in page
    assert "<h2>noised</h2>" in page
    told = re.search(r'class="differences">.*?</section>', page, re.DOTALL)
    assert told
    row = '<th scope="row">interventions: noise steps</th><td>none</td><td>[3]</td>'
    assert row in told[0]
    assert told[0].count("<tr>") == 2  # the head and that row
    for name in ("plain", "noised"):
        about = json.loads((tmp_path / name / "run.json").read_text())
        about["puzzles"] = [{"sha256": "same"}, {"sha256": name}]
        (tmp_path / name / "run.json").write_text(json.dumps(about))
    cli.main(["report", str(tmp_path / "plain"), str(tmp_path / "noised")])
    views = data_of((tmp_path / "plain" / "compared.html").read_text())["views"]
    paired = [(view["label"], view["group"]) for view in views if "baseline" in view]
    assert paired == [(label, "puzzle 0") for label in labels]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["report"], "no folder given"),
        (["report", "run", "./run"], "named twice"),
        (["report", "none"], "there is no folder none"),
        (["report", "empty"], "empty is empty"),
        (["explore", "none"], "there is no folder none"),
        (["explore", "run", "--port", "65536"], "0 to 65535"),
        (["export", "run"], "nothing to export"),
        (["export", "run", "--gif", "a.png"], "a.gif"),
        (["export", "run", "--gif", "a.gif", "--run", "7"], "run 7"),
        (["export", "run", "--gif", "a.gif", "--frame", "9"], "frame 9"),
        (["export", "run", "--svg", "figures"], "no charts"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Look([folders.plane()]).save("run")
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert says in capsys.readouterr().err
    assert sorted(Path().rglob("*.*")) == [Path("run/planes.npz"), Path("run/run.json")]


@pytest.mark.slow
def test_a_swap_shows_itself(small_model: jcos.Wan, tmp_path: Path) -> None:
    """Tokens of a donor run in another puzzle, after one layer of the first step."""
    task, dit = jcos.tasks.get("maze"), small_model.config.dit
    puzzles = [task.sample(i, "test") for i in (0, 1)]
    given = [small_model.condition(task.first_frame(p), p.prompt, task.frames) for p in puzzles]
    tokens, steps = int(np.prod(dit.tokens(*given[0].grid))), small_model.config.sampling.steps
    probe = jcos.Swap.at_layers(steps, dit.layers, tokens, [1])
    both = jcos.generate(small_model, jcos.tree_stack(given), [0, 1], probe=probe)
    trace = jax.tree.map(lambda a: a[0], both)
    runs = look(small_model, trace, prompt=folders.HOSTILE, changes=probe.changes())
    assert [plane.label for plane in runs] == ["run 0", "run 1"]
    np.testing.assert_array_equal(runs[1].video, small_model.decode(trace.latents[1]))
    assert len(runs[0].lines[0].values) == steps
    in_notebook = runs._repr_html_()
    for content, times in (("<script", 0), ("<img src=x", 0), ("image/png", 2), ("image/webp", 2)):
        assert in_notebook.count(content) == times
    runs.save(tmp_path)
    shown = view(read(tmp_path), 1)
    np.testing.assert_array_equal(cells(shown)[:-1], runs[1].x0)
    (change,) = shown["changes"]
    assert change["text"].endswith("after layer 1 at step 0")
    assert (change["cells"], change["size"]) == ([(0, 1)], dit.layers)
