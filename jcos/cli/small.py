"""Commands of the small model: `jcos demo`, `sample`, `search`, `tasks`."""

import dataclasses
from pathlib import Path

from jcos import files
from jcos.cli.base import Checkpoint, Command, Sigmas, Steps, Task
from jcos.cli.paths import AnyPath, OutFolder
from jcos.config import Solver
from jcos.sampling.interventions import Interventions
from jcos.variants import TINY

ROOM = 2**23
"""Bytes that a demo takes, at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo(Command):
    """See a small video model solve puzzles, denoising step by denoising step: one page, in a
    minute or two.

    Writes a folder of results whose page, OUT/index.html, can be opened after a few seconds and
    fills as parts arrive. The same seeds give the same numbers every time.
    """

    out: OutFolder = Path("out/demo")
    checkpoint: Checkpoint = TINY

    def run(self) -> None:
        from jcos import demo, runs, wan
        from jcos.cli.common import bar, command_line, console
        from jcos.files import check_room
        from jcos.report import explorer

        runs.read(self.out / runs.MANIFEST, "planes")  # not into the folder of another run
        check_room(self.out, ROOM)
        page = (self.out / explorer.PAGE).resolve()
        explorer.check_page(page)
        model = wan.load(self.checkpoint)
        with bar() as show:

            def progress(what: str, done: int, total: int) -> None:
                show(what, done, total)
                if done == 1:
                    console.print(f"The first maze is at {page}; the page fills as parts arrive.")

            seconds = demo.run(model, self.out, command_line(), progress=progress)
        total, sampling, first = (f"{value:.0f} s" for value in seconds)
        print(f"The page is at {page}")
        print(f"{total}, of them {sampling} sampling and decoding; first page after {first}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample(Interventions, Command):
    """Let the model solve held-out puzzles of a task, with or without an intervention.

    Writes OUT/planes.npz (pictures of every clean estimate), OUT/run.json and the page
    OUT/index.html. A repeated call does nothing again; a folder of another run is refused.

    Examples:
      jcos sample maze
      jcos sample maze --noise-steps 30 --out out/noised
      jcos sample tictactoe --seeds 0 1 2 --ensemble-layers 3 4 --ensemble-steps 0
    """

    task: Task
    puzzles: int = 2
    """How many held-out puzzles."""
    puzzle_seed: int = 0
    """Which puzzles."""
    seeds: tuple[int, ...] = (0,)
    """Noise seeds; each makes a video of every puzzle."""
    steps: Steps = None
    sigmas: Sigmas = None
    out: OutFolder = Path("out/sample")
    checkpoint: Checkpoint = TINY

    def check(self) -> None:
        from jcos.lab.tasks import get

        get(self.task)

    def run(self) -> None:
        from jcos import puzzles
        from jcos.cli.common import bar, command_line, make_page

        options = self.arguments(puzzles.sample)
        with bar() as show:
            about = {"interventions": self, "command": command_line(), "progress": show}
            solved = [s for row in puzzles.sample(**options, **about)["solved"] for s in row]
        page = make_page(self.out)
        print(f"Solved {sum(solved)} of {len(solved)}; the page is at {page}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search(Command):
    """Search along the denoising steps: several seeds begin, the best early estimates go on.

    Writes OUT/puzzle-N.webp (the chosen video), OUT/run.json (the tree of who came from whom, and
    what it cost), OUT/tree.npz (its pictures) and OUT/index.html, the page that shows it.

    Examples:
      jcos search maze7 --preset epbs --seeds 8
      jcos search maze7 --preset early-failure --seeds 8 --steps 10 --puzzles 16
      jcos search maze7 --preset best-of --judge oracle --out out/oracle
    """

    task: Task
    preset: str = "epbs"
    """Which method (docs/search.md): best-of, epbs, latsearch, smc, early-failure, calibrated, tbs
    or evosearch."""
    seeds: int = 8
    """How many begin; of early-failure and calibrated how many may be tried."""
    judge: str = "decided"
    """Who says what is good: decided, pixels, change, agreement, energy, norm, motion, peak,
    random, or the oracle."""
    least: float | None = None
    """The score that early-failure asks for; only for decided there is a default."""
    first_seed: int = 0
    """The first noise seed; the others follow."""
    puzzles: int = 4
    """How many held-out puzzles."""
    puzzle_seed: int = 0
    """Which puzzles."""
    steps: Steps = 10
    sigmas: Sigmas = None
    solver: Solver | None = None
    """As of `jcos generate`; by default the model's, cps where the preset makes copies that
    noise parts."""
    eta: float | None = None
    """Size of a stochastic solver's noise."""
    out: OutFolder = Path("out/search")
    checkpoint: Checkpoint = TINY

    def run(self) -> None:
        import numpy as np

        from jcos import puzzles
        from jcos.cli.common import bar, command_line, make_page

        options = self.arguments(puzzles.search)
        with bar() as show:
            made = puzzles.search(**options, command=command_line(), progress=show)
        forwards, decodes, judged = (np.mean(made[k]) for k in ("forwards", "decodes", "judged"))
        print(
            f"Solved {sum(made['solved'])} of {self.puzzles}; per puzzle {forwards:.1f} forwards "
            f"(one run {made['sampling']['steps']}), {decodes:.1f} decodes, {judged:.1f} calls of "
            f"the judge; {made['seconds']:.1f} s in all. The page: {make_page(self.out)}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tasks(Command):
    """List the reasoning tasks, or draw puzzles with their answers.

    Examples:
      jcos tasks
      jcos tasks --draw 4 --out out/tasks
    """

    draw: int = 0
    """Draw this many puzzles per task into OUT/TASK.png (rows: puzzles, columns: frames)."""
    out: AnyPath = Path("out/tasks")

    def run(self) -> None:
        import numpy as np
        from rich.text import Text

        from jcos.cli.common import show_table
        from jcos.experiments.sweeps import held_out
        from jcos.lab.tasks import TASKS
        from jcos.media import formats

        if self.draw < 0:
            raise ValueError(f"{self.draw} puzzles asked for; at least 1 is needed")
        if self.draw:
            files.check_new_folder(self.out)
        rows = [
            (
                name,
                task.faculty + (" (hard)" if task.hard else ""),
                f"score ≥ {task.solved_at:.2f}",
                Text.assemble(f"{task.about} ", (f"“{task.sample(0).prompt}”", "dim")),
            )
            for name, task in TASKS.items()
        ]
        show_table("Tasks", ("task", "kin to", "solved at", "what is asked, and how"), rows)
        for name, task in TASKS.items() if self.draw else ():
            answers = [task.routes(puzzle)[0] for puzzle in held_out(task, self.draw)]
            sheet = formats.contact_sheet(np.stack(answers), scale=6)
            files.write(self.out / f"{name}.png", formats.png(sheet))
        if self.draw:
            print(f"Drawn into {self.out}")
