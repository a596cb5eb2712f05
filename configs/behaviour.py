"""Does the model remember, correct itself, and see before it acts? (Paper, section 4.)

    jcos run configs/behaviour.py

4.5 minutes on one core of two (x86_64, 2026-11-21).
"""

from jcos.experiments.behaviour import Behaviour

experiment = Behaviour(puzzles=48)
