"""Abstraction: a row of items whose sizes follow a cycle of three; draw the next one."""

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from jcos.tasks.base import COLOURS, PALETTE, Puzzle, Task, Verdict, Video, canvas

SIDES = (2, 4, 6)
SLOT = 6
COLUMNS = (1, 7, 13)
ROWS = (3, 11)
"""Top left corners of the slots, which lie symmetrically on the canvas."""
SLOTS = tuple((y, x) for y in ROWS for x in COLUMNS)

GROWTH = {2: (0, 0, 2, 2, 2), 4: (0, 2, 4, 4, 4), 6: (0, 2, 4, 6, 6)}
"""Sides of a new item in each frame. None is full after one step, nor is any absent until late:
otherwise a jump from the first picture to the last would be a right answer."""

OPAQUE = 36.0
"""Mean distance per channel up to which a pixel is of a colour; half-way blends are farther."""
TINTED = 48.0
"""The same where only a clearly foreign colour should count."""


Real = int | float | np.number


class Item(NamedTuple):
    """An answer: the item that comes next."""

    side: int
    colour: str


class Scene(NamedTuple):
    sides: tuple[int, ...]
    shown: int
    colours: tuple[str, str]
    disc: bool
    turn: int


class Pattern(Task):
    """Six slots in reading order. Sizes have period 3 and colours period 2, so that neither tells
    the other; four or five items are there, and the next grows in its slot.
    """

    name = "pattern"
    about = "Items whose sizes repeat with period three are shown; the next one is to be drawn."
    faculty = "Abstraction"
    solved_at = 0.9

    def make(self, rng: np.random.Generator) -> Puzzle:
        sides = ORDERS[rng.integers(len(ORDERS))]
        colours = PAIRS[rng.integers(len(PAIRS))]
        shown = 4 + int(rng.integers(2))
        scene = Scene(sides, shown, colours, bool(rng.integers(2)), int(rng.integers(8)))
        answer = Item(sides[shown % 3], colours[shown % 2])
        return Puzzle(
            task=self.name,
            prompt="draw the next item of the pattern",
            identity=(sides, shown, colours),
            scene=scene,
            answers=(answer,),
        )

    def draw(self, puzzle: Puzzle, answer: Item) -> Video:
        scene: Scene = puzzle.scene
        first = canvas(self.height, self.width)
        for i in range(scene.shown):
            _put(first, i, scene.sides[i % 3], scene.colours[i % 2], scene.disc)
        video = np.repeat(first[None], self.frames, axis=0)
        for frame, side in zip(video, GROWTH[answer.side], strict=True):
            _put(frame, scene.shown, side, answer.colour, scene.disc)
        return turned(video, scene.turn)

    def guess(self, puzzle: Puzzle, rng: np.random.Generator) -> Item:
        """Any of the three sizes in either of the two colours: right once in six."""
        return Item(SIDES[rng.integers(3)], puzzle.scene.colours[rng.integers(2)])

    def judge(self, puzzle: Puzzle, symbols: Int[np.ndarray, "F H W"], video: Video) -> Verdict:
        scene: Scene = puzzle.scene
        (answer,) = puzzle.answers
        video = turned_back(video, scene.turn)
        floor = apart(video, "floor")
        near = {colour: apart(video, colour) <= OPAQUE for colour in scene.colours}

        def overlap(f: int, i: int, side: int) -> float:
            return iou(near[scene.colours[i % 2]][f][_window(i)], _mask(side, scene.disc))

        kept = [
            overlap(f, i, scene.sides[i % 3])
            for f in range(self.frames)
            for i in range(scene.shown)
        ]
        drawn = [overlap(f, scene.shown, side) for f, side in enumerate(GROWTH[answer.side])]

        # Nothing may appear elsewhere, and in the slot there is floor or the colour, no mixture.
        window = _window(scene.shown)
        slot = (slice(None), *window)
        item = video[-1][window][near[answer.colour][-1][window]]
        mixed = (floor > OPAQUE) & ~near[answer.colour]
        stray = floor > TINTED
        stray[1:, *window] = False
        for i in range(scene.shown):
            y, x = _window(i)
            stray[:, y, x] &= ~_mask(scene.sides[i % 3], scene.disc)
        return Verdict(
            answer=ramp(drawn[-1], 0.4, 0.7) * pure(item, answer.colour),
            gates={
                "grows": ramp(min(drawn), 0.4, 0.7),
                "kept": ramp(min(kept), 0.4, 0.7),
                "empty": ramp(stray.sum((1, 2)).max(), 6, 2),
                "opaque": ramp(mixed[slot].sum((1, 2)).max(), 7, 3),
            },
        )


def _window(slot: int) -> tuple[slice, slice]:
    y, x = SLOTS[slot]
    return slice(y, y + SLOT), slice(x, x + SLOT)


def _put(frame: UInt8[np.ndarray, "H W 3"], slot: int, side: int, colour: str, disc: bool) -> None:
    frame[_window(slot)][_mask(side, disc)] = PALETTE[colour]


def _mask(side: int, disc: bool) -> Bool[np.ndarray, "6 6"]:
    return _MASKS[side, disc]


def _draw_mask(side: int, disc: bool) -> Bool[np.ndarray, "6 6"]:
    """A square centred in its slot, or one with the corners cut (the smallest has none to lose)."""
    mask = np.zeros((SLOT, SLOT), bool)
    if side:
        low, high = (SLOT - side) // 2, (SLOT + side) // 2
        mask[low:high, low:high] = True
        if disc and side > 2:
            mask[np.ix_((low, high - 1), (low, high - 1))] = False
    return mask


_MASKS = {(side, disc): _draw_mask(side, disc) for side in (0, *SIDES) for disc in (False, True)}
ORDERS = tuple(itertools.permutations(SIDES))
PAIRS = tuple(itertools.permutations(COLOURS, 2))


# What the tasks with simple shapes share.


def turned(video: Video, turn: int) -> Video:
    """The video under one of the square's symmetries: transposed if 4, then mirrored (1, 2)."""
    if turn & 4:
        video = video.swapaxes(1, 2)
    if turn & 1:
        video = video[:, :, ::-1]
    if turn & 2:
        video = video[:, ::-1]
    return np.ascontiguousarray(video)


def turned_back(video: Video, turn: int) -> Video:
    """The inverse of `turned`."""
    video = turned(video, turn & 3)
    return video.swapaxes(1, 2) if turn & 4 else video


def apart(pixels: np.ndarray, colour: str) -> Float[np.ndarray, "..."]:
    """Mean distance per channel (0..255) of each pixel [..., 3] from a palette colour."""
    return np.abs(pixels.astype(np.float32) - np.array(PALETTE[colour], np.float32)).mean(-1)


def pure(pixels: UInt8[np.ndarray, "N 3"], colour: str) -> float:
    """1 if the pixels' mean is the colour, 0 half-way to another (at least 28 off)."""
    return ramp(apart(pixels.mean(0)[None], colour)[0], 28, 20) if len(pixels) else 0.0


def ramp(value: Real, zero: Real, one: Real) -> float:
    """Linear from 0 at `zero` to 1 at `one` (which may be the smaller), flat beyond."""
    return float(np.clip((value - zero) / (one - zero), 0.0, 1.0))


def iou(a: Bool[np.ndarray, "..."], b: Bool[np.ndarray, "..."]) -> float:
    """Area that two masks share over the area that either covers; 1 if both are empty."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0
