"""Knowledge: a ball flies on and is thrown back by the walls of a room."""

import itertools
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jcos.lab.tasks import marks
from jcos.lab.tasks.base import COLOURS, PALETTE, TILE, Frame, Puzzle, Task, Verdict, Video

STEP = TILE
"""Positions and velocities are whole multiples of this many pixels."""
SPANS = (2, 3, 4)
"""How many steps the ball can go from wall to wall; in the largest room, from edge to edge."""
BALL = marks.stencil(".##.", "####", "####", ".##.")
RADIUS = 2.0

Place = tuple[int, int]
"""Top left corner of the ball, (x, y) in steps from the room's."""


class Axis(NamedTuple):
    """Motion along one axis, in steps and steps per frame."""

    span: int
    at: int
    speed: int

    def place(self, frame: int) -> int:
        return int(_folded(self.at + self.speed * frame, self.span))

    def bounces(self, frame: int) -> int:
        """Reflections up to this frame, for speeds >= 0; a touch is none until the ball turns."""
        return max(0, (self.at + self.speed * frame - 1) // self.span)


class Scene(NamedTuple):
    """x and y are those of the unturned puzzle, in which the ball moves right or down."""

    x: Axis
    y: Axis
    colour: str
    turn: int


class Bounce(Task):
    """A ball in a room. A grey shadow in the first frame, where the ball was one frame before,
    tells its velocity. The ball is reflected once in the four steps. An answer is its places.
    """

    name = "bounce"
    about = "A ball with a given velocity flies on and bounces off the walls."
    faculty = "Knowledge"
    solved_at = 0.85  # a mean error below 0.58 px; one frame in four off by a step is 1 px
    fastest: ClassVar[int] = 2

    def make(self, rng: np.random.Generator) -> Puzzle:
        motions = _MOTIONS[self.name]
        x, y = motions[rng.integers(len(motions))]
        scene = Scene(x, y, COLOURS[rng.integers(len(COLOURS))], int(rng.integers(8)))
        return Puzzle(
            task=self.name,
            prompt="the ball flies on and bounces",
            identity=(tuple(x), tuple(y)),
            scene=scene,
            answers=(_path(x, y),),
            one_in=4,  # there are not many motions
        )

    def draw(self, puzzle: Puzzle, answer: tuple[Place, ...]) -> Video:
        scene: Scene = puzzle.scene
        video = np.repeat(_room(scene)[None], self.frames, axis=0)
        _put(video[0], _shadow(scene), "grey")
        for frame, place in zip(video, answer, strict=True):
            _put(frame, place, scene.colour)
        return marks.turned(video, scene.turn)

    def guess(self, puzzle: Puzzle, rng: np.random.Generator) -> tuple[Place, ...]:
        """The path under a random velocity, reflected as it should be."""
        x, y = puzzle.scene.x, puzzle.scene.y
        speeds = [
            v for v in itertools.product(range(-self.fastest, self.fastest + 1), repeat=2) if any(v)
        ]
        vx, vy = speeds[rng.integers(len(speeds))]
        return _path(x._replace(speed=vx), y._replace(speed=vy))

    def judge(self, puzzle: Puzzle, video: Video) -> Verdict:
        """exp(- mean error in radii) from the first reflection on, gated by what holds always.

        before: until then the ball is in its place.
        one: there is no second ball.
        whole: the ball has its size in every frame.
        colour: and its colour.
        room: all else is the room, with the shadow in the first frame only.
        reach: each frame's ball is where some motion of its speed can have brought it.
        """
        scene: Scene = puzzle.scene
        (path,) = puzzle.answers
        video = marks.turned_back(video, scene.turn)
        room = _room(scene)
        ball = marks.decode(video, ("floor", "wall", scene.colour)) == marks.SYMBOLS[scene.colour]
        # The first frame is known; in the others the ball is found wherever it is.
        centres, area, far = (np.array(x) for x in zip(*map(_find, ball[1:]), strict=True))
        true = np.array([_centre(place) for place in path])
        error = np.hypot(*(centres - true[1:]).T)
        after = np.array([_bounces(scene, f) > 0 for f in range(1, self.frames)])
        miss = np.maximum(error - 0.25, 0.0)  # less is drawing, not physics

        want = np.repeat(room[None], self.frames, axis=0)
        _put(want[0], _shadow(scene), "grey")
        _put(want[0], path[0], scene.colour)
        stray = marks.apart(video, want) > marks.TINTED
        stray[1:] &= ~(ball[1:] & (marks.apart(room, "floor") == 0))
        return Verdict(
            answer=float(np.exp(-miss[after].mean() / RADIUS)),
            gates={
                "before": marks.ramp(error[~after].max(initial=0.0), STEP, STEP / 2),
                "one": marks.ramp(far.max(), 4, 1),
                "whole": min(marks.ramp(area.min(), 7, 10), marks.ramp(area.max(), 18, 14)),
                "colour": min(
                    marks.pure(frame[mask], scene.colour)
                    for frame, mask in zip(video[1:], ball[1:], strict=True)
                ),
                "room": marks.ramp(stray.sum((1, 2)).max(), 6, 2),
                "reach": marks.ramp(_leap(scene, np.stack([true[0], *centres])), STEP, STEP / 2),
            },
        )


class HardBounce(Bounce):
    """Two reflections or more, and up to three steps per frame."""

    name = "bounce-hard"
    about = "A ball with a given velocity flies on and bounces off the walls at least twice."
    hard = True
    fastest = 3


def _leap(scene: Scene, path: Float[np.ndarray, "F 2"]) -> float:
    """How far at worst (pixels) the ball is from where a motion of its speed can have brought it.

    Each place (x, y) is compared with those one and two frames before; along each axis the ball may
    have come either way. So it can neither leap nor stay: one reflection may bring it back to where
    it was a frame ago, but two frames later it is elsewhere.
    """
    span, _, speed = STEP * np.array([scene.x, scene.y]).T
    path, worst = path - _centre((0, 0)), 0.0
    for frames in (1, 2):
        old, new = path[:-frames], path[frames:]
        miss = [abs(_folded(old + way * frames * speed, span) - new) for way in (1, -1)]
        worst = max(worst, np.hypot(*np.min(miss, axis=0).T).max())
    return worst


def _folded(position: int | np.ndarray, span: int | np.ndarray) -> int | np.ndarray:
    """Elastic reflection folds a straight path into a triangle wave between 0 and the span."""
    return span - abs(span - position % (2 * span))


def _path(x: Axis, y: Axis) -> tuple[Place, ...]:
    return tuple((x.place(f), y.place(f)) for f in range(Bounce.frames))


def _bounces(scene: Scene, frame: int) -> int:
    return scene.x.bounces(frame) + scene.y.bounces(frame)


def _shadow(scene: Scene) -> Place:
    return scene.x.at - scene.x.speed, scene.y.at - scene.y.speed


def _room(scene: Scene) -> Frame:
    frame = marks.canvas(Bounce.height, Bounce.width, "wall")
    width, height = (STEP * axis.span + len(BALL) for axis in (scene.x, scene.y))
    frame[:height, :width] = PALETTE["floor"]
    return frame


def _put(frame: Frame, place: Place, colour: str) -> None:
    x, y = (STEP * p for p in place)
    marks.paint(frame, y, x, BALL, colour)


def _centre(place: Place) -> Float[np.ndarray, "2"]:
    """(x, y) in pixels of the ball's middle."""
    return STEP * np.array(place) + (len(BALL) - 1) / 2


def _find(ball: Bool[np.ndarray, "H W"]) -> tuple[Float[np.ndarray, "2"], int, int]:
    """Centroid (x, y), area, and how many pixels lie too far from it to be of one ball."""
    y, x = ball.nonzero()
    if len(x) == 0:
        return np.full(2, 1e3), 0, 0
    at = np.array([x.mean(), y.mean()])
    return at, len(x), int((np.hypot(x - at[0], y - at[1]) > RADIUS + 1).sum())


def _motions(fastest: int, bounces: range) -> tuple[tuple[Axis, Axis], ...]:
    """All motions with so many reflections, one for each class under the square's symmetries.

    A mirror reverses an axis, so only speeds >= 0 (and at rest the nearer half) are listed; a
    transposition exchanges the axes, so pairs are unordered. The shadow has to fit into the room,
    no ball starts at the wall that it heads for, and none only goes to and fro between two places,
    where a leap could not be told from a reflection.
    """
    axes = [
        Axis(span, at, speed)
        for span in SPANS
        for speed in range(fastest + 1)
        for at in (range(speed, span) if speed else range(span // 2 + 1))
    ]
    last = Bounce.frames - 1
    return tuple(
        (x, y)
        for x, y in itertools.combinations_with_replacement(axes, 2)
        if x.bounces(last) + y.bounces(last) in bounces and len(set(_path(x, y))) > 2
    )


_MOTIONS = {
    Bounce.name: _motions(Bounce.fastest, range(1, 2)),
    HardBounce.name: _motions(HardBounce.fastest, range(2, 100)),
}
