import dataclasses

import pytest

from jcos.lab.tasks import bounce
from jcos.lab.tasks.base import PALETTE
from jcos.lab.tasks.bounce import Axis, Bounce, HardBounce

TASKS = [Bounce(), HardBounce()]


@pytest.fixture(params=TASKS, ids=lambda task: task.name)
def task(request):
    return request.param


@pytest.fixture
def puzzles(task):
    return [task.sample(i) for i in range(24)]


def simulated(axis):
    """Positions in five frames, found in steps of a hundredth of a frame; and the reflections."""
    at, speed, count, places = float(axis.at), axis.speed / 100, 0, [axis.at]
    for i in range(1, 401):
        at += speed
        if not -1e-9 <= at <= axis.span + 1e-9:
            at, speed, count = 2 * (axis.span if at > 0 else 0) - at, -speed, count + 1
        if i % 100 == 0:
            places.append(round(at))
    return places, count


def test_paths_are_those_of_a_simulation():
    for motions in bounce._MOTIONS.values():
        for axis in {axis for motion in motions for axis in motion}:
            places, count = simulated(axis)
            assert [axis.place(f) for f in range(5)] == places, axis
            assert axis.bounces(4) == count, axis
    assert [Axis(6, 3, -2).place(f) for f in range(5)] == [3, 1, 1, 3, 5]


def test_each_identity_stands_for_one_class_under_the_symmetries():
    def images(x, y):
        for u, v in ((x, y), (y, x)):
            for a in (u, Axis(u.span, u.span - u.at, -u.speed)):
                for b in (v, Axis(v.span, v.span - v.at, -v.speed)):
                    yield a, b

    for motions in bounce._MOTIONS.values():
        seen = [frozenset(images(*motion)) for motion in motions]
        assert len(set(seen)) == len(motions)


def test_the_shadow_lies_one_step_back_inside_the_room(task, puzzles):
    """And the ball is reflected once, in the hard task at least twice."""
    for puzzle in puzzles:
        x, y = puzzle.scene.x, puzzle.scene.y
        assert (x.bounces(4) + y.bounces(4) > 1) == task.hard
        for axis in (x, y):
            assert 0 <= axis.at - axis.speed <= axis.span
        grey = (task.draw(puzzle, puzzle.answers[0]) == PALETTE["grey"]).all(-1).sum((1, 2))
        assert grey[0] >= 6
        assert not grey[1:].any()


def test_an_answer_is_solved_only_without_an_error(task, puzzles):
    """A ball that is one step off in one frame after the bounce is not solved."""
    for puzzle in puzzles:
        (path,) = puzzle.answers
        x, y = path[-1]
        off = (*path[:-1], (x + 1 if x < puzzle.scene.x.span else x - 1, y))
        score = task.score(puzzle, task.draw(puzzle, off))
        assert score.score < 1.0
        assert not score.solved


def test_a_frame_held_scores_nothing(task, puzzles):
    for puzzle in puzzles:
        video = task.draw(puzzle, puzzle.answers[0])
        for when in range(1, 5):
            held = video.copy()
            held[when] = video[when - 1]
            if (held != video).any():
                assert task.score(puzzle, held).score <= 0.1


def test_no_ball_and_one_in_the_wall_or_of_another_colour_score_nothing(task, puzzles):
    for puzzle in puzzles:
        puzzle = dataclasses.replace(puzzle, scene=puzzle.scene._replace(turn=0))
        video = task.draw(puzzle, puzzle.answers[0])
        ball = (video == PALETTE[puzzle.scene.colour]).all(-1)
        none, wall, recoloured = video.copy(), video.copy(), video.copy()
        none[2][ball[2]] = PALETTE["floor"]
        recoloured[2][ball[2]] = PALETTE["grey"]
        wall[2, :2, :4] = PALETTE[puzzle.scene.colour]
        for spoilt in (none, wall, recoloured):
            assert task.score(puzzle, spoilt).score < 0.1
