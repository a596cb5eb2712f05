"""Which channels and tokens rule the norm, and what is left without them? (arXiv 2402.17762.)

    jcos run configs/activations.py

Writes out/activations: by layer and step, how much of the norm lies in three channels and whether
they are the same in every run; energy, CKA and linear probes with them, without them and without as
many others; the norm by frame.

The 20 steps are for the small model; for another take its own with --set sampling.steps=none.
"""

from jcos.experiments.activations import Activations
from jcos.experiments.experiment import Settings

experiment = Activations(puzzles=32, sampling=Settings(steps=20))
