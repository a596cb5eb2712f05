"""The table of what a model solves: prints it as Markdown and writes it beside the other results.

python scripts/evaluate.py                                # the shipped model, 512 puzzles per task
python scripts/evaluate.py --checkpoint runs/tiny/model --puzzles 128 --task maze
"""

import argparse
import datetime as dt
import json
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

HEAD = (
    (
        "| task | solved | different | one step | several answers: all / one step | committed "
        "| chance | still |"
    ),
    "|---|---|---|---|---|---|---|---|",
)


def interval(e: Estimate | None) -> str:
    return "–" if e is None else f"{e.mean:.3f} [{e.low:.3f}, {e.high:.3f}]"


def row(result: Result) -> str:
    several = "–"
    if result.several is not None and result.several_one_step is not None:
        several = (
            f"{result.several.mean:.3f} / {result.several_one_step.mean:.3f} (n={result.several.n})"
        )
    commitment = (
        "–" if result.commitment is None else " – ".join(f"{s:.0f}" for s in result.commitment)
    )
    cells = (
        result.task,
        interval(result.solved),
        str(result.distinct),
        f"{result.one_step.mean:.3f}",
        several,
        commitment,
        f"{result.chance:.3f}",
        f"{result.still:.3f}",
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=local_path, default=TINY)
    parser.add_argument("--puzzles", type=int, default=512)
    parser.add_argument("--task", action="append", choices=list(TASKS))
    parser.add_argument("--out", type=local_path, default=Path("out/evaluation"))
    arguments = parser.parse_args()
    programs.keep_in_cache()
    try:
        model = load(arguments.checkpoint)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    chosen = [get(name) for name in arguments.task or TASKS]
    results = [evaluate(model, task, arguments.puzzles) for task in track(chosen, "playing")]
    where = f"{arguments.puzzles} held-out puzzles per task, {model.config.sampling.steps} steps, "
    where += f"{os.cpu_count()} × {platform.machine()} CPU, {dt.date.today().isoformat()}"
    table = "\n".join([*HEAD, *map(row, results), "", where])
    print(table)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "table.md").write_text(table + "\n")
    (arguments.out / "table.json").write_text(
        json.dumps([r._asdict() for r in results], indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
