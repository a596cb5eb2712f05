"""Linear probes of tokens: what is foreground, what will change in the answer, which answer is
taken."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from jcos.lab.tasks import TASKS, Puzzle
from jcos.lab.tasks.marks import TINTED, apart, tiles

READINGS = {
    "foreground": "foreground",
    "answer": "what the answer changes",
    "choice": "which right answer is taken",
}
"""What is read off tokens, in words."""
CONTROLS = 4
"""Other puzzles whose labels a control is fitted to, one after the other: a single one may well
call the right tokens first or last."""


class Labels(NamedTuple):
    """Labels of the tokens in all frames but the first.

    foreground: the patch is not all plain floor. answer: it differs from the first frame's at the
    same place. Both in the run's final video. contested: it does so in some right answers and not
    in others.
    """

    foreground: Bool[np.ndarray, "P K f n"]
    answer: Bool[np.ndarray, "P K f n"]
    contested: Bool[np.ndarray, "P K f n"]

    def classes(self, reading: str) -> tuple[np.ndarray, np.ndarray]:
        """Return which tokens are positive and which negative for one of `READINGS`."""
        mask = self.foreground if reading == "foreground" else self.answer
        among = self.contested if reading == "choice" else np.ones_like(mask)
        return mask & among, ~mask & among

    def auroc(
        self, values: Float[np.ndarray, "P K *axes N"], reading: str
    ) -> Float[np.ndarray, "P K *axes"]:
        """Return how well one value per token tells the classes apart (`auroc_within`)."""
        inner = tuple(range(2, values.ndim - 1))
        classes = (np.expand_dims(mask, inner) for mask in self.classes(reading))
        frames = self.answer.shape[-2:]
        return auroc_within(values.reshape(*values.shape[:-1], *frames), *classes)


class Areas(NamedTuple):
    """Areas under the ROC curve of each of `READINGS` within a frame, mean over frames.

    nan where no frame has tokens of both kinds. R: what is read, such as layers. control: of probes
    fitted to the labels of another puzzle, mean over `CONTROLS` of them.
    """

    probe: Float[np.ndarray, "3 P K s R"]
    control: Float[np.ndarray, "3 P K s R"]


def labels_of(
    puzzles: Sequence[Puzzle], videos: UInt8[np.ndarray, "P K F H W 3"], side: int
) -> Labels:
    """Return `Labels` of tokens that are squares of `side` pixels."""
    rows = []
    for puzzle, seeds in zip(puzzles, videos, strict=True):
        task = TASKS[puzzle.task]
        first = task.first_frame(puzzle)
        answer, right = (_marked(some, first, side) for some in (seeds, task.routes(puzzle)))
        contested = np.asarray(right.any(0) & ~right.all(0))
        contested = np.repeat(contested[None], len(seeds), 0)
        rows.append(Labels(_marked(seeds, "floor", side), answer, contested))
    return Labels(*map(np.stack, zip(*rows, strict=True)))


def _marked(
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
    names = [repr(p.identity) for p in puzzles]
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([order[name] for name in names])


def fit_and_read(
    features: Float[np.ndarray, "P K s R n D"],
    labels: Labels,
    identities: Int[np.ndarray, " P"],
    penalty: float,
) -> Areas:
    """Fit a probe to each step and source, and measure what it reads.

    Probes are fitted on the puzzles of every other identity and read on the rest, and the other way
    round. All is nan where a half has too few puzzles for another one's labels.
    """
    half = identities % 2 == 1
    steps, sources = features.shape[2:4]
    shape = len(READINGS), *labels.answer.shape[:2], steps, sources
    areas = Areas(*np.full((2, *shape), np.nan))
    if min(half.sum(), (~half).sum()) <= CONTROLS:
        return areas
    truth = np.stack([labels.foreground, labels.answer], -1)
    flat = truth.reshape(*truth.shape[:2], -1, 2)
    for step, source in np.ndindex(steps, sources):
        scores = _read(features[:, :, step, source], flat, half, penalty)
        for i, reading in enumerate(READINGS):
            area = labels.auroc(scores[:, :, :, int(reading != "foreground")], reading)
            areas.probe[i, :, :, step, source] = area[..., 0]
            areas.control[i, :, :, step, source] = area[..., 1:].mean(-1)
    return areas


def _read(
    features: Float[np.ndarray, "P K n D"],
    labels: Bool[np.ndarray, "P K n Y"],
    half: Bool[np.ndarray, " P"],
    penalty: float,
) -> Float[np.ndarray, "P K fits Y n"]:
    """Return what probes of the other half's tokens say of each token: fitted to these labels, then
    to those of another puzzle, and another."""
    scores = []
    for fit in (half, ~half):
        truth = labels[fit].astype(np.float64)
        targets = np.stack([np.roll(truth, i, axis=0) for i in range(1 + CONTROLS)], -2)
        read = ridge(
            features[fit].reshape(-1, features.shape[-1]),
            targets.reshape(-1, targets.shape[-2] * targets.shape[-1]),
            features[~fit].reshape(-1, features.shape[-1]),
            penalty,
        )
        scores.append(read.reshape(-1, *labels.shape[1:3], *targets.shape[-2:]))
    order = np.argsort(np.concatenate([np.flatnonzero(~half), np.flatnonzero(half)]))
    return np.moveaxis(np.concatenate(scores)[order], 2, -1)


def ridge(
    features: Float[np.ndarray, "n *axes D"],
    targets: Float[np.ndarray, "n Q"],
    others: Float[np.ndarray, "m *axes D"],
    penalty: float,
) -> Float[np.ndarray, "m *axes Q"]:
    """Fit a linear regression of the targets on standardised features, one for each of the axes,
    and return what it says of other samples. penalty: of the weights' square, per sample."""
    x, z = (np.moveaxis(a, 0, -2).astype(np.float64) for a in (features, others))
    mean, size = x.mean(-2, keepdims=True), x.std(-2, keepdims=True)
    # What does not vary, but for rounding, tells nothing.
    size = np.where(size > 1e-5, size, np.inf)
    x, z = (x - mean) / size, (z - mean) / size
    centre = targets.mean(0)
    gram = np.swapaxes(x, -1, -2) @ x
    gram = gram + penalty * len(features) * np.eye(gram.shape[-1])
    weights = np.linalg.solve(gram, np.swapaxes(x, -1, -2) @ (targets - centre))
    return np.moveaxis(z @ weights + centre, -2, 0)


def auroc_within(
    values: Float[np.ndarray, "*axes f n"],
    positive: Bool[np.ndarray, "*#axes f n"],
    negative: Bool[np.ndarray, "*#axes f n"],
) -> Float[np.ndarray, "*axes"]:
    """Return the chance that a positive token has a larger value than a negative one of the same
    frame (ties count half), mean over the frames that have both kinds; nan where none has."""
    a, b = values[..., :, None], values[..., None, :]
    pairs = positive[..., :, None] & negative[..., None, :]
    wins = np.where(pairs, (a > b) + 0.5 * (a == b), 0).sum((-1, -2))
    number = pairs.sum((-1, -2))
    known = number > 0
    area = np.where(known, wins / np.maximum(number, 1), 0)
    frames = known.sum(-1)
    return np.where(frames > 0, area.sum(-1) / np.maximum(frames, 1), np.nan)
