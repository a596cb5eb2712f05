"""How far does a perturbation reach, and when is a run most sensitive to it? (Paper, section 3.2.)

    jcos run configs/flow.py

Writes out/flow: the map of noised step × observed step (1 − CKA of the
tokens), the sensitivity curve, the layer × step maps, the same for noise at a frame, all beside the
ideal denoiser under the same noise.

5 minutes on one core of two (x86_64, 2026-11-21).

The 20 steps are for the small model; for another take its own with --set sampling.steps=none.
"""

from jcos.experiments.experiment import Settings
from jcos.experiments.flow import Flow

experiment = Flow(puzzles=24, several=True, sampling=Settings(steps=20))
