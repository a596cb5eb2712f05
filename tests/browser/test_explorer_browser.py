"""The explorer in a real browser: the right picture is shown, and nothing leaves the page.

Needs the extra `browser` and a Chromium (Debian's package `chromium`, or the one in $CHROMIUM).
Screenshots are written into the folder that $SCREENSHOTS names, if it is set.
"""

import dataclasses
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

from jcos.report import explorer, live
from jcos.report.page import write_demo
from jcos.report.plane import Look, Plane
from jcos.report.reading import read
from tests.report import folders
from tests.report.test_page import fake_demo

pytestmark = pytest.mark.extra("browser")

Browser: TypeAlias = Any  # of playwright, which only the extra has
Page: TypeAlias = Any
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PIXELS = """([selector, nth]) => {
  const canvas = document.querySelectorAll(selector)[nth];
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  return [canvas.height, canvas.width, Array.from(data)];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with import_module("playwright.sync_api").sync_playwright() as p:
        path = os.environ.get("CHROMIUM") or shutil.which("chromium")
        running = p.chromium.launch(executable_path=path, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a page; at the end it must have said no error and asked nobody else for anything."""
    contexts, troubles, asked = [], [], []

    def go(page: Path | str, **how: object) -> Page:
        context = browser.new_context(viewport={"width": 1280, "height": 900}, **how)
        context.set_default_timeout(120_000)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda said: said.type == "error" and troubles.append(said.text))
        tab.on("pageerror", lambda error: troubles.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page if isinstance(page, str) else page.as_uri())
        return tab

    yield go
    for context in contexts:
        context.close()
    assert not troubles
    ours = ("file:", "data:", "blob:", "http://127.0.0.1:")
    assert not [url for url in asked if not url.startswith(ours)]


def until(tab: Page, holds: Callable[[], bool]) -> None:
    """Waits; not with `wait_for_function`, whose eval the page's policy forbids."""
    for _ in range(2400):  # two minutes, for machines with much else to do
        if holds():
            return
        tab.wait_for_timeout(50)
    raise AssertionError("it did not come to be in two minutes")


def shown(tab: Page, selector: str = ".now canvas", nth: int = 0) -> np.ndarray:
    """The colours of a canvas, once its picture is loaded."""
    found: list[np.ndarray] = []

    def painted() -> bool:
        height, width, data = tab.evaluate(PIXELS, [selector, nth])
        found.append(np.array(data, np.uint8).reshape(height, width, 4))
        return bool(found[-1].any())

    until(tab, painted)
    return found[-1][..., :3]


def value(tab: Page, name: str) -> int:
    """Where a slider is."""
    return int(tab.locator(f"#{name}").input_value())


