"""What does acting on early estimates buy, at equal compute?

    jcos run configs/search.py

About 70,000 passes through the small model (59,000 took 614 s on 2 × x86_64 CPU, 2026-11-29), and
replays. Shorter: --set puzzles=128 --set training=32 --set drawn=8.

Other tasks: --set tasks=tictactoe-block,bounce-hard; mazes with several routes: --set tasks=maze
--set several=true; larger mazes: --set tasks=maze9. Up to 800 forwards: --set few=32.
"""

from jcos.experiments.experiment import Settings
from jcos.experiments.search import Search

experiment = Search(sampling=Settings(steps=10))
