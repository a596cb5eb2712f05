"""The explorer in a real browser: the right picture is shown, and nothing leaves the page.

Needs the extra `browser` and a Chromium (Debian's package `chromium`, or the one in $CHROMIUM).
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jcos.media import formats
from jcos.report import explorer
from jcos.report.plane import Look, answer_lines
from jcos.report.reading import read
from tests.browser.tabs import WIDTH, Open, shown, slide, until, value
from tests.report import folders

pytestmark = pytest.mark.extra("browser")


@pytest.fixture(scope="module")
def planes() -> Look:
    return Look([*folders.look(2, 2), folders.changed(40)])


@pytest.fixture(scope="module")
def page(planes: Look, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with both seeds of the first puzzle."""
    folder = tmp_path_factory.mktemp("planes")
    planes.save(folder, command="jcos sample maze", sampling=folders.SAMPLING)
    return f"{explorer.make(folder).as_uri()}#runs=0,1&frame=0"


def test_sliders_and_clicks_show_the_cell(opened: Open, page: str, planes: Look) -> None:
    tab = opened(page)
    for step, frame in ((0, 0), (7, 3), (11, 4), (7, 0)):
        slide(tab, step=step, frame=frame)
        for run in (0, 1):  # both seeds of the first puzzle
            plane: Any = planes[run]
            np.testing.assert_array_equal(shown(tab, nth=run), plane.x0[step, frame])
            np.testing.assert_array_equal(shown(tab, ".end canvas", run), plane.video[frame])
            right = shown(tab, ".right canvas", run)
            np.testing.assert_array_equal(right, plane.reference[frame])
    assert "step 7" in tab.locator(".now p").first.inner_text()
    grid = tab.locator(".grid canvas").first
    grid.scroll_into_view_if_needed()
    box = grid.bounding_box()
    band, row = (box["width"] - 46) / folders.STEPS, box["height"] / folders.FRAMES
    grid.click(position={"x": 46 + 4.5 * band, "y": 1.5 * row})
    np.testing.assert_array_equal(shown(tab), planes[0].x0[4, 1])
    grid.press("ArrowDown")
    grid.press("ArrowRight")
    np.testing.assert_array_equal(shown(tab), planes[0].x0[5, 2])
    until(tab, lambda: tab.url.endswith("step=5&frame=2&runs=0,1"))
    # The middle of each cell of the overview is the middle of its picture.
    overview = shown(tab, ".grid canvas").astype(int)
    band, row = (overview.shape[1] - 46) / folders.STEPS, overview.shape[0] / folders.FRAMES
    for step, frame in np.ndindex(folders.STEPS, folders.FRAMES):
        x, y = int(46 + (step + 0.5) * band), int((frame + 0.5) * row)
        near = overview[y - 3 : y + 4, x - 3 : x + 4].reshape(-1, 3)
        middle = planes[0].x0[step, frame, 9:11, 9:11].reshape(-1, 3).astype(int)
        assert np.abs(near[:, None] - middle[None]).max(-1).min() == 0, (step, frame)


def test_runs_are_chosen_and_compared(opened: Open, page: str, planes: Look) -> None:
    """A difference is black where nothing differs."""
    tab = opened(page)
    slide(tab, step=4, frame=1)
    tab.locator("[data-difference=end]").click()
    assert_difference(shown(tab), planes[0].x0[4, 1], planes[0].x0[-1, 1])
    tab.locator("[data-difference=first]").click()
    assert_difference(shown(tab, nth=1), planes[1].x0[4, 1], planes[0].x0[4, 1])
    tab.select_option("#group", "puzzle 1")
    until(tab, lambda: tab.locator(".pane[data-view='3']").count() == 1)
    assert_difference(shown(tab, nth=1), planes[3].x0[4, 1], planes[2].x0[4, 1])
    tab.locator("#runs button").nth(0).click()  # leaves seed 1, compared with none
    until(tab, lambda: tab.locator(".pane").count() == 1)
    assert not tab.locator("[data-difference=first]").is_visible()
    np.testing.assert_array_equal(shown(tab), planes[3].x0[4, 1])


