"""The table of what a model solves: prints it as Markdown and writes it to out/.

python scripts/evaluate.py                                # the shipped model, 512 puzzles per task
python scripts/evaluate.py --checkpoint runs/tiny/model --puzzles 128 --task maze
python scripts/evaluate.py --given 3                      # of each puzzle three frames are given
"""

import dataclasses
import os
import platform
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.progress import track

from jcos.config import Sampling
from jcos.devices import programs
from jcos.experiments.sweeps import held_out, judge, play, score
from jcos.files import local_path
from jcos.lab.measures import Estimate, commitment_step, estimate
from jcos.lab.tasks import TASKS, Task, chance, get, still_of
from jcos.wan import TINY, Wan, check_given, load
from tables import about, interval, markdown, options, save

HEADS = (
    *("task", "solved", "different", "one step", "several answers: all / one step", "committed"),
    *("chance", "still"),
)


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
    model: Wan, task: Task, n: int, *, sampling: Sampling | None = None, given: int = 1
) -> Result:
    """Play n held-out puzzles in full and in one step, and score the clean estimate of every
    fifth step. given: frames of a right answer that the model continues."""
    check_given(model.config, given, task.frames)
    sampling = sampling or model.config.sampling
    puzzles = held_out(task, n)
    scored = [*range(0, sampling.steps - 1, 5), sampling.steps - 1]
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
        chance(task, n),
        float(still.mean()),
        tuple(np.percentile(steps[good], [10, 50, 90]).tolist()) if good.any() else None,
        float(np.mean(scores)),
        len({p.identity for p in puzzles}),
    )


def row(result: Result) -> tuple[str, ...]:
    several, one = result.several, result.several_one_step
    both = "–" if not several or not one else f"{several.mean:.3f} / {one.mean:.3f} (n={several.n})"
    return (
        result.task,
        interval(result.solved),
        str(result.distinct),
        f"{result.one_step.mean:.3f}",
        both,
        " – ".join(f"{step:.0f}" for step in result.commitment or ()) or "–",
        f"{result.chance:.3f}",
        f"{result.still:.3f}",
    )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--checkpoint", type=local_path, default=TINY)
    parser.add_argument("--puzzles", type=int, default=512)
    parser.add_argument("--task", action="append", choices=list(TASKS))
    parser.add_argument("--steps", type=int, help="denoising steps, by default the model's")
    parser.add_argument("--given", type=int, default=1, help="frames that the model continues")
    parser.add_argument("--out", type=local_path, default=Path("out/evaluation"))
    arguments = parser.parse_args()
    programs.keep_in_cache()
    frames, names = arguments.given, arguments.task or TASKS
    try:
        model = load(arguments.checkpoint)
        sampling = model.config.sampling_with(steps=arguments.steps)
        results = [
            evaluate(model, get(name), arguments.puzzles, sampling=sampling, given=frames)
            for name in track(names, "sampling")
        ]
    except (ValueError, OSError) as error:
        parser.error(str(error))
    where = about(
        puzzles=f"{arguments.puzzles} held out per task",
        steps=sampling.steps,
        given=frames,
        CPU=f"{os.cpu_count()} × {platform.machine()}",
    )
    table = markdown(HEADS, map(row, results), left=len(HEADS))
    save(arguments.out, table, where, (result._asdict() for result in results))


if __name__ == "__main__":
    main()
