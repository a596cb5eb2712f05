"""When does the answer appear, and what do early estimates blend? (Paper, section 3.1.)

    jcos run configs/steps.py

3 minutes on one core of two (x86_64, 2026-11-21).
"""

from jcos.experiments.steps import Steps

experiment = Steps(puzzles=64)
