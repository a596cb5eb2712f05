"""What does noise destroy: one step in all frames, or one frame at all steps? (Paper, section 3.2.)

    jcos run configs/noise.py

9 minutes on one core of two (x86_64, 2026-11-21).
"""

from jcos.experiments.experiment import Settings
from jcos.experiments.noise import Noise

experiment = Noise(puzzles=32, sampling=Settings(steps=20))
