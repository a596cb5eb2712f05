"""Which layer decides the answer? Tokens of a donor run in place of the receiver's. (Paper, section
5.2.)

    jcos run configs/swap.py

Writes out/swap: by layer, how often a run ends with the donor's answer,
for swaps in the first step, in every other one and kept up over several; the donor's share in the
estimate at once; the same for the object's tokens alone; films of one pair of each kind.

12.5 minutes on one core of two (x86_64, 2026-11-21).

The 10 steps are for the small model; for another take its own with --set sampling.steps=none.
"""

from jcos.experiments.experiment import Settings
from jcos.experiments.swap import Swap

experiment = Swap(puzzles=12, sampling=Settings(steps=10))
