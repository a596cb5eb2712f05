"""Charts show their numbers where they lie, tell them as text, and survive what is missing."""

import math
import re
from xml.etree import ElementTree as ET

import pytest

from jcos.report import charts
from jcos.report.demo import Curve


def parsed(svg: str) -> ET.Element:
    """Inline SVG is checked as XML: all tags closed, all attributes quoted."""
    return ET.fromstring(f"<div>{svg}</div>")


def flat_curve(n: int) -> Curve:
    return Curve(label="a", x=list(range(n)), y=[0.5] * n, low=[0.4] * n, high=[0.6] * n)


HOLES = [0.2, None, math.nan, 0.4, math.inf, 0.9]


@pytest.mark.parametrize("spare", [False, True])
@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([], []),
        ([3], [0.5]),
        ([3], [None]),
        ([0, 1], [math.nan, None]),
        (list(range(6)), HOLES),
        ([2, 2], [0, 1]),
    ],
)
def test_charts_survive_holes_and_single_points(x, y, spare):
    low = [None if v is None else v - 0.1 for v in y]
    high = [None if v is None else v + 5 for v in y]
    curve = Curve(label="a", x=x, y=y, low=low, high=high)
    svg = charts.line_chart(
        [curve], title="t", x_label="step", y_label="y", spare=spare, background=[curve]
    )
    parsed(svg)
    assert "nan" not in svg
    assert "inf" not in svg
    known = [v for v in y if v is not None and math.isfinite(v)]
    assert svg.count("<title>") == len(known)
    assert ("no data" in svg) == (not known)


def test_many_points_get_a_band_and_few_get_whiskers():
    def drawn(n):
        return charts.line_chart([flat_curve(n)], title="t", x_label="x", y_label="y")

    assert 'class="whisker' in drawn(5)
    assert 'class="band' not in drawn(5)
    assert 'class="band' in drawn(50)


def test_a_point_tells_its_value_and_interval():
    curve = Curve(label="maze", x=[12], y=[0.834], low=[0.76], high=[0.89])
    svg = charts.line_chart([curve], title="t", x_label="step", y_label="y")
    assert "<title>maze, step 12: 0.83 [0.76, 0.89]</title>" in svg


def test_curves_lie_where_their_numbers_say():
    svg = charts.line_chart(
        [Curve(label="a", x=[0, 5, 10], y=[0.0, 0.5, 1.0])], title="t", x_label="x", y_label="y"
    )
    spots = [tuple(map(float, m)) for m in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)]
    (x0, y0), (x1, y1), (x2, y2) = spots
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    assert x2 > x0
    assert y2 < y0


@pytest.mark.parametrize("values", [[0.5, 0.6], [None, 0.6], [None, None], [math.nan, 1.4]])
def test_stacked_charts_survive_holes(values):
    layers = [charts.Layer("a", values, "s0"), charts.Layer("b", [0.2, 0.1], "s1")]
    svg = charts.stacked_chart(
        [0, 1], layers, title="t", x_label="x", y_label="y", over=charts.Layer("o", values, "off")
    )
    parsed(svg)
    assert "nan" not in svg
    known = sum(v is not None and math.isfinite(v) for v in values)
    assert svg.count("<title>") == known
    assert ("<polygon" in svg) == (known > 0)


@pytest.mark.parametrize(
    ("low", "high", "about", "whole", "found"),
    [
        (0, 1, 4, False, [0, 0.25, 0.5, 0.75, 1]),
        (0, 49, 5, True, [0, 10, 20, 30, 40]),
        (0, 4, 5, True, [0, 1, 2, 3, 4]),
        (1, 50, 5, True, [10, 20, 30, 40, 50]),
        (2, 2, 5, True, [2]),
    ],
)
def test_ticks_are_round_numbers(low, high, about, whole, found):
    assert charts.ticks(low, high, about, whole=whole) == found


def test_words_are_escaped_in_text_and_in_attributes():
    evil = "\"><script>x</script> & 'y'"
    curve = Curve(label=evil, x=[0, 1], y=[0.1, 0.2])
    svg = charts.line_chart([curve, curve], title=evil, x_label=evil, y_label=evil)
    tags = {element.tag for element in parsed(svg).iter()}
    assert "script" not in tags
    drawn = charts.interval_bar(0.1, 0.0, 0.2, (0, 1), told=evil)
    assert parsed(drawn)[0].get("aria-label") == evil


@pytest.mark.parametrize(("low", "high"), [(None, None), (math.nan, 0.5), (-3.0, 7.0)])
def test_an_interval_stays_on_its_scale(low, high):
    svg = charts.interval_bar(0.4, low, high, (0.0, 1.0), told="t", zero=True)
    parsed(svg)
    assert "nan" not in svg
    assert all(-1 <= float(x) <= 241 for x in re.findall(r"[MH](-?[\d.]+)", svg))
