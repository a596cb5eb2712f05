"""Small reasoning tasks whose right answers can be listed; `TASKS` holds one of each."""

from jcos.tasks.base import PALETTE, Puzzle, Score, Split, Task, Verdict, Video, still_of
from jcos.tasks.bounce import Bounce, HardBounce
from jcos.tasks.catalogue import TASKS, chance, get
from jcos.tasks.marks import decode
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
