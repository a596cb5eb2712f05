"""Which heads and layers of which steps carry the answer, and does a gradient tell?

jcos run configs/attribution.py
"""

from jcos.experiments.attribution import Attribution
from jcos.experiments.experiment import Settings

experiment = Attribution(puzzles=6, sampling=Settings(steps=6))
