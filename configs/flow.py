"""How far does a perturbation reach, and when is a run most sensitive to it? (Paper, section 3.2.)

    jcos run configs/flow.py

5 minutes on one core of two (x86_64, 2026-11-21).
"""

from jcos.experiments.experiment import Settings
from jcos.experiments.flow import Flow

experiment = Flow(puzzles=24, several=True, sampling=Settings(steps=20))
