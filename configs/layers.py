"""What do tokens carry, layer by layer? (Paper, section 5.1.)

    jcos run configs/layers.py

1.5 minutes on one core of two (x86_64, 2026-11-21).
"""

from jcos.experiments.experiment import Settings
from jcos.experiments.layers import Layers

experiment = Layers(puzzles=64, sampling=Settings(steps=20))
