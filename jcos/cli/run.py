"""`jcos run`."""

import dataclasses
import time
from pathlib import Path

import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jcos import wan
from jcos.cli.common import Checkpoint, OnMesh, command_line, console
from jcos.config import Sampling, WanConfig
from jcos.devices import sharding
from jcos.experiments.results import conduct
from jcos.experiments.settings import load_experiment, override
from jcos.report import explorer
from jcos.variants import Profile
from jcos.wan import Wan
from jcos.weights.checkpoint import identify


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(OnMesh):
    """Run an experiment of the paper: a question to a model, its numbers, its figures.

    Writes OUT/config.json (settings, weights, versions), OUT/arrays.npz, OUT/table.csv, OUT/figures
    and OUT/index.html, the page to look inside (`jcos report`). Results that are there already are
    not made again.

    Examples:
      jcos run configs/steps.py
      jcos run configs/noise.py --set puzzles=16 --set sampling.steps=10 --out out/quick
      jcos run configs/steps.py --mesh world=8
      jcos run configs/steps.py --checkpoint wan-i2v --set clips=clips.json
      jcos run configs/swap.py --checkpoint wan-i2v --set clips=pairs.json --mesh branch=2,context=4
    """

    config: tyro.conf.Positional[Path]
    """A Python file that describes the experiment; configs/ holds one for each of the paper's."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Changes a parameter, as FIELD=VALUE; can be given several times."""
    out: Path | None = None
    """Where results go; out/NAME by default, NAME being the config's."""
    redo: bool = False
    """Run it again and replace the results that are there."""
    checkpoint: Checkpoint = wan.TINY
    profile: Profile | None = None
    """Whose data types, schedule, defaults and rule for pictures: by default those of the
    checkpoint's authors."""

    def run(self) -> None:
        experiment = override(load_experiment(self.config), self.set)
        profile = self.profile or experiment.profile
        experiment = dataclasses.replace(experiment, profile=profile)
        out = self.out or Path("out") / self.config.stem
        start = time.monotonic()
        config = wan.read_config(self.checkpoint, profile)
        sampled = dataclasses.replace(config, sampling=experiment.sampling.of(config))
        devices = self.devices_for(sampled, len(experiment.seeds))

        def load() -> Wan:
            _tell_steps(experiment.sampling.of(config), config)
            return wan.load(self.checkpoint, profile=profile)

        steps = conduct(
            experiment,
            config,
            load,
            out,
            weights=identify(self.checkpoint),
            command=command_line(),
            redo=self.redo,
        )
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with (
            sharding.on(devices),
            Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar,
        ):
            shown = bar.add_task("starting", total=None)
            while True:
                try:
                    what, done, total = next(steps)
                except StopIteration as end:
                    new = end.value
                    break
                bar.update(shown, description=what, completed=done, total=total)
        page = explorer.page_of(out)
        if new or not page.is_file():  # of a run that was killed between the two
            with console.status("the page …"):
                explorer.make(out)
        told = f"{time.monotonic() - start:.0f} s" if new else "these results are there already"
        print(f"{experiment.name}: {told}; the page to look inside is at {page.resolve()}")


def _tell_steps(sampling: Sampling, config: WanConfig) -> None:
    own = config.sampling.steps
    if sampling.steps != own:
        console.print(
            f"Sampled in {sampling.steps} steps; {config.name} has {own} of its own "
            "(--set sampling.steps=none).",
            highlight=False,
        )
