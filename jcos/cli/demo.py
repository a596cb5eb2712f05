"""`jcos demo`."""

import dataclasses
from pathlib import Path

from jcos import demo as demonstration
from jcos import runs, wan
from jcos.cli.common import Checkpoint, bar, command_line
from jcos.files import check_room

ROOM = 2**23
"""Bytes that a demo takes, at most."""


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
        runs.read(self.out / runs.MANIFEST, "planes")  # not into the folder of another run
        check_room(self.out, ROOM)
        model = wan.load(self.checkpoint)
        command = command_line()
        with bar() as told:
            for now in demonstration.run(model, self.out, command):
                told(now)
        page = (self.out / "index.html").resolve()
        print(f"The page is at {page}")
        print("Look at the maze first: several routes at once in early steps, one in late ones.")
