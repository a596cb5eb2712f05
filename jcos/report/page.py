"""The page that a demo run ends with: one HTML file that opens from disk, with everything in it.

`write_demo(folder, demo)` is the way in. The words that depend on results come from `words.py`, the
pictures from `figures.py` and `charts.py`; all other words stand in `demo.html`, the looks in
`base.css` and `demo.css`.
"""

from collections.abc import Sequence
from pathlib import Path

from jcos.files import write
from jcos.report import figures, words
from jcos.report.arrays import Trends
from jcos.report.charts import interval_bar, line_chart
from jcos.report.demo import Comparison, Demo, Example
from jcos.report.explorer import PAGE, inside, plane_data, policy, script
from jcos.report.markup import Fragments, Html, finite, interval, join, number, read
from jcos.report.reading import view_of

PARTS, EXPLORER = Fragments("demo.html"), Fragments("explorer.html")

GRID_SIDE = 60
"""About how many pixels a frame of a grid is wide: whole multiples, so that squares stay square."""
FILM_SIDE, CARD_FILM_SIDE = 160, 100
"""About how many pixels a film is wide, beside the large grid and in the gallery."""
CARD_ROWS = 6
"""Rows of a gallery grid; the large one has all that were recorded."""
TOGETHER = 4
"""So many curves share one chart; more get a panel each."""


def write_demo(folder: Path, demo: Demo) -> Path:
    """Writes `folder/index.html` and returns its path.

    The folder is made if need be. A page that is there is replaced once the new one is complete.
    """
    page = folder / PAGE
    write(page, render(demo))
    return page


def render(demo: Demo) -> Html:
    """The page as text. Sections without data are left out; figures are numbered in order."""
    hero, others = demo.examples[0], demo.examples[1:]
    sections = [
        _hero(hero),
        EXPLORER.fill("plane") if demo.planes else None,
        _route_mass(demo) if demo.route_mass else None,
        _solved(demo) if demo.solved_by_step else None,
        _noise(demo) if demo.noise_steps or demo.noise_frames else None,
        _ensemble(demo) if demo.ensemble else None,
        _gallery(others) if others else None,
        _made(demo),
    ]
    lengths = sorted({len(example.video) for example in demo.examples})
    styles = ["base.css", "demo.css", *(["plane.css"] if demo.planes else [])]
    code, data = Html(""), Html("")
    if demo.planes:
        code = script()
        views = [view_of(plane) for plane in demo.planes]
        data = EXPLORER.fill("data", **plane_data(views, Trends([], []), 0, inside), script=code)
    return PARTS.fill(
        "page",
        policy=policy(code),
        icon=figures.icon(hero),
        style=Html("".join([*map(read, styles), *map(figures.keyframes, lengths)])),
        data=data,
        frames=len(hero.video),
        steps=demo.settings.get("steps", hero.steps[-1] + 1),
        sections=join(section for section in sections if section is not None),
    )


def _hero(example: Example) -> Html:
    order = figures.order_of(example)
    chart = Html("")
    if order:
        chart = PARTS.fill("mass_chart", chart=figures.mass_chart(example, order))
    return PARTS.fill(
        "hero",
        heading=words.heading(example),
        finding=words.story(example, order),
        sheet=figures.sheet(example, range(len(example.steps)), GRID_SIDE, order, spacious=True),
        films=figures.films(example, FILM_SIDE, marked=True),
        routes=figures.route_cards(example, order),
        chart=chart,
        reading=PARTS.fill("mass_reading" if order else "score_reading"),
        task=example.task,
        prompt=example.prompt,
        seed=example.seed,
        saved=figures.saved(example),
    )


def _route_mass(demo: Demo) -> Html:
    chart = line_chart(
        demo.route_mass,
        title="Mean mass on the routes, along the denoising steps",
        x_label="denoising step",
        y_label="mass",
        percent=True,
        styles=["s0", "s4", "off"][: len(demo.route_mass)],
    )
    return PARTS.fill(
        "route_mass",
        chart=chart,
        n=words.sizes(demo.route_mass, "mazes"),
        interval=words.intervals(demo, demo.route_mass),
    )


