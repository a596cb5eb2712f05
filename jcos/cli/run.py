"""`jcos run`."""

import dataclasses
import time
from pathlib import Path

from jcos import wan
from jcos.cli import options
from jcos.cli.common import OnMesh, bar, command_line, console, make_page
from jcos.cli.paths import config_file
from jcos.config import Sampling, WanConfig
from jcos.devices import sharding
from jcos.experiments.clips import write_example
from jcos.experiments.folder import run_to
from jcos.experiments.settings import load_experiment, override
from jcos.files import check_new_folder
from jcos.report import explorer
from jcos.wan import Wan
from jcos.weights.checkpoint import identify


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(options.Run, OnMesh):
    """`jcos run`, at work."""

    def run(self) -> None:
        if self.example_clips is not None:
            write_example(self.example_clips)
            print(f"Fill in the pictures and prompts of {self.example_clips}; docs/wan.md says how")
            return
        if self.config is None:
            raise ValueError("no config is named; those of the paper are in configs/")
        experiment = override(load_experiment(config_file(self.config)), self.set)
        profile = self.profile or experiment.profile
        experiment = dataclasses.replace(experiment, profile=profile)
        out = self.out or Path("out") / self.config.stem
        check_new_folder(out)
        start = time.monotonic()
        config = wan.read_config(self.checkpoint, profile)
        sampled = dataclasses.replace(config, sampling=experiment.sampling.of(config))
        devices = self.devices_for(sampled, len(experiment.seeds))

        def load() -> Wan:
            _tell_steps(experiment.sampling.of(config), config)
            return wan.load(self.checkpoint, profile=profile)

        with sharding.use_mesh(devices), bar() as progress:
            new = run_to(
                out,
                experiment,
                config,
                load,
                weights=identify(self.checkpoint),
                command=command_line(),
                redo=self.redo,
                progress=progress,
            )
        page = explorer.page_of(out).resolve()
        if new or not page.is_file():  # of a run that was killed between the two
            page = make_page(out)
        words = f"{time.monotonic() - start:.0f} s" if new else "these results are there already"
        print(f"{experiment.name}: {words}; the page to look inside is at {page}")


def _tell_steps(sampling: Sampling, config: WanConfig) -> None:
    own = config.sampling.steps
    if sampling.steps != own:
        console.print(
            f"Sampled in {sampling.steps} steps; {config.name} has {own} of its own "
            "(--set sampling.steps=none).",
            highlight=False,
        )
