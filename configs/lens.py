"""In which layer of which step does the answer stand? The x̂0-lens, plain and tuned.

jcos run configs/lens.py
"""

from jcos.experiments.experiment import Settings
from jcos.experiments.lens import Lenses

experiment = Lenses(puzzles=32, sampling=Settings(steps=20))
