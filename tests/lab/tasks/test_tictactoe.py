import collections

import numpy as np
import pytest

from jcos.lab.tasks.base import PALETTE
from jcos.lab.tasks.marks import symmetries
from jcos.lab.tasks.tictactoe import (
    LINES,
    MOVER,
    OTHER,
    TicTacToe,
    TicTacToeBlock,
    _canonical,
    winning_cells,
)

GAMES = [TicTacToe(), TicTacToeBlock()]
games = pytest.mark.parametrize("task", GAMES, ids=lambda task: task.name)


def marks(puzzle):
    other = {"red": "blue", "blue": "red"}[puzzle.scene.mover]
    return tuple(
        {None: 0, puzzle.scene.mover: MOVER, other: OTHER}[c] for c in puzzle.scene.colours
    )


def wins(board, mark):
    """By brute force: place a stone and look for a line."""
    placed = [(i, (*board[:i], mark, *board[i + 1 :])) for i in range(9) if board[i] == 0]
    return tuple(i for i, b in placed if any(all(b[j] == mark for j in line) for line in LINES))


@games
def test_positions_are_legal_and_answers_right(task):
    for seed in range(300):
        puzzle = task.sample(seed)
        board = marks(puzzle)
        assert board.count(0) in task.empties
        assert board.count(OTHER) - board.count(MOVER) in (0, 1)
        assert not any(board[a] == board[b] == board[c] != 0 for a, b, c in LINES)
        cells = tuple(3 * r + c for r, c in puzzle.answers)
        own, threats = wins(board, MOVER), wins(board, OTHER)
        assert own == winning_cells(board, MOVER)
        assert threats == winning_cells(board, OTHER)
        if isinstance(task, TicTacToeBlock):
            assert (own, len(threats)) == ((), 1)
            assert cells == threats
        else:
            assert cells == own
            assert 1 <= len(own) <= 3
        assert puzzle.prompt == f"{puzzle.scene.mover} to move and {task.aim}"


@games
def test_answers_are_balanced(task):
    rng = np.random.default_rng(0)
    puzzles = [task.make(rng) for _ in range(3000)]
    answers = collections.Counter(p.answers[rng.integers(len(p.answers))] for p in puzzles)
    empties = collections.Counter(p.scene.colours.count(None) for p in puzzles)
    movers = collections.Counter(p.scene.mover for p in puzzles)
    for counts, kinds in ((answers, 9), (empties, len(task.empties)), (movers, 2)):
        assert len(counts) == kinds
        assert max(counts.values()) < 1.6 * min(counts.values()), counts


@games
def test_identity_ignores_turns_and_colours(task):
    for seed in range(50):
        board = marks(task.sample(seed))
        copies = [tuple(m.ravel().tolist()) for m in symmetries(np.reshape(board, (3, 3)))]
        assert {_canonical(copy) for copy in copies} == {task.sample(seed).identity[0]}


@games
def test_a_stone_of_the_other_colour_or_a_lost_one_is_not_solved(task):
    puzzle = next(p for p in map(task.sample, range(100)) if p.scene.colours.count(None) == 5)
    video, lost = (task.draw(puzzle, puzzle.answers[0]) for _ in range(2))
    video[(video != video[0]).any(-1)] = PALETTE[{"red": "blue", "blue": "red"}[puzzle.scene.mover]]
    assert task.score(puzzle, video).score == 0.0
    stone = next(i for i, c in enumerate(puzzle.scene.colours) if c is not None)
    row, column = (4 * (i + 1) for i in divmod(stone, 3))
    lost[2:, row : row + 4, column : column + 4] = PALETTE["floor"]
    assert task.score(puzzle, lost).score <= 0.5
    assert not task.score(puzzle, lost).solved
