"""Store activations of chosen layers, steps and tokens, for studies that need no model.

    jcos run configs/store.py
    jcos run store --checkpoint wan-i2v --set clips=clips.json --set tokens=512

Writes out/store: one NetCDF file per puzzle in activations/ (docs/experiments.md says how to read
them), how large the activations are, and how the runs ended.

The 20 steps are for the small model; for another take its own with --set sampling.steps=none.
"""

from jcos.experiments.experiment import Settings
from jcos.experiments.store import Store

experiment = Store(puzzles=64, sampling=Settings(steps=20))
