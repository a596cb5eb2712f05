"""Linear probes of tokens: what is foreground, what will change in the answer, which answer is
taken."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float, Int, UInt8

from jcos.lab.measures import area, ridge
from jcos.lab.tasks import TASKS, Puzzle
from jcos.lab.tasks.marks import TINTED, apart, tiles

READINGS = {
    "foreground": ("foreground", "Which tokens are not plain floor, in the run's final video."),
    "answer": (
        "what the answer changes",
        "The tokens whose patch will change in the answer that this run ends with.",
    ),
    "choice": (
        "which right answer is taken",
        "The same among tokens that some right answers change and others do not.",
    ),
}
"""What is read off tokens within a frame: in words, and what it means."""
CONTROLS = 4
"""Other puzzles whose labels a control is fitted to, one after the other."""


class Labels(NamedTuple):
    """Labels of the tokens in all frames but the first.

    foreground: the patch is not all plain floor. answer: it differs from the first frame's at the
    same place. Both in the run's final video. contested: it does so in some right answers and not
    in others.
    """

    foreground: Bool[np.ndarray, "P K f n"]
    answer: Bool[np.ndarray, "P K f n"]
    contested: Bool[np.ndarray, "P K f n"]

    def of(self, reading: str) -> tuple[Bool[np.ndarray, "P K f n"], Bool[np.ndarray, "P K f n"]]:
        """Return the label of one of `READINGS`, and the tokens that it is about."""
        mask = self.foreground if reading == "foreground" else self.answer
        return mask, self.contested if reading == "choice" else np.ones_like(mask)

    def auroc(
        self, values: Float[np.ndarray, "P K *axes N"], reading: str
    ) -> Float[np.ndarray, "P K *axes"]:
        """Return how well one value per token tells one of `READINGS` (`auroc_within`)."""
        mask, among = self.of(reading)
        inner = tuple(range(2, values.ndim - 1))
        classes = (np.expand_dims(tokens & among, inner) for tokens in (mask, ~mask))
        return auroc_within(values.reshape(*values.shape[:-1], *mask.shape[-2:]), *classes)


def labels_of(
    puzzles: Sequence[Puzzle], videos: UInt8[np.ndarray, "P K F H W 3"], side: int
) -> Labels:
    """Return `Labels` of tokens that are squares of `side` pixels."""
    rows = []
    for puzzle, seeds in zip(puzzles, videos, strict=True):
        task = TASKS[puzzle.task]
        first = task.first_frame(puzzle)
        answer, right = (marked(some, first, side) for some in (seeds, task.routes(puzzle)))
        contested = np.broadcast_to(right.any(0) & ~right.all(0), answer.shape)
        rows.append(Labels(marked(seeds, "floor", side), answer, contested))
    return Labels(*map(np.stack, zip(*rows, strict=True)))


def marked(
    videos: UInt8[np.ndarray, "V F H W 3"], other: str | UInt8[np.ndarray, "H W 3"], side: int
) -> Bool[np.ndarray, "V f n"]:
    """Return which tokens of all frames but the first hold a pixel of another colour than this, or
    than the same pixel of this picture."""
    later = videos[:, 1:].reshape(-1, *videos.shape[2:])
    want = other if isinstance(other, str) else np.repeat(other[None], len(later), 0)
    marked = tiles(apart(later, want) > TINTED, side).any((3, 4))
    return marked.reshape(len(videos), videos.shape[1] - 1, -1)


def identities_of(puzzles: Sequence[Puzzle]) -> Int[np.ndarray, " P"]:
    """Return the number of each puzzle's identity, in order of appearance."""
    return pd.factorize(np.array([repr(p.identity) for p in puzzles]))[0]


def by_identity(data: xr.Dataset, runs: str, identities: Int[np.ndarray, " P"]) -> xr.Dataset:
    """Return the mean over the puzzles (dimension `runs`) of each identity: they are too much alike
    to count as many."""
    data = data.assign_coords(identity=(runs, identities))
    data = data.groupby("identity").mean(runs, keep_attrs=True)
    return data.rename(identity=runs).drop_vars(runs)


def fit_and_read(
    features: Float[np.ndarray, "P K s R n D"],
    labels: Labels,
    identities: Int[np.ndarray, " P"],
    penalty: float,
) -> tuple[Float[np.ndarray, "3 P K s R"], Float[np.ndarray, "3 P K s R"]]:
    """Fit a probe to each step and source R (such as a layer), and measure how well it reads
    `READINGS`; return also that of probes fitted to other puzzles' labels, mean over `CONTROLS`.

    Probes are fitted on the puzzles of every other identity and read on the rest, and the other way
    round. nan where no frame has tokens of both kinds; all is where a half has too few puzzles for
    another one's labels.
    """
    half = identities % 2 == 1
    steps, sources = features.shape[2:4]
    shape = len(READINGS), *labels.answer.shape[:2], steps, sources
    areas, controls = np.full((2, *shape), np.nan)
    if min(half.sum(), (~half).sum()) <= CONTROLS:
        return areas, controls
    truth = np.stack([labels.foreground, labels.answer], -1)
    flat = truth.reshape(*truth.shape[:2], -1, 2)
    for step, source in np.ndindex(steps, sources):
        scores = _read(features[:, :, step, source], flat, half, penalty)
        for i, reading in enumerate(READINGS):
            area = labels.auroc(scores[:, :, :, int(reading != "foreground")], reading)
            areas[i, :, :, step, source] = area[..., 0]
            controls[i, :, :, step, source] = area[..., 1:].mean(-1)
    return areas, controls


def _read(
    features: Float[np.ndarray, "P K n D"],
    labels: Bool[np.ndarray, "P K n Y"],
    half: Bool[np.ndarray, " P"],
    penalty: float,
) -> Float[np.ndarray, "P K fits Y n"]:
    """Return what probes of the other half's tokens say of each token: fitted to these labels, then
    to those of another puzzle, and another."""
    scores = np.empty((*labels.shape[:3], 1 + CONTROLS, labels.shape[3]))
    for fit in (half, ~half):
        targets = [np.roll(labels[fit], i, axis=0) for i in range(1 + CONTROLS)]
        targets = np.stack(targets, -2).reshape(-1, scores[0, 0, 0].size).astype(np.float64)
        x, z = (features[part].reshape(-1, features.shape[-1]) for part in (fit, ~fit))
        scores[~fit] = ridge(x, targets, penalty)(z).reshape(-1, *scores.shape[1:])
    return np.moveaxis(scores, 2, -1)


def auroc_within(
    values: Float[np.ndarray, "*axes f n"],
    positive: Bool[np.ndarray, "*#axes f n"],
    negative: Bool[np.ndarray, "*#axes f n"],
) -> Float[np.ndarray, "*axes"]:
    """Return the `area` within a frame, mean over the frames that have both kinds; nan where none
    has."""
    areas = area(values, positive, negative)
    frames = np.isfinite(areas).sum(-1)
    return np.where(frames > 0, np.nansum(areas, -1) / np.maximum(frames, 1), np.nan)
