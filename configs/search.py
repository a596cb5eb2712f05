"""What does acting on early estimates buy, at equal compute?

    jcos run configs/search.py

With --set drawn=512 --set few=32, as in docs/search.md, 2,722 s on one of two x86_64 cores
(2026-12-01). Shorter: --set puzzles=128 --set training=32 --set drawn=8.

Other tasks: --set tasks=tictactoe-block,bounce-hard; mazes with several routes: --set tasks=maze
--set several=true; larger mazes: --set tasks=maze9. Up to 800 forwards: --set few=32.
"""

from jcos.experiments.experiment import Settings
from jcos.experiments.search import Search

experiment = Search(sampling=Settings(steps=10))
