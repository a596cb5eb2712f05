"""What probes inside the blocks cost: operations and bytes of the compiled program, against none.

    python scripts/inside_cost.py                              # this CPU's compiler, A14B at 480p
    python scripts/inside_cost.py --machine v6e:2x4            # that of a TPU (extra `tpu`)

One step of one block of the model at its true width and length, weights as shapes: nothing is
allocated, and all blocks are alike. Operations are counted in a program without loops; bytes in the
true one, where what attention (and `AttentionMass`) does block by block counts once. Ten seconds a
line on one core.
"""

import argparse
import contextlib
import dataclasses
import os
from typing import Any, NamedTuple
from unittest import mock

import jax

from jcos.config import WanConfig
from jcos.devices import sharding
from jcos.generation import generate_worlds
from jcos.model import attention
from jcos.plan import compiled
from jcos.plan.costs import Job
from jcos.plan.machines import machine
from jcos.sampling import maps
from jcos.sampling.inside import KnockOut
from jcos.sampling.maps import AttentionMass
from jcos.sampling.probes import Probe
from jcos.variants import VARIANTS

SIZES = {"480p": (81, 480, 832), "720p": (81, 720, 1280)}


class Cost(NamedTuple):
    """Of a program: operations, and bytes that its instructions read and write."""

    flops: float
    bytes: float


def one_block(config: WanConfig) -> WanConfig:
    """Return the model with one block, one expert, one step and no guidance."""
    sampling = dataclasses.replace(config.sampling, steps=1, guidance=None)
    dit = dataclasses.replace(config.dit, layers=1)
    return dataclasses.replace(config, dit=dit, sampling=sampling, boundary=None)


def probes(job: Job) -> dict[str, Probe]:
    """Return the probes that are compared, for a job of one block."""
    config, grid = job.config, job.config.dit.tokens(*job.latent)
    heads, neurons = [(0, 0), (0, 1)], [(0, n) for n in range(8)]
    mass = {
        f"AttentionMass.by_frame, one query in {n}": AttentionMass.by_frame(
            grid, [0], every=n, dtype=config.numerics.linear
        )
        for n in (16, 1)
    }
    return {
        "none": Probe(),
        "KnockOut of heads, by zero": KnockOut.at(config, "heads", heads),
        "KnockOut of heads, by the mean": KnockOut.at(config, "heads", heads, by="mean"),
        "KnockOut of neurons": KnockOut.at(config, "mlp", neurons),
        **mass,
    }


def cost(job: Job, probe: Probe, mesh: Any) -> Cost:
    """Return the cost of a run of the job on one device of a mesh, as its compiler counts it."""
    taken = compiled.arguments(job, mesh or sharding.make_mesh({}, jax.devices()[:1]), probe)

    program: Any = generate_worlds

    def counted() -> Any:
        program.clear_cache()
        with sharding.use_mesh(mesh) if mesh is not None else contextlib.nullcontext():
            return program.lower(*taken).compile().cost_analysis()

    whole = 2**60
    with mock.patch.object(attention, "SCORES", whole), mock.patch.object(maps, "WEIGHTS", whole):
        flops = counted()["flops"]
    return Cost(flops, counted()["bytes accessed"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=VARIANTS, default="wan2.2-i2v-a14b")
    parser.add_argument("--size", choices=SIZES, default="480p")
    parser.add_argument("--only", default="", help="part of a probe's name")
    parser.add_argument("--machine", help="as `jcos plan` names them; by default this CPU")
    arguments = parser.parse_args()
    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    mesh = None
    if arguments.machine is not None:
        try:
            devices = compiled.described(machine(arguments.machine))
        except ValueError as error:
            parser.error(str(error))
        mesh = sharding.make_mesh({}, devices[:1])
    job = Job(one_block(VARIANTS[arguments.model]()), *SIZES[arguments.size])
    print(f"{arguments.model}, {arguments.size}, {job.tokens:,} tokens, one block, one step")
    plain = None
    for name, probe in probes(job).items():
        if name != "none" and arguments.only not in name:
            continue
        found = cost(job, probe, mesh)
        plain = plain or found
        more = (a / b for a, b in zip(found, plain, strict=True))
        print(
            f"{name:45} {found.flops / 1e12:8.2f} TFLOP {found.bytes / 1e9:8.1f} GB, times "
            + " ".join(f"{ratio:.4f}" for ratio in more),
            flush=True,
        )


if __name__ == "__main__":
    main()
