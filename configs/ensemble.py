"""Does averaging over several seeds help, at equal compute? (Paper, section 6.)

    jcos run configs/ensemble.py

Writes out/ensemble: puzzles solved with the mean of three seeds' tokens
in the first step against one run, the majority and the best of as many, and one run with as many
forwards; 2 to 8 members; windows at every layer over more steps; means of estimates and of
velocities.

A point more or less needs some 1,600 puzzles: configs/ensemble_large.py, the paper's comparison
alone.

9.5 minutes on one core of two (x86_64, 2026-11-21).

The 10 steps are for the small model; for another take its own with --set sampling.steps=none.
"""

from jcos.experiments.ensemble import Ensemble
from jcos.experiments.experiment import Settings

experiment = Ensemble(
    tasks=("maze", "tictactoe"),
    puzzles=20,
    layers=(0, 0.5, 1.0),
    sampling=Settings(steps=10),
)
