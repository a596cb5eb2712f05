"""The cost curves of docs/performance.md: time and memory against frames, resolution, seeds, layers
observed and devices, measured in one run on a CPU, beside the formulas of `jcos plan`.

    python scripts/cost_curves.py                    # minutes on two idle cores; writes the page
    python scripts/cost_curves.py --quick --page x   # toy sizes, another file: does it work?

One denoising step with guidance of a small model whose heads are as wide as Wan's. Only ratios are
about anything but this machine. The devices are simulated: all of them share the same cores, so
that memory and bytes sent are those of real ones, and time only says what spreading costs.
"""

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy.optimize import nnls

from jcos.config import WanConfig
from jcos.devices import mesh, sharding
from jcos.files import local_path
from jcos.generation import generate_worlds
from jcos.loop import seed_keys
from jcos.plan import costs
from jcos.plan.costs import Job
from jcos.plan.hlo import collectives
from jcos.plan.machines import CHIPS
from jcos.sampling import flow
from jcos.sampling.probes import Probe, TokenEnergy, TokenFeatures
from jcos.sampling.trajectory import Condition
from jcos.variants import toy
from jcos.wan import Wan
from pages import rewrite

PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
MB = 1e6


class Point(NamedTuple):
    """Of one step: seconds, and of a device the bytes of weights and inputs, of working memory and
    of results, and those that it sends."""

    seconds: float
    arguments: float
    temporaries: float
    outputs: float
    sent: float


@dataclasses.dataclass(frozen=True)
class Lab:
    """What is measured. side: of a square video in pixels, four of them a token; repeat: timings of
    which the fastest counts."""

    dim: int = 256
    ffn_dim: int = 1024
    heads: int = 2
    layers: int = 4
    side: int = 64
    frames: tuple[int, ...] = (2, 4, 8, 12)
    sides: tuple[int, ...] = (32, 64, 96, 128)
    seeds: tuple[int, ...] = (1, 2, 4, 8)
    meshes: tuple[str, ...] = (
        "",
        "context=2",
        "context=4",
        "context=8",
        "branch=2,context=4",
        "fsdp=8",
        "tensor=8",
    )
    repeat: int = 3

    def config(self) -> WanConfig:
        config = toy()
        sizes = {"dim": self.dim, "ffn_dim": self.ffn_dim, "heads": self.heads}
        dit = dataclasses.replace(config.dit, **sizes, layers=self.layers, text_len=32)
        sampling = dataclasses.replace(config.sampling, steps=1, guidance=(3.0,))
        return dataclasses.replace(config, dit=dit, sampling=sampling)

    def job(self, frames: int = 2, side: int | None = None, seeds: int = 1) -> Job:
        side = side or self.side
        return Job(self.config(), frames, side, side, seeds)


QUICK = Lab(
    dim=32,
    ffn_dim=32,
    layers=2,
    side=16,
    frames=(1, 2),
    sides=(8, 16),
    seeds=(1, 2),
    meshes=("", "context=2", "branch=2,fsdp=2"),
    repeat=1,
)


def measured(lab: Lab, job: Job, probe: Probe | None = None) -> Point:
    """Compiled and run, on the mesh in use."""
    cfg = job.config.dit
    model = Wan(job.config, rngs=nnx.Rngs(0))
    rows = jnp.ones((1, cfg.text_len, cfg.text_dim))
    given: Any = Condition(
        rows, job.latent, -rows, jnp.zeros((1, *job.latent, cfg.in_channels - cfg.out_channels))
    )
    plan, keys, probe = flow.plan(job.sampling), seed_keys(range(job.seeds)), probe or Probe()
    if mesh.in_use():
        model = sharding.place(model, jax.sharding.get_mesh())
        given = sharding.place_inputs(given, mesh.WORLD)
        keys = sharding.place_inputs(keys, mesh.SEED)
    run = jax.jit(lambda model, given, keys: generate_worlds(model, plan, given, keys, probe))
    program = run.lower(model, given, keys).compile()
    held, text = program.memory_analysis(), program.as_text()
    assert held is not None
    assert text is not None
    jax.block_until_ready(program(model, given, keys))
    seconds = []
    for _ in range(lab.repeat):
        start = time.perf_counter()
        jax.block_until_ready(program(model, given, keys))
        seconds.append(time.perf_counter() - start)
    return Point(
        min(seconds),
        held.argument_size_in_bytes,
        held.temp_size_in_bytes,
        held.output_size_in_bytes,
        sum(traffic.bytes for traffic in collectives(text).values()),
    )


