"""The figures of `behaviour.py`."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from jcos.experiments import plots
from jcos.experiments.behaviour_found import Found
from jcos.experiments.behaviour_memory import LABELS, PLACES, Memory
from jcos.experiments.experiment import Picture
from jcos.lab.measures import UNBOUNDED, Estimate, estimate

CORRECTION = (
    "Runs whose estimate at a step is wrong although the end is right, and the reverse. Undecided "
    "counts as wrong here, so the ideal denoiser has some of it too; it never ends wrong."
)
CHOICE = (
    "Which answer makes up more than half of the estimate, of all runs: the one that the run ends "
    "with, another right one, a wrong one; the rest shows none. The ideal denoiser never shows a "
    "wrong one."
)
PERCEPTION = (
    "Share of runs whose estimate has the scene right (all of the first frame that no answer "
    "changes), and of those "
    "that have the answer right, each judged alone. The judge's gates: the first frame's things "
    "kept, as many objects as there should be; a blur of answers does not pass them."
)
ORDER = (
    "How many steps the answer is settled after the scene (below 0: before it), of the runs that "
    "end with both right."
)
MEMORY = (
    "Share of held-out puzzles in which a linear probe on the tokens of the hidden frames reads "
    "the hidden object's colour (above) or shape (below). The tile where it started shows it in "
    "the input of models that are given the first frame in every frame."
)
DEPTH = (
    "The same by layer, the mean over the looked-at steps; x̂0: read off the estimate of the hidden "
    "frames. Dotted: the same probes fitted to shuffled labels, over all layers."
)


def figures(
    found: Found, videos: UInt8[np.ndarray, "P K S F H W 3"]
) -> Iterator[tuple[str, Picture]]:
    yield "correction", Picture(_correction(found), CORRECTION)
    yield "choice", Picture(_choice(found), CHOICE)
    yield "perception", Picture(_perception(found), PERCEPTION)
    if any(len(points) for points in _orders(found)):
        yield "order", Picture(_order(found), ORDER)
    if found.memory is not None:
        yield "memory", Picture(_memory(found.memory), MEMORY)
        yield "memory-depth", Picture(_depth(found.memory), DEPTH)
    for task, p in found.samples.groups.items():
        turned = (found.model.shown.wrong.any(-1) & found.model.solved[..., -1])[p]
        if turned.any():
            i, k = np.argwhere(turned)[0]
            film = plots.film_grid(
                videos[p[i], k, found.looked], [f"step {s}" for s in found.looked]
            )
            told = f"{task}, puzzle {i}: the first that shows a wrong answer and ends right."
            yield f"film-{task}", Picture(film, f"{told} {plots.FILM}")


def _by_task(found: Found, curves: dict[str, tuple[str, bool]], y: str) -> Figure:
    """A panel for each task; curves: by name, which reading and whether it is the ideal's."""
    groups, every = found.samples.groups, range(found.model.steps)
    columns = min(3, len(groups))
    figure = plots.panels(columns, -(-len(groups) // columns))
    read = {True: found.ideal.readings(), False: found.model.readings()}
    for axes, (task, p) in zip(figure.axes, groups.items(), strict=False):
        for i, (name, (reading, ideal)) in enumerate(curves.items()):
            values = read[ideal][reading][p]
            plots.curve(axes, every, np.moveaxis(values, 1, 2), name, i, faint=ideal)
        plots.label(axes, "denoising step", y, task, y_range=(0, 1))
    return plots.shared(figure, len(groups))


def _correction(found: Found) -> Figure:
    curves = {
        "wrong now, right at the end": ("wrong now, right at the end", False),
        "wrong now, right at the end, ideal": ("wrong now, right at the end", True),
        "right now, wrong at the end": ("right now, wrong at the end", False),
    }
    return _by_task(found, curves, "share of runs")


def _choice(found: Found) -> Figure:
    curves = {
        "its final answer": ("shows the answer it ends with", False),
        "its final answer, ideal": ("shows the answer it ends with", True),
        "another right one": ("shows another right answer", False),
        "another right one, ideal": ("shows another right answer", True),
        "a wrong one": ("shows a wrong answer", False),
    }
    return _by_task(found, curves, "share of runs")


def _perception(found: Found) -> Figure:
    curves = {
        "scene": ("scene right", False),
        "scene, ideal": ("scene right", True),
        "answer": ("answer right", False),
        "answer, ideal": ("answer right", True),
        "the judge's gates": ("scene's gates", False),
    }
    return _by_task(found, curves, "right")


def _orders(found: Found) -> list[dict[str, Estimate]]:
    """How much later the answer is, by task, of each denoiser; tasks where no run can tell are left
    out."""
    points = []
    for course in found.courses.values():
        later = course.of_runs()["answer later than the scene, steps"]
        by_task = {t: estimate(later[p], UNBOUNDED) for t, p in found.samples.groups.items()}
        points.append({task: e for task, e in by_task.items() if e.n})
    return points


def _order(found: Found) -> Figure:
    figure = plots.panels(2, size=(3.2, 1.8))
    for i, (axes, points) in enumerate(zip(figure.axes, _orders(found), strict=True)):
        if points:
            plots.bars(axes, list(points), list(points.values()), i)
        axes.axvline(0, color="#555555", linestyle=":", linewidth=1.0)
        title = ("model", "ideal denoiser")[i]
        plots.label(axes, "steps from scene to answer", "", title)
    return figure


def _memory(memory: Memory) -> Figure:
    figure = plots.panels(len(PLACES), len(LABELS), size=(2.4, 1.8))
    names = [*range(memory.tokens.shape[3]), "x̂0"]
    for y, label in enumerate(LABELS):
        for j, place in enumerate(PLACES):
            axes = figure.axes[y * len(PLACES) + j]
            read = _by_layer(memory, j, y)[..., 0].mean((0, 1))
            name = f"{label} read"
            plots.heat(axes, read.T, name, limits=(0, 1), x=memory.steps.tolist(), y=names)
            plots.label(axes, "denoising step", "after layer", place)
    return figure


def _by_layer(memory: Memory, place: int, label: int) -> Float[np.ndarray, "P K s rows 2"]:
    """What is read off every layer's tokens, and off the estimate, at a place."""
    estimate = memory.estimate[:, :, :, None, place, label]
    return np.concatenate([memory.tokens[:, :, :, :, place, label], estimate], 3)


def _depth(memory: Memory) -> Figure:
    figure = plots.panels(len(LABELS))
    names = [*map(str, range(memory.tokens.shape[3])), "x̂0"]
    for y, (label, axes) in enumerate(zip(LABELS, figure.axes, strict=True)):
        for j, place in enumerate(PLACES):
            read = _by_layer(memory, j, y)[..., 0]
            points = [memory.estimate_of(read[..., i]) for i in range(len(names))]
            plots.curve(axes, range(len(names)), points, place, j)
        plots.level(axes, float(memory.tokens[..., y, 1].mean()), "shuffled labels")
        every = -(-len(names) // 10)
        axes.set_xticks(range(len(names))[::-every], names[::-every])
        plots.label(axes, "after layer", f"{label} read", label, y_range=(0, 1))
    return plots.shared(figure, len(LABELS))
