"""The options of commands that can use many devices and hosts."""

import contextlib
import dataclasses
import warnings
from typing import TYPE_CHECKING

from jcos.cli.paths import AnyOutFolder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jax.sharding import Mesh

    from jcos.config import WanConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnMesh:
    """The option of every command that can use many devices."""

    mesh: str | None = None
    """How all devices of this process share the work, like branch=2,context=4 (docs/launch.md): by
    seed, branch (of guidance), context or fsdp (a video's tokens; fsdp slices the weights too),
    tensor (heads), world (runs of an experiment, samples of a benchmark). One device by default."""

    join: bool = False
    """This is one of several hosts that all run this command, with --mesh over the devices of all;
    the benchmark gives each host its own samples. TPU pods and SLURM know their hosts; elsewhere
    set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID."""
    scalars: AnyOutFolder | None = None
    """Folder for a line of JSON per step (seconds, passes, memory), and TensorBoard's events where
    tensorboardX is installed; to W&B too where wandb is and WANDB_PROJECT is set."""
    trace_profile: AnyOutFolder | None = None
    """Folder for a profile of a few steps (jax.profiler); docs/launch.md says how to open it."""

    @contextlib.contextmanager
    def at_work(self) -> "Iterator[None]":
        """Join the other hosts, if there are any, watch the steps, and wait for them at the end."""
        from jcos.devices import sharding
        from jcos.devices.watching import watched

        if self.join:
            if self.mesh is None:
                raise ValueError("--join needs --mesh: how the hosts' devices share the work")
            sharding.init_distributed()
        with watched(self.scalars, self.trace_profile):
            yield
        sharding.wait_for_hosts()  # or they take it for a loss

    def devices(self, *, everywhere: bool = True) -> "Mesh | None":
        """Return the mesh, None for one device; of all hosts, or of this one's devices. ValueError
        where the devices do not make it up."""
        import jax

        from jcos.devices import sharding

        here = jax.devices() if self.join and everywhere else jax.local_devices()
        if self.mesh is not None:
            return sharding.make_mesh(sharding.parse_mesh(self.mesh), here)
        if len(here) > 1:
            warnings.warn(
                f"{len(here) - 1} of {len(here)} devices are idle: see --mesh", stacklevel=2
            )
        return None

    def devices_for(self, config: "WanConfig", seeds: int) -> "Mesh | None":
        """Return `devices`; ValueError where runs of this model cannot be spread over them."""
        from jcos import wan

        devices = self.devices()
        if devices is not None:
            wan.check_mesh(devices.shape, config, seeds)
        return devices
