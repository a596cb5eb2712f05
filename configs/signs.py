"""Which sign in a clean estimate tells, among the seeds of one puzzle, the run that will fail?

    jcos run configs/signs.py

More steps: --set sampling.steps=20. Other tasks: --set tasks=tictactoe-block,bounce-hard.
"""

from jcos.experiments.experiment import Settings
from jcos.experiments.signs import Signs

experiment = Signs(sampling=Settings(steps=10))
