"""What a job needs on a machine, mesh by mesh, and which mesh to take."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from jcos.devices import memory, sharding
from jcos.devices.mesh import AXES, WORLD
from jcos.generation import generate_worlds
from jcos.plan import compiled, costs
from jcos.plan.costs import Job, Memory, Seconds, Sizes
from jcos.plan.machines import GIB, Machine
from jcos.wan import check_mesh

ROOM = 0.9
"""Share of the memory that a calculation may fill: what it leaves out (the framework, fragments)
has to fit too. What was compiled for a GPU must fit what a command claims of it (`memory.CLAIM`);
the word of a TPU's compiler is taken as it is."""


@dataclasses.dataclass(frozen=True)
class Option:
    """A job on one mesh.

    compiled: or calculated. memory: of one device; None where the compiler found no way.
    link_bytes: sent by a device in a step. trouble: why it does not run there, if it does not.
    resident: all experts lie on the device together, or one at a time, the other in host memory
    (`wan.load`).
    """

    sizes: Sizes
    compiled: bool
    memory: Memory | None
    link_bytes: float
    seconds: Seconds
    trouble: str = ""
    resident: bool = True

    @property
    def mesh(self) -> str:
        where = sharding.describe(self.sizes) if self.sizes else "one device"
        return where if self.resident else f"{where}, in turns"

    def to_json(self, steps: float) -> dict[str, Any]:
        """Return everything; steps: that one video takes of those that all seeds make."""
        made = dataclasses.asdict(self) | {"mesh": self.mesh, "limit": self.seconds.limit}
        made["total_bytes"] = None if self.memory is None else self.memory.total
        for name in ("roofline", "expected"):
            step = getattr(self.seconds, name)
            made |= {f"{name}_seconds_per_step": step, f"{name}_seconds_per_video": step * steps}
        return made


@dataclasses.dataclass(frozen=True)
class Forecast:
    """A job on a machine: the options that were tried, in order of trial."""

    job: Job
    machine: Machine
    options: tuple[Option, ...]

    @property
    def best(self) -> Option | None:
        """The fastest that runs; of equals the one that sends and holds least."""

        def rank(option: Option) -> tuple[float, ...]:
            held = 0.0 if option.memory is None else option.memory.total
            return (round(option.seconds.roofline, 4), round(option.seconds.links, 4), held)

        running = [option for option in self.options if not option.trouble]
        return min(running, key=rank, default=None)

    def to_json(self) -> dict[str, Any]:
        """Return everything, in bytes, operations and seconds."""
        job, best = self.job, self.best
        return {
            "model": job.config.name,
            "machine": self.machine.name,
            "devices": self.machine.devices,
            "chip": dataclasses.asdict(self.machine.chip),
            "video": {"frames": job.frames, "height": job.height, "width": job.width},
            "seeds": job.seeds,
            "tokens": job.tokens,
            "steps": job.steps,
            "step_flops": costs.step_flops(job),
            "recommended": None if best is None else dict(best.sizes),
            "options": [option.to_json(job.steps / job.seeds) for option in self.options],
        }


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
        option = calculated(job, machine, sizes)
        assert option.memory is not None
        held = option.memory.total
        unfit = max(0.0, held - ROOM * machine.chip.memory)
        return unfit, round(option.seconds.compute + option.seconds.links, 4), held

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
        option = make(job, machine, sizes)
        yield option
        if option.trouble and job.config.experts > 1:
            yield dataclasses.replace(make(costs.in_turns(job), machine, sizes), resident=False)


def _resolved(sizes: Sizes, devices: int) -> Sizes:
    """Return the axes of a mesh that are larger than 1, −1 as the number that it stands for."""
    shape = dict(zip(AXES, sharding.mesh_shape(sizes, devices), strict=True))
    if shape[WORLD] > 1:
        raise ValueError("world spreads the runs of an experiment, and a plan is of one: leave it")
    return {name: size for name, size in shape.items() if size > 1}


def calculated(job: Job, machine: Machine, sizes: Sizes) -> Option:
    """Return an option by formulas alone."""
    held, sent = costs.memory(job, sizes, machine.chip.copies), costs.link_bytes(job, sizes)
    trouble = _too_large(held, ROOM * machine.chip.memory)
    return Option(sizes, False, held, sent, costs.seconds(job, machine, sizes, sent), trouble)


def _compiled(job: Job, machine: Machine, sizes: Sizes, devices: Sequence[Any]) -> Option:
    """`jcos.generate` of the job: all steps, experts and seeds, no weights needed."""
    guess = dataclasses.replace(calculated(job, machine, sizes), compiled=True)
    mesh = sharding.make_mesh(sizes, devices)
    try:
        held, _ = compiled.compile_for(mesh, generate_worlds, *compiled.arguments(job, mesh))
    except MemoryError as refusal:
        return dataclasses.replace(guess, memory=None, trouble=str(refusal))
    # A TPU's compiler refuses what does not fit; a GPU's leaves it to the run.
    room = float(memory.CLAIM) * machine.chip.memory if machine.platform == "gpu" else math.inf
    return dataclasses.replace(guess, memory=held, trouble=_too_large(held, room))


def _too_large(held: Memory, room: float) -> str:
    if held.total <= room:
        return ""
    return f"needs {held.total / GIB:.1f} GiB, {room / GIB:.1f} can be counted on"
