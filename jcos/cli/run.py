"""`jcos run`."""

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from jcos.cli.base import Changes, Checkpoint, Command, OnMesh, ProfileName
from jcos.cli.paths import AnyOutFolder, ConfigFile, OutFile, config_file
from jcos.variants import TINY

if TYPE_CHECKING:
    from jcos.experiments.experiment import Experiment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(OnMesh, Command):
    """Run an experiment of the paper: a question to a model, its numbers, its figures.

    Writes OUT/run.json (settings, weights, versions), OUT/results.nc (an xarray dataset),
    OUT/table.csv, OUT/figures and OUT/index.html, the page to look inside (`jcos report`). A
    repeated call goes on where the last one stopped.

    Examples:
      jcos run configs/steps.py
      jcos run configs/noise.py --set puzzles=16 --set sampling.steps=10 --out out/quick
      jcos run configs/steps.py --mesh world=8
      jcos run --example-clips clips.json
      jcos run configs/steps.py --checkpoint wan-i2v --set clips=clips.json
      jcos run configs/swap.py --checkpoint wan-i2v --set clips=pairs.json --mesh branch=2,context=4
    """

    config: tyro.conf.Positional[ConfigFile | None] = None
    """A Python file that describes the experiment, or the name of one that comes with jcos, like
    noise."""
    set: Changes = ()
    out: AnyOutFolder | None = None
    """Where results go; out/NAME by default, NAME being the config's."""
    example_clips: OutFile | None = None
    """Write a file of prompts with pictures here, to be filled in for --set clips=FILE, and no
    more; docs/wan.md says what it may hold."""
    checkpoint: Checkpoint = TINY
    profile: ProfileName = None

    def run(self) -> None:
        from jcos.experiments.clips import write_example
        from jcos.experiments.settings import load_experiment, override
        from jcos.files import check_new_folder

        if self.example_clips is not None:
            write_example(self.example_clips)
            print(f"Fill in the pictures and prompts of {self.example_clips}; docs/wan.md says how")
            return
        file = config_file(self.config)
        experiment = override(load_experiment(file), self.set)
        profile = self.profile or experiment.profile
        experiment = dataclasses.replace(experiment, profile=profile)
        out = self.out or Path("out") / file.stem
        check_new_folder(out)
        with self.at_work():
            self._run(experiment, out)

    def _run(self, experiment: "Experiment", out: Path) -> None:
        from jcos import wan
        from jcos.cli.common import bar, command_line, make_page
        from jcos.devices import sharding
        from jcos.experiments.folder import run_to
        from jcos.report import explorer
        from jcos.weights import hub
        from jcos.weights.checkpoint import identify

        explorer.check_page(out / explorer.PAGE)
        start, profile, devices = time.monotonic(), experiment.profile, self.devices()
        checkpoint = hub.find(self.checkpoint)
        config = wan.read_config(checkpoint, profile)
        sampling = experiment.sampling.of(config)
        if devices is not None:
            sampled = dataclasses.replace(config, sampling=sampling)
            wan.check_mesh(devices.shape, sampled, len(experiment.seeds))

        with sharding.use_mesh(devices), bar() as progress:
            new = run_to(
                out,
                experiment,
                config,
                lambda: wan.load(checkpoint, profile=profile),
                weights=identify(checkpoint),
                command=command_line(),
                progress=progress,
            )
        if not sharding.is_first_host():
            return
        page = (out / explorer.PAGE).resolve()
        if new or not page.is_file():  # of a run that was killed between the two
            page = make_page(out)
        words = f"{time.monotonic() - start:.0f} s" if new else "these results are there already"
        print(f"{experiment.name}: {words}; the page to look inside is at {page}")
