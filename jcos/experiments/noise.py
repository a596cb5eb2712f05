"""What does noise destroy: one step in all frames, or one frame at all steps? (Paper, section
3.2.)"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jcos.experiments.puzzles import play, score
from jcos.probes import Noise
from jcos.tasks import Puzzle, Task, Video
from jcos.wan import Wan


class NoiseScores(NamedTuple):
    """Scores per puzzle: without noise [P], with noise at each chosen step [P, s], in each frame
    [P, f]; in the last case of the other frames."""

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
    latents = play(model, task, puzzles, probes=probes).latents[:, :, 0].swapaxes(0, 1)
    at_step = 1 + len(at_steps)
    scores, _ = score(model, task, puzzles, latents[:, :at_step])
    frames_scored = [
        [_score_others(task, puzzle, video, frame) for frame, video in enumerate(videos)]
        for puzzle, videos in zip(puzzles, model.decode(latents[:, at_step:]), strict=True)
    ]
    return NoiseScores(scores[:, 0], scores[:, 1:], np.array(frames_scored))


def _score_others(task: Task, puzzle: Puzzle, video: Video, frame: int) -> float:
    """Score of all frames but one, which holds nothing but the noise that was put in at the last
    step: it is taken from the right answer that suits the others best."""
    best = 0.0
    for answer in task.routes(puzzle):
        mended = video.copy()
        mended[frame] = answer[frame]
        best = max(best, task.score(puzzle, mended).score)
    return best
