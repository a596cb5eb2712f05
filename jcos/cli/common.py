"""What the commands share."""

import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from jcos.experiments.puzzles import Progress
from jcos.probes import Chain, Noise, Probe, SeedEnsemble, chain

console = Console(stderr=True)
PACE = 30 * 24 * 3600.0
"""Seconds over which a progress bar takes the pace: a month, so all that is done. A step may take
minutes and a sample an hour, and rich by itself forgets what was more than 30 seconds ago."""

Checkpoint = Annotated[
    Path, tyro.conf.arg(help="A checkpoint folder; by default the small model of the package.")
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interventions:
    """Options of every command that samples: what is done to the runs."""

    noise_steps: tuple[int, ...] = ()
    """Replace all frames by noise before these steps."""
    noise_frames: tuple[int, ...] = ()
    """Replace these latent frames by noise before every step."""
    ensemble_layers: tuple[int, ...] = ()
    """Average the tokens of all seeds after these layers …"""
    ensemble_steps: tuple[int, ...] = (0,)
    """… in these steps."""

    def interventions(self) -> dict[str, list[int]]:
        """As a run's manifest holds them."""
        return {f.name: list(getattr(self, f.name)) for f in dataclasses.fields(Interventions)}

    def probe(self, steps: int, frames: int, layers: int) -> Chain:
        """All interventions, most of them off: one program serves every choice."""
        on = self.ensemble_steps if self.ensemble_layers else ()
        parts: list[Probe] = [
            Noise.at_steps(steps, frames, self.noise_steps),
            Noise.at_frames(steps, frames, self.noise_frames),
            SeedEnsemble.window(steps, layers, on, self.ensemble_layers),
        ]
        return chain(*parts)


def command_line() -> str:
    """What was typed, to be kept beside what came of it."""
    return shlex.join(["jcos", *sys.argv[1:]])


@contextlib.contextmanager
def bar() -> Iterator[Callable[[Progress], None]]:
    """What is going on, how many parts are done, and the time that is left; to be called with
    every `Progress`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bar(*columns, TimeRemainingColumn(), console=console, speed_estimate_period=PACE) as shown:
        task = shown.add_task("starting", total=None)
        yield lambda now: shown.update(
            task, description=now.what, completed=now.done, total=now.total
        )


def read_size(text: str) -> tuple[int, int]:
    """Width and height of WIDTHxHEIGHT; ValueError where it is something else."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise ValueError(f"size is {text!r}; it is WIDTHxHEIGHT in pixels, like 832x480")
    return int(width), int(height)
