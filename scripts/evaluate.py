"""The table of what a model solves: prints it as Markdown and writes it to out/.

python scripts/evaluate.py                                # the shipped model, 512 puzzles per task
python scripts/evaluate.py --checkpoint runs/tiny/model --puzzles 128 --task maze
python scripts/evaluate.py --given 3                      # of each puzzle three frames are given
"""

import os
import platform
from pathlib import Path

from rich.progress import track

from jcos.devices import programs
from jcos.experiments.evaluate import Result, evaluate
from jcos.files import local_path
from jcos.lab.measures import Estimate
from jcos.lab.tasks import TASKS, get
from jcos.wan import TINY, load
from tables import about, markdown, options, save

HEADS = (
    *("task", "solved", "different", "one step", "several answers: all / one step", "committed"),
    *("chance", "still"),
)


def interval(e: Estimate | None) -> str:
    return "–" if e is None else f"{e.mean:.3f} [{e.low:.3f}, {e.high:.3f}]"


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
