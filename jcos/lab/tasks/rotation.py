"""Transformation: a chiral shape is turned by the angle that the prompt names."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jcos.lab.tasks.base import COLOURS, PALETTE, TILE, Puzzle, Task, Verdict, Video
from jcos.lab.tasks.marks import SYMBOLS, UNKNOWN, canvas, decode, iou, pure, ramp, stencil

SHAPES = {
    "L": ("...", "###", "#.."),
    "P": ("...", "###", "##."),
    "S": ("..#", "###", "##."),
    "W": ("..#", "##.", "###"),
}
"""Shapes of tiles about a middle one that no turn and no mirror maps onto themselves."""
RING = ((0, 0), (1, 0), (2, 0), (2, 1), (2, 2), (1, 2), (0, 2), (0, 1))
"""The eight tiles around the middle one, in the order in which a turn to the left takes them."""

POSES = len(RING)
"""Poses per full turn, 45 degrees apart: a turn moves every tile on to the next one of the ring."""
TURNS = (-3, -2, -1, 1, 2, 3)
"""Angles in quarter turns, to the left if positive."""
_QUARTER = POSES // 4


class Scene(NamedTuple):
    """shape and start (a pose) are those of the puzzle's unmirrored version."""

    shape: int
    start: int
    colour: str
    mirrored: bool


class Rotation(Task):
    """The shape turns about the middle of the canvas, as evenly as steps of 45 degrees allow. Only
    the prompt tells how far and which way. An answer is a signed number of quarter turns of the
    unmirrored version.
    """

    name = "rotation"
    about = "A shape is to be turned left or right by an angle that only the prompt tells."
    faculty = "Transformation"
    solved_at = 0.8

    def make(self, rng: np.random.Generator) -> Puzzle:
        shape, start, turn = (int(rng.integers(n)) for n in (len(SHAPES), POSES, len(TURNS)))
        turn = TURNS[turn]
        scene = Scene(shape, start, COLOURS[rng.integers(len(COLOURS))], bool(rng.integers(2)))
        way = "left" if (turn > 0) != scene.mirrored else "right"
        return Puzzle(
            task=self.name,
            prompt=f"rotate the shape {way} by {90 * abs(turn)}",
            identity=(shape, start, turn),
            scene=scene,
            answers=(turn,),
        )

    def draw(self, puzzle: Puzzle, answer: int) -> Video:
        scene: Scene = puzzle.scene
        video = np.repeat(canvas(self.height, self.width)[None], self.frames, axis=0)
        video[_table(scene)[_poses(scene, answer)]] = PALETTE[scene.colour]
        return video

    def guess(self, puzzle: Puzzle, rng: np.random.Generator) -> int:
        """Any of the six angles: right once in six."""
        return TURNS[rng.integers(len(TURNS))]

    def judge(self, puzzle: Puzzle, video: Video) -> Verdict:
        """How much more the last frame overlaps with the true end than with any other, 1 being what
        the true end has; gated by how the shape got there.

        way: the shape overlaps with its true pose in every frame.
        pose: and it is nearest to that pose.
        opaque: there is floor and shape, no mixture.
        colour: the shape has its colour in every frame.
        """
        scene: Scene = puzzle.scene
        (turn,) = puzzle.answers
        table, poses = _table(scene), _poses(scene, turn)
        symbols = decode(video, ("floor", scene.colour))
        shown = symbols == SYMBOLS[scene.colour]
        overlap = iou(shown[:, None], table)

        true = poses[-1]
        ends = (true + _QUARTER * np.arange(1, POSES // _QUARTER)) % POSES
        margin = overlap[-1, true] - overlap[-1, ends].max()
        return Verdict(
            answer=ramp(margin, 0.0, 1 - iou(table[true], table[ends]).max()),
            gates={
                "way": ramp(overlap[range(self.frames), poses].min(), 0.5, 0.7),
                "pose": float((overlap.argmax(1) == poses).all()),
                "opaque": ramp((symbols == UNKNOWN).sum((1, 2)).max(), 16, 8),
                "colour": min(
                    pure(frame[mask], scene.colour)
                    for frame, mask in zip(video, shown, strict=True)
                ),
            },
        )


def _poses(scene: Scene, turn: int) -> Int[np.ndarray, "F"]:
    """The shape's pose in each frame, `turn` further to the left in the last than in the first."""
    last = Rotation.frames - 1
    turned = (2 * abs(turn) * _QUARTER * np.arange(last + 1) + last) // (2 * last)  # nearest pose
    return (scene.start + np.sign(turn) * turned) % POSES


def _table(scene: Scene) -> Bool[np.ndarray, "P H W"]:
    """All poses of the scene's shape; a mirror image turns the other way."""
    table = _RASTERS[scene.shape]
    return table[:, :, ::-1] if scene.mirrored else table


def _raster(shape: tuple[str, ...], pose: int) -> Bool[np.ndarray, "H W"]:
    """The pixels of the shape, turned left about the middle of the canvas."""
    cells = stencil(*shape)
    turned, ring = cells.copy(), np.array(RING).T
    turned[*np.roll(ring, -pose, axis=1)] = cells[*ring]
    return np.pad(turned, 1).repeat(TILE, 0).repeat(TILE, 1)


_RASTERS = np.array([[_raster(s, pose) for pose in range(POSES)] for s in SHAPES.values()])
