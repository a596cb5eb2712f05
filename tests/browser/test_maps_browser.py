"""Experiments in a real browser: tables, figures, curves, maps; see `test_explorer_browser.py`."""

from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
import xarray as xr

from jcos.lab import results
from jcos.report import explorer
from tests.browser.tabs import Open, Page, shown, until
from tests.report import folders

pytestmark = pytest.mark.extra("browser")
Made: TypeAlias = tuple[Path, xr.Dataset]
LEFT = 34
"""Pixels at the left of maps whose rows are short numbers."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The page of an experiment, and its dataset."""
    folder = tmp_path_factory.mktemp("experiment")
    data = folders.experiment_folder(folder)
    return explorer.make(folder), data


def chart(tab: Page, title: str) -> Page:
    """The figure of this title, once it is drawn."""
    figure = tab.locator(".chart", has=tab.get_by_role("heading", name=title, exact=True))
    figure.scroll_into_view_if_needed()
    figure.locator(".drawing > *").first.wait_for(state="attached")  # a legend may be empty
    return figure


def test_tables_are_sorted_and_figures_fit_in(opened: Open, made: Made) -> None:
    tab = opened(made[0])
    first = tab.locator(".sortable tbody tr").first
    for _ in range(2):  # ascending, then descending
        tab.get_by_role("button", name="value").click()
    assert "0.5 [" in first.inner_text()
    tab.locator("[data-find]").fill("task 2")
    assert tab.locator(".sortable tbody tr:visible").count() == 1
    figure = tab.locator("img.drawn")
    assert figure.evaluate("i => i.decode().then(() => i.naturalWidth)") > 200
    assert figure.bounding_box()["width"] > 200


def test_curves_have_a_panel_for_each_task(opened: Open, made: Made) -> None:
    page, data = made
    tab = opened(page)
    solved = chart(tab, "Solved")
    assert solved.locator(".legend li").all_inner_texts() == ["model", "ideal denoiser"]
    assert solved.locator(".panel:visible").count() == 1  # the other task is flat
    folded = solved.locator("details")
    assert folded.locator("summary").inner_text() == "Nothing changes: bounce (1 throughout)"
    svg = solved.locator("svg[role=img]").first
    assert svg.locator(".level").count() == 1
    assert "a random legal answer" in svg.text_content()
    box = svg.bounding_box()
    tab.mouse.move(box["x"] + box["width"] * 0.99, box["y"] + 40)
    told = solved.locator(".readout").first.inner_text()
    mean = float(data["solved"].sel(denoiser="model")[:2, :, -1].mean())
    assert told.startswith(f"step 11: model {mean:.3g}")


def test_a_printed_page_has_all_charts(opened: Open, made: Made) -> None:
    tab = opened(made[0])
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert not tab.evaluate("[...document.querySelectorAll('.drawing:empty')].length")


def test_holes_lone_points_medians_and_nothing_at_all(opened: Open, tmp_path: Path) -> None:
    holes = np.array([0.2, 0.4, np.nan, 0.5, np.nan, 0.6, 0.9])
    rows = np.stack([holes, holes])
    measures = {
        "holes": results.measure("puzzle step", rows, "Holes"),
        "none": results.measure("puzzle step", rows * np.nan, "Nothing"),
        "steps": results.measure("puzzle layer", rows[:, :1], "Late", median=True, span=(0, 9)),
    }
    data = xr.Dataset(measures, attrs={"experiment": "x"})
    results.save(data, tmp_path / "results.nc")
    (tmp_path / "run.json").write_text('{"experiment": "x"}')
    (tmp_path / "table.csv").write_text("a\n1\n")
    tab = opened(explorer.make(tmp_path))
    late, figure = chart(tab, "Late"), chart(tab, "Holes")
    assert figure.locator(".line").first.get_attribute("d").count("M") == 3
    assert figure.locator(".band").count() == 3
    assert figure.locator(".lone").count() == 1
    assert late.locator(".lone").count() == 1
    assert late.locator(".drawing > .note").inner_text().startswith("Median and 95 % interval")
    assert figure.locator(".drawing > .note").inner_text().startswith("Mean and")
    until(tab, lambda: tab.locator(".chart h3").all_inner_texts() == ["Holes", "Late"])


def colours(canvas: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """How light the cells of a map are, in their middles: [rows, columns]."""
    plot = canvas[:, LEFT:].astype(float).sum(-1)
    y = ((np.arange(rows) + 0.5) * plot.shape[0] / rows).astype(int)
    x = ((np.arange(columns) + 0.5) * plot.shape[1] / columns).astype(int)
    return plot[y][:, x]


def agrees(seen: np.ndarray, values: np.ndarray) -> bool:
    """Whether lighter means more."""
    return float(np.corrcoef(seen.ravel(), values.ravel())[0, 1]) > 0.97


def test_maps_are_turned_and_cut(opened: Open, made: Made) -> None:
    tab, energy = opened(made[0]), made[1]["energy"]
    lane = chart(tab, "Token energy")
    lane.locator("canvas").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft", "ArrowDown", "Enter"):
        tab.keyboard.press(key)
    said, _, number = lane.locator(".key b").inner_text().partition(": ")
    assert said == "layer 1, step 2"
    np.testing.assert_allclose(float(number), energy[:, :, 2, 1].mean(), rtol=0.01)
    assert lane.locator(".behind").inner_text().startswith("layer 1, step 2: 6 runs")

    def seen(rows: int, columns: int) -> np.ndarray:
        return colours(shown(tab, ".heat canvas"), rows, columns)

    whole = energy.mean(("puzzle", "seed", "frame"))
    assert agrees(seen(folders.LAYERS, folders.STEPS), whole.transpose("layer", "step").values)
    lane.get_by_label("task", exact=True).select_option(label="bounce")
    lane.get_by_label("columns", exact=True).select_option(label="frame")
    slider = lane.get_by_label("step", exact=True)
    for step in (2, 9):  # layer × frame at the step
        slider.fill(str(step))
        at = energy[2, :, step].mean("seed")
        assert agrees(seen(folders.LAYERS, folders.FRAMES), at.transpose("layer", "frame").values)
    lane.locator("canvas").click(position={"x": LEFT + 3, "y": 3})
    told = lane.locator(".behind").inner_text()
    assert told.startswith("layer 0, frame 0: 2 runs. Lowest: bounce, puzzle 2, seed ")
    assert lane.locator(".behind circle").count() == 2
    slider.fill("4")  # the cell stays chosen
    until(tab, lambda: lane.locator(".key b").inner_text().startswith("layer 0, frame 0: "))
    value = float(lane.locator(".key b").inner_text().partition(": ")[2])
    np.testing.assert_allclose(value, energy[2, :, 4, 0, 0].mean(), rtol=0.01)
    assert lane.locator(".behind circle").count() == 2


def test_figures_and_maps_fit_a_phone(opened: Open, made: Made) -> None:
    tab = opened(made[0])
    tab.set_viewport_size({"width": 390, "height": 844})
    for title in ("Solved", "Token energy"):
        chart(tab, title)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
