"""The `jcos` command. Thin: a command is its options and one call of the library, whose errors here
become one sentence. Help and mistakes import nothing that takes long."""

import io
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from typing import Any

import tyro

from jcos.cli import bench, generate, pages, plan, run, small
from jcos.cli.base import one_line_helps
from jcos.cli.paths import parse, refuse

FAILURES = (ValueError, IndexError, FloatingPointError, MemoryError, OSError)
"""What a wrong input or a full disk raises; anything else is a bug and shows its traceback."""

ABOUT = (
    "Where does a video diffusion model reason? Try `jcos demo` first. `jcos --version` says which "
    "versions these are."
)


def _convert() -> None:
    """Convert a released checkpoint into a folder that `jcos.load` reads."""


def _verify() -> None:
    """Compare a released checkpoint's modules in PyTorch and in jcos."""


COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": small.Demo,
    "sample": small.Sample,
    "search": small.Search,
    "run": run.Run,
    "generate": generate.Generate,
    "bench": bench.bench,
    "plan": plan.Plan,
    "report": pages.Report,
    "explore": pages.Explore,
    "export": pages.Export,
    "tasks": small.Tasks,
    "convert": _convert,  # these two are run by `jcos.__main__`
    "verify": _verify,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command; a wrong input ends in one sentence and exit code 2."""
    for stream in (sys.stdout, sys.stderr):  # names of files may have what they cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments) == ["--version"]:
        print(", ".join(f"{name} {metadata.version(name)}" for name in ("jcos", "jax", "flax")))
        return
    command = parse("jcos", _read, arguments)
    try:
        command.check()

        from jcos.devices import memory, programs

        memory.claim()
        programs.keep_in_cache()
        with warnings.catch_warnings():
            warnings.showwarning = partial(_note, warnings.showwarning)
            command.run()
    except BrokenPipeError:
        raise
    except FAILURES as error:
        refuse("jcos", error)


def _note(others: Callable[..., None], message: Warning | str, kind: type, *where: Any) -> None:
    """Show a warning: one to the user as a sentence, `others` as Python does."""
    if kind is UserWarning:
        print(f"Note: {message}.", file=sys.stderr)
    else:
        others(message, kind, *where)


def _read(args: Sequence[str], **how: Any) -> Any:
    prog, commands, about = "jcos", COMMANDS, ABOUT
    if [*args[:1]] == ["bench"]:
        prog, commands, about, args = "jcos bench", bench.COMMANDS, bench.bench.__doc__, args[1:]
    kind: Any = commands.get(args[0]) if args else None
    if isinstance(kind, type):
        one_line_helps(kind)
        return tyro.cli(kind, prog=f"{prog} {args[0]}", args=args[1:], **how)
    read = tyro.extras.subcommand_cli_from_dict
    return read(commands, prog=prog, description=about, args=args, **how)
