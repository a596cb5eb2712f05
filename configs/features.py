"""Of which sparse features do tokens consist, and do they act?

    jcos run configs/features.py

17 minutes on a busy machine (2 × x86_64 CPU, shared, 2026-11-30).
"""

from jcos.experiments.experiment import Settings
from jcos.experiments.features import Features

experiment = Features(puzzles=64, sampling=Settings(steps=20))
