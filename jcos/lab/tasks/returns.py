"""Perception: an object goes behind an occluder; what comes out, and where, must be remembered."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jcos.lab.tasks import marks
from jcos.lab.tasks.base import COLOURS, PALETTE, TILE, Frame, Puzzle, Task, Verdict, Video

MASKS: dict[str, Bool[np.ndarray, "4 4"]] = {
    "square": marks.stencil("####", "####", "####", "####"),
    "disc": marks.stencil(".##.", "####", "####", ".##."),
    "ring": marks.stencil("####", "#..#", "#..#", "####"),
    "cross": marks.stencil("#..#", ".##.", ".##.", "#..#"),
}
"""Every symmetry of the square maps each of them onto itself."""
SHAPES = tuple(MASKS)

LANES = 5
HIDE = 2
"""First column of the occluder; the object comes from column 0 by way of column 1."""
MODES = {"back": "the object comes back", "through": "the object passes behind"}


class Thing(NamedTuple):
    colour: str
    shape: str


class Outcome(NamedTuple):
    """An answer: what appears in the last frame, on the near side (back) or the far one."""

    thing: Thing
    mode: str


class Scene(NamedTuple):
    """cover: the lanes [first, end) that the occluder hides; width: its columns."""

    thing: Thing
    lane: int
    cover: tuple[int, int]
    width: int
    other: Thing
    other_at: tuple[int, int]
    turn: int


class Returns(Task):
    """The object moves a tile per frame along its lane: columns 0, 1, hidden, hidden, then 1 if it
    turned round behind the occluder or the first column beyond. Another object stands by.
    """

    name = "returns"
    about = "An object disappears behind a block and comes out again on the side the prompt tells."
    faculty = "Perception"
    solved_at = 0.8

    def make(self, rng: np.random.Generator) -> Puzzle:
        colour, other_colour = rng.permutation(len(COLOURS))[:2]
        shape, other_shape = rng.permutation(len(SHAPES))[:2]
        thing = Thing(COLOURS[colour], SHAPES[shape])
        lane = int(rng.integers(LANES))
        height, width = int(rng.integers(1, 4)), int(rng.integers(1, 3))
        low, high = max(0, lane - height + 1), min(lane, LANES - height)
        first = int(rng.integers(low, high + 1))
        free = [
            (row, column)
            for row in range(LANES)
            for column in range(LANES)
            if row != lane and not (first <= row < first + height and HIDE <= column < HIDE + width)
        ]
        scene = Scene(
            thing=thing,
            lane=lane,
            cover=(first, first + height),
            width=width,
            other=Thing(COLOURS[other_colour], SHAPES[other_shape]),
            other_at=free[rng.integers(len(free))],
            turn=int(rng.integers(2)),
        )
        mode = tuple(MODES)[rng.integers(2)]
        return Puzzle(
            task=self.name,
            prompt=MODES[mode],
            identity=(*thing, min(lane, LANES - 1 - lane), mode),
            scene=scene,
            answers=(Outcome(thing, mode),),
        )

    def draw(self, puzzle: Puzzle, answer: Outcome) -> Video:
        scene: Scene = puzzle.scene
        first = marks.canvas(self.height, self.width)
        rows = slice(TILE * scene.cover[0], TILE * scene.cover[1])
        first[rows, TILE * HIDE : TILE * (HIDE + scene.width)] = PALETTE["grey"]
        _put(first, *scene.other_at, scene.other)
        video = np.repeat(first[None], self.frames, axis=0)
        _put(video[0], scene.lane, 0, scene.thing)
        _put(video[1], scene.lane, 1, scene.thing)
        _put(video[-1], scene.lane, _exit(scene, answer.mode), answer.thing)
        return marks.turned(video, scene.turn)

    def guess(self, puzzle: Puzzle, rng: np.random.Generator) -> Outcome:
        """Any colour, shape and side: right once in forty."""
        thing = Thing(COLOURS[rng.integers(len(COLOURS))], SHAPES[rng.integers(len(SHAPES))])
        return Outcome(thing, tuple(MODES)[rng.integers(2)])

    def judge(self, puzzle: Puzzle, video: Video) -> Verdict:
        """The last frame's object by shape and colour, gated by all else being as drawn.

        before: the worst tile of the lane while the object comes.
        hidden: the worst tile of the occluder, and of the lane from then on.
        bystander: the tile of the other object in its worst frame.
        empty: the worst tile of all.
        opaque: the exit shows floor and the object, no mixture.
        """
        scene: Scene = puzzle.scene
        (answer,) = puzzle.answers
        video = marks.turned_back(video, scene.turn)
        right = marks.turned_back(self.draw(puzzle, answer), scene.turn)
        row, column = scene.lane, _exit(scene, answer.mode)
        colour, shape = answer.thing

        tile = video[-1][marks.window(TILE * row, TILE * column, TILE)]
        symbols = marks.decode(tile, ("floor", colour))
        shown = symbols == marks.SYMBOLS[colour]
        overlap = marks.iou(shown, np.stack(list(MASKS.values())))
        likeness = overlap[SHAPES.index(shape)]
        same_shape = marks.ramp(likeness, 0.75, 0.87) * float(likeness == overlap.max())

        # Everything else is known beforehand.
        wrong = marks.tiles(marks.apart(video, right) > marks.OPAQUE, TILE).mean((3, 4))
        wrong[-1, row, column] = 0
        lane, block = wrong[:, row], wrong[:, slice(*scene.cover), HIDE : HIDE + scene.width]
        other_row, other_column = scene.other_at
        return Verdict(
            answer=same_shape * marks.pure(tile[shown], colour),
            gates={
                "before": _kept(lane[:2]),
                "hidden": min(_kept(lane[2:]), _kept(block)),
                "bystander": _kept(wrong[:, other_row, other_column]),
                "empty": _kept(wrong),
                "opaque": marks.ramp((symbols == marks.UNKNOWN).sum(), 4, 1),
            },
        )


def _exit(scene: Scene, mode: str) -> int:
    """Column where the object reappears."""
    return HIDE - 1 if mode == "back" else HIDE + scene.width


def _kept(wrong: Float[np.ndarray, "..."]) -> float:
    """Grades tiles by how much of the worst is wrong; the smallest object fills half of one."""
    return marks.ramp(wrong.max(), 0.45, 0.2)


def _put(frame: Frame, row: int, column: int, thing: Thing) -> None:
    marks.paint(frame, TILE * row, TILE * column, MASKS[thing.shape], thing.colour)
