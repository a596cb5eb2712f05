"""Tic-tac-toe: place the winning stone, of which there may be several, or the one that blocks.

Cells are (row, column) of the 3x3 board. A `Board` is its nine marks row by row: 0 where empty, 1
for the mover's stones, 2 for the other's.
"""

import functools
import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jcos.lab.tasks.base import TILE, Frame, Puzzle, Task, Verdict, Video
from jcos.lab.tasks.marks import SYMBOLS, canvas, decode, paint, symmetries, tiles

Cell = tuple[int, int]
Board = tuple[int, ...]

MOVER, OTHER = 1, 2
LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))

# Parts of a tile: the quadrants of a stone, clockwise from twelve o'clock, and the tile's corners.
_PARTS = np.array([[4, 3, 0, 4], [3, 3, 0, 0], [2, 2, 1, 1], [4, 2, 1, 4]])
_QUADRANTS, _N_PARTS = 4, 5
_MASKS = _PARTS.ravel() == np.arange(_N_PARTS)[:, None]
_MEANS = (_MASKS / _MASKS.sum(1, keepdims=True)).astype(np.float32)


class Scene(NamedTuple):
    """colours: of the nine cells row by row, None where empty. mover: colour to place."""

    colours: tuple[str | None, ...]
    mover: str


class TicTacToe(Task):
    """Win in one move; the answers are all the winning cells."""

    name = "tictactoe"
    about = "A game of tic-tac-toe; the named colour places a stone that makes three in a row."
    faculty = "Knowledge"

    aim = "win"
    empties: tuple[int, ...] = (3, 4, 5)

    def make(self, rng: np.random.Generator) -> Puzzle:
        # Drawing the number of empty cells and the cell to find before the position balances both.
        groups = _positions(self.aim, self.empties)
        group = groups[rng.integers(len(groups))]
        board, cells = group[rng.integers(len(group))]
        mover, other = (("red", "blue"), ("blue", "red"))[rng.integers(2)]
        scene = Scene(tuple((None, mover, other)[mark] for mark in board), mover)
        prompt = f"{mover} to move and {self.aim}"
        answers = tuple(divmod(cell, 3) for cell in cells)
        return Puzzle(self.name, prompt, (_canonical(board),), scene, answers)

    def draw(self, puzzle: Puzzle, answer: Cell) -> Video:
        scene: Scene = puzzle.scene
        video = np.repeat(_draw_board(scene)[None], self.frames, axis=0)
        for f, frame in enumerate(video):
            _put(frame, answer, np.less(_PARTS, f), scene.mover)
        return video

    def guess(self, puzzle: Puzzle, rng: np.random.Generator) -> Cell:
        """Any empty cell."""
        empty = [i for i, colour in enumerate(puzzle.scene.colours) if colour is None]
        return divmod(empty[rng.integers(len(empty))], 3)

    def judge(self, puzzle: Puzzle, video: Video) -> Verdict:
        """Right or wrong by the last frame, gated by how the stone got there.

        scene: 1 - (parts of tiles changed beside the new stone's tile, worst frame) / 8.
        growth: every frame f shows the first f quadrants of the new stone and no more of it.
        """
        symbols, blank = _read(video), _read(_draw_board(puzzle.scene)[None])[0]
        changed: list[Cell] = [
            cell
            for cell, colour in zip(np.ndindex(3, 3), puzzle.scene.colours, strict=True)
            if colour is None and (symbols[-1] != blank)[_place(cell)].any()
        ]
        if len(changed) != 1:
            return Verdict(0.0, {"scene": _kept(symbols != blank), "growth": 0.0})
        cell = changed[0]
        wrong = symbols != _read(self.draw(puzzle, cell))
        growth = not wrong[:, *_place(cell)].any()
        whole = not wrong[-1][_place(cell)].any()
        wrong[:, *_place(cell)] = False
        answer = float(whole and cell in puzzle.answers)
        return Verdict(answer, {"scene": _kept(wrong), "growth": float(growth)})


class TicTacToeBlock(TicTacToe):
    """Stop the other colour, which threatens one cell; the mover has no winning cell itself."""

    name = "tictactoe-block"
    about = "A game of tic-tac-toe; the named colour places the stone that stops three in a row."
    hard = True

    aim = "block"
    empties = (3, 4, 5, 6)


@functools.cache
def _positions(aim: str, empties: tuple[int, ...]) -> list[list[tuple[Board, tuple[int, ...]]]]:
    """All positions with their answers, grouped by number of empty cells and by answer.

    A position with two answers is in two groups. The mover is to move, whoever began.
    """
    groups: dict[tuple[int, int], list] = {}
    for board in itertools.product((0, MOVER, OTHER), repeat=9):
        n_empty, ahead = board.count(0), board.count(OTHER) - board.count(MOVER)
        if n_empty not in empties or ahead not in (0, 1) or _has_line(board):
            continue
        cells, threats = winning_cells(board, MOVER), winning_cells(board, OTHER)
        if aim == "block":
            cells = threats if not cells and len(threats) == 1 else ()
        for cell in cells:
            groups.setdefault((n_empty, cell), []).append((board, cells))
    return [groups[key] for key in sorted(groups)]


def winning_cells(board: Board, mark: int) -> tuple[int, ...]:
    """Empty cells that complete three of the mark in a row."""
    wins = {
        i
        for line in LINES
        for i in line
        if board[i] == 0 and all(board[j] == mark for j in line if j != i)
    }
    return tuple(sorted(wins))


def _has_line(board: Board) -> bool:
    return any(board[a] == board[b] == board[c] != 0 for a, b, c in LINES)


def _canonical(board: Board) -> Board:
    """The smallest of the eight mirrored and turned copies."""
    return min(tuple(copy.ravel().tolist()) for copy in symmetries(np.reshape(board, (3, 3))))


def _draw_board(scene: Scene) -> Frame:
    frame = canvas(5 * TILE, 5 * TILE, "wall")
    for cell, colour in zip(np.ndindex(3, 3), scene.colours, strict=True):
        _put(frame, cell, np.less(_PARTS, _N_PARTS), "shade" if sum(cell) % 2 else "floor")
        if colour is not None:
            _put(frame, cell, np.less(_PARTS, _QUADRANTS), colour)
    return frame


def _place(cell: Cell) -> tuple[int, int]:
    """Where the cell is among the 5x5 tiles."""
    return cell[0] + 1, cell[1] + 1


def _put(frame: Frame, cell: Cell, mask: Bool[np.ndarray, "4 4"], colour: str) -> None:
    row, column = _place(cell)
    paint(frame, TILE * row, TILE * column, mask, colour)


def _read(video: Video) -> Int[np.ndarray, "F 5 5 P"]:
    """Symbols of each tile's parts, of their mean colour: noise averages out."""
    pixels = tiles(video, TILE).reshape(len(video), 5, 5, -1, 3)
    symbols = decode(_MEANS @ pixels, ("floor", "shade", "wall", "red", "blue"))
    return np.where(symbols == SYMBOLS["shade"], SYMBOLS["floor"], symbols)  # too near to tell


def _kept(wrong: Bool[np.ndarray, "F 5 5 P"]) -> float:
    """How much of the scene is left; nothing with 8 parts changed, as by two stones that swap."""
    return max(0.0, 1.0 - float(wrong.sum((1, 2, 3)).max()) / 8)
