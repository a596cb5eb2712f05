"""Which channels and tokens rule the norm, and what is left without them? (arXiv 2402.17762.)

    jcos run configs/activations.py

1.7 minutes on one core of two (x86_64, shared machine, 2026-11-30).
"""

from jcos.experiments.activations import Activations
from jcos.experiments.experiment import Settings

experiment = Activations(puzzles=24, sampling=Settings(steps=20))
