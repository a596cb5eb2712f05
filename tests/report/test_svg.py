"""Figures become part of a page: they draw, and do nothing else."""

import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from jcos.report.svg import inline, size_of
from tests.report import folders


def test_a_figure_is_left_with_what_draws(tmp_path: Path) -> None:
    (tmp_path / "a.svg").write_text(folders.FIGURE)
    drawn = inline(tmp_path / "a.svg", "f0-", 'a "figure"')
    for gone in (
        "script",
        "hacked",
        "elsewhere",
        "left out",
        "<style",
        "onclick",
        "DejaVu",
        "xlink",
    ):
        assert gone not in drawn, gone
    assert 'clip-path="url(#f0-inside)"' in drawn
    assert 'id="f0-inside"' in drawn
    assert 'href="#f0-in"' in drawn
    assert "stroke: var(--s0)" in drawn
    assert "fill: currentColor" in drawn
    assert "font-size:10px" in drawn
    assert 'aria-label="a &quot;figure&quot;"' in drawn
    assert size_of(tmp_path / "a.svg") == (230.4, 165.6)


def test_what_matplotlib_writes_is_whole(tmp_path: Path) -> None:
    figure = Figure(figsize=(3, 2))
    axes = figure.subplots()
    axes.plot([1, 2, 3])
    axes.imshow([[1, 2], [3, 4]])
    figure.savefig(tmp_path / "a.svg", transparent=True)
    drawn = inline(tmp_path / "a.svg", "f1-", "a")
    named = set(re.findall(r'\bid="([^"]+)"', drawn))
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', drawn))
    assert used
    assert used <= named
    assert all(name.startswith("f1-") for name in named)
    assert "data:image/png;base64," in drawn


@pytest.mark.parametrize("content", ["<svg", "<html></html>", "", "no XML at all"])
def test_what_is_no_figure_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.svg").write_text(content)
    with pytest.raises(ValueError, match="SVG"):
        inline(tmp_path / "a.svg", "f0-", "a")