def assert_difference(canvas: np.ndarray, x: np.ndarray, other: np.ndarray) -> None:
    """The picture itself shines through faintly."""
    expected = np.abs(x.astype(float) - other) + 0.22 * x
    np.testing.assert_allclose(canvas.astype(float), expected.clip(0, 255), atol=2)


def test_it_plays_both_ways_and_follows_a_curve(opened: Open, page: str) -> None:
    tab = opened(page)
    slide(tab, step=2)
    tab.locator("#play-step").click()
    until(tab, lambda: value(tab, "step") > 3)
    tab.keyboard.press("b")
    until(tab, lambda: value(tab, "step") < 3)
    tab.keyboard.press("p")
    step = value(tab, "step")
    slide(tab, frame=0)
    tab.keyboard.press("b")
    tab.keyboard.press("f")
    until(tab, lambda: value(tab, "frame") > 1)
    assert value(tab, "step") == step
    tab.keyboard.press("f")
    svg = tab.locator("#curves .curve > svg").first
    svg.scroll_into_view_if_needed()
    box = svg.bounding_box()
    band = (box["width"] - 56) / folders.STEPS
    tab.mouse.move(box["x"] + 46 + 9.5 * band, box["y"] + 40)
    assert value(tab, "step") == 9


def test_the_address_is_the_view_once_it_is_moved(opened: Open, page: str) -> None:
    tab = opened(page.replace("#runs=0,1&frame=0", "#plane"))
    shown(tab)
    tab.wait_for_timeout(500)
    assert tab.url.endswith("#plane")
    slide(tab, step=6)
    until(tab, lambda: "#step=6&frame=" in tab.url)
    tab.evaluate("location.hash = 'made'")
    slide(tab, step=7)
    until(tab, lambda: "#step=7&frame=" in tab.url)


def test_what_was_changed_is_drawn(opened: Open, page: str) -> None:
    tab = opened(page)
    tab.select_option("#group", "changed")
    told = tab.locator(".pane .changed").inner_text()
    assert told.startswith("noise at step 3, 7; noise in frame 2; seeds averaged after layer 1, 4")
    assert tab.locator(".rows .hit").inner_text() == "▸ 2"
    assert tab.locator("#curves .shade").count() >= 2
    # Noise at steps and in a frame, and seeds averaged after layers: each on its own axes.
    noised = np.isin(range(folders.FRAMES), 2)[:, None] | np.isin(range(folders.STEPS), (3, 7))
    np.testing.assert_array_equal(red(shown(tab, ".changes canvas"), folders.FRAMES), noised)
    averaged = red(shown(tab, ".changes canvas", 1), 6)
    assert np.argwhere(averaged).tolist() == [[1, 0], [4, 0]]


def red(canvas: np.ndarray, rows: int) -> np.ndarray:
    """Which cells of a lane of changes are marked, read in their middles: [rows, steps]."""
    plot = canvas[:, 46:].astype(int)
    y = ((np.arange(rows) + 0.5) * plot.shape[0] / rows).astype(int)
    x = ((np.arange(folders.STEPS) + 0.5) * plot.shape[1] / folders.STEPS).astype(int)
    middles = plot[y][:, x]
    return middles[..., 0] > middles[..., 2] + 60


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_it_fits_the_screen(opened: Open, page: str, width: int, scheme: str) -> None:
    tab = opened(page, color_scheme=scheme)
    tab.set_viewport_size({"width": width, "height": 844})
    shown(tab)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(20, 20, 27)") == (scheme == "dark")
    steps = [*map(int, tab.locator(".grid .foot").first.locator("span").all_inner_texts())]
    assert len(steps) > 1
    assert steps == sorted(set(steps)), "each column is named by its step"
    unnamed = "img:not([alt]), canvas:not([aria-label]), svg[role=img]:not([aria-label])"
    assert tab.locator(unnamed).count() == 0


