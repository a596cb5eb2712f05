"""The table of what a model solves: prints it as Markdown and writes it to out/.

python scripts/evaluate.py                                # the shipped model, 512 puzzles per task
python scripts/evaluate.py --checkpoint runs/tiny/model --puzzles 128 --task maze
python scripts/evaluate.py --given 3                      # of each puzzle three frames are given
"""

import dataclasses
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from jcos.config import Sampling
from jcos.devices import programs
from jcos.experiments.sweeps import held_out, judge, play, score
from jcos.files import local_path
from jcos.lab.measures import commitment_step, estimate
from jcos.lab.tasks import TASKS, Task, chance, get, still_of
from jcos.wan import TINY, Wan, check_given, load
from tables import about, interval, markdown, options, save

SEVERAL = "several answers: all / one step"


def evaluate(
    model: Wan, task: Task, n: int, *, sampling: Sampling | None = None, given: int = 1
) -> dict[str, Any]:
    """Return a row of the table: n held-out puzzles, played in full and in one step.

    different: puzzles, up to symmetry. several answers: of puzzles with more than one right answer,
    shares solved in full and in one step, and their number. solved from step: 10th, 50th and 90th
    percentile of the step from which on x̂0 is solved, over the solved puzzles, by every fifth
    step. chance: solved by a random legal answer; first frame held: by it. given: frames of
    a right answer that the model continues.
    """
    check_given(model.config, given, task.frames)
    sampling = sampling or model.config.sampling
    puzzles = held_out(task, n)
    scored = [*range(0, sampling.steps - 1, 5), sampling.steps - 1]
    full = play(model, puzzles, sampling=sampling, keep=scored, given=given)
    _, good = score(model, puzzles, full.latents[0, :, 0])
    once = dataclasses.replace(sampling, steps=1, sigmas=None)
    short = play(model, puzzles, sampling=once, given=given)
    _, one = score(model, puzzles, short.latents[0, :, 0])
    _, by_step = score(model, puzzles, full.x0[0, :, 0])
    by_step[:, -1] = good  # the last estimate is the answer itself
    steps = np.array([*scored, sampling.steps])[commitment_step(by_step)]
    _, still = judge(puzzles, np.stack([still_of(task.draw(p, p.answers[0])) for p in puzzles]))
    several = np.array([len(p.answers) > 1 for p in puzzles])
    both = [float(right[several].mean()) for right in (good, one)] if several.any() else []
    return {
        "task": task.name,
        "solved": estimate(good),
        "different": len({p.identity for p in puzzles}),
        "one step": float(one.mean()),
        SEVERAL: [*both, int(several.sum())],
        "solved from step": np.percentile(steps[good], [10, 50, 90]).tolist() if good.any() else [],
        "chance": chance(task, n),
        "first frame held": float(still.mean()),
    }


def cells(row: dict[str, Any]) -> list[Any]:
    """Return a row as the table shows it."""
    *both, n = row[SEVERAL]
    shown = row | {
        "solved": interval(row["solved"]),
        SEVERAL: " / ".join(f"{mean:.3f}" for mean in both) + f" (n={n})" if both else "–",
        "solved from step": " – ".join(f"{step:.0f}" for step in row["solved from step"]) or "–",
    }
    return [f"{value:.3f}" if isinstance(value, float) else value for value in shown.values()]


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
        rows = [
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
    table = markdown([*rows[0]], map(cells, rows), left=len(rows[0]))
    save(arguments.out, table, where, rows)


if __name__ == "__main__":
    main()
