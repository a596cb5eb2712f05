"""Store activations of chosen layers, steps and tokens, for studies that need no model.

jcos run configs/store.py
jcos run store --checkpoint wan-i2v --set clips=clips.json --set tokens=512
"""

from jcos.experiments.experiment import Settings
from jcos.experiments.store import Store

experiment = Store(puzzles=64, sampling=Settings(steps=20))