def test_an_intervention_is_matched_with_its_baseline(opened: Open, tmp_path: Path) -> None:
    plain = folders.sample_folder(tmp_path / "plain", noise=())
    noised = folders.sample_folder(tmp_path / "noised", seed=6)
    page = explorer.write([read(tmp_path / n) for n in ("plain", "noised")], tmp_path / "a.html")
    tab = opened(f"{page.as_uri()}#runs=0,1,2,3")
    slide(tab, step=4, frame=1)
    tab.locator("[data-difference=first]").click()
    for seed, run in ((0, 1), (1, 3)):  # noised runs, each less the plain one of its seed
        assert_difference(shown(tab, nth=run), noised[0, seed, 4, 1], plain[0, seed, 4, 1])
    (told,) = tab.locator(".changes h3").all_inner_texts()
    assert told.startswith("noised, seed 0; noised, seed 7: what was changed, frames × steps")


def test_hostile_text_is_text(opened: Open, tmp_path: Path) -> None:
    folder = tmp_path / "<img src=x onerror=hacked=1>'\""
    folders.sample_folder(folder, prompt=folders.HOSTILE)
    name = "<script>hacked=1;'\"&amp;#?%41🦆"
    (folder / f"{name}.csv").write_text(f"{name.replace(chr(34), '')}\n{name[:8]}\n")
    (folder / f"{name}.png").write_bytes(formats.png(folders.pictures()[0]))
    (folder / name).mkdir()
    formats.write_mp4(folder / name / f"{name}.mp4", folders.pictures())
    for embedded in (explorer.EMBEDDED, 0):  # the second links files by their names
        tab = opened(explorer.write([read(folder)], tmp_path / "a'b.html", embedded=embedded))
        if embedded:
            shown(tab)  # pictures of other files cannot be read
        assert tab.evaluate("window.hacked") is None
        assert tab.locator("#prompt").inner_text() == f"“{folders.HOSTILE}”"
        assert tab.locator("h1").inner_text() == folder.name
        assert tab.locator(".numbers summary").inner_text().startswith(name)
        assert tab.locator(".sortable td").inner_text() == "<script>"
        listed = tab.locator(".files a").all_text_contents()
        assert {f"{name}.csv", f"{name}.png", f"{name}/{name}.mp4"} < set(listed)
        drawn, film = tab.locator(".picture img"), tab.locator(".picture video")
        assert drawn.get_attribute("alt") == f"Figure: {name}"
        drawn.scroll_into_view_if_needed()  # it is loaded then
        assert drawn.evaluate("i => i.decode().then(() => i.naturalWidth)") == folders.SIDE
        assert film.get_attribute("aria-label") == f"{name}/{name}.mp4"
        assert film.evaluate(WIDTH) == folders.SIDE


def test_pictures_beside_the_page_are_loaded_when_looked_at(opened: Open, tmp_path: Path) -> None:
    folders.look(2, 1).save(tmp_path)
    page = explorer.write([read(tmp_path)], tmp_path / "index.html", embedded=0)
    tab = opened(page)
    loaded = []
    tab.on("request", lambda request: loaded.append(request.url.rpartition("/")[2]))
    tab.wait_for_timeout(300)
    tab.select_option("#group", "puzzle 1")
    tab.wait_for_timeout(300)
    assert loaded == ["sheet-1.webp"]
    # A canvas with pictures of other files may be looked at, not read.
    before = tab.locator(".now canvas").screenshot()
    slide(tab, step=9)
    assert tab.locator(".now canvas").screenshot() != before


