"""What clips show step by step, where no judge can tell what is right: distances, and a film."""

from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from jcos.experiments import plots
from jcos.experiments.experiment import Picture, Row, row
from jcos.lab.measures import POSITIVE
from jcos.wan import Wan

Distances = Mapping[str, Float[np.ndarray, "P K S"]]
"""By what is measured, at every step."""


def distance_rows(
    distances: Distances, shown: Sequence[int], forwards: Callable[[int], int]
) -> list[Row]:
    """Lines of the looked-at steps. forwards: passes of the first so many steps."""
    return [
        row("clips", name, f"step {s}", values[:, :, s], forwards(s + 1), span=POSITIVE)
        for name, values in distances.items()
        for s in shown
    ]


def distance_figure(distances: Distances, level: tuple[float, str] | None = None) -> Figure:
    """Curves over the steps; level: a horizontal line and its name."""
    figure = plots.panels(1)
    (axes,) = figure.axes
    for i, (name, values) in enumerate(distances.items()):
        steps, by_step = range(values.shape[-1]), np.moveaxis(values, 1, 2)
        plots.curve(axes, steps, by_step, name, i, span=POSITIVE)
    if level:
        plots.level(axes, *level)
    plots.label(axes, "denoising step", "distance of x̂0, relative")
    return figure


def first_film(
    model: Wan, x0: Float[Array | np.ndarray, "s F h w C"], shown: Sequence[int]
) -> Picture:
    """The first clip's estimates at the looked-at steps."""
    film = plots.film_grid(model.decode(jnp.asarray(x0)), [f"step {s}" for s in shown])
    return Picture(film, f"The first clip. {plots.FILM}")
