"""In which layer of which step does the answer stand? The x̂0-lens, plain and tuned.

    jcos run configs/lens.py

Writes out/lens: by step and layer, how much of the estimate read there is the answer that the run
ends with, how far it is from the last block's and from the final video; the step of commitment by
layer and the layer of commitment by step; the estimates as pictures.

The 20 steps are for the small model; for another take its own with --set sampling.steps=none.
"""

from jcos.experiments.experiment import Settings
from jcos.experiments.lens import Lenses

experiment = Lenses(puzzles=32, sampling=Settings(steps=20))
