"""What a job needs on a machine, mesh by mesh, and which mesh to take."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

from jcos.devices import memory, sharding
from jcos.devices.mesh import AXES, WORLD
from jcos.generation import generate_worlds
from jcos.plan import compiled, costs
from jcos.plan.costs import Job, Memory, Sizes
from jcos.plan.machines import GIB, Machine
from jcos.wan import check_mesh

ROOM = 0.9
"""Share of the memory that a calculation may fill: what it leaves out (the framework, fragments)
has to fit too. What was compiled for a GPU must fit what a command claims of it (`memory.CLAIM`);
the word of a TPU's compiler is taken as it is."""
COLUMNS = (
    *("mesh", "weights + work, GiB (of memory)", "GB sent/step", "at best, s/step"),
    *("expected, s/step", "min/video"),
)


@dataclasses.dataclass(frozen=True)
class Option:
    """What a job needs on one mesh.

    held: on one device; None where the compiler found no way. trouble: why it does not run there,
    if it does not. compiled: or calculated. resident: all experts lie on the device together, or
    one at a time, the other in host memory (`wan.load`).
    """

    job: Job
    machine: Machine
    sizes: Sizes
    held: Memory | None
    trouble: str = ""
    compiled: bool = False
    resident: bool = True

    @property
    def mesh(self) -> str:
        name = sharding.describe(self.sizes) if self.sizes else "one device"
        return name if self.resident else f"{name}, in turns"

    @cached_property
    def sent(self) -> float:
        """Bytes that one device sends in a step."""
        return costs.link_bytes(self.job, self.sizes)

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Of a step, by what could hold it up."""
        return costs.seconds(self.job, self.machine, self.sizes, self.sent)

    @property
    def limit(self) -> str:
        """What holds a step up."""
        return max(self.seconds, key=self.seconds.__getitem__)

    @property
    def step(self) -> float:
        """Seconds of a step with everything overlapped; no run is faster."""
        return self.seconds[self.limit]

    @property
    def expected(self) -> float:
        """Seconds of a step at the share of the arithmetic's peak that is reached in practice."""
        return max(self.step, self.seconds["compute"] / self.machine.chip.reached)

    def cells(self) -> tuple[str, ...]:
        """Return the line of a table with `COLUMNS`."""
        size = "–"
        if self.held is not None:
            work = self.held.temporaries + self.held.outputs
            share = self.held.total / self.machine.chip.memory
            size = f"{self.held.arguments / GIB:.1f} + {work / GIB:.1f} ({share:.0%})"
        video = self.expected * self.job.steps / self.job.seeds
        times = f"{self.step:.2f}", f"{self.expected:.2f}", f"{video / 60:.1f}"
        return self.mesh, size, f"{self.sent / 1e9:.1f}", *times


def best(options: Iterable[Option]) -> Option | None:
    """Return the fastest that runs; of equals the one that sends and holds least."""

    def rank(option: Option) -> tuple[float, ...]:
        held = option.held.total if option.held else math.inf
        return round(option.step, 4), round(option.seconds["links"], 4), held

    return min((one for one in options if not one.trouble), key=rank, default=None)


def meshes(job: Job, machine: Machine) -> list[Sizes]:
    """Return meshes worth trying, the most promising by calculation first: those that fit, by the
    time of a step whose links and arithmetic do not overlap, then those that hold less."""
    count, every = machine.devices, []
    divisors = (
        [d for d in range(1, n + 1) if n % d == 0] for n in (job.seeds, job.branches, count)
    )
    for seed, branch, fsdp in itertools.product(*divisors):
        if count % (seed * branch * fsdp) == 0:
            context = count // (seed * branch * fsdp)
            sizes = {"seed": seed, "branch": branch, "context": context, "fsdp": fsdp}
            every.append({name: n for name, n in sizes.items() if n > 1})

    def rank(sizes: Sizes) -> tuple[float, ...]:
        held = costs.memory(job, sizes, machine.chip.copies).total
        seconds = Option(job, machine, sizes, None).seconds
        unfit = max(0.0, held - ROOM * machine.chip.memory)
        return unfit, round(seconds["compute"] + seconds["links"], 4), held

    return sorted(every, key=rank)


def options(job: Job, machine: Machine, tried: Sequence[Sizes]) -> Iterator[Option]:
    """Yield one option per mesh, compiled, or calculated where the machine's compiler is not
    installed. A second one, with experts in turns, where two do not fit together.

    Raises ValueError where a mesh does not make up the machine or does not divide the job.
    """
    make: Callable[[Job, Machine, Sizes], Option] = calculated
    tried = [_resolved(sizes, machine.devices) for sizes in tried]
    for sizes in tried:
        check_mesh(sizes, job.config, job.seeds)
    if compiled.installed(machine):
        make = partial(_compiled, devices=compiled.described(machine))
    for sizes in tried:
        together = make(job, machine, sizes)
        yield together
        if together.trouble and job.config.experts > 1:
            yield dataclasses.replace(make(costs.in_turns(job), machine, sizes), resident=False)


def _resolved(sizes: Sizes, devices: int) -> Sizes:
    """Return the axes of a mesh that are larger than 1, −1 as the number that it stands for."""
    shape = dict(zip(AXES, sharding.mesh_shape(sizes, devices), strict=True))
    if shape[WORLD] > 1:
        raise ValueError("world spreads the runs of an experiment, and a plan is of one: leave it")
    return {name: size for name, size in shape.items() if size > 1}


def calculated(job: Job, machine: Machine, sizes: Sizes) -> Option:
    """Return an option by formulas alone."""
    held = costs.memory(job, sizes, machine.chip.copies)
    return Option(job, machine, sizes, held, _too_much(held, ROOM * machine.chip.memory))


def _compiled(job: Job, machine: Machine, sizes: Sizes, devices: Sequence[Any]) -> Option:
    """`jcos.generate` of the job: all steps, experts and seeds, no weights needed."""
    mesh = sharding.make_mesh(sizes, devices)
    try:
        held, _ = compiled.compile_for(mesh, generate_worlds, *compiled.arguments(job, mesh))
    except MemoryError as error:
        return Option(job, machine, sizes, None, str(error), compiled=True)
    # A TPU's compiler refuses what does not fit; a GPU's leaves it to the run.
    room = float(memory.CLAIM) * machine.chip.memory if machine.platform == "gpu" else math.inf
    return Option(job, machine, sizes, held, _too_much(held, room), compiled=True)


def _too_much(held: Memory, room: float) -> str:
    if held.total <= room:
        return ""
    return f"needs {held.total / GIB:.1f} GiB, {room / GIB:.1f} can be counted on"
