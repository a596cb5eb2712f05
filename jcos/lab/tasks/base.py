"""What a small reasoning task is: seeded puzzles, their right answers as videos, and a judge.

A puzzle's right answers can be enumerated (`Puzzle.answers`), so whatever a model shows between
noise and answer can be compared with all of them, not only with the one that a data set happens to
hold.

A judge reads before it compares (`jcos.tasks.marks`): what is far from every colour that the scene
can hold is nothing, so a half-transparent blend of two answers is no answer.
"""

import abc
import dataclasses
import hashlib
import math
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

Video = UInt8[np.ndarray, "F H W 3"]
Frame = UInt8[np.ndarray, "H W 3"]
Split = Literal["train", "test"]

TILE = 4
"""Side of a tile in pixels: the codec's stride of 2 times the DiT's patch of 2, hence one token."""

PALETTE: dict[str, tuple[int, int, int]] = {
    "floor": (236, 234, 224),
    "shade": (206, 204, 196),
    "wall": (27, 27, 38),
    "grey": (128, 128, 132),
    "red": (220, 38, 38),
    "green": (58, 190, 92),
    "blue": (36, 82, 224),
    "yellow": (240, 190, 30),
    "purple": (150, 60, 190),
}
COLOURS = ("red", "green", "blue", "yellow", "purple")
"""Palette entries an object may have."""

HELD_OUT = 8
"""One puzzle identity in this many belongs to the test split, unless a task says otherwise."""


class Verdict(NamedTuple):
    """What a task's judge found.

    answer: how right the answer is, 0..1.
    gates: 0..1 each. `raw` is the answer times all of them: no gate can be bought with another.
    """

    answer: float
    gates: dict[str, float]

    @property
    def raw(self) -> float:
        return self.answer * math.prod(self.gates.values())


class Score(NamedTuple):
    """score: 0 for the still picture, 1 for a right answer. solved: it reaches the task's bar."""

    score: float
    solved: bool
    answer: float
    gates: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Puzzle:
    """One puzzle.

    identity: the puzzle up to the task's symmetries (mirrors, turns, exchange of colours); the
        split is drawn from it, so that no mirrored copy of a test puzzle is ever trained on.
    scene: the task's own description of the first frame.
    answers: every right answer in the task's own terms (a path, a cell, …), all different, at least
        one.
    one_in: of so many identities one is in the test split.
    """

    task: str
    prompt: str
    identity: tuple
    scene: Any
    answers: tuple
    one_in: int = HELD_OUT

    @property
    def held_out(self) -> bool:
        """Whether the puzzle is in the test split."""
        digest = hashlib.blake2b(repr((self.task, self.identity)).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") % self.one_in == 0


class Task(abc.ABC):
    """A family of puzzles. Subclasses are stateless; `jcos.tasks.TASKS` holds one of each."""

    name: ClassVar[str]
    about: ClassVar[str]
    """One sentence: what is shown and what is asked."""
    faculty: ClassVar[str]
    """The benchmark category it is kin to: Spatiality, Knowledge, Abstraction, Transformation or
    Perception."""
    hard: ClassVar[bool] = False
    frames: ClassVar[int] = 5
    height: ClassVar[int] = 20
    width: ClassVar[int] = 20
    solved_at: ClassVar[float] = 0.99

    @abc.abstractmethod
    def make(self, rng: np.random.Generator) -> Puzzle:
        """A random puzzle, of either split."""

    @abc.abstractmethod
    def draw(self, puzzle: Puzzle, answer: Any) -> Video:
        """The video of one answer, right or wrong. Frame 0 does not depend on it."""

    @abc.abstractmethod
    def guess(self, puzzle: Puzzle, rng: np.random.Generator) -> Any:
        """A random answer that obeys the rules of the scene but not the question: chance level."""

    @abc.abstractmethod
    def judge(self, puzzle: Puzzle, video: Video) -> Verdict:
        """How right the video's answer is, and whether it came about as it should."""

    def sample(self, seed: int | tuple[int, ...], split: Split = "train") -> Puzzle:
        """The puzzle of this seed in this split; the same on every machine."""
        rng = np.random.default_rng(seed)
        while True:
            puzzle = self.make(rng)
            if puzzle.held_out == (split == "test"):
                return puzzle

    def reference(self, puzzle: Puzzle, rng: np.random.Generator) -> Video:
        """One right answer, all equally likely: what a model is trained on."""
        return self.draw(puzzle, puzzle.answers[rng.integers(len(puzzle.answers))])

    def first_frame(self, puzzle: Puzzle) -> Frame:
        """What a model is given, beside the prompt: [H, W, 3]."""
        return self.draw(puzzle, puzzle.answers[0])[0]

    def routes(self, puzzle: Puzzle) -> UInt8[np.ndarray, "K F H W 3"]:
        """All right answers drawn, in the order of `puzzle.answers`."""
        return np.stack([self.draw(puzzle, answer) for answer in puzzle.answers])

    def score(self, puzzle: Puzzle, video: Video) -> Score:
        """Score of a video [F, H, W, 3] uint8, less what the still picture would get.

        Raises ValueError if the video has another shape or type than the task draws.
        """
        want = (self.frames, self.height, self.width, 3)
        if video.shape != want or video.dtype != np.uint8:
            raise ValueError(
                f"{self.name}: scored videos are uint8 of shape {want}, "
                f"this one is {video.dtype} {video.shape}"
            )
        verdict = self.judge(puzzle, video)
        score = 0.0
        if verdict.raw > 0.0:  # else there is nothing to subtract from
            still = still_of(self.draw(puzzle, puzzle.answers[0]))
            null = self.judge(puzzle, still).raw
            score = max(0.0, (verdict.raw - null) / (1.0 - null))
        return Score(score, score >= self.solved_at, *verdict)


def still_of(video: Video) -> Video:
    """The first frame held for the whole clip: the baseline that every score has to beat."""
    return np.repeat(video[:1], len(video), axis=0)
