"""`jcos demo`."""

import dataclasses
from pathlib import Path

from jcos import demo as demonstration
from jcos import wan
from jcos.cli.common import Checkpoint, bar, command_line


@dataclasses.dataclass(frozen=True)
class Demo:
    """See a small video model solve puzzles, denoising step by denoising step: one page, about a
    minute.

    Writes OUT/index.html, and its runs for `jcos report OUT`. The same seeds give the same numbers
    every time.
    """

    out: Path = Path("out/demo")
    checkpoint: Checkpoint = wan.TINY

    def run(self) -> None:
        model = wan.load(self.checkpoint)
        command = command_line()
        with bar() as told:
            for now in demonstration.run(model, self.out, command):
                told(now)
        page = (self.out / "index.html").resolve()
        print(f"The page is at {page}")
        print("Look at the maze first: several routes at once in early steps, one in late ones.")
