"""Which heads and layers of which steps carry the answer, and does a gradient tell?

    jcos run configs/attribution.py

Writes out/attribution: what patching heads, hidden units and whole layers of one run with those of
another (same picture and noise, another prompt) does to the run's end, exactly and estimated by one
backward pass; how well the two agree, also where attention is saturated.

The 6 steps are for the small model; for another take its own with --set sampling.steps=none.
"""

from jcos.experiments.attribution import Attribution
from jcos.experiments.experiment import Settings

experiment = Attribution(puzzles=6, sampling=Settings(steps=6))
