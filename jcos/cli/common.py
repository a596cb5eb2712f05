"""What the commands share."""

import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Iterator

import jax
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from jcos.bench.sampler import check_mesh
from jcos.cli import options
from jcos.config import WanConfig
from jcos.devices import mesh, sharding
from jcos.experiments.experiment import Progress
from jcos.sampling.probes import Chain, Noise, Probe, SeedEnsemble, chain

console = Console(stderr=True)
PACE = 30 * 24 * 3600.0
"""Seconds over which a progress bar takes the pace: a month, so all that is done. A step may take
minutes and a sample an hour, and rich by itself forgets what was more than 30 seconds ago."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interventions(options.Interventions):
    """Interventions as probes."""

    def interventions(self) -> dict[str, list[int]]:
        """As a run's manifest holds them."""
        return {
            f.name: list(getattr(self, f.name)) for f in dataclasses.fields(options.Interventions)
        }

    def probe(self, steps: int, frames: int, layers: int, seeds: int) -> Chain:
        """All interventions, most of them off: one program serves every choice. ValueError where
        seeds are to be averaged and there is one, or no layer or step to do it at."""
        if self.ensemble_layers and seeds == 1:
            raise ValueError("--ensemble-layers averages over seeds; one is given: try --seeds 0 1")
        if not (self.ensemble_steps if self.ensemble_layers else self.ensemble_steps == (0,)):
            raise ValueError("--ensemble-layers and --ensemble-steps go together: give both")
        on = self.ensemble_steps if self.ensemble_layers else ()
        parts: list[Probe] = [
            Noise.at_steps(steps, frames, self.noise_steps)
            | Noise.at_frames(steps, frames, self.noise_frames),
            SeedEnsemble.window(steps, layers, on, self.ensemble_layers),
        ]
        return chain(*parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnMesh(options.OnMesh):
    """The mesh that --mesh describes."""

    def devices(self) -> Mesh | None:
        """The mesh; None for one device. ValueError where the devices do not make it up."""
        here = jax.local_devices()
        if self.mesh is not None:
            return sharding.make_mesh(sharding.parse_mesh(self.mesh), here)
        if len(here) > 1:
            idle = f"{len(here) - 1} of {len(here)} devices are idle: see --mesh"
            console.print(f"Note: {idle}.", highlight=False)
        return None

    def devices_for(self, config: WanConfig, seeds: int) -> Mesh | None:
        """`devices`, also with ValueError where runs of this model, sampled as its configuration
        says, cannot be spread over them."""
        devices = self.devices()
        if devices is not None:
            check_mesh({**devices.shape, mesh.SEED: 1}, config)
            with sharding.use_mesh(devices):
                sharding.check_runs(config.dit, devices.shape[mesh.WORLD], seeds)
        return devices


def command_line() -> str:
    """What was typed, to be kept beside what came of it."""
    return shlex.join(["jcos", *sys.argv[1:]])


@contextlib.contextmanager
def bar() -> Iterator[Progress]:
    """Show what is going on, how many parts are done, and the time that is left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bar(*columns, TimeRemainingColumn(), console=console, speed_estimate_period=PACE) as shown:
        task = shown.add_task("starting", total=None)
        yield lambda what, done, total: shown.update(
            task, description=what, completed=done, total=total
        )


def read_size(text: str) -> tuple[int, int]:
    """Width and height of WIDTHxHEIGHT; ValueError where it is something else."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise ValueError(f"size is {text!r}; it is WIDTHxHEIGHT in pixels, like 832x480")
    return int(width), int(height)
