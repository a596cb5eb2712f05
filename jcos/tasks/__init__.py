"""Small reasoning tasks whose right answers can be listed; `TASKS` holds one of each."""

import numpy as np

from jcos.tasks.base import PALETTE, Puzzle, Score, Split, Task, Verdict, Video, decode, still_of
from jcos.tasks.bounce import Bounce, HardBounce
from jcos.tasks.maze import HardMaze, Maze
from jcos.tasks.pattern import Pattern
from jcos.tasks.returns import Returns
from jcos.tasks.rotation import Rotation
from jcos.tasks.tictactoe import TicTacToe, TicTacToeBlock

__all__ = [
    "PALETTE",
    "TASKS",
    "Bounce",
    "HardBounce",
    "HardMaze",
    "Maze",
    "Pattern",
    "Puzzle",
    "Returns",
    "Rotation",
    "Score",
    "Split",
    "Task",
    "TicTacToe",
    "TicTacToeBlock",
    "Verdict",
    "Video",
    "chance",
    "decode",
    "get",
    "still_of",
]

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Maze(),
        TicTacToe(),
        Pattern(),
        Rotation(),
        Returns(),
        Bounce(),
        HardMaze(),
        TicTacToeBlock(),
        HardBounce(),
    )
}


def get(name: str) -> Task:
    """The task of this name. Raises ValueError if there is none."""
    if name not in TASKS:
        raise ValueError(f"there is no task {name!r}; the tasks are {', '.join(TASKS)}")
    return TASKS[name]


def chance(task: Task, n: int = 1000, seed: int = 0) -> float:
    """The fraction of n held-out puzzles that `guess` solves."""
    rng = np.random.default_rng(seed)
    puzzles = (task.sample((seed, i), "test") for i in range(n))
    return sum(task.score(p, task.draw(p, task.guess(p, rng))).solved for p in puzzles) / n
