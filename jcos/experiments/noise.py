"""What does noise destroy: one step in all frames, or one frame at all steps? (Paper, section
3.2.)"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jcos.experiments.puzzles import play, score
from jcos.probes import Noise
from jcos.tasks import Puzzle, Task
from jcos.wan import Wan


class NoiseScores(NamedTuple):
    """Scores per puzzle: without noise [P], with noise at each chosen step [P, s], in each frame
    [P, f]."""

    plain: Float[np.ndarray, " P"]
    at_step: Float[np.ndarray, "P s"]
    at_frame: Float[np.ndarray, "P f"]


def noise_scores(
    model: Wan, task: Task, puzzles: Sequence[Puzzle], at_steps: Sequence[int]
) -> NoiseScores:
    """Scores of the final videos; every position and the plain run are one compiled program, same
    noise seeds."""
    steps, frames = model.config.sampling.steps, task.frames
    probes = [
        Noise.at_steps(steps, frames, ()),
        *(Noise.at_steps(steps, frames, [s]) for s in at_steps),
        *(Noise.at_frames(steps, frames, [f]) for f in range(frames)),
    ]
    latents = play(model, task, puzzles, probes=probes).latents[:, :, 0]
    scores, _ = score(model, task, puzzles, latents.swapaxes(0, 1))
    return NoiseScores(
        scores[:, 0], scores[:, 1 : 1 + len(at_steps)], scores[:, 1 + len(at_steps) :]
    )
