"""Small charts as inline SVG: lines with bands or whiskers, stacked areas, intervals on a scale.

The SVG only names classes (`s0`, `s1`, ..., `off`); the style sheet gives them colours and dashes,
so that one picture serves light and dark pages. Every point tells its value as a `<title>`, which
browsers show on hover. Points that are None or nan leave a hole.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

from jcos.report.demo import Curve, Number
from jcos.report.markup import Html, escape, finite, interval, join, number

DOTS, WHISKERS = 12, 8
"""Up to so many points a curve has dots, and shows its interval as whiskers and not as a band."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """One area of a stacked chart: its name, its height at each x and the class that colours it."""

    label: str
    values: Sequence[Number]
    style: str


@dataclasses.dataclass(frozen=True)
class _Axes:
    """Maps data to pixels of a viewBox; margins are left, right, top, bottom."""

    x: tuple[float, float]
    y: tuple[float, float]
    size: tuple[int, int]
    margins: tuple[int, int, int, int]

    def px(self, x: float) -> float:
        left, right, _, _ = self.margins
        return left + (x - self.x[0]) / (self.x[1] - self.x[0]) * (self.size[0] - left - right)

    def py(self, y: float) -> float:
        _, _, top, bottom = self.margins
        return (
            self.size[1]
            - bottom
            - (y - self.y[0]) / (self.y[1] - self.y[0]) * (self.size[1] - top - bottom)
        )

    def frame(
        self, x_label: str, y_label: str, *, percent: bool, spare: bool, whole: bool = True
    ) -> Html:
        """Grid lines, numbers on the axes and what they are; `spare`: few numbers and no words."""
        left, right, _, bottom = self.margins
        end = self.size[0] - right
        floor = self.size[1] - bottom
        parts = []
        for y in ticks(*self.y, 2 if spare else 4):
            line = "axis" if y == self.y[0] else "grid"
            parts.append(
                f'<path class="{line}" d="M{left} {_n(self.py(y))}H{end}"/>'
                f'<text x="{left - 6}" y="{_n(self.py(y) + 4)}" text-anchor="end">'
                f"{_tick(y, percent)}</text>"
            )
        for x in ticks(*self.x, 3 if spare else 5, whole=whole):
            at = _n(self.px(x))
            parts.append(
                f'<path class="axis" d="M{at} {floor}v4"/>'
                f'<text x="{at}" y="{floor + 17}" text-anchor="middle">{_tick(x, False)}</text>'
            )
        if not spare:
            parts.append(
                f'<text class="name" x="{(left + end) / 2:.0f}" y="{floor + 36}" '
                f'text-anchor="middle">{escape(x_label)}</text>'
                f'<text class="name" x="2" y="13">{escape(y_label)}</text>'
            )
        return Html("".join(parts))


def line_chart(
    curves: Sequence[Curve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] = (0.0, 1.0),
    percent: bool = False,
    baseline: tuple[float, str] | None = None,
    background: Sequence[Curve] = (),
    styles: Sequence[str] = (),
    spare: bool = False,
) -> Html:
    """Curves over a common x axis.

    baseline: a height and its name, drawn as a dashed line. background: curves drawn faintly
    behind, to compare with. styles: a class for each curve, by default s0, s1, ... spare: a small
    panel, without words at the axes and without legend.
    """
    spans = [x for curve in (*curves, *background) for x in curve.x if finite(x) is not None]
    axes = _Axes(
        _widened(spans),
        y_range,
        (240, 150) if spare else (440, 270),
        (42, 8, 8, 24) if spare else (46, 12, 26, 42),
    )
    styles = styles or [f"s{i}" for i in range(len(curves))]
    parts = [axes.frame(x_label, y_label, percent=percent, spare=spare)]
    parts += [Html(f'<path class="faint" d="{_path(axes, c.x, c.y)}"/>') for c in background]
    level = finite(baseline[0]) if baseline else None
    if level is not None:
        left, right, _, _ = axes.margins
        at = _n(axes.py(_clamp(level, y_range)))
        parts.append(Html(f'<path class="baseline" d="M{left} {at}H{axes.size[0] - right}"/>'))
    parts += [_spread(axes, curve, style) for curve, style in zip(curves, styles, strict=True)]
    for curve, style in zip(curves, styles, strict=True):
        parts.append(Html(f'<path class="line {style}" d="{_path(axes, curve.x, curve.y)}"/>'))
        parts.append(_points(axes, curve, style, x_label, percent))
    if not any(finite(y) is not None for curve in curves for y in curve.y):
        parts.append(_nothing(axes))
    told = f"{title}. " + " ".join(_said(curve, x_label, percent) for curve in curves)
    if spare:
        return _svg(axes.size, told, parts)
    entries = [(style, curve.label) for curve, style in zip(curves, styles, strict=True)]
    if len(curves) == 1:  # its name stands at the axis
        entries = []
    if baseline and level is not None:
        entries.append(("base", f"{baseline[1]}: {number(level, percent=percent)}"))
    return join([legend(entries) if entries else "", _svg(axes.size, told, parts)])


def stacked_chart(
    x: Sequence[float],
    layers: Sequence[Layer],
    *,
    title: str,
    x_label: str,
    y_label: str,
    over: Layer | None = None,
) -> Html:
    """Shares 0..1 as areas on top of each other, the first layer at the bottom.

    Where a layer has no number all areas have a hole. over: a line in front that is no part of the
    stack. The legend is the caller's.
    """
    found = [
        [finite(v) for v in column] for column in zip(*(k.values for k in layers), strict=True)
    ]
    complete = [None not in row for row in found]
    rows = [[max(0.0, v or 0.0) for v in row] for row in found]
    known = [i for i, whole in enumerate(complete) if whole]
    highest = max((sum(rows[i]) for i in known), default=1.0)
    axes = _Axes(
        _widened([x[i] for i in known]),
        (0.0, max(1.0, highest)),
        (440, 250),
        (46, 12, 26, 42),
    )
    parts: list[Html] = []
    for run in _runs(complete):
        spots = [x[i] for i in run]
        heights = [rows[i] for i in run]
        if len(spots) == 1:  # a lone step is shown as a column
            spots, heights = [spots[0] - 0.4, spots[0] + 0.4], heights * 2
        for k, layer in enumerate(layers):
            lower = [(at, sum(row[:k])) for at, row in zip(spots, heights, strict=True)]
            upper = [(at, sum(row[: k + 1])) for at, row in zip(spots, heights, strict=True)]
            outline = " ".join(
                f"{_n(axes.px(at))},{_n(axes.py(height))}" for at, height in upper + lower[::-1]
            )
            parts.append(Html(f'<polygon class="area {layer.style}" points="{outline}"/>'))
    lines = axes.frame(x_label, y_label, percent=True, spare=False)
    parts.append(Html(f'<g class="over">{lines}</g>'))
    _, _, top, bottom = axes.margins
    if over is not None:
        parts.append(Html(f'<path class="line {over.style}" d="{_path(axes, x, over.values)}"/>'))
    column = max(2.0, (axes.px(axes.x[1]) - axes.px(axes.x[0])) / max(1, len(known)))
    every = [*layers, over] if over is not None else list(layers)
    for i in known:
        at = x[i]
        values = ", ".join(f"{k.label} {number(k.values[i], percent=True)}" for k in every)
        parts.append(
            Html(
                f'<rect class="hit" x="{_n(axes.px(at) - column / 2)}" y="{top}" '
                f'width="{_n(column)}" height="{axes.size[1] - top - bottom}">'
                f"<title>{escape(f'step {_tick(at, False)}: {values}')}</title></rect>"
            )
        )
    if not known:
        parts.append(_nothing(axes))
    told = " ".join(_said(Curve(label=k.label, x=x, y=k.values), x_label, True) for k in every)
    return _svg(axes.size, f"{title}. {told}", parts)


def interval_bar(
    value: Number,
    low: Number,
    high: Number,
    scale: tuple[float, float],
    *,
    told: str,
    zero: bool = False,
) -> Html:
    """A dot with its interval on a horizontal scale, for a table cell; `zero` marks the 0."""
    axes = _Axes(scale, (0.0, 1.0), (240, 26), (6, 6, 0, 0))
    parts = [Html('<path class="grid" d="M6 13H234"/>')]
    if zero:
        parts.append(Html(f'<path class="baseline" d="M{_n(axes.px(0.0))} 1V25"/>'))
    ends = [finite(low), finite(high)]
    if ends[0] is not None and ends[1] is not None:
        a, b = (_n(axes.px(_clamp(end, scale))) for end in (ends[0], ends[1]))
        parts.append(Html(f'<path class="line s0" d="M{a} 13H{b}M{a} 8v10M{b} 8v10"/>'))
    middle = finite(value)
    if middle is not None:
        at = _n(axes.px(_clamp(middle, scale)))
        parts.append(
            Html(
                f'<circle class="dot s0" cx="{at}" cy="13" r="5">'
                f"<title>{escape(told)}</title></circle>"
            )
        )
    return _svg(axes.size, told, parts)


def legend(entries: Iterable[tuple[str, str]]) -> Html:
    """A list of keys: class and name; the swatch is drawn with the line's own dashes."""
    items = (
        f'<li><svg class="key" viewBox="0 0 28 10" aria-hidden="true">'
        f'<path class="{"baseline" if style == "base" else f"line {style}"}" d="M1 5H27"/></svg>'
        f"{escape(label)}</li>"
        for style, label in entries
    )
    return Html(f'<ul class="legend">{"".join(items)}</ul>')


