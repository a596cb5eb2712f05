"""What does noise destroy: one step in all frames, or one frame at all steps? (Paper, section 3.2.)

    jcos run configs/noise.py

Writes out/noise: score and agreement against the step and the frame
that get the noise, the map of single cells, the strength sweep, and the comparison at equal energy.

9 minutes on one core of two (x86_64, 2026-11-21).

The 20 steps are for the small model; for another take its own with --set sampling.steps=none.
"""

from jcos.experiments.experiment import Settings
from jcos.experiments.noise import Noise

experiment = Noise(puzzles=32, sampling=Settings(steps=20))
