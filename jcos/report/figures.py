"""The pictures of the demo page: grids of clean estimates with bars, films, routes and masses."""

from collections.abc import Sequence

import numpy as np

from jcos.media import formats
from jcos.report.charts import Layer, legend, stacked_chart
from jcos.report.demo import Example
from jcos.report.markup import Fragments, Html, finite, join, number
from jcos.report.words import scores_told

PARTS = Fragments("demo.html")

ROUTE_SIDE, SAVED_SIDE = 80, 320
"""About how many pixels the picture of a route and a saved film are wide."""
ROUTES = 4
"""Right answers with a colour of their own; the rest share one."""


def order_of(example: Example) -> list[int]:
    """The right answers: the one with most mass at the end, then the others by their first mass."""
    if example.mass is None:
        return []
    mass = np.nan_to_num(example.mass)
    taken = int(mass[-1].argmax())
    rest = [int(k) for k in (-mass[0]).argsort(kind="stable") if k != taken]
    return [taken, *rest]


def layers_of(example: Example, order: Sequence[int]) -> list[Layer]:
    """The mass of each answer as a layer: `ROUTES` single ones, then the others together. Every
    chart of a page takes the names and colours of answers from here."""
    if example.mass is None:
        return []
    mass, kind = example.mass, "route" if "maze" in example.task else "answer"
    first = f"{kind} taken" if example.solved else f"strongest {kind}"
    names = [first, *(f"{kind} {i + 1}" for i in range(1, len(order)))]
    layers = [
        Layer(name, mass[:, k].tolist(), f"s{i}")
        for i, (name, k) in enumerate(zip(names[:ROUTES], order[:ROUTES], strict=True))
    ]
    if rest := list(order[ROUTES:]):
        layers.append(Layer(f"{len(rest)} more", mass[:, rest].sum(1).tolist(), f"s{ROUTES}"))
    return layers


def mass_chart(example: Example, order: Sequence[int]) -> Html:
    """Mass on each answer along the steps; its key are the `route_cards` where there are some."""
    layers = layers_of(example, order)
    entries = [] if has_cards(example, order) else [(layer.style, layer.label) for layer in layers]
    off = None
    if example.off is not None:
        off = Layer("no route", example.off.tolist(), "over")
        entries.append((off.style, off.label))
    drawn = stacked_chart(
        example.rows_of_mass,
        layers,
        title="Mass of the clean estimate on each route",
        x_label="denoising step",
        y_label="mass",
        over=off,
    )
    return join([legend(entries) if entries else "", drawn])


def has_cards(example: Example, order: Sequence[int]) -> bool:
    """Whether the routes are worth a picture each: there are several, and they were given."""
    return example.answers is not None and len(order) > 1


def route_cards(example: Example, order: Sequence[int]) -> Html:
    """The right answers as small pictures, with their colour and their mass first and last."""
    if example.answers is None or not has_cards(example, order):
        return Html("")
    cards = []
    layers = layers_of(example, order)
    for layer, k in zip(layers[:ROUTES], order[:ROUTES], strict=True):
        picture = formats.upscale(example.answers[k, -1], _factor(example, ROUTE_SIDE))
        cards.append(
            PARTS.fill(
                "route",
                src=formats.data_uri(formats.png(picture)),
                width=picture.shape[1],
                height=picture.shape[0],
                alt=f"Last frame of a right answer: {layer.label}",
                style=layer.style,
                label=layer.label,
                first=number(layer.values[0], percent=True),
                last=number(layer.values[-1], percent=True),
            )
        )
    cards += [
        PARTS.fill(
            "more_routes",
            style=layer.style,
            label=layer.label,
            first=number(layer.values[0], percent=True),
            last=number(layer.values[-1], percent=True),
        )
        for layer in layers[ROUTES:]
    ]
    return PARTS.fill("routes", cards=join(cards))