def ticks(low: float, high: float, about: int, *, whole: bool = False) -> list[float]:
    """Round numbers from low to high, about `about` + 1 of them; `whole`: integers only."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((m * power for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - rough))
    step = max(1.0, float(round(step))) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _svg(size: tuple[int, int], told: str, parts: Iterable[Html]) -> Html:
    return Html(
        f'<svg class="chart" role="img" viewBox="0 0 {size[0]} {size[1]}" '
        f'aria-label="{escape(told)}">{join(parts)}</svg>'
    )


def _spread(axes: _Axes, curve: Curve, style: str) -> Html:
    """The interval of a curve: whiskers where there are few points, else a band."""
    if curve.low is None or curve.high is None:
        return Html("")
    ends = [(finite(low), finite(high)) for low, high in zip(curve.low, curve.high, strict=True)]
    at = [axes.px(x) for x in curve.x]
    low = [axes.py(_clamp(a, axes.y)) if a is not None else 0.0 for a, _ in ends]
    high = [axes.py(_clamp(b, axes.y)) if b is not None else 0.0 for _, b in ends]
    known = [a is not None and b is not None for a, b in ends]
    if len(at) <= WHISKERS:
        lines = "".join(
            f"M{_n(at[i])} {_n(low[i])}V{_n(high[i])}M{_n(at[i] - 4)} {_n(low[i])}h8"
            f"M{_n(at[i] - 4)} {_n(high[i])}h8"
            for i, whole in enumerate(known)
            if whole
        )
        return Html(f'<path class="whisker {style}" d="{lines}"/>')
    bands = (
        " ".join(
            [f"{_n(at[i])},{_n(high[i])}" for i in run]
            + [f"{_n(at[i])},{_n(low[i])}" for i in reversed(run)]
        )
        for run in _runs(known)
    )
    return Html("".join(f'<polygon class="band {style}" points="{band}"/>' for band in bands))


def _points(axes: _Axes, curve: Curve, style: str, x_label: str, percent: bool) -> Html:
    """Where the pointer finds a value; drawn as dots where there are few of them."""
    seen = sum(finite(y) is not None for y in curve.y)
    kind, radius = ("dot", 3.5) if seen <= DOTS else ("hit", 5)
    lows = curve.low or [None] * len(curve.x)
    highs = curve.high or [None] * len(curve.x)
    parts = []
    for x, y, low, high in zip(curve.x, curve.y, lows, highs, strict=True):
        height = finite(y)
        if height is None or finite(x) is None:
            continue
        told = (
            f"{curve.label}, {x_label} {_tick(x, False)}: {number(height, percent=percent)}"
            f"{interval(low, high, percent=percent)}"
        )
        cx, cy = axes.px(x), axes.py(_clamp(height, axes.y))
        parts.append(
            f'<circle class="{kind} {style}" cx="{_n(cx)}" cy="{_n(cy)}" r="{radius}">'
            f"<title>{escape(told)}</title></circle>"
        )
    return Html("".join(parts))


def _path(axes: _Axes, xs: Sequence[float], ys: Sequence[Number]) -> str:
    """A line through the known points, interrupted at the others."""
    heights = [finite(y) for y in ys]
    known = [y is not None and finite(x) is not None for x, y in zip(xs, heights, strict=True)]
    parts = []
    for run in _runs(known):
        spots = [
            f"{_n(axes.px(xs[i]))} {_n(axes.py(_clamp(heights[i] or 0.0, axes.y)))}" for i in run
        ]
        parts.append("M" + "L".join(spots))
    return "".join(parts)


def _runs(known: Sequence[bool]) -> Iterator[list[int]]:
    """The stretches of indices that are known."""
    run: list[int] = []
    for i, good in enumerate(known):
        if good:
            run.append(i)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _said(curve: Curve, x_label: str, percent: bool) -> str:
    """A curve in a sentence, for who does not see it."""
    seen = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if finite(y) is not None]
    if not seen:
        return f"{curve.label}: no data."
    ends = [
        f"{number(y, percent=percent)} at {x_label} {_tick(x, False)}"
        for x, y in (seen[:1] if len(seen) == 1 else (seen[0], seen[-1]))
    ]
    return f"{curve.label}: {' to '.join(ends)}."


def _nothing(axes: _Axes) -> Html:
    return Html(
        f'<text x="{axes.size[0] / 2:.0f}" y="{axes.size[1] / 2:.0f}" text-anchor="middle">'
        "no data</text>"
    )


def _widened(values: Sequence[float]) -> tuple[float, float]:
    """First and last of the values; room around a single one."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 1.0, high + 1.0)


def _clamp(value: float, span: tuple[float, float]) -> float:
    return min(max(value, span[0]), span[1])


def _tick(value: float, percent: bool) -> str:
    return f"{100 * value:.0f}%" if percent else f"{value:g}".replace("-", "−")


def _n(value: float) -> str:
    """A coordinate, as short as a tenth of a pixel allows."""
    return f"{value:.1f}".removesuffix(".0")
