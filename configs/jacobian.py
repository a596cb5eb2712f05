"""How far does the state of a step move the clean estimate? (arXiv 2507.12549.)

    jcos run configs/jacobian.py

Writes out/jacobian: the size of ∂x̂0/∂x_s by step, in what a right answer changes and in the rest,
for puzzles with one and with several right answers, beside the ideal denoiser's at the same states.

1.6 minutes on one core of two (x86_64, shared machine, 2026-11-30).

The 8 steps are for the small model; for another take its own with --set sampling.steps=none.
"""

from jcos.experiments.experiment import Settings
from jcos.experiments.jacobian import Jacobian

experiment = Jacobian(puzzles=24, sampling=Settings(steps=8))
