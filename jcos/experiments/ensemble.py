"""Does averaging the tokens of several seeds in the first step help? (Paper, section 6.)"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from jcos.experiments.puzzles import play, score
from jcos.probes import SeedEnsemble
from jcos.tasks import Puzzle, Task
from jcos.wan import Wan


def ensemble_solved(
    model: Wan,
    task: Task,
    puzzles: Sequence[Puzzle],
    seeds: Sequence[int],
    probes: Sequence[SeedEnsemble],
) -> Bool[np.ndarray, "P Q K"]:
    """Whether each puzzle is solved with each probe by each seed; in an ensemble every seed goes on
    by itself."""
    latents = play(model, task, puzzles, seeds, probes=probes).latents
    _, solved = score(model, task, puzzles, latents.swapaxes(0, 1))
    return solved
