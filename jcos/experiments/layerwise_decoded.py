"""Linear probes of tokens: what is foreground, what will change in the answer, which answer is
taken."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from jcos.experiments.ridge import ridge
from jcos.lab.tasks import TASKS, Puzzle
from jcos.lab.tasks.marks import TINTED, apart, tiles

READINGS = {"foreground": (0, False), "answer": (1, False), "choice": (1, True)}
"""What is read: by probes of which label, and whether among contested tokens only."""
CONTROLS = 4
"""Other puzzles whose labels a control is fitted to, one after the other: where tokens are easily
told apart, a single one says little, for it may well call the right tokens first or last."""


class Labels(NamedTuple):
    """Of the tokens in all frames but the first. foreground: their patch is not all plain floor.
    answer: it differs from the first frame's at the same place. Both in the run's final video.
    contested: it does so in some right answers and not in others."""

    foreground: Bool[np.ndarray, "P K f n"]
    answer: Bool[np.ndarray, "P K f n"]
    contested: Bool[np.ndarray, "P K f n"]


class Decoded(NamedTuple):
    """How well tokens are told apart, of each of `READINGS`: area under the ROC curve within a
    frame, mean over frames; nan where no frame has tokens of both kinds. R: the layers, x_s, x̂0.
    control: by probes fitted to the labels of another puzzle, mean over `CONTROLS` of them."""

    own: Float[np.ndarray, "3 R s P K"]
    control: Float[np.ndarray, "3 R s P K"]


def labels_of(
    puzzles: Sequence[Puzzle], videos: UInt8[np.ndarray, "P K F H W 3"], side: int
) -> Labels:
    """`Labels` of the tokens, squares of `side` pixels."""
    found = []
    for puzzle, seeds in zip(puzzles, videos, strict=True):
        task = TASKS[puzzle.task]
        first = task.first_frame(puzzle)
        own, right = (_marked(shown, first, side) for shown in (seeds, task.routes(puzzle)))
        contested = np.asarray(right.any(0) & ~right.all(0))
        contested = np.repeat(contested[None], len(seeds), 0)
        found.append(Labels(_marked(seeds, "floor", side), own, contested))
    return Labels(*map(np.stack, zip(*found, strict=True)))


def _marked(
    videos: UInt8[np.ndarray, "V F H W 3"], other: str | UInt8[np.ndarray, "H W 3"], side: int
) -> Bool[np.ndarray, "V f n"]:
    """Which tokens of all frames but the first hold a pixel of another colour than this, or than
    the same pixel of this picture."""
    shown = videos[:, 1:].reshape(-1, *videos.shape[2:])
    want = other if isinstance(other, str) else np.repeat(other[None], len(shown), 0)
    found = tiles(apart(shown, want) > TINTED, side).any((3, 4))
    return found.reshape(len(videos), videos.shape[1] - 1, -1)


def halves(puzzles: Sequence[Puzzle]) -> tuple[Bool[np.ndarray, " P"], Int[np.ndarray, " P"]]:
    """Two halves of the puzzles, no identity in both; and the number of each one's identity."""
    names = [repr(p.identity) for p in puzzles]
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    identities = np.array([order[name] for name in names])
    return identities % 2 == 1, identities


def decode(
    features: tuple[Float[np.ndarray, "P K s L n D"], Float[np.ndarray, "P K s 2 n C"]],
    labels: Labels,
    half: Bool[np.ndarray, " P"],
    penalty: float,
) -> Decoded | None:
    """Fits a probe to each layer (and x_s, x̂0) at each looked-at step; None where a half has too
    few puzzles for another one's labels."""
    if min(half.sum(), (~half).sum()) <= CONTROLS:
        return None
    truth = np.stack(labels[:2], -1)  # [P, K, f, n, labels]
    flat = truth.reshape(*truth.shape[:2], -1, 2)
    everywhere = np.ones_like(labels.contested)
    found = []
    for kind in features:
        steps, sources = kind.shape[2:4]
        areas = np.empty((2, len(READINGS), sources, steps, *truth.shape[:2]))
        for step, source in np.ndindex(steps, sources):
            scores = _read(kind[:, :, step, source], flat, half, penalty)
            scores = scores.reshape(-1, *truth.shape)
            for i, (label, contested) in enumerate(READINGS.values()):
                among = labels.contested if contested else everywhere
                mask = truth[None, ..., label]
                first, *others = auroc_within(scores[..., label], mask & among, ~mask & among)
                areas[:, i, source, step] = first, np.mean(others, axis=0)
        found.append(areas)
    own, control = np.concatenate(found, axis=2)
    return Decoded(own, control)


def _read(
    features: Float[np.ndarray, "P K n D"],
    labels: Bool[np.ndarray, "P K n Y"],
    half: Bool[np.ndarray, " P"],
    penalty: float,
) -> Float[np.ndarray, "fits P K n Y"]:
    """What probes of the other half's tokens say of each token: fitted to these labels, then to
    those of another puzzle, and another."""
    scores = []
    for fit in (half, ~half):
        own = labels[fit].astype(np.float64)
        targets = np.stack([np.roll(own, i, axis=0) for i in range(1 + CONTROLS)], -2)
        read = ridge(
            features[fit].reshape(-1, features.shape[-1]),
            targets.reshape(-1, targets.shape[-2] * targets.shape[-1]),
            features[~fit].reshape(-1, features.shape[-1]),
            penalty,
        )
        scores.append(read.reshape(-1, *labels.shape[1:3], *targets.shape[-2:]))
    order = np.argsort(np.concatenate([np.flatnonzero(~half), np.flatnonzero(half)]))
    return np.moveaxis(np.concatenate(scores)[order], -2, 0)


def auroc_within(
    values: Float[np.ndarray, "*axes f n"],
    positive: Bool[np.ndarray, "*#axes f n"],
    negative: Bool[np.ndarray, "*#axes f n"],
) -> Float[np.ndarray, "*axes"]:
    """The chance that a positive token has a larger value than a negative one of the same frame
    (ties count half), mean over the frames that have both kinds; nan where none has."""
    a, b = values[..., :, None], values[..., None, :]
    pairs = positive[..., :, None] & negative[..., None, :]
    wins = np.where(pairs, (a > b) + 0.5 * (a == b), 0).sum((-1, -2))
    number = pairs.sum((-1, -2))
    known = number > 0
    area = np.where(known, wins / np.maximum(number, 1), 0)
    frames = known.sum(-1)
    return np.where(frames > 0, area.sum(-1) / np.maximum(frames, 1), np.nan)
