"""`jcos demo`."""

import dataclasses

from jcos import demo as demonstration
from jcos import runs, wan
from jcos.cli import options
from jcos.cli.common import bar, command_line, console
from jcos.files import check_room

ROOM = 2**23
"""Bytes that a demo takes, at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo(options.Demo):
    """`jcos demo`, at work."""

    def run(self) -> None:
        runs.read(self.out / runs.MANIFEST, "planes")  # not into the folder of another run
        check_room(self.out, ROOM)
        model = wan.load(self.checkpoint)
        command = command_line()
        page = (self.out / "index.html").resolve()
        with bar() as told:

            def progress(what: str, done: int, total: int) -> None:
                told(what, done, total)
                if done == 1:
                    console.print(f"The first maze is at {page}; the page fills as parts arrive.")

            seconds = demonstration.run(model, self.out, command, progress=progress)
        total, forward, first = (f"{value:.0f} s" for value in seconds)
        print(f"The page is at {page}")
        print(f"{total}, of them {forward} in the model's forward passes; first page after {first}")
