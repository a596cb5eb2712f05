import dataclasses

from jcos.lab.tasks.base import PALETTE
from jcos.lab.tasks.pattern import GROWTH, SIDES, Pattern

TASK = Pattern()
PUZZLES = [TASK.sample(i) for i in range(24)]


def test_the_next_item_continues_both_cycles_and_never_repeats_the_last_size():
    for puzzle in PUZZLES:
        scene, (answer,) = puzzle.scene, puzzle.answers
        assert answer.side == scene.sides[scene.shown % 3] != scene.sides[(scene.shown - 1) % 3]
        assert answer.colour == scene.colours[scene.shown % 2]
        assert sorted(scene.sides) == sorted(SIDES)


def test_the_new_item_has_the_area_of_its_size():
    for puzzle in PUZZLES:
        puzzle = dataclasses.replace(puzzle, scene=puzzle.scene._replace(disc=False))
        (answer,) = puzzle.answers
        video = TASK.draw(puzzle, answer)
        new = (video != video[0]).any(-1).sum((1, 2))
        assert new.tolist() == [side**2 for side in GROWTH[answer.side]]


def test_a_changed_item_or_a_spot_beside_loses_all():
    for puzzle in PUZZLES:
        video = TASK.draw(puzzle, puzzle.answers[0])
        colour = PALETTE[puzzle.scene.colours[0]]
        recoloured = video.copy()
        recoloured[3][(video[0] == colour).all(-1)] = PALETTE["wall"]
        assert TASK.score(puzzle, recoloured).score == 0.0
        spotted = video.copy()
        spotted[2, 9:11, 8:12] = colour  # between the two rows
        assert TASK.score(puzzle, spotted).score == 0.0


def test_answers_are_balanced():
    answers = [TASK.sample(i).answers[0].side for i in range(300)]
    assert all(70 < answers.count(side) < 130 for side in SIDES)
