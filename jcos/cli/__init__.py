"""The `jcos` command. Thin: each file reads one command's arguments and calls the library; here its
errors become one sentence."""

import io
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

import tyro

from jcos.cli.bench import BenchCommand
from jcos.cli.demo import Demo
from jcos.cli.generate import Generate
from jcos.cli.plan import PlanCommand
from jcos.cli.report import Explore, Report
from jcos.cli.run import Run
from jcos.cli.sample import Sample
from jcos.cli.tasks import Tasks
from jcos.devices import memory, programs
from jcos.files import shortened

FAILURES = (ValueError, IndexError, FloatingPointError, MemoryError, OSError)
"""What a wrong input or a full disk raises; anything else is a bug and shows its traceback."""


class Command(Protocol):
    def run(self) -> None: ...


COMMANDS: dict[str, Callable[..., Command]] = {
    "demo": Demo,
    "sample": Sample,
    "run": Run,
    "generate": Generate,
    "bench": BenchCommand,
    "plan": PlanCommand,
    "report": Report,
    "explore": Explore,
    "tasks": Tasks,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command; a wrong input ends in one sentence and exit code 2."""
    for stream in (sys.stdout, sys.stderr):  # names of files may have what they cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    memory.claim()
    programs.keep_in_cache()
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="jcos",
        description="Where does a video diffusion model reason? Try `jcos demo` first.",
        args=arguments,
    )
    try:
        command.run()
    except FAILURES as error:
        told = str(error)
        if isinstance(error, OSError) and error.filename:
            told = f"{error.filename}: {error.strerror}"
        print(f"jcos: {shortened(told)}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