def picture(tab: Page, name: str) -> None:
    """A screenshot, kept where CI keeps them."""
    if folder := os.environ.get("SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        tab.screenshot(path=Path(folder) / f"{name}.png")


def clip(plane: Plane, name: str) -> np.ndarray:
    """The video or the right answer, which all planes here have."""
    return getattr(plane, name)


def slide(tab: Page, name: str, value: int) -> None:
    tab.locator(f"#{name}").fill(str(value))


@pytest.fixture(scope="module")
def planes() -> Look:
    return Look([*folders.look(2, 2), folders.changed(40)])


@pytest.fixture(scope="module")
def page(planes: Look, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planes")
    planes.save(folder, command="jcos sample maze", sampling=folders.SAMPLING)
    return explorer.make(folder)


def test_scrubbers_show_the_cell(opened: Callable[..., Page], page: Path, planes: Look) -> None:
    tab = opened(page)
    for step, frame in ((0, 0), (7, 3), (11, 4), (7, 0)):
        slide(tab, "step", step)
        slide(tab, "frame", frame)
        for run in (0, 1):  # both seeds of the first puzzle
            np.testing.assert_array_equal(shown(tab, nth=run), planes[run].x0[step, frame])
            np.testing.assert_array_equal(
                shown(tab, ".end canvas", run), clip(planes[run], "video")[frame]
            )
        np.testing.assert_array_equal(
            shown(tab, ".right canvas"), clip(planes[0], "reference")[frame]
        )
    assert "step 7" in tab.locator(".now p").first.inner_text()
    picture(tab, "explorer")


def test_a_click_in_the_grid_enlarges_its_cell(
    opened: Callable[..., Page], page: Path, planes: Look
) -> None:
    tab = opened(page)
    grid = tab.locator(".grid canvas").first
    box = grid.bounding_box()
    assert box
    band, row = (box["width"] - 46) / folders.STEPS, box["height"] / folders.FRAMES
    grid.click(position={"x": 46 + 4.5 * band, "y": 1.5 * row})
    np.testing.assert_array_equal(shown(tab), planes[0].x0[4, 1])
    grid.press("ArrowDown")
    grid.press("ArrowRight")
    np.testing.assert_array_equal(shown(tab), planes[0].x0[5, 2])
    assert (
        tab.url.endswith("step=5&frame=2&runs=0,1") or tab.wait_for_url("**step=5&frame=2*") is None
    )


def test_the_grid_shows_every_cell(opened: Callable[..., Page], page: Path, planes: Look) -> None:
    """The middle of each cell of the overview is the middle of its picture."""
    tab = opened(page)
    overview = shown(tab, ".grid canvas").astype(int)
    band = (overview.shape[1] - 46) / folders.STEPS
    row = overview.shape[0] / folders.FRAMES
    for step in range(folders.STEPS):
        for frame in range(folders.FRAMES):
            x, y = int(46 + (step + 0.5) * band), int((frame + 0.5) * row)
            near = overview[y - 3 : y + 4, x - 3 : x + 4].reshape(-1, 3)
            middle = planes[0].x0[step, frame, 9:11, 9:11].reshape(-1, 3).astype(int)
            apart = np.abs(near[:, None] - middle[None]).max(-1).min()
            assert apart == 0, (step, frame)


def test_runs_and_puzzles_are_chosen(opened: Callable[..., Page], page: Path, planes: Look) -> None:
    tab = opened(page)
    slide(tab, "step", 3)
    slide(tab, "frame", 2)
    tab.locator("#runs button").nth(0).click()  # leaves seed 1
    assert tab.locator(".pane").count() == 1
    np.testing.assert_array_equal(shown(tab), planes[1].x0[3, 2])
    tab.select_option("#group", "puzzle 1")
    np.testing.assert_array_equal(shown(tab, nth=1), planes[3].x0[3, 2])
    tab.select_option("#group", label="the first run of each of 3")
    assert tab.locator(".pane").count() == 3
    np.testing.assert_array_equal(shown(tab, nth=1), planes[2].x0[3, 2])


def test_a_curve_moves_the_step(opened: Callable[..., Page], page: Path) -> None:
    tab = opened(page)
    svg = tab.locator("#curves .curve > svg").first
    svg.scroll_into_view_if_needed()
    box = svg.bounding_box()
    assert box
    band = (box["width"] - 56) / folders.STEPS
    tab.mouse.move(box["x"] + 46 + 9.5 * band, box["y"] + 40)
    assert value(tab, "step") == 9


def test_it_plays_both_ways(opened: Callable[..., Page], page: Path) -> None:
    tab = opened(page)
    slide(tab, "step", 2)
    tab.locator("#play-step").click()
    until(tab, lambda: value(tab, "step") > 3)
    tab.keyboard.press("b")
    until(tab, lambda: value(tab, "step") < 3)
    tab.keyboard.press("p")
    step = value(tab, "step")
    slide(tab, "frame", 0)
    tab.keyboard.press("b")
    tab.keyboard.press("f")
    until(tab, lambda: value(tab, "frame") > 1)
    assert value(tab, "step") == step


def test_difference_to_the_end_is_black_where_nothing_differs(
    opened: Callable[..., Page], page: Path, planes: Look
) -> None:
    tab = opened(page)
    slide(tab, "step", 4)
    slide(tab, "frame", 1)
    tab.locator("[data-difference=end]").click()
    x, last = planes[0].x0[4, 1].astype(float), planes[0].x0[-1, 1].astype(float)
    expected = np.clip(np.abs(x - last) + 0.22 * x, 0, 255)
    np.testing.assert_allclose(shown(tab).astype(float), expected, atol=2)
    tab.locator("[data-difference=first]").click()
    other = planes[1].x0[4, 1].astype(float)
    expected = np.clip(np.abs(other - x) + 0.22 * other, 0, 255)
    np.testing.assert_allclose(shown(tab, nth=1).astype(float), expected, atol=2)


def test_what_was_changed_is_drawn(opened: Callable[..., Page], page: Path) -> None:
    tab = opened(Path(page))
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_the_screen(
    opened: Callable[..., Page], page: Path, width: int, scheme: str
) -> None:
    tab = opened(page, color_scheme=scheme)
    tab.set_viewport_size({"width": width, "height": 844})
    shown(tab)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(20, 20, 27)") == (scheme == "dark")
    picture(tab, f"explorer-{width}-{scheme}")
    unnamed = "img:not([alt]), canvas:not([aria-label]), svg[role=img]:not([aria-label])"
    assert tab.locator(unnamed).count() == 0


def test_an_experiment(opened: Callable[..., Page], tmp_path: Path) -> None:
    folders.experiment_folder(tmp_path)
    tab = opened(explorer.make(tmp_path))
    first = tab.locator(".sortable tbody tr").first
    for _ in range(2):  # ascending, then descending
        tab.get_by_role("button", name="value").click()
    assert "0.5 [" in first.inner_text()
    tab.locator("[data-find]").fill("task 2")
    assert tab.locator(".sortable tbody tr:visible").count() == 1
    tab.locator(".heat canvas").click(position={"x": 200, "y": 20})
    assert "8 runs" in tab.locator(".behind").inner_text()
    assert tab.locator(".behind circle").count() == 8
    assert tab.locator(".picture img").evaluate("i => i.decode().then(() => i.naturalWidth)") == 20
    picture(tab, "experiment")


LEFT = 92
"""Pixels at the left of lanes where rows have words."""


def colours(canvas: np.ndarray, rows: int, columns: int, left: int) -> np.ndarray:
    """How light the cells of a map are, in their middles: [rows, columns]."""
    plot = canvas[:, left:].astype(float).sum(-1)
    y = ((np.arange(rows) + 0.5) * plot.shape[0] / rows).astype(int)
    x = ((np.arange(columns) + 0.5) * plot.shape[1] / columns).astype(int)
    return plot[y][:, x]


def agrees(seen: np.ndarray, values: np.ndarray) -> bool:
    """Whether lighter means more."""
    return float(np.corrcoef(seen.ravel(), values.ravel())[0, 1]) > 0.97


def test_maps_are_turned_and_follow_the_step(opened: Callable[..., Page], tmp_path: Path) -> None:
    arrays = folders.layered_folder(tmp_path)
    energy = np.concatenate([arrays["maze_energy"], arrays["bounce_energy"]])
    tab = opened(explorer.make(tmp_path))
    lane = tab.locator(".heat", has_text="token energy").first
    canvas, size = "#matrices canvas", (folders.LAYERS, folders.FRAMES)
    for step in (2, 9):  # layer × frame at the step
        slide(tab, "step", step)
        assert agrees(colours(shown(tab, canvas), *size, LEFT), energy[:, :, step].mean((0, 1)))
    lane.get_by_label("task", exact=True).select_option("bounce")
    assert agrees(
        colours(shown(tab, canvas), *size, LEFT), arrays["bounce_energy"][:, :, 9].mean((0, 1))
    )
    lane.locator("canvas").click(position={"x": LEFT + 3, "y": 3})
    told = lane.locator(".behind").inner_text()
    assert told.startswith("layer 0, frame 0: 2 runs. Lowest: bounce, puzzle 0, seed ")
    lane.get_by_label("columns", exact=True).select_option("step")  # now on the common axis
    wide = colours(shown(tab, "#heats canvas"), folders.LAYERS, folders.STEPS, LEFT)
    assert agrees(wide, arrays["bounce_energy"].mean((0, 1, 4)).T)
    # Others wait until they are asked for; a click shows the runs behind a swap.
    tab.get_by_role("button", name="flipped (one)").click()
    swap = tab.locator(".heat", has_text="flipped (one)")
    swap.locator("canvas").focus()
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("Enter")
    assert "layer 1" in swap.locator(".behind").inner_text()
    assert "6 runs" in swap.locator(".behind").inner_text()
    picture(tab, "maps")


def test_an_intervention_is_matched_with_its_baseline(
    opened: Callable[..., Page], tmp_path: Path
) -> None:
    plain = folders.sample_folder(tmp_path / "plain", noise=())
    noised = folders.sample_folder(tmp_path / "noised", seed=6)
    page = explorer.write([read(tmp_path / n) for n in ("plain", "noised")], tmp_path / "a.html")
    tab = opened(page)
    slide(tab, "step", 4)
    slide(tab, "frame", 1)
    tab.locator("[data-difference=first]").click()
    for seed, run in ((0, 1), (1, 3)):  # noised runs, each less the plain one of its seed
        own, other = (clips[0, seed, 4, 1].astype(float) for clips in (noised, plain))
        expected = np.clip(np.abs(own - other) + 0.22 * own, 0, 255)
        np.testing.assert_allclose(shown(tab, nth=run).astype(float), expected, atol=2)
    (told,) = tab.locator(".changes h3").all_inner_texts()
    assert told.startswith("noised, seed 0; noised, seed 7: what was changed, frames × steps")
    picture(tab, "compared")


def test_hostile_text_is_text(opened: Callable[..., Page], tmp_path: Path) -> None:
    folder = tmp_path / "<img src=x onerror=hacked=1>'\""
    folders.sample_folder(folder, prompt=folders.HOSTILE)
    tab = opened(explorer.write([read(folder)], tmp_path / "a'b.html"))
    shown(tab)
    assert tab.evaluate("window.hacked") is None
    assert tab.locator("#prompt").inner_text() == f"“{folders.HOSTILE}”"
    assert tab.locator("h1").inner_text() == folder.name


def test_pictures_beside_the_page_are_loaded_when_looked_at(
    opened: Callable[..., Page], tmp_path: Path
) -> None:
    folders.look(2, 1).save(tmp_path)
    page = explorer.write([read(tmp_path)], tmp_path / "index.html", embedded=0)
    tab = opened(page)
    loaded = []
    tab.on("request", lambda request: loaded.append(request.url.rpartition("/")[2]))
    tab.wait_for_timeout(300)
    tab.select_option("#group", "puzzle 1")
    tab.wait_for_timeout(300)
    assert loaded == ["sheet-1.png"]
    # A canvas with pictures of other files may be looked at, not read.
    before = tab.locator(".now canvas").screenshot()
    slide(tab, "step", 9)
    assert tab.locator(".now canvas").screenshot() != before


def test_live(opened: Callable[..., Page], tmp_path: Path) -> None:
    pixels = folders.sample_folder(tmp_path / "runs" / "one")
    running = live.server(tmp_path / "runs", 0)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    try:
        tab = opened(f"http://127.0.0.1:{running.server_port}/")
        tab.get_by_role("link", name="one").click()
        slide(tab, "step", 2)
        slide(tab, "frame", 3)
        np.testing.assert_array_equal(shown(tab), pixels[0, 0, 2, 3])
        tab.get_by_role("link", name="All runs").click()
        assert tab.locator(".list li").count() == 1
        tab.close()
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


def test_the_demo_page_has_a_plane(opened: Callable[..., Page], tmp_path: Path) -> None:
    planes = [folders.plane(group=f"task {i}", seed=i) for i in range(3)]
    demo = dataclasses.replace(fake_demo(), planes=planes)
    tab = opened(write_demo(tmp_path, demo))
    tab.select_option("#group", "task 2")
    slide(tab, "step", 6)
    slide(tab, "frame", 1)
    np.testing.assert_array_equal(shown(tab), planes[2].x0[6, 1])
    tab.locator("#plane").scroll_into_view_if_needed()
    picture(tab, "demo")