# ---- the models

COPIES = CHIPS["v5e"].copies
"""What `jcos plan` counts on for TPUs; the tables say how much of it a CPU needs."""


def work(job: Job) -> list[float]:
    """What a step's time is made of: calling it, and operations with weights and of attention."""
    parts = costs.forward_flops(job.config.dit, job.tokens)
    attention = parts.pop("self-attention")
    return [1.0, job.passes * sum(parts.values()), job.passes * attention]


def held(job: Job) -> list[float]:
    """What working memory is made of: the widest place of a block with all that is kept, by
    `costs.memory`, and the scores of attention, which the reference kernel holds and others do
    not."""
    scores = 4.0 * job.passes * job.config.dit.heads * job.tokens**2
    return [costs.memory(job, {}, COPIES).temporaries, scores]


def fitted(terms: Sequence[Sequence[float]], values: Sequence[float]) -> np.ndarray:
    """Factors ≥ 0 of the terms for the least relative error."""
    relative = np.array(terms) / np.array(values)[:, None]
    largest = relative.max(0)  # or terms of other sizes would be lost in rounding
    factors, _ = nnls(relative / largest, np.ones(len(values)))
    return factors / largest


# ---- the curves


def sizes(lab: Lab) -> str:
    """Time and working memory by frames, resolution and seeds: one model of each for all."""
    curves = {
        "frames": [(n, lab.job(frames=n)) for n in lab.frames],
        "resolution": [(f"{n}x{n}", lab.job(side=n)) for n in lab.sides],
        "seeds": [(n, lab.job(seeds=n)) for n in lab.seeds],
    }
    rows = [(name, value, job) for name, curve in curves.items() for value, job in curve]
    points = [measured(lab, job) for _, _, job in rows]
    terms = [work(job) for *_, job in rows]
    kept = [held(job) for *_, job in rows]
    time_factors = fitted(terms, [point.seconds for point in points])
    memory_factors = fitted(kept, [point.temporaries for point in points])
    lines = [
        "| | | tokens × passes | ms | model | ratio | working MB | model | ratio |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    last = ""
    for (name, value, job), point, of, parts in zip(rows, points, terms, kept, strict=True):
        ms, mb = 1e3 * float(time_factors @ of), float(memory_factors @ parts) / MB
        lines.append(
            f"| {'' if name == last else name} | {value} | {job.tokens:,} × {job.passes} "
            f"| {1e3 * point.seconds:,.1f} | {ms:,.1f} | {1e3 * point.seconds / ms:.2f} "
            f"| {point.temporaries / MB:,.1f} | {mb:,.1f} | {point.temporaries / MB / mb:.2f} |"
        )
        last = name
    call, linear, attention = time_factors
    copies, scores = memory_factors
    factors = (
        f"Time: {1e3 * call:.1f} ms a call, {_rate(linear)} where weights are multiplied, "
        f"{_rate(attention)} in self-attention. Working memory: {copies:.2f} × what `jcos plan` "
        f"counts on for TPUs, and {scores:.2f} × the scores of attention. Ratio: measured / model."
    )
    return "\n".join([*lines, "", factors, ""])


def _rate(seconds: float) -> str:
    return f"{1e-9 / seconds:,.0f} GFLOP/s" if seconds else "no time"


def observed(lab: Lab) -> str:
    """What looking costs: nothing, energies of all layers, whole features of more and more."""
    job = lab.job(frames=lab.frames[1])
    cfg, plain = job.config.dit, Probe()
    looks: dict[str, tuple[Probe, float]] = {
        "nothing": (plain, 0.0),
        f"energies, {cfg.layers} layers": (TokenEnergy(), 4.0 * cfg.layers * job.tokens),
    }
    for count in sorted({1, cfg.layers // 2, cfg.layers}):
        size = 4.0 * count * job.tokens * cfg.dim
        looks[f"features, {count} layer(s)"] = (TokenFeatures(tuple(range(count))), size)
    points = {name: measured(lab, job, probe) for name, (probe, _) in looks.items()}
    first = points["nothing"]
    lines = ["| observed | time | results, MB more | model |", "|---|--:|--:|--:|"]
    for name, point in points.items():
        more = (point.outputs - first.outputs) / MB
        lines.append(
            f"| {name} | {point.seconds / first.seconds:.2f} × | {more:,.2f} "
            f"| {looks[name][1] / MB:,.2f} |"
        )
    return "\n".join([*lines, ""])


def devices(lab: Lab) -> str:
    """In a process of its own: the simulated devices of a mesh, against one."""
    job = dataclasses.replace(lab, heads=8).job(frames=lab.frames[1])
    lines = [
        "| mesh | weights MB | model | working MB | model | sent MB | model | time |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    first, copies = None, 1.0
    for text in lab.meshes:
        axes = sharding.parse_mesh(text)
        count = int(np.prod(list(axes.values()) or [1]))
        with sharding.use_mesh(sharding.make_mesh(axes, jax.devices()[:count])):
            point = measured(lab, job)
        model, sent = costs.memory(job, axes, COPIES), costs.link_bytes(job, axes)
        scores = held(job)[1] / count
        first = first or point
        if not text:  # how much of both one device holds; the others are predicted by it
            copies = point.temporaries / (model.temporaries + scores)
        lines.append(
            f"| {text or 'one device'} | {point.arguments / MB:,.2f} | {model.arguments / MB:,.2f} "
            f"| {point.temporaries / MB:,.1f} "
            f"| {copies * (model.temporaries + scores) / MB:,.1f} "
            f"| {point.sent / MB:,.2f} | {sent / MB:,.2f} | {point.seconds / first.seconds:.2f} × |"
        )
    return "\n".join([*lines, ""])


def simulated(quick: bool) -> str:
    """`devices` in a process that has eight of them."""
    command = [sys.executable, __file__, "--devices", *["--quick"] * quick]
    out = subprocess.check_output(command, text=True)
    return json.loads(out.splitlines()[-1])


# ---- the page


def section(lab: Lab, quick: bool) -> str:
    """All tables, one under the other."""
    load = os.getloadavg()[0]
    tables = {
        "Frames, resolution, seeds": sizes(lab),
        "Layers observed": observed(lab),
        "Devices": simulated(quick),
    }
    cfg = lab.config().dit
    about = (
        f"*{cfg.layers} blocks of width {cfg.dim}, float32, one step of two passes. "
        f"{os.cpu_count()} × {platform.machine()} CPU, load before {load:.1f}, "
        f"jax {jax.__version__}, {time.strftime('%Y-%m-%d')}.*\n"
    )
    parts = [f"### {title}\n\n{table}" for title, table in tables.items()]
    return "\n".join([*parts, about])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="toy sizes")
    parser.add_argument("--page", type=local_path, default=PAGE)
    parser.add_argument("--devices", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    lab = QUICK if arguments.quick else Lab()
    if arguments.devices:
        jax.config.update("jax_num_cpu_devices", 8)
        return print(json.dumps(devices(lab)))
    if arguments.quick and arguments.page == PAGE:
        parser.error("toy sizes say nothing: name another --page")
    text = section(lab, arguments.quick)
    print(text)
    rewrite(arguments.page, "cost_curves", "curves", text)


if __name__ == "__main__":
    main()
