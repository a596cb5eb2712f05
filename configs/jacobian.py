"""How far does the state of a step move the clean estimate? (arXiv 2507.12549.)

    jcos run configs/jacobian.py

1.6 minutes on one core of two (x86_64, shared machine, 2026-11-30).
"""

from jcos.experiments.experiment import Settings
from jcos.experiments.jacobian import Jacobian

experiment = Jacobian(puzzles=24, sampling=Settings(steps=8))
