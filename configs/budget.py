"""What do steps buy, and where are they best spent?

    jcos run configs/budget.py

7.5 minutes on one core of two (x86_64, 2026-11-21).
"""

from jcos.experiments.budget import Budget

experiment = Budget(puzzles=48)
