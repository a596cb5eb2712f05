"""Which channels and tokens rule the norm, and what is left without them? (arXiv 2402.17762.)

    jcos run configs/activations.py

Writes out/activations: by layer and step, how much of the norm lies in three channels and whether
they are the same in every run; energy, CKA and linear probes with them, without them and without as
many others; the norm by frame.

1.7 minutes on one core of two (x86_64, shared machine, 2026-11-30).

The 20 steps are for the small model; for another take its own with --set sampling.steps=none.
"""

from jcos.experiments.activations import Activations
from jcos.experiments.experiment import Settings

experiment = Activations(puzzles=24, sampling=Settings(steps=20))
