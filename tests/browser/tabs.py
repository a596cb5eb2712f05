"""What the tests of pages in a browser share: looking at canvases, moving sliders."""

import base64
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

Page: TypeAlias = Any  # of playwright, which only the extra has
Open: TypeAlias = Callable[..., Page]
PIXELS = """([selector, nth]) => {
  const canvas = document.querySelectorAll(selector)[nth];
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let bytes = "";
  for (let i = 0; i < data.length; i += 8192)
    bytes += String.fromCharCode(...data.subarray(i, i + 8192));
  return [canvas.height, canvas.width, btoa(bytes)];
}"""
WIDTH = """film => new Promise((done, failed) => {
  film.onloadedmetadata = () => done(film.videoWidth);
  film.onerror = () => failed(film.error.message);
  film.preload = "metadata";
  film.load();
})"""
"""Of a film in pixels, once it is loaded."""


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
        found.append(np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4))
        return bool(found[-1].any())

    until(tab, painted)
    return found[-1][..., :3]


def value(tab: Page, name: str) -> int:
    """Where a slider is."""
    return int(tab.locator(f"#{name}").input_value())


def slide(tab: Page, **at: int) -> None:
    """Move sliders, `step` and `frame`."""
    for name, value in at.items():
        tab.locator(f"#{name}").fill(str(value))
