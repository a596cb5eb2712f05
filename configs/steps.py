"""When does the answer appear, and what do early estimates blend? (Paper, section 3.1.)

    jcos run configs/steps.py

Writes out/steps: the share of puzzles solved by each step, the step of
commitment, how much of each estimate is which answer, all beside the ideal denoiser; how well early
uncertainty predicts failure; grids of estimates, steps × frames.

3 minutes on one core of two (x86_64, 2026-11-21).
"""

from jcos.experiments.steps import Steps

experiment = Steps(puzzles=64)