def _solved(demo: Demo) -> Html:
    curves = demo.solved_by_step
    if len(curves) <= TOGETHER:
        kind, how = "narrow", ""
        chart = line_chart(
            curves, title="Solved by step", x_label="denoising step", y_label="solved", percent=True
        )
    else:
        kind, how = "", PARTS.fill("panels_reading")
        panels = [
            PARTS.fill(
                "panel",
                label=curve.label,
                last=number(curve.y[-1] if len(curve.y) else None, percent=True),
                chart=line_chart(
                    [curve],
                    title=f"Solved by step: {curve.label}",
                    x_label="step",
                    y_label="solved",
                    percent=True,
                    background=[other for other in curves if other is not curve],
                    spare=True,
                ),
            )
            for curve in curves
        ]
        chart = PARTS.fill("panels", panels=join(panels))
    return PARTS.fill(
        "solved",
        finding=words.gains(curves),
        kind=kind,
        chart=chart,
        how=how,
        n=words.sizes(curves, "puzzles of each task"),
        interval=words.intervals(demo, curves),
    )


def _noise(demo: Demo) -> Html:
    level = finite(demo.noise_baseline)
    given = (
        (demo.noise_steps, "step", "Noise in all frames, at one step"),
        (demo.noise_frames, "frame", "Noise at all steps, in one frame"),
    )
    drawn, found, curves = [], [], []
    for curve, what, title in given:
        if curve is None:
            continue
        chart = line_chart(
            [curve],
            title=title,
            x_label=f"{what} that gets the noise",
            y_label="score",
            baseline=None if level is None else (level, "without noise"),
        )
        drawn.append(PARTS.fill("noise_chart", title=title, chart=chart))
        found.append(words.worst(curve, what))
        curves.append(curve)
    if level is not None:
        found.append(f"Without noise the score is {number(level)}.")
    return PARTS.fill(
        "noise",
        finding=" ".join(found),
        charts=join(drawn),
        n=words.sizes(curves, "puzzles at each point"),
        interval=words.intervals(demo, curves),
    )


def _ensemble(demo: Demo) -> Html:
    rows = demo.ensemble
    verdicts = [
        PARTS.fill("verdict", label=row.label, text=text)
        for row in rows
        if (text := words.verdict(row))
    ]
    warning = words.many(rows)
    known = [
        v for row in rows for v in map(finite, (row.solved, row.low, row.high)) if v is not None
    ]
    low, high = min(known, default=0.0), max(known, default=1.0)
    room = max(0.01, 0.1 * (high - low))
    reach = [abs(d) for row in rows for d in words.difference(row) if d is not None]
    span = 1.1 * max([0.01, *reach])
    return PARTS.fill(
        "ensemble",
        verdicts=join(verdicts),
        many=PARTS.fill("many", text=warning) if warning else "",
        rows=join(_compared(row, (low - room, high + room), (-span, span)) for row in rows),
        interval=demo.interval,
    )


def _compared(
    row: Comparison, solved_scale: tuple[float, float], difference_scale: tuple[float, float]
) -> Html:
    """A row of the comparison, its dots on scales that all rows share."""
    shown = number(row.solved, percent=True) + interval(row.low, row.high, percent=True)
    d, low, high = words.difference(row)
    points, drawn = "–", Html("")
    if d is not None:
        points = number(100 * d, signed=True)
        if low is not None and high is not None:
            points += interval(100 * low, 100 * high, signed=True)
        told = f"difference {points} points"
        drawn = interval_bar(d, low, high, difference_scale, told=told, zero=True)
    return PARTS.fill(
        "compare_row",
        label=row.label,
        n=row.n,
        solved=shown,
        solved_bar=interval_bar(
            row.solved, row.low, row.high, solved_scale, told=f"solved {shown}"
        ),
        state="none" if d is None else "",
        difference=points,
        difference_bar=drawn,
    )


def _gallery(examples: Sequence[Example]) -> Html:
    solved = sum(example.solved for example in examples)
    return PARTS.fill(
        "gallery",
        count=f"{solved} of these {len(examples)} runs end on a right answer.",
        cards=join(map(_card, examples)),
    )


def _card(example: Example) -> Html:
    last = len(example.steps) - 1
    rows = sorted({round(i * last / (CARD_ROWS - 1)) for i in range(CARD_ROWS)})
    return PARTS.fill(
        "card",
        task=example.task,
        state="solved" if example.solved else "unsolved",
        mark="✓ solved" if example.solved else "✗ not solved",
        about=example.about,
        prompt=example.prompt,
        sheet=figures.sheet(example, rows, GRID_SIDE),
        films=figures.films(example, CARD_FILM_SIDE),
        seed=example.seed,
        saved=figures.saved(example),
    )


def _made(demo: Demo) -> Html:
    pairs = (PARTS.fill("setting", key=k, value=v) for k, v in demo.settings.items())
    return PARTS.fill("made", settings=join(pairs), command=demo.command)
