"""Figures take the looks of a page."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from jcos.experiments import plots
from jcos.report.svg import styled


def test_a_figure_has_the_colours_of_the_page(tmp_path: Path) -> None:
    figure = Figure(figsize=(3, 2))
    axes = figure.subplots()
    axes.plot([1, 2, 3], color=plots.COLOURS[1])
    axes.imshow([[1, 2], [3, 4]])
    axes.set_title("black: #000000")
    (tmp_path / "a.svg").write_bytes(plots.to_svg(figure))
    drawn, width, height = styled(tmp_path / "a.svg")
    assert (width, height) == (216, 144)
    text = drawn.decode()
    assert "stroke: var(--s1)" in text
    assert "#d55e00" not in re.sub("<style>.*?</style>", "", text, flags=re.DOTALL)
    assert "black: #000000" in text
    assert "font-family: system-ui" in text
    assert "prefers-color-scheme: dark" in text
    assert "data:image/png;base64," in text
    ET.fromstring(drawn)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ('width="300" height="200"', (300, 200)),
        ('width="300px" height="200px" viewBox="0 0 3 2"', (300, 200)),
        ('width="100%" height="100%" viewBox="0,0,30,20"', (30, 20)),
    ],
)
def test_figures_of_other_programs_say_their_size_in_other_ways(
    tmp_path: Path, size: str, expected: tuple[float, float]
) -> None:
    svg = f'<!-- <svg > --><svg xmlns="http://www.w3.org/2000/svg" {size}/>'
    (tmp_path / "a.svg").write_text(svg)
    drawn, *sides = styled(tmp_path / "a.svg")
    assert (*sides,) == expected
    assert len(ET.fromstring(drawn)) == 1  # the looks are inside


@pytest.mark.parametrize(
    "content",
    ["<svg", "<html></html>", "", "no XML at all", '<svg xmlns="http://www.w3.org/2000/svg"/>'],
)
def test_what_is_no_figure_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.svg").write_text(content)
    with pytest.raises(ValueError, match="SVG"):
        styled(tmp_path / "a.svg")
