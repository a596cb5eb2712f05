"""The demo's page in a real browser; see `test_explorer_browser.py`."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jcos.report.page import write_demo
from tests.browser.tabs import Page, click_cell, picture, shown, slide
from tests.report import folders
from tests.report.test_page import fake_demo

pytestmark = pytest.mark.extra("browser")


def test_the_demo_page_has_a_plane(opened: Callable[..., Page], tmp_path: Path) -> None:
    planes = [folders.plane(f"seed {i % 2}", f"task {i // 2}", i) for i in range(4)]
    demo = dataclasses.replace(fake_demo(), planes=planes)
    tab = opened(write_demo(tmp_path, demo))
    for step, frame in ((6, 1), (6, 4), (11, 4)):
        slide(tab, "step", step)
        slide(tab, "frame", frame)
        for run in (0, 1):
            np.testing.assert_array_equal(shown(tab, nth=run), planes[run].x0[step, frame])
    click_cell(tab, 2, 3)
    np.testing.assert_array_equal(shown(tab), planes[0].x0[2, 3])
    tab.locator("#runs button").nth(0).click()  # leaves the other seed
    assert tab.locator(".pane").count() == 1
    np.testing.assert_array_equal(shown(tab), planes[1].x0[2, 3])
    tab.select_option("#group", "task 1")
    np.testing.assert_array_equal(shown(tab, nth=1), planes[3].x0[2, 3])
    tab.locator("#plane").scroll_into_view_if_needed()
    picture(tab, "demo")


@pytest.mark.skipif("JCOS_DEMO" not in os.environ, reason="$JCOS_DEMO names no folder of a demo")
def test_the_demo_itself(opened: Callable[..., Page]) -> None:
    folder = Path(os.environ["JCOS_DEMO"]).resolve()
    runs = json.loads((folder / "run.json").read_text())["planes"]
    tab = opened(folder / "index.html")
    groups = list(dict.fromkeys(run["group"] for run in runs))
    with np.load(folder / "planes.npz") as arrays:
        for group in groups:
            if len(groups) > 1:
                tab.select_option("#group", group)
            number = next(i for i, run in enumerate(runs) if run["group"] == group)
            x0 = arrays[f"x0_{number}"]
            for step, frame in ((0, 0), (len(x0) // 2, 1), (len(x0) - 1, x0.shape[1] - 1)):
                slide(tab, "step", step)
                slide(tab, "frame", frame)
                np.testing.assert_array_equal(shown(tab), x0[step, frame])
    tab.locator("#plane").scroll_into_view_if_needed()
    picture(tab, "demo-itself")
