"""The sentences of the demo page that depend on results: each says what its numbers show."""

from collections.abc import Sequence

import numpy as np

from jcos.report.demo import Comparison, Curve, Demo, Example
from jcos.report.markup import finite, interval, number

CLEAR = 0.9
"""Mass on one route from which on it counts as the only one."""
HELD = 0.1
"""Mass from which on a route counts as one of several that are held at once."""


def heading(example: Example) -> str:
    """What the large picture is of."""
    answers = 0 if example.mass is None else example.mass.shape[1]
    if "maze" in example.task and answers:
        return f"One maze, {answers} shortest route{'s' if answers > 1 else ''}"
    if answers:
        return f"One puzzle, {answers} right answer{'s' if answers > 1 else ''}"
    return "One maze, step by step" if "maze" in example.task else "One puzzle, step by step"


def story(example: Example, order: Sequence[int]) -> str:
    """What the large picture shows, from its masses; `order` has the strongest of the end first."""
    if example.mass is None or not order:
        first, last = number(example.scores[0]), number(example.scores[-1])
        return f"The estimate scores {first} at step {example.steps[0]} and {last} at the end."
    steps = example.rows_of_mass
    mass = np.nan_to_num(example.mass)
    taken, others = mass[:, order[0]], mass[:, list(order[1:])].sum(1)
    goal = "taken in the end" if example.solved else "that is strongest in the end"
    here, there = (number(float(share[0]), percent=True) for share in (taken, others))
    opening = f"At step {steps[0]}, {here} of the estimate lies on the route {goal}"
    if len(order) > 1:
        opening += f" and {there} on the others"
    below = np.flatnonzero(taken < CLEAR)
    clear = int(below[-1]) + 1 if len(below) else 0
    if clear == len(steps):
        return f"{opening}. No single route holds {CLEAR:.0%} at the last step."
    if clear == 0:
        return f"{opening}: in this run one route leads from the start."
    held = int((mass[0] >= HELD).sum())
    told = f": {held} routes at once" if held > 1 else ""
    return (
        f"{opening}{told}. From step {steps[clear]} on one route alone holds at least {CLEAR:.0%}."
    )


def scores_told(example: Example) -> str:
    """The scores of a grid, for who does not see its bars."""
    first, last = number(example.scores[0]), number(example.scores[-1])
    return (
        f"The score is {first} at step {example.steps[0]} and {last} at step {example.steps[-1]}."
    )


def gains(curves: Sequence[Curve]) -> str:
    """The largest and the smallest gain between first and last step."""
    ends = []
    for curve in curves:
        known = [y for y in map(finite, curve.y) if y is not None]
        if len(known) > 1:
            ends.append((known[-1] - known[0], curve.label, known[0], known[-1]))
    if not ends:
        return ""
    told = [
        f"{label} ({number(first, percent=True)} → {number(last, percent=True)})"
        for _, label, first, last in (max(ends), min(ends))
    ]
    if len(ends) == 1:
        return f"From the first step to the last: {told[0]}."
    return f"From the first step to the last, {told[0]} gains most and {told[1]} least."


def worst(curve: Curve, what: str) -> str:
    """Where noise costs most, and what it leaves."""
    known = [(y, x) for x, y in zip(curve.x, map(finite, curve.y), strict=True) if y is not None]
    if not known:
        return ""
    low, at = min(known)
    return f"The worst {what} to hit is {what} {at:g}, which leaves a score of {number(low)}."


def difference(row: Comparison) -> tuple[float | None, float | None, float | None]:
    """The paired difference and the ends of its interval."""
    return finite(row.difference), finite(row.difference_low), finite(row.difference_high)


def verdict(row: Comparison) -> str:
    """What a paired comparison allows to say: an effect only where the interval leaves out 0."""
    d, low, high = difference(row)
    if d is None:
        return ""
    told = f"{number(100 * d, signed=True)} points"
    if low is None or high is None:
        return f"{told}, without an interval, so nothing follows from it."
    told += interval(100 * low, 100 * high, signed=True)
    if low <= 0.0 <= high:
        return f"{told}. The interval includes 0: {row.n} puzzles show neither a gain nor a loss."
    return f"{told}. The interval excludes 0: on these puzzles it {'helps' if d > 0 else 'hurts'}."


def many(rows: Sequence[Comparison]) -> str:
    """A reminder where several comparisons are made at once."""
    compared = sum(difference(row)[0] is not None for row in rows)
    if compared < 2:
        return ""
    return f"These are {compared} comparisons; by chance alone one interval in twenty leaves out 0."


def sizes(curves: Sequence[Curve], what: str) -> str:
    """`n = 128 puzzles at each point.`"""
    known = sorted({curve.n for curve in curves if curve.n is not None})
    if not known:
        return "n was not recorded."
    told = f"{known[0]}" if len(known) == 1 else f"{known[0]} to {known[-1]}"
    return f"n = {told} {what}."


def intervals(demo: Demo, curves: Sequence[Curve]) -> str:
    """What the bands and whiskers are."""
    if all(curve.low is None for curve in curves):
        return "No intervals were computed."
    return f"Bands and whiskers: {demo.interval}."
