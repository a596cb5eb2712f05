"""Abstraction: a row of items whose sizes follow a cycle of three; draw the next one."""

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jcos.lab.tasks import marks
from jcos.lab.tasks.base import COLOURS, Frame, Puzzle, Task, Verdict, Video

SIDES = (2, 4, 6)
SLOT = 6
COLUMNS = (1, 7, 13)
ROWS = (3, 11)
"""Top left corners of the slots."""
SLOTS = tuple(itertools.product(ROWS, COLUMNS))

GROWTH = {2: (0, 0, 2, 2, 2), 4: (0, 2, 4, 4, 4), 6: (0, 2, 4, 6, 6)}
"""Sides of a new item in each frame. None is full after one step, nor is any absent until late:
otherwise a jump from the first picture to the last would be a right answer. One such jump is left:
the smallest item has no smaller size to pass through, so at frame 2 it is there at once."""

ORDERS = tuple(itertools.permutations(SIDES))
PAIRS = tuple(itertools.permutations(COLOURS, 2))


class Item(NamedTuple):
    """An answer: the item that comes next."""

    side: int
    colour: str


class Scene(NamedTuple):
    """sides and colours repeat over the slots, of which the first `shown` are filled."""

    sides: tuple[int, ...]
    shown: int
    colours: tuple[str, str]
    disc: bool


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
        scene = Scene(sides, shown, colours, bool(rng.integers(2)))
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
        video = np.repeat(_first(scene)[None], self.frames, axis=0)
        for frame, side in zip(video, GROWTH[answer.side], strict=True):
            marks.paint(frame, *SLOTS[scene.shown], MASKS[side, scene.disc], answer.colour)
        return video

    def guess(self, puzzle: Puzzle, rng: np.random.Generator) -> Item:
        """Any of the three sizes in either of the two colours: right once in six."""
        return Item(SIDES[rng.integers(3)], puzzle.scene.colours[rng.integers(2)])

    def judge(self, puzzle: Puzzle, video: Video) -> Verdict:
        """The last frame's new item by overlap and colour, gated by how it got there.

        grows: the new item has its size in every frame.
        kept: so have the items shown.
        empty: nothing appears elsewhere.
        opaque: the slot shows floor and the item, no mixture.

        A jump to the smallest item at frame 2 passes, for it is what `draw` draws (see `GROWTH`).
        """
        scene: Scene = puzzle.scene
        (answer,) = puzzle.answers
        symbols = marks.decode(video, ("floor", *scene.colours))
        slots = [(slice(None), *marks.window(*corner, SLOT)) for corner in SLOTS]

        def overlap(i: int, masks: Bool[np.ndarray, "... 6 6"]) -> Float[np.ndarray, "F"]:
            return marks.iou(symbols[slots[i]] == marks.SYMBOLS[scene.colours[i % 2]], masks)

        grown = np.stack([MASKS[side, scene.disc] for side in GROWTH[answer.side]])
        drawn = overlap(scene.shown, grown)
        kept = [overlap(i, MASKS[scene.sides[i % 3], scene.disc]).min() for i in range(scene.shown)]

        blank = marks.apart(_first(scene), "floor") == 0
        stray = (marks.apart(video, "floor") > marks.TINTED) & blank
        slot = slots[scene.shown]
        stray[slot][1:] = False
        item = symbols[slot] == marks.SYMBOLS[answer.colour]
        mixed = ~item & (symbols[slot] != marks.SYMBOLS["floor"])
        colour = marks.pure(video[slot][-1][item[-1]], answer.colour)
        return Verdict(
            answer=marks.ramp(drawn[-1], 0.4, 0.7) * colour,
            gates={
                "grows": marks.ramp(drawn.min(), 0.4, 0.7),
                "kept": marks.ramp(min(kept), 0.4, 0.7),
                "empty": marks.ramp(stray.sum((1, 2)).max(), 6, 2),
                "opaque": marks.ramp(mixed.sum((1, 2)).max(), 7, 3),
            },
        )


def _first(scene: Scene) -> Frame:
    frame = marks.canvas(Pattern.height, Pattern.width)
    for i in range(scene.shown):
        mask = MASKS[scene.sides[i % 3], scene.disc]
        marks.paint(frame, *SLOTS[i], mask, scene.colours[i % 2])
    return frame


def _mask(side: int, disc: bool) -> Bool[np.ndarray, "6 6"]:
    """A square centred in its slot, or one with the corners cut (the smallest has none to lose)."""
    mask = np.zeros((SLOT, SLOT), bool)
    if side:
        low, high = (SLOT - side) // 2, (SLOT + side) // 2
        mask[low:high, low:high] = True
        if disc and side > 2:
            mask[np.ix_((low, high - 1), (low, high - 1))] = False
    return mask


MASKS = {(side, disc): _mask(side, disc) for side in (0, *SIDES) for disc in (False, True)}
