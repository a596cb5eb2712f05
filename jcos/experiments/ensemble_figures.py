"""The figures of `ensemble.py`."""

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jcos.experiments import plots
from jcos.experiments.ensemble_found import Arm, Found
from jcos.experiments.experiment import Picture
from jcos.lab.measures import GAINS, POSITIVE, SCORES, Estimate, estimate

COMPARED = (
    "Share of puzzles solved; in brackets forward passes. Mean: {}. Best needs a judge; majority "
    "is the run that is nearest to the others. Runs with more steps are of the first seed only."
)
GAIN = "The same puzzles and seeds with averaging less without; an interval over 0 is no effect."
MEMBERS = "Against the number of members."
MAP = (
    "{} by averaging tokens: the first layer of the window, and the last step of averaging, which "
    "begins in step 0."
)
KINDS = "{} by averaging from step 0 on to the step below: {}, clean estimates, or velocities."
GAINED, MOVED = "Puzzles solved more than by one run", "Distance from the plain end"
SIZE = (4.2, 2.2)


def figures(found: Found) -> Iterator[tuple[str, Picture]]:
    change = GAINED if found.judged else MOVED
    if found.judged:
        told = COMPARED.format(str(found.main).removeprefix("mean "))
        yield "compared", Picture(_compared(found), told)
        yield "gain", Picture(_gain(found), GAIN)
    if len(found.sizes) > 1:
        yield "members", Picture(_members(found), MEMBERS)
    spans = _spans(found)
    if _firsts(found) and spans:
        yield "map", Picture(_map(found), MAP.format(change))
    if spans:
        main = f"tokens after layer {found.main.layers[0]}"
        yield "kinds", Picture(_kinds(found), KINDS.format(change, main))


def _panels(found: Found, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A panel for each task."""
    columns = min(3, len(found.samples.groups))
    rows = -(-len(found.samples.groups) // columns)
    figure = plots.panels(columns, rows, size=size)
    drawn = list(figure.axes)  # colour scales add theirs
    for axes in drawn[len(found.samples.groups) :]:
        axes.remove()
    return figure, drawn[: len(found.samples.groups)]


def _compared(found: Found) -> Figure:
    figure, drawn = _panels(found, SIZE)
    main, none, k = found.main, found.arms[0], found.main.members
    for axes, (task, p) in zip(drawn, found.samples.groups.items(), strict=True):
        lines: list[tuple[str, int, np.ndarray]] = [
            ("one run", found.cost(none), found.one(none, k)),
            ("mean, one goes on", found.cost(main), found.one(main, k)),
        ]
        lines += [
            (f"one run, {steps} steps", found.forwards(steps), solved)
            for steps, solved in found.longer.items()
        ]
        for how in ("majority", "best"):
            cost = found.cost(main, everyone=True)
            lines.append((f"{how} of {k}", cost, getattr(found, how)(none, k)))
            lines.append((f"mean, {how} of {k}", cost, getattr(found, how)(main, k)))
        names = [f"{name} ({cost})" for name, cost, _ in lines]
        plots.bars(axes, names, [estimate(values[p]) for *_, values in lines])
        plots.label(axes, "solved", "", task)
    return figure


def _gain(found: Found) -> Figure:
    figure, drawn = _panels(found, SIZE)
    main, none, k = found.main, found.arms[0], found.main.members
    for axes, (task, p) in zip(drawn, found.samples.groups.items(), strict=True):
        one = found.one(none, k)[p].mean(-1)
        lines: dict[str, Estimate] = {
            "one goes on": found.gain(main, p),
            "majority of all": found.gain(main, p, how="majority"),
            "best of all": found.gain(main, p, how="best"),
            f"without: majority of {k}": estimate(found.majority(none, k)[p] - one, GAINS),
            f"without: best of {k}": estimate(found.best(none, k)[p] - one, GAINS),
        }
        plots.bars(axes, list(lines), list(lines.values()))
        axes.axvline(0, color="#555555", linestyle=(0, (1, 2)), linewidth=1.0)
        plots.label(axes, "solved, more than without", "", task)
    return figure


def _members(found: Found) -> Figure:
    figure, drawn = _panels(found, (3.2, 2.3))
    none, main = found.arms[0], found.main
    arms = {
        k: arm
        for k in found.sizes
        if (arm := Arm("tokens", k, main.layers, main.steps)) in found.arms
    }
    for axes, (task, p) in zip(drawn, found.samples.groups.items(), strict=True):
        if found.judged:
            curves = {
                "mean, one goes on": [found.one(a, k) for k, a in arms.items()],
                "mean, majority": [found.majority(a, k) for k, a in arms.items()],
                "majority": [found.majority(none, k) for k in arms],
                "best": [found.best(none, k) for k in arms],
            }
        else:
            curves = {
                "distance from the plain end": [
                    found.of(a, k, found.moved) for k, a in arms.items()
                ],
                "between the ends": [found.spread(a, k) for k, a in arms.items()],
                "between plain ends": [found.spread(none, k) for k in arms],
            }
        span = SCORES if found.judged else POSITIVE
        for i, (name, values) in enumerate(curves.items()):
            plots.curve(axes, list(arms), [estimate(v[p], span) for v in values], name, i)
        if found.judged:
            plots.level(axes, float(found.solved[0, p].mean()), "one run")
        plots.label(axes, "members", "solved" if found.judged else "distance", task)
    return plots.shared(figure, len(drawn))


def _spans(found: Found) -> list[tuple[int, ...]]:
    """Steps of averaging that all kinds were tried in."""
    return sorted({arm.steps for arm in found.arms if arm.kind == "velocities"})


def _firsts(found: Found) -> dict[int, tuple[int, ...]]:
    """Windows of layers by their first, those that were tried in all spans."""
    spans, k = _spans(found), found.main.members
    windows = {arm.layers for arm in found.arms if arm.kind == "tokens" and arm.members == k}
    whole = [w for w in windows if all(Arm("tokens", k, w, s) in found.arms for s in spans)]
    return {w[0]: w for w in sorted(whole)} if len(whole) > 1 else {}


def _map(found: Found) -> Figure:
    figure, drawn = _panels(found, (3.2, 2.3))
    k, windows, spans = found.main.members, _firsts(found), _spans(found)
    for axes, (task, p) in zip(drawn, found.samples.groups.items(), strict=True):
        values = np.array(
            [
                [found.change(Arm("tokens", k, w, s), p).mean for w in windows.values()]
                for s in spans
            ]
        )
        most = max(float(np.abs(values).max()), 1e-3)
        limits = (-most, most) if found.judged else (0.0, most)
        name = "solved, more" if found.judged else "distance"
        rows = [s[-1] for s in spans]
        plots.heat(axes, values, name, limits=limits, x=list(windows), y=rows)
        plots.label(axes, "first layer", "up to step", task)
    return figure


def _kinds(found: Found) -> Figure:
    figure, drawn = _panels(found, (3.2, 2.3))
    k, spans = found.main.members, _spans(found)
    for axes, (task, p) in zip(drawn, found.samples.groups.items(), strict=True):
        for i, kind in enumerate(("tokens", "estimates", "velocities")):
            layers = found.main.layers if kind == "tokens" else ()
            points = [found.change(Arm(kind, k, layers, s), p) for s in spans]
            plots.curve(axes, [s[-1] for s in spans], points, f"mean {kind}", i)
        if found.judged:
            plots.level(axes, 0, "no difference")
        name = "solved, more than one run" if found.judged else "distance"
        plots.label(axes, "last step of averaging", name, task)
    return plots.shared(figure, len(drawn))
