"""Which layer decides the answer? Tokens of a donor run in place of the receiver's. (Paper, section
5.2.)

    jcos run configs/swap.py

12.5 minutes on one core of two (x86_64, 2026-11-21).
"""

from jcos.experiments.experiment import Settings
from jcos.experiments.swap import Swap

experiment = Swap(puzzles=12, sampling=Settings(steps=10))
