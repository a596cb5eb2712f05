"""Which sign in a clean estimate tells, among the seeds of one puzzle, the run that will fail?

    jcos run configs/signs.py

Writes out/signs: for every judge that needs no answer the AUROC of failure, step by step, among the
seeds of a maze of 7 × 7 cells. Judges that read latents alone also suit released models
(docs/search.md). The same for the ideal denoiser of the model's ends, which only blends them; and
how much of the clean estimate is on right ends, on wrong ones and on none.

More steps: --set sampling.steps=20. Other tasks: --set tasks=tictactoe-block,bounce-hard.

The 10 steps are for the small model; for another take its own with --set sampling.steps=none.
"""

from jcos.experiments.experiment import Settings
from jcos.experiments.signs import Signs

experiment = Signs(sampling=Settings(steps=10))
