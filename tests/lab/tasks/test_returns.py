import dataclasses
import itertools

import numpy as np
import pytest

from jcos.lab.tasks.base import PALETTE
from jcos.lab.tasks.marks import iou
from jcos.lab.tasks.returns import MASKS, MODES, Returns, Thing

TASK = Returns()
PUZZLES = [TASK.sample(i) for i in range(24)]


def test_shapes_are_symmetric_and_differ():
    for mask in MASKS.values():
        assert (mask == mask.T).all()
        assert (mask == mask[::-1]).all()
    for a, b in itertools.combinations(MASKS.values(), 2):
        assert iou(a, b) <= 0.75


def test_the_object_is_hidden_in_two_frames_and_seen_in_three():
    for puzzle in PUZZLES:
        colour, shape = puzzle.scene.thing
        video = TASK.draw(puzzle, puzzle.answers[0])
        seen = (video == PALETTE[colour]).all(-1).sum((1, 2))
        assert (seen == MASKS[shape].sum() * np.array([1, 1, 0, 0, 1])).all()
        assert (video[-1] == video[1]).all() == (puzzle.answers[0].mode == "back")
        assert puzzle.prompt == MODES[puzzle.answers[0].mode]


def test_identity_knows_neither_the_turn_nor_the_bystander():
    lanes = set()
    for i in range(500):
        puzzle = TASK.sample(i)
        colour, shape, lane, mode = puzzle.identity
        assert Thing(colour, shape) == puzzle.scene.thing
        assert lane in (puzzle.scene.lane, 4 - puzzle.scene.lane)
        assert mode == puzzle.answers[0].mode
        lanes.add(lane)
    assert lanes == {0, 1, 2}


def test_the_bystander_stands_free_and_is_another_one():
    for puzzle in PUZZLES:
        scene = puzzle.scene
        row, column = scene.other_at
        assert row != scene.lane
        assert not (row in range(*scene.cover) and column in range(2, 2 + scene.width))
        assert scene.other.colour != scene.thing.colour
        assert scene.other.shape != scene.thing.shape
        assert scene.lane in range(*scene.cover)


@pytest.mark.parametrize("gate", ["before", "hidden", "bystander"])
def test_what_is_known_beforehand_must_stay(gate):
    for puzzle in PUZZLES:
        puzzle = dataclasses.replace(puzzle, scene=puzzle.scene._replace(turn=0))
        scene = puzzle.scene
        video = TASK.draw(puzzle, puzzle.answers[0])
        frame, row, column = {
            "before": (1, scene.lane, 1),
            "hidden": (2, scene.lane, 2),
            "bystander": (3, *scene.other_at),
        }[gate]
        video[frame, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = PALETTE["wall"]
        score = TASK.score(puzzle, video)
        assert score.gates[gate] == 0.0
        assert score.score == 0.0
