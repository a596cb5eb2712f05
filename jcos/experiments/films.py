"""Grids of clean estimates, steps × frames: in a results file, and as figures."""

from collections.abc import Iterator, Sequence

import numpy as np
import xarray as xr
from jaxtyping import UInt8

from jcos.experiments import plots
from jcos.experiments.experiment import Picture
from jcos.lab.results import Variable


def films(
    names: Sequence[str],
    puzzles: Sequence[int],
    steps: Sequence[int],
    videos: UInt8[np.ndarray, "n s F H W 3"],
) -> dict[str, Variable]:
    """Return one film for each name: the estimates of a puzzle at some steps."""
    dims = ("film_of", "film_step", "film_frame", "row", "column", "rgb")
    return {
        "film": (dims, videos, {}),
        "film_of": (("film_of",), list(names), {}),
        "film_puzzle": (("film_of",), list(puzzles), {}),
        "film_step": (("film_step",), list(steps), {}),
    }


def film_figures(data: xr.Dataset, which: str) -> Iterator[tuple[str, Picture]]:
    """Return the figures of all films, if there are any. which: why these puzzles, for captions."""
    for name in data["film_of"].values if "film" in data else ():
        film = data["film"].sel(film_of=name)
        puzzle = int(data["film_puzzle"].sel(film_of=name))
        rows = [f"step {s}" for s in data["film_step"].values]
        caption = f"{name}: puzzle {puzzle}, {which}. {plots.FILM}"
        figure = plots.film_grid(film.values, rows)
        yield f"film-{name}".replace(", ", "-").replace(" ", "-"), Picture(figure, caption)
