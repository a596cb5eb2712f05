"""`jcos tasks`."""

import dataclasses

import numpy as np
from rich.console import Console
from rich.table import Table

from jcos.cli import options
from jcos.experiments.sweeps import held_out
from jcos.files import check_new_folder, write
from jcos.lab import tasks
from jcos.media import formats


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tasks(options.Tasks):
    """`jcos tasks`, at work."""

    def run(self) -> None:
        if self.draw > 0:
            check_new_folder(self.out)
        chosen = tasks.TASKS if self.only is None else {self.only: tasks.get(self.only)}
        table = Table(title="Tasks")
        for column in ("task", "kin to", "solved at", "what is asked, and how"):
            table.add_column(column, no_wrap=column == "task")
        for name, task in chosen.items():
            kin = task.faculty + (" (hard)" if task.hard else "")
            bar = f"score ≥ {task.solved_at:.2f}"
            table.add_row(name, kin, bar, f"{task.about} [dim]“{task.sample(0).prompt}”[/dim]")
        Console().print(table)
        for name, task in chosen.items() if self.draw > 0 else ():
            rows = [task.routes(p)[0] for p in held_out(task, self.draw)]
            self.out.mkdir(parents=True, exist_ok=True)
            sheet = formats.contact_sheet(np.stack(rows), scale=6)
            write(self.out / f"{name}.png", formats.png(sheet))
        if self.draw > 0:
            print(f"Drawn into {self.out}")