def test_runs_are_listed_and_compared(opened: Open, tmp_path: Path) -> None:
    pixels = folders.sample_folder(tmp_path / "runs" / "one")
    folders.sample_folder(tmp_path / "runs" / "two", noise=())
    folders.experiment_folder(tmp_path / "runs" / "three")
    with folders.served(tmp_path / "runs") as address:
        tab = opened(address)
        assert tab.locator(".runs tbody tr").count() == 3
        tab.locator("[data-find]").fill("solved")
        assert tab.locator(".runs tbody tr:visible").count() == 2
        tab.get_by_role("link", name="one").click()
        tab.select_option("#group", "puzzle 0")
        until(tab, lambda: tab.locator(".pane").count() == 2)
        tab.locator("#runs button").nth(1).click()
        slide(tab, step=2, frame=3)
        until(tab, lambda: tab.locator(".pane").count() == 1)
        np.testing.assert_array_equal(shown(tab), pixels[0, 0, 2, 3])
        tab.get_by_role("link", name="All runs").click()
        for name in ("two", "one"):
            tab.get_by_label(f"Compare {name}").check()
        assert tab.locator("#ticked").inner_text() == "two and one"
        tab.get_by_role("link", name="two").click()
        tab.go_back()
        until(tab, lambda: tab.locator("#ticked").inner_text() in ("two and one", "one and two"))
        for name in ("two", "one"):
            tab.get_by_label(f"Compare {name}").uncheck()
        assert tab.get_by_role("button", name="Compare").is_disabled()
        for name in ("two", "one"):
            tab.get_by_label(f"Compare {name}").check()
        tab.get_by_role("button", name="Compare").click()
        tab.wait_for_url(lambda url: "+" in url)
        assert tab.locator(".differences tbody tr").count() == 1
        until(tab, lambda: tab.locator(".pane").count() == 2)
        assert tab.locator(".pane b").all_inner_texts()[0].startswith("two, seed")
        tab.goto(address)
        tab.get_by_role("link", name="three").click()
        tab.locator(".chart .panel svg").first.wait_for()
        tab.close()


def test_the_page_opens_with_the_run_that_decides_late(opened: Open, tmp_path: Path) -> None:
    steps = range(folders.STEPS)
    late = [0.5] * 9 + [1.0] * 3
    lines, drawn = answer_lines(
        steps, np.array([late, [1 - v for v in late]]).T, folders.pictures(1)[0, :2]
    )
    telling = folders.plane(group="puzzle 1", lines=lines, answers=drawn)
    Look([folders.plane(), telling]).save(
        tmp_path, sections=[{"title": "All", "text": "Of each.", "runs": ["puzzle 0", "puzzle 1"]}]
    )
    tab = opened(explorer.make(tmp_path))
    until(tab, lambda: tab.locator(".pane").count() == 1)
    assert tab.locator("#group").input_value() == "puzzle 1"
    answers = tab.locator(".lane img.answer")
    assert [answers.nth(i).get_attribute("class") for i in (0, 1)] == ["answer s0", "answer s1"]
    assert answers.first.evaluate("i => i.decode().then(() => i.naturalWidth)") == folders.SIDE
    strips = tab.locator(".strip")
    assert strips.count() == 2
    drawn = strips.first.locator("img")
    assert drawn.count() == folders.STEPS
    assert drawn.first.evaluate("i => i.decode().then(() => i.naturalWidth)") == folders.SIDE
    strips.first.click()
    until(tab, lambda: tab.locator("#group").input_value() == "puzzle 0")


@pytest.mark.skipif("JCOS_DEMO" not in os.environ, reason="$JCOS_DEMO names no folder of a demo")
def test_the_demo_itself(opened: Open) -> None:
    folder = Path(os.environ["JCOS_DEMO"]).resolve()
    runs = json.loads((folder / "run.json").read_text())["planes"]
    tab = opened((folder / "index.html").as_uri())
    with np.load(folder / "planes.npz") as arrays:
        for number, run in enumerate(runs):
            tab.select_option("#group", run["group"])
            until(tab, lambda run=run: tab.locator(".pane b").inner_text() == run["label"])
            x0 = arrays[f"x0_{number}"]
            for step, frame in ((0, 0), (len(x0) // 2, 1), (len(x0) - 1, x0.shape[1] - 1)):
                slide(tab, step=step, frame=frame)
                np.testing.assert_array_equal(shown(tab), x0[step, frame])
