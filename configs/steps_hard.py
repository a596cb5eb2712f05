"""When does the answer appear in puzzles that the model often fails, and does an unsure early
estimate tell that it will fail? (Paper, section 3.1, on mazes of 7 × 7 cells.)

    jcos run configs/steps_hard.py

1.5 minutes on one core of two (x86_64, 2026-11-22).
"""

from jcos.experiments.steps import Steps

experiment = Steps(tasks=("maze7",), puzzles=64)
