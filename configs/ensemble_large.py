"""Does averaging over three seeds help by a point? (Paper, section 6.)

    jcos run configs/ensemble_large.py

The paper's comparison and nothing else of configs/ensemble.py, on 1,600 mazes.
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
