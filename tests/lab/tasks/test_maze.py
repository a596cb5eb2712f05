import dataclasses
import itertools

import numpy as np
import pytest

from jcos.lab.tasks.maze import HardMaze, Maze, Scene, identity_of

MAZES = [Maze(), HardMaze()]


def simple_paths(scene, trail):
    """All ways from the trail's end to the goal that visit no cell twice, by brute force."""
    if trail[-1] == scene.goal:
        yield trail
        return
    for a, b in scene.doors:
        for here, there in ((a, b), (b, a)):
            if here == trail[-1] and there not in trail:
                yield from simple_paths(scene, (*trail, there))


def turned(scene, turn):
    """The scene with each cell moved by a symmetry of the square."""
    doors = sorted(tuple(sorted((turn(a), turn(b)))) for a, b in scene.doors)
    return Scene(scene.side, tuple(doors), turn(scene.start), turn(scene.goal))


@pytest.fixture
def corridor():
    """A 5x5 maze with a way of 4 steps along the top and a detour of 6 through the second row.

    S . . . G
    . . . . .   doors down at columns 0, 1, 2; the other rows hang below.
    """
    across = [((r, c), (r, c + 1)) for r in range(5) for c in range(4)]
    down = [((0, c), (1, c)) for c in range(3)] + [((r, 0), (r + 1, 0)) for r in range(1, 4)]
    scene = Scene(5, tuple(sorted(across + down)), (0, 0), (0, 4))
    shortest = tuple((0, c) for c in range(5))
    puzzle = Maze().sample(0)
    return dataclasses.replace(puzzle, scene=scene, answers=(shortest,))


@pytest.mark.parametrize("task", MAZES, ids=lambda task: task.name)
def test_answers_are_all_shortest_paths(task):
    for seed in range(30):
        puzzle = task.sample(seed)
        paths = list(simple_paths(puzzle.scene, (puzzle.scene.start,)))
        shortest = min(map(len, paths))
        assert sorted(puzzle.answers) == sorted(path for path in paths if len(path) == shortest)
        assert task.least_steps <= shortest - 1
        assert len(puzzle.answers) <= (1 if task.hard else task.most_answers)


def test_mazes_often_have_several_answers():
    several = [len(Maze().sample(seed).answers) > 1 for seed in range(300)]
    assert 0.2 < np.mean(several) < 0.5


@pytest.mark.parametrize("task", MAZES, ids=lambda task: task.name)
def test_turned_and_mirrored_copies_have_the_same_identity(task):
    last = task.side - 1
    turns = [
        lambda cell: (cell[1], cell[0]),
        lambda cell: (last - cell[0], cell[1]),
        lambda cell: (cell[0], last - cell[1]),
        lambda cell: (cell[1], last - cell[0]),
        lambda cell: (last - cell[1], last - cell[0]),
    ]
    for seed, turn in itertools.product(range(20), turns):
        puzzle = task.sample(seed)
        copy = turned(puzzle.scene, turn)
        assert copy != puzzle.scene
        assert identity_of(copy) == puzzle.identity


def test_identity_tells_start_goal_and_doors_apart(corridor):
    scene = corridor.scene
    others = [
        scene._replace(start=scene.goal, goal=(2, 2)),
        scene._replace(goal=(1, 4)),
        scene._replace(doors=scene.doors[1:]),
    ]
    assert len({identity_of(s) for s in [scene, *others]}) == 4


@pytest.mark.parametrize(
    ("trail", "score"),
    [
        (((0, 0), (1, 0), (1, 1), (0, 1), (0, 2), (0, 3), (0, 4)), 4 / 6),  # a detour
        (((0, 0), (0, 1), (0, 2)), 0.5),  # half of the way
        (((0, 0), (1, 0), (2, 0)), 0.0),  # away
    ],
)
def test_part_of_the_way_is_part_of_the_score(corridor, trail, score):
    found = Maze().score(corridor, Maze().draw(corridor, trail))
    assert found.score == pytest.approx(score)
    assert not found.solved


def test_walking_through_a_wall_scores_zero(corridor):
    doors = tuple(door for door in corridor.scene.doors if door != ((0, 2), (0, 3)))
    around = ((0, 3), (1, 3))  # the goal stays within reach, another way
    walled = corridor.scene._replace(doors=tuple(sorted([*doors, around])))
    puzzle = dataclasses.replace(corridor, scene=walled)
    video = Maze().draw(puzzle, corridor.answers[0])  # draws over the wall
    assert Maze().score(puzzle, video).score == 0.0
    opened = Maze().draw(corridor, corridor.answers[0])  # takes the wall away
    assert Maze().score(puzzle, opened).score == 0.0


def test_a_second_agent_a_lost_goal_and_any_other_change_cost(corridor):
    task = Maze()
    video = task.draw(corridor, corridor.answers[0])

    def changed(frames, row, pixel):
        spoilt = video.copy()
        spoilt[frames, row : row + 2, 17:19] = video[0, *pixel]
        return task.score(corridor, spoilt)

    assert changed(2, 17, (1, 1)).score == 0.0
    assert changed(slice(1, 4), 1, (17, 17)).score < 0.5
    score = changed(3, 17, (0, 0))
    assert score.gates["scene"] == pytest.approx(0.8)
    assert not score.solved
