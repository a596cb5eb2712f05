"""Samples of a benchmark on the machines of a Ray cluster (extra `ray`).

An actor holds a model; a sample is a task. Ray starts lost actors again, elsewhere if need be, and
gives their tasks anew; a sample whose video is there is not made twice.
"""

import dataclasses
import logging
import math
import os
import socket
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax

from jcos.bench.arm import Arm
from jcos.bench.folder import Bench
from jcos.bench.results import Folder, Status
from jcos.bench.run import Making, Work, settle
from jcos.config import WanConfig
from jcos.devices import sharding
from jcos.staged import Progress, silent

SECONDS = 10
"""That a cluster has to answer."""
CORES: int | None = None
"""Of a cluster that is started on this machine; all by default."""


class _Actor:
    """Holds the model of the arm that it works at."""

    def __init__(self, checkpoint: Path, out: Path, bench: Bench, work: Work, mesh: str | None):
        devices = mesh and sharding.make_mesh(sharding.parse_mesh(mesh), jax.local_devices())
        self.checkpoint, self.out, self.bench = checkpoint, out, bench
        self.work = dataclasses.replace(work, mesh=devices or None)
        self.name, self.making = "", None

    def make(self, name: str, arm: Arm, config: WanConfig, sample: str) -> str:
        """Make a sample's video, or write down why it cannot be made."""
        if self.name != name:
            self.making = None  # its weights leave the device
            folder = Folder(self.out / name)
            self.making = Making(arm, config, self.checkpoint, self.bench, folder, self.work)
            self.name = name
        assert self.making is not None
        left = [s for s in self.making.shapes if s.name == sample]
        for _ in self.making.make([s for s in left if not self.making.folder.is_settled(s.name)]):
            pass
        return sample


def check(address: str | None) -> None:
    """Raise ValueError where Ray is not installed or no cluster answers."""
    if not find_spec("ray"):
        raise ValueError("--ray needs the extra ray: pip install 'jcos[ray]'")
    if address is None:
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if not (host and port.isdecimal()):
            raise ValueError(f"address is {address!r}; it is HOST:PORT, as `ray start` says it")
        socket.create_connection((host, int(port)), SECONDS).close()
    except OSError as error:
        why = error.strerror or str(error)
        raise ValueError(f"no Ray cluster answers at {address} ({why}): ray start --head") from None


def run(
    arms: Mapping[str, Arm],
    checkpoint: Path,
    bench: Bench,
    out: Path,
    work: Work,
    *,
    address: str | None = None,
    mesh: str | None = None,
    command: str = "",
    progress: Progress = silent,
) -> dict[str, Status]:
    """Do as `run.run` on a cluster; all its machines must see the same paths.

    address: of a cluster; by default one is started on this machine, and ends with the run. mesh:
    of each actor's devices. There is an actor for each GPU or TPU chip of the cluster (or as many
    as a mesh takes), or CPU core. Raises ValueError as `check` and `settle`.
    """
    check(address)
    sizes = sharding.parse_mesh(mesh or "")
    checkpoint, out = checkpoint.absolute(), out.absolute()
    samples = tuple(s._replace(folder=s.folder.absolute()) for s in bench.samples)
    bench, text = bench._replace(samples=samples), work.text.absolute()
    work = dataclasses.replace(work, text=text)
    configs = settle(arms, checkpoint, bench, out, sizes, command)
    import ray  # pyright: ignore[reportMissingImports]

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(address, num_cpus=None if address else CORES, **quiet)
    try:
        needs, most = _share(ray.cluster_resources(), math.prod(sizes.values()))
        lasting = {"max_restarts": -1, "max_task_retries": -1}
        make = ray.remote(**lasting, **needs)(_Actor).remote
        again = dataclasses.replace(work, retry=False)  # of failed samples, once: here
        held = [make(checkpoint, out, bench, again, mesh) for _ in range(most)]
        for name, arm in arms.items():
            left = Making(arm, configs[name], checkpoint, bench, Folder(out / name), work).left()
            tasks = [(name, arm, configs[name], sample.name) for sample in left]
            for done, sample in enumerate(_each(held, tasks), 1):
                progress(f"{name}: {sample}", done, len(tasks))
    finally:
        ray.shutdown()
    return {name: Folder(out / name).status(bench) for name in arms}


def _share(resources: Mapping[str, float], devices: int) -> tuple[dict[str, Any], int]:
    """Return what an actor with so many devices takes of a cluster, and how many there may be."""
    if gpus := int(resources.get("GPU", 0)):
        return {"num_gpus": devices}, max(1, gpus // devices)
    if chips := int(resources.get("TPU", 0)):
        return {"resources": {"TPU": devices}}, max(1, chips // devices)
    return {"num_cpus": 1}, max(1, int(resources.get("CPU", os.cpu_count() or 1)))


def _each(actors: list[Any], tasks: list[tuple]) -> Iterator[str]:
    from ray.util import ActorPool  # pyright: ignore[reportMissingImports]

    pool: Any = ActorPool(actors)
    yield from pool.map_unordered(lambda actor, task: actor.make.remote(*task), tasks)
