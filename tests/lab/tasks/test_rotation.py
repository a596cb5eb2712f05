import numpy as np

from jcos.lab.tasks import rotation
from jcos.lab.tasks.base import PALETTE
from jcos.lab.tasks.marks import iou
from jcos.lab.tasks.rotation import POSES, SHAPES, Rotation

TASK = Rotation()
PUZZLES = [TASK.sample(i) for i in range(24)]


def test_every_pose_of_every_shape_fits_and_keeps_its_area():
    for shape, table in zip(SHAPES.values(), rotation._RASTERS, strict=True):
        area = 16 * sum(row.count("#") for row in shape)
        assert (abs(table.sum((1, 2)) - area) <= 0.08 * area).all()
        edges = table[:, 0] | table[:, -1] | table[:, :, 0] | table[:, :, -1]
        assert edges.sum() <= 20  # a corner may touch the border, but none is cut off


def test_no_end_pose_resembles_another_nor_the_mirror_image():
    for table in rotation._RASTERS:
        ends = table[:: POSES // 8]
        for i, end in enumerate(ends):
            others = np.concatenate([ends[:i], ends[i + 1 :], ends[:, :, ::-1]])
            assert iou(end, others).max() < 0.8


def test_a_mirror_image_has_the_same_identity_and_the_opposite_word():
    seen = {}
    for i in range(2000):
        puzzle = TASK.sample(i)
        video = TASK.draw(puzzle, puzzle.answers[0])
        shape = (video != PALETTE["floor"]).any(-1)
        seen.setdefault(puzzle.identity, {})[puzzle.scene.mirrored] = (shape, puzzle.prompt)
    both = [pair for pair in seen.values() if len(pair) == 2]
    assert len(both) > 60
    for pair in both:
        (shape, prompt), (mirrored, mirrored_prompt) = pair[False], pair[True]
        assert (shape == mirrored[:, :, ::-1]).all()
        assert {prompt.split()[3], mirrored_prompt.split()[3]} == {"left", "right"}
        assert prompt.split()[-1] == mirrored_prompt.split()[-1]


def test_left_is_anticlockwise():
    turns = {"left by 90": 1, "right by 90": -1}
    for puzzle in map(TASK.sample, range(200)):
        turn = turns.get(puzzle.prompt.removeprefix("rotate the shape "))
        if turn is not None:
            video = TASK.draw(puzzle, puzzle.answers[0])
            assert (video[-1] == np.rot90(video[0], turn)).all()


def test_a_half_turn_the_wrong_way_ends_right_and_scores_nothing():
    puzzle = next(p for p in map(TASK.sample, range(200)) if p.prompt.endswith("180"))
    (turn,) = puzzle.answers
    score = TASK.score(puzzle, TASK.draw(puzzle, -turn))
    assert score.answer == 1.0
    assert score.score == 0.0


def test_a_pose_held_for_one_frame_too_long_is_not_solved():
    for puzzle in PUZZLES:
        if abs(puzzle.answers[0]) > 1:
            video = TASK.draw(puzzle, puzzle.answers[0])
            video[2] = video[1]
            assert not TASK.score(puzzle, video).solved
