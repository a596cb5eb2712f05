"""Does averaging over three seeds help by a point? (Paper, section 6.)

    jcos run configs/ensemble_large.py

Writes out/ensemble_large: mazes solved with the mean of three seeds' tokens in the first step,
against one run, the majority and the best of three, and one run with as many forwards; nothing
else of configs/ensemble.py, so that 1,600 puzzles can be paid for.

The 10 steps are for the small model; for another take its own with --set sampling.steps=none.
"""

from jcos.experiments.ensemble import Ensemble
from jcos.experiments.experiment import Settings

experiment = Ensemble(
    tasks=("maze",),
    puzzles=1600,
    seeds=(0, 1, 2),
    more_members=(),
    layers=(),
    until=(),
    sampling=Settings(steps=10),
)
