"""The figures of `swap.py`."""

from collections.abc import Callable, Iterator

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jcos.experiments import plots
from jcos.experiments.experiment import Picture
from jcos.experiments.swap_found import AT_ONCE, WAY, YES_OR_NO, Found
from jcos.wan import Wan

LAYER = (
    "Where swapped tokens turn the run: a swap in the first step alone, and one kept up from there "
    "on. {}"
)
FLIPPED = (
    "Flipped: the run ends with the donor's answer; kept: with its own; of the pairs whose two "
    "plain runs are both right. Where the prompts are the same, all tokens are the whole run, "
    "whatever the layer."
)
ALONG = "0 is where the own plain run ends, 1 where the donor's does."
ONCE = (
    "Share of the donor's and of the own answer in the clean estimate of the first step, in which "
    "the swap is made; level: the donor's without any swap. A swap after the last layer hands over "
    "all."
)
MAP = (
    "Swaps in single steps, in both directions: how much of the estimate of that step is the "
    "donor's answer, drawn in the own picture."
)
UNTIL = "Swaps kept up from the first step to the one at the side."
TOKENS = (
    "Swaps kept up to step {}: of all tokens, of those that the two answers differ in, and of all "
    "others. {}"
)
FILM = "{}: one pair, ends of runs; layers are those after which {} are swapped up to step {}."

Draw = Callable[[Axes, np.ndarray, str], None]


def figures(found: Found, model: Wan) -> Iterator[tuple[str, Picture]]:
    told = FLIPPED if found.pairs else ALONG
    yield "layer", Picture(_panels(found, _layer(found)), LAYER.format(told))
    if found.pairs and found.where(0, 0):
        yield "at-once", Picture(_panels(found, _at_once(found)), ONCE)
    if len(found.single) > 1:
        told_now = MAP if found.pairs else f"Swaps in single steps. {ALONG}"
        yield "map", Picture(_maps(found, [(s, s) for s in found.single], "step"), told_now)
    if len(found.until) > 1:
        yield (
            "until",
            Picture(_maps(found, [(0, s) for s in found.until], "up to step"), f"{UNTIL} {told}"),
        )
    if found.until and found.where(0, found.until[-1], "object"):
        yield (
            "tokens",
            Picture(_panels(found, _tokens(found)), TOKENS.format(found.until[-1], told)),
        )
    if found.until:
        for kind, p in found.groups.items():
            good = np.isfinite(found.readings[found.main][0, p]).all((1, 2))
            pair = int(p[np.argmax(good)])
            name = "film-" + kind.replace(", ", "-").replace(" ", "-")
            tokens = _telling(found, pair)
            what = {"all": "all tokens", "object": "the object's tokens"}[tokens]
            yield (
                name,
                Picture(
                    _film(found, model, pair, tokens), FILM.format(kind, what, found.until[-1])
                ),
            )


def _panels(found: Found, draw: Draw) -> Figure:
    """A panel for each kind of pair."""
    columns = min(3, len(found.groups))
    figure = plots.panels(columns, -(-len(found.groups) // columns))
    for axes, (kind, p) in zip(figure.axes, found.groups.items(), strict=False):
        draw(axes, p, kind)
    return plots.shared(figure, len(found.groups))


def _layer(found: Found) -> Draw:
    steps = [(0, 0, "first step")] if found.where(0, 0) else []
    if found.until:
        last = found.until[-1]
        whole = last == found.steps - 1
        steps.append((0, last, "whole run" if whole else f"steps 0 to {last}"))

    def draw(axes: Axes, p: np.ndarray, kind: str) -> None:
        readings = {YES_OR_NO[3]: "flipped", YES_OR_NO[4]: "kept"} if found.pairs else {WAY: "way"}
        for i, (first, last, when) in enumerate(steps):
            for j, (reading, name) in enumerate(readings.items()):
                points = found.estimate(reading, found.where(first, last), p)
                plots.curve(axes, found.layers, points, f"{name}, {when}", 2 * j + i, faint=bool(j))
        plots.label(axes, "layer", _word(found), kind, y_range=(0, 1))

    return draw


def _at_once(found: Found) -> Draw:
    def draw(axes: Axes, p: np.ndarray, kind: str) -> None:
        for i, (reading, name) in enumerate(
            ((AT_ONCE, "donor's answer"), ("share of the own answer at once", "own answer"))
        ):
            points = found.estimate(reading, found.where(0, 0), p)
            plots.curve(axes, found.layers, points, name, i)
        plots.level(axes, found.estimate(AT_ONCE, [0], p)[0].mean, "donor's, no swap")
        plots.label(axes, "layer", "share of x̂0", kind, y_range=(0, 1))

    return draw


def _tokens(found: Found) -> Draw:
    def draw(axes: Axes, p: np.ndarray, kind: str) -> None:
        names = {"all": "all tokens", "object": "object only", "rest": "all but the object"}
        for i, (tokens, name) in enumerate(names.items()):
            points = found.estimate(found.main, found.where(0, found.until[-1], tokens), p)
            plots.curve(axes, found.layers, points, name, i)
        plots.label(axes, "layer", "flipped", kind, y_range=(0, 1))

    return draw


def _maps(found: Found, steps: list[tuple[int, int]], side: str) -> Figure:
    """Layers across, steps up, a panel for each kind; of single steps what is seen at once."""
    columns = min(3, len(found.groups))
    figure = plots.panels(columns, -(-len(found.groups) // columns))
    drawn = list(figure.axes)  # colour scales add theirs
    now = side == "step" and bool(found.pairs)
    name = AT_ONCE if now else found.main
    word = {AT_ONCE: "donor's share of x̂0", YES_OR_NO[3]: "flipped", WAY: WAY}[name]
    for axes, (kind, p) in zip(drawn, found.groups.items(), strict=False):
        values = [[e.mean for e in found.estimate(name, found.where(*s), p)] for s in steps]
        rows = [last for _, last in steps]
        plots.heat(axes, np.array(values), word, limits=(0.0, 1.0), x=found.layers, y=rows)
        plots.label(axes, "layer", side, kind)
    for axes in drawn[len(found.groups) :]:
        axes.remove()
    return figure


def _word(found: Found) -> str:
    return "share of pairs" if found.pairs else WAY


def _telling(found: Found, pair: int) -> str:
    """Which tokens tell layers apart: where the prompts are the same, all of them do not."""
    if not found.pairs:
        return "all"
    own, donor = found.pairs[pair].puzzles
    return "object" if own.prompt == donor.prompt else "all"


def _film(found: Found, model: Wan, pair: int, tokens: str) -> Figure:
    cases = found.where(0, found.until[-1], tokens)
    shown = [found.ends.shown[0, pair, w, 0] for w in (0, 1)]
    shown += [found.ends.shown[i, pair, 0, 0] for i in cases]
    names = ["own", "donor", *(f"layer {found.cases[i].layer}" for i in cases)]
    videos = np.stack(shown)
    return plots.film_grid(videos if found.pairs else model.decode(jnp.asarray(videos)), names)
