"""Experiments in a real browser: tables, figures, maps; see `test_explorer_browser.py`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jcos.report import explorer
from tests.browser.tabs import Page, picture, shown, slide, value
from tests.report import folders

pytestmark = pytest.mark.extra("browser")


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


def test_keys_choose_the_cells_of_a_map(opened: Callable[..., Page], tmp_path: Path) -> None:
    arrays = folders.layered_folder(tmp_path)
    energy = np.concatenate([arrays["maze_energy"], arrays["bounce_energy"]])
    tab = opened(explorer.make(tmp_path))
    slide(tab, "step", 3)
    slide(tab, "frame", 1)
    lane = tab.locator(".heat", has_text="token energy").first
    columns = lane.get_by_label("columns", exact=True)
    columns.select_option("layer")  # its rows are frames now
    lane.locator("canvas").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft", "ArrowDown", "Enter"):
        tab.keyboard.press(key)
    said, _, number = lane.locator("h3 li b").inner_text().partition(": ")
    assert said == "frame 1, layer 2"
    np.testing.assert_allclose(float(number), energy[:, :, 3, 2, 1].mean(), rtol=0.01)
    assert lane.locator(".behind").inner_text().startswith("frame 1, layer 2: 6 runs")
    assert (value(tab, "step"), value(tab, "frame")) == (3, 1)
    picture(tab, "map-cell")
    columns.select_option("frame")  # these columns are the slider's
    lane.locator("canvas").focus()
    tab.keyboard.press("ArrowRight")
    assert (value(tab, "step"), value(tab, "frame")) == (3, 2)
    columns.select_option("step")
    lane.locator("canvas").focus()
    tab.keyboard.press("ArrowLeft")
    assert (value(tab, "step"), value(tab, "frame")) == (2, 2)
