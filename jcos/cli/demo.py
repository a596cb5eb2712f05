"""`jcos demo`."""

import dataclasses

from jcos import demo as demonstration
from jcos import runs, wan
from jcos.cli import options
from jcos.cli.common import bar, command_line
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
        with bar() as told:
            for now in demonstration.run(model, self.out, command):
                told(*now)
        page = (self.out / "index.html").resolve()
        print(f"The page is at {page}")
        print("Look at the maze first: several routes at once in early steps, one in late ones.")
