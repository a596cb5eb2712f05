"""Small reasoning tasks whose right answers can be listed; `TASKS` holds one of each."""

from jcos.lab.tasks.base import PALETTE, Puzzle, Score, Split, Task, Verdict, Video, still_of
from jcos.lab.tasks.bounce import Bounce, HardBounce
from jcos.lab.tasks.catalogue import TASKS, chance, get
from jcos.lab.tasks.marks import decode
from jcos.lab.tasks.maze import HardMaze, LargerMaze, Maze
from jcos.lab.tasks.pattern import Pattern
from jcos.lab.tasks.returns import Returns
from jcos.lab.tasks.rotation import Rotation
from jcos.lab.tasks.tictactoe import TicTacToe, TicTacToeBlock

__all__ = [
    "PALETTE",
    "TASKS",
    "Bounce",
    "HardBounce",
    "HardMaze",
    "LargerMaze",
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
