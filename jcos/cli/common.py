"""What the commands share once they are at work."""

import contextlib
import datetime as dt
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from jcos import files
from jcos.report import explorer
from jcos.staged import Progress

console = Console(stderr=True)
PACE = 30 * 24 * 3600.0
"""Seconds over which a progress bar takes the pace: a month, so all that is done. A step may take
minutes and a sample an hour, and rich by itself forgets what was more than 30 seconds ago."""


def command_line() -> str:
    """Return what was typed, for the manifest."""
    return shlex.join(["jcos", *sys.argv[1:]])


@contextlib.contextmanager
def bar() -> Iterator[Progress]:
    """Show what is going on, how much of it is done, and the time that is left: as a bar, or in
    lines where the output is no terminal."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    style: dict[str, Any] = {"console": console, "speed_estimate_period": PACE, "transient": True}
    quiet, last = not console.is_terminal, ("", 0)
    progress = Bar(*columns, TimeRemainingColumn(), disable=quiet, **style)
    task = progress.add_task("starting", total=None)

    def show(what: str, done: int, total: int) -> None:
        nonlocal last
        progress.start()  # not before: downloads have bars of their own
        if done < last[1]:  # something else begins
            progress.reset(task)
        progress.update(task, description=what, completed=done, total=total)
        if quiet and last != (what, done):
            left = progress.tasks[0].time_remaining
            end = "" if left is None else f", {dt.timedelta(seconds=left)} left"
            print(f"{what}: {done} of {total}{end}", file=sys.stderr, flush=True)
        last = (what, done)

    try:
        yield show
    finally:
        progress.stop()


def make_page(folder: Path) -> Path:
    """Make the page of a run's folder, and return its full path."""
    with console.status("the page …"), files.fetched(folder) as here:
        page = explorer.make(here).resolve()
        if files.is_remote(folder):
            for made in (page, page.with_suffix(".files")):
                (folder / made.name).upload(made)  # type: ignore[attr-defined]
            page = folder / page.name
    return page


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
    """Print a table; words are shown as they are, whatever brackets or colons they hold."""
    table = Table(title=title)
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=number == 0)
    for row in rows:
        table.add_row(*row)
    Console(markup=False, emoji=False).print(table)


def read_size(text: str | None) -> tuple[int, int] | None:
    """Return height and width of WIDTHxHEIGHT; ValueError where it is something else."""
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise ValueError(f"size is {text!r}; it is WIDTHxHEIGHT in pixels, like 832x480")
    return int(height), int(width)
