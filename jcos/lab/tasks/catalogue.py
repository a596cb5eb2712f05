"""The tasks by name, and how often each is solved by chance."""

import numpy as np

from jcos.lab.tasks.base import Task
from jcos.lab.tasks.bounce import Bounce, HardBounce
from jcos.lab.tasks.maze import HardMaze, LargerMaze, Maze
from jcos.lab.tasks.pattern import Pattern
from jcos.lab.tasks.returns import Returns
from jcos.lab.tasks.rotation import Rotation
from jcos.lab.tasks.tictactoe import TicTacToe, TicTacToeBlock

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
        LargerMaze(),
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
