"""Figures become part of a page: they draw, and do nothing else."""

import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from jcos.report.svg import inline
from tests.report import folders


def test_a_figure_is_left_with_what_draws(tmp_path: Path) -> None:
    (tmp_path / "a.svg").write_text(folders.FIGURE)
    drawn, *size = inline(tmp_path / "a.svg", 'a "figure"')
    assert size == [230.4, 165.6]
    for gone in ["script", "hacked", "elsewhere", "left", "<style", "onclick", "DejaVu", "xlink"]:
        assert gone not in drawn, gone
    prefix = re.findall(r'id="(f\w+-)inside"', drawn)[0]
    assert f'clip-path="url(#{prefix}inside)"' in drawn
    assert f'href="#{prefix}in"' in drawn
    assert "stroke: var(--s0)" in drawn
    assert "fill: currentColor" in drawn
    assert "font-size:10px" in drawn
    assert 'aria-label="a &quot;figure&quot;"' in drawn


def test_what_matplotlib_writes_is_whole(tmp_path: Path) -> None:
    figure = Figure(figsize=(3, 2))
    axes = figure.subplots()
    axes.plot([1, 2, 3])
    axes.imshow([[1, 2], [3, 4]])
    figure.savefig(tmp_path / "a.svg", transparent=True)
    drawn, *_ = inline(tmp_path / "a.svg", "a")
    named = set(re.findall(r'\bid="([^"]+)"', drawn))
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', drawn))
    assert used
    assert used <= named
    assert len({name.partition("-")[0] for name in named}) == 1
    assert "data:image/png;base64," in drawn


@pytest.mark.parametrize("content", ["<svg", "<html></html>", "", "no XML at all"])
def test_what_is_no_figure_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.svg").write_text(content)
    with pytest.raises(ValueError, match="SVG"):
        inline(tmp_path / "a.svg", "a")
