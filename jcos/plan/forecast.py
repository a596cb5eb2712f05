"""What a job needs on a machine, mesh by mesh, and which mesh to take: the entries of the file that
`jcos plan --json` writes."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
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

Option = dict[str, Any]
"""A job on one mesh, as `option` describes it."""


def forecast(job: Job, machine: Machine, tried: Iterable[Option]) -> dict[str, Any]:
    """Return everything about a job on a machine, in bytes, operations and seconds: options in
    order of trial."""
    found = list(tried)
    chosen = best(found)
    return {
        "model": job.config.name,
        "machine": machine.name,
        "devices": machine.devices,
        "chip": dataclasses.asdict(machine.chip),
        "video": {"frames": job.frames, "height": job.height, "width": job.width},
        "seeds": job.seeds,
        "tokens": job.tokens,
        "steps": job.steps,
        "step_flops": costs.step_flops(job),
        "recommended": chosen and chosen["sizes"],
        "options": found,
    }


def best(options: Iterable[Option]) -> Option | None:
    """Return the fastest that runs; of equals the one that sends and holds least."""

    def rank(option: Option) -> tuple[float, ...]:
        step, links = option["roofline_seconds_per_step"], option["seconds"]["links"]
        return (round(step, 4), round(links, 4), option["total_bytes"])

    return min((one for one in options if not one["trouble"]), key=rank, default=None)


def cells(option: Option, memory: float) -> tuple[str, ...]:
    """Return an option's line of a table with `COLUMNS`. memory: of a device."""
    held, size, name = option["memory"], "–", "seconds_per_step"
    if held is not None:
        work, share = held["temporaries"] + held["outputs"], option["total_bytes"] / memory
        size = f"{held['arguments'] / GIB:.1f} + {work / GIB:.1f} ({share:.0%})"
    return (
        option["mesh"],
        size,
        f"{option['link_bytes'] / 1e9:.1f}",
        f"{option[f'roofline_{name}']:.2f}",
        f"{option[f'expected_{name}']:.2f}",
        f"{option['expected_seconds_per_video'] / 60:.1f}",
    )


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
        held, seconds = option["total_bytes"], option["seconds"]
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
        if together["trouble"] and job.config.experts > 1:
            turns = make(costs.in_turns(job), machine, sizes)
            yield turns | {"resident": False, "mesh": f"{turns['mesh']}, in turns"}


def _resolved(sizes: Sizes, devices: int) -> Sizes:
    """Return the axes of a mesh that are larger than 1, −1 as the number that it stands for."""
    shape = dict(zip(AXES, sharding.mesh_shape(sizes, devices), strict=True))
    if shape[WORLD] > 1:
        raise ValueError("world spreads the runs of an experiment, and a plan is of one: leave it")
    return {name: size for name, size in shape.items() if size > 1}


def calculated(job: Job, machine: Machine, sizes: Sizes) -> Option:
    """Return an option by formulas alone."""
    held = costs.memory(job, sizes, machine.chip.copies)
    return option(job, machine, sizes, held, ROOM * machine.chip.memory)


def _compiled(job: Job, machine: Machine, sizes: Sizes, devices: Sequence[Any]) -> Option:
    """`jcos.generate` of the job: all steps, experts and seeds, no weights needed."""
    mesh, held, refusal = sharding.make_mesh(sizes, devices), None, ""
    try:
        held, _ = compiled.compile_for(mesh, generate_worlds, *compiled.arguments(job, mesh))
    except MemoryError as error:
        refusal = str(error)
    # A TPU's compiler refuses what does not fit; a GPU's leaves it to the run.
    room = float(memory.CLAIM) * machine.chip.memory if machine.platform == "gpu" else math.inf
    return option(job, machine, sizes, held, room, refusal) | {"compiled": True}


def option(
    job: Job, machine: Machine, sizes: Sizes, held: Memory | None, room: float, refusal: str = ""
) -> Option:
    """Return what a job needs on one mesh.

    compiled: or calculated. memory, total_bytes: of one device; None where the compiler found no
    way, and says so in `refusal`. link_bytes: sent by a device in a step. seconds: of a step, by
    what could hold it up (`limit`: the longest). roofline: with everything overlapped, no run is
    faster; expected: at the share of the arithmetic's peak that is reached in practice (`Chip`).
    trouble: why it does not run there, if it does not. resident: all experts lie on the device
    together, or one at a time, the other in host memory (`wan.load`).

    held: what a device holds, of the `room` that can be counted on.
    """
    sent = costs.link_bytes(job, sizes)
    seconds = costs.seconds(job, machine, sizes, sent)
    limit = max(seconds, key=seconds.__getitem__)
    expected = max(seconds[limit], seconds["compute"] / machine.chip.reached)
    if held is not None and held.total > room:
        refusal = f"needs {held.total / GIB:.1f} GiB, {room / GIB:.1f} can be counted on"
    made = {
        "sizes": dict(sizes),
        "mesh": sharding.describe(sizes) if sizes else "one device",
        "compiled": False,
        "resident": True,
        "memory": held and held._asdict(),
        "total_bytes": held and held.total,
        "link_bytes": sent,
        "seconds": seconds,
        "limit": limit,
        "trouble": refusal,
    }
    for name, step in (("roofline", seconds[limit]), ("expected", expected)):
        video = step * job.steps / job.seeds
        made |= {f"{name}_seconds_per_step": step, f"{name}_seconds_per_video": video}
    return made
