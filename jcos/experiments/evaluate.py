"""How good is a model at a task, and does its answer take steps?"""

import dataclasses
from typing import NamedTuple

import numpy as np

from jcos.config import Sampling
from jcos.experiments.sweeps import held_out, judge, play, score
from jcos.lab.measures import Estimate, commitment_step, estimate
from jcos.lab.tasks import Task, chance, still_of
from jcos.wan import Wan, check_given


class Result(NamedTuple):
    """One row of the evaluation table.

    solved: over all frames, in `steps` steps; one_step: the same puzzles in a single step. several,
    several_one_step: only the puzzles with more than one right answer. chance: solved by a random
    legal answer; still: by the first frame held. commitment: 10th, 50th and 90th percentile of the
    step from which on x̂0 is solved, over the solved puzzles. distinct: different puzzles, up to
    symmetry.
    """

    task: str
    solved: Estimate
    one_step: Estimate
    several: Estimate | None
    several_one_step: Estimate | None
    chance: float
    still: float
    commitment: tuple[float, float, float] | None
    mean_score: float
    distinct: int


def evaluate(
    model: Wan,
    task: Task,
    n: int,
    *,
    seed: int = 0,
    sampling: Sampling | None = None,
    every: int = 5,
    given: int = 1,
) -> Result:
    """Play n held-out puzzles in full and in one step, and score the clean estimate of every
    `every`-th step. given: frames of a right answer that the model continues."""
    check_given(model.config, given, task.frames)
    sampling = sampling or model.config.sampling
    puzzles = held_out(task, n, seed)
    scored = [*range(0, sampling.steps - 1, every), sampling.steps - 1]
    full = play(model, puzzles, sampling=sampling, keep=scored, given=given)
    scores, good = score(model, puzzles, full.latents[0, :, 0])
    once = dataclasses.replace(sampling, steps=1, sigmas=None)
    short = play(model, puzzles, sampling=once, given=given)
    _, one = score(model, puzzles, short.latents[0, :, 0])
    _, by_step = score(model, puzzles, full.x0[0, :, 0])
    by_step[:, -1] = good  # the last estimate is the answer itself
    steps = np.array([*scored, sampling.steps])[commitment_step(by_step)]
    _, still = judge(puzzles, np.stack([still_of(task.draw(p, p.answers[0])) for p in puzzles]))
    several = np.array([len(p.answers) > 1 for p in puzzles])
    return Result(
        task.name,
        estimate(good),
        estimate(one),
        estimate(good[several]) if several.any() else None,
        estimate(one[several]) if several.any() else None,
        chance(task, n, seed),
        float(still.mean()),
        tuple(np.percentile(steps[good], [10, 50, 90]).tolist()) if good.any() else None,
        float(np.mean(scores)),
        len({p.identity for p in puzzles}),
    )