def sheet(
    example: Example,
    rows: Sequence[int],
    side: int,
    order: Sequence[int] = (),
    *,
    spacious: bool = False,
) -> Html:
    """The grid of clean estimates of some of the shown steps; steps on its left, bars on its right.

    side: about how many pixels a frame is wide. order: the answers whose masses the bars show;
    without, they show the score. spacious: there is room for words at the columns.
    """
    frames = len(example.video)
    scale = _factor(example, side)
    picture = formats.contact_sheet(example.x0[list(rows)], scale=scale, gap=max(2, scale // 2 * 2))
    steps = [example.steps[i] for i in rows]
    word = PARTS.fill("frame_word") if spacious else ""
    return PARTS.fill(
        "sheet",
        columns=join(Html(f"<span>{word}{frame}</span>") for frame in range(frames)),
        steps=join(Html(f"<b>{step}</b>") for step in steps),
        src=formats.data_uri(formats.png(picture)),
        width=picture.shape[1],
        height=picture.shape[0],
        alt=(
            f"Clean estimates of the task {example.task}: a grid of {len(steps)} rows, the steps "
            f"{', '.join(map(str, steps))}, and {frames} columns, the frames. "
            f"{scores_told(example)}"
        ),
        of_bars="routes, score" if order else "score",
        bars=join(_bar(example, i, order) for i in rows),
    )


def _bar(example: Example, row: int, order: Sequence[int]) -> Html:
    """The masses of one row as a stacked bar, or its score where there is none; and its score."""
    step, score = example.steps[row], finite(example.scores[row])
    shares = [("s0", "score", min(1.0, max(0.0, score or 0.0)))]
    told = f"step {step}: score {number(score)}"
    if order and step in example.rows_of_mass:
        at = example.rows_of_mass.index(step)
        layers = layers_of(example, order)
        shares = [(k.style, k.label, finite(k.values[at]) or 0.0) for k in layers]
        told += "".join(f", {name} {number(share, percent=True)}" for _, name, share in shares)
    pieces = (
        Html(f'<i class="{style}" style="width:{100 * share:.1f}%"></i>')
        for style, _, share in shares
        if share >= 0.005
    )
    return PARTS.fill("bar", told=told, pieces=join(pieces), score=number(score))


def films(example: Example, side: int, *, marked: bool = False) -> Html:
    """The final video, `marked` as solved or not, and the reference, as films that play in step.

    side: about how many pixels wide they are.
    """
    result = "solved" if example.solved else "not solved"
    name = PARTS.fill(f"film_{result.replace(' ', '_')}") if marked else "final film"
    frames, height, width, _ = example.video.shape
    shown = (
        (example.video, name, f"The final film, {result}"),
        (example.reference, "a right answer", "A right answer as a film"),
    )
    parts = []
    for video, name, alt in shown:
        strip = formats.film_strip(formats.upscale(video, _factor(example, side)))
        parts.append(
            PARTS.fill(
                "film",
                n=frames,
                seconds=f"{_seconds(frames):g}",
                wide=width * _factor(example, side),
                ratio=f"{width}/{height}",
                src=formats.data_uri(formats.png(strip)),
                alt=f"{alt}: {example.task}, {frames} frames in a loop",
                name=name,
            )
        )
    return join(parts)


def keyframes(frames: int) -> str:
    """The animation that plays a strip of so many frames, for the style sheet."""
    each = formats.FRAME_MS / 10 / _seconds(frames)
    cuts = (
        f"{f * each:.3f}%{{transform:translateX({-100 * f / frames:.4f}%)}}" for f in range(frames)
    )
    return f"@keyframes film{frames}{{{''.join(cuts)}}}\n"


def saved(example: Example) -> Html:
    """A link that saves the final film, for slides."""
    film = formats.gif(formats.upscale(example.video, _factor(example, SAVED_SIDE)))
    return PARTS.fill("saved", task=example.task, gif=formats.data_uri(film))


def icon(example: Example) -> str:
    """The last frame of the final video, for the browser's tab."""
    return formats.data_uri(formats.png(example.video[-1]))


def _factor(example: Example, side: int) -> int:
    return formats.factor_for(max(example.video.shape[1:3]), side)


def _seconds(frames: int) -> float:
    return (frames * formats.FRAME_MS + formats.HOLD_MS) / 1000
