"""What do tokens carry, layer by layer? (Paper, section 5.1.)

    jcos run configs/layers.py

Writes out/layers: token energy by layer, frame and step, maps of energy
and of principal components, how variance is spread; by linear probes, how well each layer and step
tells foreground, and what the run's answer will change, compared with x_s, x̂0 and a control.

1.5 minutes on one core of two (x86_64, 2026-11-21).

The 20 steps are for the small model; for another take its own with --set sampling.steps=none.
"""

from jcos.experiments.experiment import Settings
from jcos.experiments.layers import Layers

experiment = Layers(puzzles=64, sampling=Settings(steps=20))
