"""What do steps buy, and where are they best spent?

    jcos run configs/budget.py

Writes out/budget: score against forwards for 1 to 50 steps, for several
shifts, and for steps spent early, evenly or late, each also of the ideal denoiser under the
same schedule, and as a paired difference from the model's own spacing.

7.5 minutes on one core of two (x86_64, 2026-11-21).
"""

from jcos.experiments.budget import Budget

experiment = Budget(puzzles=48)
