"""Does averaging over several seeds help, at equal compute? (Paper, section 6.)

    jcos run configs/ensemble.py

9.5 minutes on one core of two (x86_64, 2026-11-21). A point more or less needs some 1,600 puzzles:
configs/ensemble_large.py, the paper's comparison alone.
"""

from jcos.experiments.ensemble import Ensemble
from jcos.experiments.experiment import Settings

experiment = Ensemble(
    tasks=("maze", "tictactoe"),
    puzzles=20,
    layers=(0, 0.5, 1.0),
    sampling=Settings(steps=10),
)
