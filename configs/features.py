"""Of which sparse features do tokens consist, and do they act?

    jcos run configs/features.py

Writes out/features: the variance that a top-k dictionary of the tokens explains, what its features
tell, maps and films of some of them, and how often a run goes over to the route to whose tokens a
feature is added; the stored tokens and the dictionary in activations/.

17 minutes on a busy machine (2 × x86_64 CPU, shared, 2026-11-30).

The 20 steps are for the small model; for another take its own with --set sampling.steps=none.
"""

from jcos.experiments.experiment import Settings
from jcos.experiments.features import Features

experiment = Features(puzzles=64, sampling=Settings(steps=20))
