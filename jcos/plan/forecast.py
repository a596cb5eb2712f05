"""What a job needs on a machine, mesh by mesh, and which mesh to take."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from jax.sharding import Mesh

from jcos.devices import memory, sharding
from jcos.devices.mesh import AXES
from jcos.plan import compiled, costs, targets
from jcos.plan.costs import Job, Memory, Seconds
from jcos.plan.hlo import Traffic
from jcos.plan.machines import GIB, Machine

Sizes = Mapping[str, int]

ROOM = 0.9
"""Share of the memory that a calculation may fill: what it leaves out (the framework, fragments)
has to fit too. What was compiled for a GPU must fit what a command claims of it (`memory.CLAIM`);
the word of a TPU's compiler is taken as it is."""


@dataclasses.dataclass(frozen=True)
class Option:
    """A job on one mesh.

    compiled: or calculated. memory: of one device; None where the compiler found no way. sent:
    collectives per step, and link_bytes what a device sends in them. attention: the kernel that the
    compiled program calls. trouble: why it does not run there, if it does not. resident: all
    experts lie on the device together, or one at a time, the other in host memory (`wan.load`).
    """

    sizes: Sizes
    compiled: bool
    memory: Memory | None
    link_bytes: float
    seconds: Seconds
    sent: Mapping[str, Traffic] = dataclasses.field(default_factory=dict)
    attention: str = ""
    compile_seconds: float = 0.0
    trouble: str = ""
    resident: bool = True

    @property
    def mesh(self) -> str:
        where = sharding.describe(self.sizes) if self.sizes else "one device"
        return where if self.resident else f"{where}, in turns"


@dataclasses.dataclass(frozen=True)
class Forecast:
    """A job on a machine: the options that were tried, in order of trial."""

    job: Job
    machine: Machine
    options: tuple[Option, ...]

    @property
    def best(self) -> Option | None:
        """The fastest that runs; of equals the one that sends and holds least."""
        running = [option for option in self.options if not option.trouble]

        def rank(option: Option) -> tuple[float, ...]:
            held = 0.0 if option.memory is None else option.memory.total
            return (round(option.seconds.roofline, 4), round(option.seconds.links, 4), held)

        return min(running, key=rank, default=None)

    def expected(self, option: Option) -> float:
        """Seconds per step where as much of the chip's peak is reached as the fastest published run
        of Wan reaches."""
        return max(option.seconds.roofline, option.seconds.compute / self.machine.chip.reached)

    def to_json(self) -> dict[str, Any]:
        """Everything, in bytes, operations and seconds."""
        job, chip = self.job, self.machine.chip
        best = self.best
        return {
            "model": job.config.name,
            "machine": self.machine.name,
            "devices": self.machine.devices,
            "chip": dataclasses.asdict(chip),
            "video": {"frames": job.frames, "height": job.height, "width": job.width},
            "seeds": job.seeds,
            "tokens": job.tokens,
            "steps": job.sampling.steps,
            "forward_flops": costs.forward_flops(job.config.dit, job.tokens),
            "step_flops": costs.step_flops(job),
            "recommended": None if best is None else dict(best.sizes),
            "options": [self._option_json(option) for option in self.options],
        }

    def _option_json(self, option: Option) -> dict[str, Any]:
        step, steps = self.expected(option), self.job.sampling.steps
        return dataclasses.asdict(option) | {
            "mesh": option.mesh,
            "total_bytes": None if option.memory is None else option.memory.total,
            "limit": option.seconds.limit,
            "roofline_seconds_per_step": option.seconds.roofline,
            "roofline_seconds_per_video": option.seconds.roofline * steps / self.job.seeds,
            "expected_seconds_per_step": step,
            "expected_seconds_per_video": step * steps / self.job.seeds,
        }


