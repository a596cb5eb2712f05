"""What does acting on early estimates buy, at equal compute?

    jcos run configs/search.py

Writes out/search: mazes of 7 × 7 cells that are solved, against forwards: one run and longer ones,
best-of-N by oracle, chance and several judges, screening at an early step, restarts below a
threshold, LatSearch's resampling, Feynman–Kac, EvoSearch, and the paper's ensemble. Steps and
thresholds are fixed on training puzzles.

About 59,000 passes through the small model: 614 s on 2 × x86_64 CPU, 2026-11-29.

Shorter: --set puzzles=64 --set training=32 --set drawn=16.

The 10 steps are for the small model; for another take its own with --set sampling.steps=none.
"""

from jcos.experiments.experiment import Settings
from jcos.experiments.search import Search

experiment = Search(sampling=Settings(steps=10))
