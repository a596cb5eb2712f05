"""Samples of a benchmark on the machines of a Ray cluster (extra `ray`).

An actor holds a model; a sample is a task. Ray starts lost actors again, elsewhere if need be, and
gives their tasks anew; a sample whose video is there is not made twice.
"""

import contextlib
import dataclasses
import logging
import math
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax

from jcos.bench.arm import Arm
from jcos.bench.folder import Bench, Sample
from jcos.bench.results import Folder
from jcos.bench.run import Making, Work
from jcos.config import WanConfig
from jcos.devices import memory, programs, sharding

SECONDS = 10
"""That a port has to answer, and three times that a cluster has."""
RETRIES = 3
"""Of a sample whose actor dies; then it is written down as failed."""
CORES: int | None = None
"""Of a cluster that is started on this machine; all by default."""


class _Actor:
    """Holds the model of the arm that it works at."""

    def __init__(
        self, here: str, checkpoint: Path, out: Path, bench: Bench, work: Work, mesh: str | None
    ):
        memory.claim()
        programs.keep_in_cache()
        with contextlib.suppress(OSError):  # an arm's files may be named from there
            os.chdir(here)
        devices = mesh and sharding.make_mesh(sharding.parse_mesh(mesh), jax.local_devices())
        self.checkpoint, self.out, self.bench = checkpoint, out, bench
        self.work = dataclasses.replace(work, mesh=devices or None)
        self.name, self.making = "", None

    def make(self, name: str, arm: Arm, config: WanConfig, sample: str) -> str:
        """Make a sample's video, or write down why it cannot be made."""
        if self.name != name:
            self.making = None  # its weights leave the device
            folder = Folder(self.out / name)
            bench = arm.with_noise(self.bench)
            self.making = Making(arm, config, self.checkpoint, bench, folder, self.work)
            self.name = name
        assert self.making is not None
        chosen = [s for s in self.making.shapes if s.name == sample]
        for _ in self.making.make([s for s in chosen if not self.making.folder.is_settled(s.name)]):
            pass
        return sample


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A Ray cluster whose machines all see the same paths.

    address: HOST:PORT; by default one is started on this machine, and ends with the run. mesh: of
    each actor's devices, which one machine has; an actor makes one sample at a time. There is an
    actor for each GPU or TPU chip of the cluster (or as many as a mesh takes), or CPU core.

    Raises ValueError where Ray is not installed, an actor cannot have this mesh, no cluster
    answers, or no machine has the devices of an actor.
    """

    address: str | None = None
    mesh: str | None = None

    def __post_init__(self) -> None:
        if not find_spec("ray"):
            raise ValueError("--ray needs the extra ray: pip install 'jcos[ray]'")
        if min(self.sizes.values(), default=1) < 1:
            raise ValueError(f"mesh is {self.mesh!r}; with --ray every size is at least 1")
        sharding.mesh_shape(self.sizes, math.prod(self.sizes.values()))
        if (address := self.address) is None:
            return
        place = sharding.host_and_port(address)
        try:
            socket.create_connection(place, SECONDS).close()
            # Ray itself waits for minutes.
            command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
            subprocess.run(command, capture_output=True, check=True, timeout=3 * SECONDS)
        except (OSError, UnicodeError, subprocess.SubprocessError) as error:
            why = getattr(error, "strerror", None) or str(error)
            why = "what answers is something else" if hasattr(error, "cmd") else why
            raise ValueError(
                f"no Ray cluster answers at {address} ({why}): ray start --head"
            ) from None

    @property
    def sizes(self) -> dict[str, int]:
        return sharding.parse_mesh(self.mesh or "")

    @contextlib.contextmanager
    def actors(
        self, checkpoint: Path, bench: Bench, out: Path, work: Work
    ) -> Iterator[Callable[[str, Arm, WanConfig, Sequence[Sample]], Iterator[str]]]:
        """Start the actors; within, the function makes samples of an arm and yields their names."""
        import ray  # pyright: ignore[reportMissingImports]
        from ray.exceptions import RayError, RayTaskError  # pyright: ignore[reportMissingImports]

        samples = tuple(s._replace(folder=s.folder.absolute()) for s in bench.samples)
        bench = bench._replace(samples=samples)
        # Failed samples are tried again once: by the process that started the actors.
        work = dataclasses.replace(work, text=work.text.absolute(), retry=False)
        shared = (os.getcwd(), checkpoint.absolute(), out.absolute(), bench, work, self.mesh)
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)  # jax is idle here
            ray.init(self.address, num_cpus=None if self.address else CORES, **quiet)
        try:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            needs, most = _share(nodes, math.prod(self.sizes.values()))
            again = {"max_restarts": -1, "max_task_retries": RETRIES}
            remote = ray.remote(**again, **needs)(_Actor).remote
            free: list[Any] = [remote(*shared) for _ in range(most)]

            def make(
                name: str, arm: Arm, config: WanConfig, left: Sequence[Sample]
            ) -> Iterator[str]:
                todo, begun = [sample.name for sample in reversed(left)], {}
                while todo or begun:
                    while free and todo:
                        actor, sample = free.pop(), todo.pop()
                        begun[actor.make.remote(name, arm, config, sample)] = actor, sample
                    (task, *_), _ = ray.wait(list(begun))
                    actor, sample = begun.pop(task)
                    free.append(actor)
                    try:
                        ray.get(task)
                    except RayTaskError as error:
                        raise error.cause from None
                    except RayError as error:
                        lines = str(error).strip().splitlines() or [type(error).__name__]
                        if getattr(error, "actor_init_failed", False):
                            raise ValueError(f"an actor cannot start: {lines[-1]}") from None
                        lost = RuntimeError(f"its actor was lost {RETRIES + 1} times: {lines[0]}")
                        Folder(out / name).fail(sample, lost)
                    yield sample

            yield make
        finally:
            ray.shutdown()


def _share(nodes: Sequence[Mapping[str, float]], devices: int) -> tuple[dict[str, Any], int]:
    """Return what an actor with so many devices takes of a machine, and how many actors fit.

    nodes: resources of each machine. Raises ValueError where no machine can hold an actor, for
    which Ray would wait forever.
    """
    needs = {
        "GPU": {"num_gpus": devices},
        "TPU": {"resources": {"TPU": devices}},
        "CPU": {"num_cpus": 1},
    }
    kind = next((k for k in needs if any(node.get(k, 0) >= 1 for node in nodes)), "CPU")
    if kind == "CPU" and devices > 1:
        raise ValueError(f"--mesh takes {devices} devices; this cluster has CPU cores alone")
    most = sum(int(node.get(kind, 0)) // devices for node in nodes)
    if not most:
        raise ValueError(f"no machine of the cluster has {devices} {kind}s, which an actor takes")
    return needs[kind], most
