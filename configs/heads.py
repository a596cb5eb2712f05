"""Which heads carry the route, the agent, the walls; and does one layer decide, seen by heads?

    jcos run configs/heads.py

Writes out/heads: what is lost without each head of self-attention, by zero and by the mean, at all
steps and in windows, beside the other heads of its layer; a chosen set of heads against random
ones, on other puzzles; and how often a run takes over the answer of another prompt with the heads
of one layer.

14 minutes on a busy machine (2 × x86_64 CPU, shared, 2026-11-30).

The 10 steps are for the small model; for another take its own with --set sampling.steps=none.
"""

from jcos.experiments.experiment import Settings
from jcos.experiments.heads import Heads

experiment = Heads(sampling=Settings(steps=10))