def meshes(job: Job, machine: Machine) -> list[Sizes]:
    """Meshes worth trying, the most promising by calculation first: those that fit, by the time of
    a step whose links and arithmetic do not overlap, then those that send and hold less."""
    devices = machine.devices
    runs = itertools.product(_divisors(job.seeds), _divisors(job.branches))
    every = (
        {"seed": seed, "branch": branch, "context": left // fsdp, "fsdp": fsdp}
        for seed, branch in runs
        if devices % (seed * branch) == 0
        for left in [devices // (seed * branch)]
        for fsdp in _divisors(left)
    )
    found = [{name: n for name, n in sizes.items() if n > 1} for sizes in every]

    def rank(sizes: Sizes) -> tuple[float, ...]:
        option = calculated(job, machine, sizes)
        held = option.memory.total if option.memory else math.inf
        unfit = max(0.0, held - ROOM * machine.chip.memory)
        return unfit, round(option.seconds.compute + option.seconds.links, 4), held

    return sorted(found, key=rank)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def calculated(job: Job, machine: Machine, sizes: Sizes) -> Option:
    """An option by formulas alone."""
    held, sent = costs.memory(job, sizes, machine.chip.copies), costs.link_bytes(job, sizes)
    trouble = _too_large(held, ROOM * machine.chip.memory)
    seconds = costs.seconds(job, machine, sizes, sent)
    return Option(sizes, False, held, sent, seconds, trouble=trouble)


def options(job: Job, machine: Machine, tried: Sequence[Sizes]) -> Iterator[Option]:
    """One option per mesh: compiled, or for GPUs whose compiler is not installed calculated. A
    second one, with experts in turns, where two do not fit together.

    Raises ModuleNotFoundError where the compiler for TPUs is missing, ValueError where a mesh does
    not make up the machine or does not divide the job.
    """
    if targets.installed(machine) or machine.platform == "tpu":
        devices = targets.described(machine)
        meshes = [sharding.make_mesh(sizes, devices) for sizes in tried]
        tries = [partial(_compiled, machine=machine, mesh=mesh) for mesh in meshes]
    else:
        for sizes in tried:
            _check(job, machine, sizes)
        tries = [partial(calculated, machine=machine, sizes=sizes) for sizes in tried]
    for make in tries:
        option = make(job)
        yield option
        if option.trouble and job.config.experts > 1:
            yield dataclasses.replace(make(costs.in_turns(job)), resident=False)


def _compiled(job: Job, machine: Machine, mesh: Mesh) -> Option:
    sizes = {name: size for name, size in mesh.shape.items() if size > 1}
    try:
        found = compiled.compile_run(job, mesh)
    except compiled.DoesNotFit as refusal:
        guess = calculated(job, machine, sizes)
        return Option(sizes, True, None, guess.link_bytes, guess.seconds, trouble=str(refusal))
    sent = sum(traffic.bytes for traffic in found.sent.values())
    # A TPU's compiler refuses what does not fit; a GPU's leaves it to the run.
    gpu = machine.platform == "gpu"
    room = float(memory.CLAIM) * machine.chip.memory if gpu else math.inf
    return Option(
        sizes,
        True,
        found.memory,
        sent,
        costs.seconds(job, machine, sizes, sent),
        sent=found.sent,
        attention=found.attention,
        compile_seconds=found.seconds,
        trouble=_too_large(found.memory, room),
    )


def _too_large(held: Memory, room: float) -> str:
    if held.total <= room:
        return ""
    return f"needs {held.total / GIB:.1f} GiB, {room / GIB:.1f} can be counted on"


def _check(job: Job, machine: Machine, sizes: Sizes) -> None:
    """As `sharding.make_mesh`, for devices that are not even described."""
    if unknown := sorted(sizes.keys() - set(AXES)):
        raise ValueError(f"a mesh has no axis {unknown[0]!r}; its axes are {', '.join(AXES)}")
    if math.prod(sizes.values()) != machine.devices or min(sizes.values(), default=1) < 1:
        shown = sharding.describe(sizes)
        raise ValueError(f"a mesh {shown} does not make up {machine.devices} device(s)")
    if job.seeds % sizes.get("seed", 1):
        raise ValueError(f"{job.seeds} seeds do not divide over the mesh's seed={sizes['seed']}")
