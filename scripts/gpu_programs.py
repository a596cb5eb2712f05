"""What XLA makes of jcos's programs for a GPU that is not here: memory, kernels, bytes moved.

    python scripts/gpu_programs.py            # true sizes; writes the tables of docs/performance.md
    python scripts/gpu_programs.py --tiny     # what calls attention, at toy sizes: does it compile?

Needs the extra `gpu` and no GPU. Every program that a run on one GPU consists of is lowered and
compiled ahead of time with weights as shapes, two to four minutes in all on two cores. How long
the kernels take only a GPU can tell (`scripts/bench_gpu.py`); this tells what they have to do.
"""

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jcos import generation, wan
from jcos.devices import sharding
from jcos.devices.sharding import abstract_runs
from jcos.lab import training
from jcos.model.vae import Tiles
from jcos.plan import compiled, costs, targets
from jcos.plan.costs import Job, Memory
from jcos.plan.hlo import Traffic
from jcos.plan.kernels import kernels
from jcos.plan.machines import GIB, Chip, machine
from jcos.sampling import trajectory
from jcos.sampling.probes import Probe, SeedEnsemble, Swap, TokenEnergy, TokenFeatures
from jcos.variants import toy, wan22_i2v_a14b
from pages import rewrite

PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
SEEDS = 3


class Program(NamedTuple):
    """A jitted function and its arguments, those that are large as shapes that lie on the device.

    what: in the table. steps: how many denoising steps it makes, by which what it does is
    divided."""

    what: str
    function: Any
    arguments: tuple
    steps: int = 1


class Found(NamedTuple):
    """Of one program: bytes held, and kernels by kind, per step."""

    what: str
    memory: Memory
    kernels: dict[str, Traffic]


def looked_at(program: Program, mesh: Mesh) -> Found:
    memory, text = compiled.compile_for(mesh, program.function, *program.arguments)
    each = {
        kind: Traffic(round(traffic.count / program.steps), traffic.bytes / program.steps)
        for kind, traffic in kernels(text).items()
    }
    return Found(program.what, memory, each)


# ---- the programs


def run(what: str, job: Job, mesh: Mesh, probe: Probe | None = None, worlds: int = 1) -> Program:
    """`jcos.generate`, or side by side where there are several worlds."""
    taken = compiled.arguments(job, mesh, (sharding.FSDP,), probe or Probe())
    model, plan, given, keys, probe = taken
    many = jax.tree.map(lambda a: jax.ShapeDtypeStruct((worlds, *a.shape[1:]), a.dtype), given)
    taken = (model, plan, abstract_runs(many, mesh), keys, probe)
    return Program(what, generation.generate_worlds, taken, job.sampling.steps)


def one_step(what: str, job: Job, mesh: Mesh) -> Program:
    """What `jcos generate` calls for every step, with the weights of its expert alone."""
    model, plan, given, keys, probe = compiled.arguments(job, mesh, (sharding.FSDP,), Probe())

    def begin(given: trajectory.Condition, keys: jax.Array) -> tuple[Any, jax.Array]:
        noise, keys = trajectory.draw(job.config.dit, given, keys, None)
        return trajectory.begin(job.config.numerics, given, noise), keys

    state, keys = abstract_runs(jax.eval_shape(begin, given, keys), mesh)
    first = jax.tree.map(np.asarray, trajectory.steps_of(plan, 0)).one(0)
    taken = (model.experts[0], first, given, state, keys, probe)
    return Program(what, jax.jit(trajectory.advance), taken)


def sampling(job: Job, mesh: Mesh) -> Iterator[Program]:
    steps, layers, tokens = job.sampling.steps, job.config.dit.layers, job.tokens
    many = dataclasses.replace(job, seeds=SEEDS)
    features = TokenFeatures(layers=(0,), tokens=jnp.arange(0, tokens, 64))
    swap = Swap.at_layers(steps, layers, tokens, [layers // 2])
    yield run("a whole run", job, mesh)
    yield run("… token energies observed", job, mesh, TokenEnergy())
    yield run("… every 64th token of a block observed", job, mesh, features)
    yield run(f"… {SEEDS} seeds", many, mesh)
    yield run(f"… {SEEDS} seeds, ensemble", many, mesh, SeedEnsemble.window(steps, layers))
    yield run("… 2 worlds, swap", job, mesh, swap, worlds=2)
    yield one_step("one step (`jcos generate`)", job, mesh)


def coding(job: Job, mesh: Mesh) -> Iterator[Program]:
    model = abstract_runs(jax.eval_shape(lambda: wan.Wan(job.config, rngs=nnx.Rngs(0))), mesh)

    def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return abstract_runs(jax.ShapeDtypeStruct(sizes, dtype), mesh)

    video = (model.vae, shape(job.frames, job.height, job.width, 3))
    latents = (model.vae, shape(*job.latent, job.config.dit.out_channels))
    rows = job.config.dit.text_len
    words = (model.text, shape(rows, dtype=jnp.int32), shape(rows, dtype=jnp.bool))
    yield Program("VAE, a video encoded", jax.jit(lambda vae, x: vae.encode(x)), video)
    yield Program("VAE, a video decoded", jax.jit(lambda vae, x: vae.decode(x)), latents)
    tiled = jax.jit(lambda vae, x: vae.decode(x, tiles=Tiles()))
    yield Program("… in tiles", tiled, latents)
    yield Program("text encoder, a prompt", jax.jit(lambda t, ids, mask: t(ids, mask)), words)


def learning(mesh: Mesh, types: Sequence[str]) -> Iterator[Program]:
    """Of the small model; in bfloat16 with the gradient of cuDNN's attention."""
    recipe, config = training.Recipe(), toy(training.vocabulary())
    for linear in types:
        numerics = dataclasses.replace(config.numerics, linear=linear)
        asked = dataclasses.replace(config, numerics=numerics)
        state = jax.eval_shape(partial(training.initial, recipe, asked))
        given = jax.tree.map(jnp.asarray, training.batches(recipe, asked, 0))
        taken = (abstract_runs(state, mesh), abstract_runs(given, mesh))
        what = f"the small model, a training step in {linear}"
        yield Program(what, training.make_update(recipe, asked), taken)


def tiny(job: Job) -> Job:
    """Of the same kind, with everything in it that a kernel may refuse, by one expert."""
    dit = dataclasses.replace(job.config.dit, dim=256, ffn_dim=256, heads=2, layers=3)
    config = dataclasses.replace(job.config, dit=dit)
    return costs.in_turns(dataclasses.replace(job, config=config, frames=5, height=48, width=80))


# ---- the tables


def programs_table(all_found: Sequence[Found]) -> str:
    heads = ("program", "weights and inputs GiB", "working GiB", "results GiB")
    kinds = ("attention", "matrix products", "convolutions", "the rest moves")
    lines = [f"| {' | '.join((*heads, *kinds))} |", "|---|" + 7 * "--:|"]
    for found in all_found:
        held = found.memory
        sizes = (held.arguments, held.temporaries, held.outputs)
        attention, products, convolutions, rest = found.kernels.values()
        lines.append(
            f"| {found.what} | {' | '.join(f'{size / GIB:.2f}' for size in sizes)} "
            f"| {attention.count:,} | {products.count:,} | {convolutions.count:,} "
            f"| {rest.bytes / 1e9:,.0f} GB |"
        )
    return "\n".join([*lines, ""])


def step_table(found: Mapping[str, tuple[Job, Found]], chips: Sequence[Chip]) -> str:
    """What a guided step consists of, and how long that takes at least: operations at the chip's
    peak, bytes at its memory's, one kernel after the other."""
    heads = ("a guided step", "attention", "matrix products", "the rest")
    together = (f"together at best, {chip.name.upper()}" for chip in chips)
    lines = [f"| {' | '.join((*heads, *together))} |", "|---|--:|--:|--:|" + len(chips) * "--:|"]
    for size, (job, program) in found.items():
        cfg, parts = job.config.dit, costs.forward_flops(job.config.dit, job.tokens)
        across = 4.0 * cfg.layers * job.tokens * cfg.text_len * cfg.dim
        attention = job.passes * (parts["self-attention"] + across)
        products = job.passes * sum(parts.values()) - attention
        rest = program.kernels["the rest"].bytes
        work = (
            f"{attention / 1e12:,.0f} TFLOP | {products / 1e12:,.0f} TFLOP | {rest / 1e9:,.0f} GB"
        )
        sums = (
            f"{attention / c.flops:.2f} + {products / c.flops:.2f} + {rest / c.bandwidth:.2f} s"
            for c in chips
        )
        lines.append(f"| {size} | {work} | {' | '.join(sums)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true")
    small = parser.parse_args().tiny
    jax.config.update("jax_platforms", "cpu")
    target = machine("gpu:h200:1")
    mesh = sharding.make_mesh({}, targets.described(target))
    job = Job(wan22_i2v_a14b(), 81, 480, 832)
    if small:
        job, programs = tiny(job), (*sampling(tiny(job), mesh), *learning(mesh, ["bfloat16"]))
    else:
        types = ("float32", "bfloat16")
        programs = (*sampling(job, mesh), *coding(job, mesh), *learning(mesh, types))
    looked = []
    for program in programs:
        looked.append(looked_at(program, mesh))
        print(program.what, flush=True)
    steps = {f"{job.width}x{job.height}": (job, looked[0])}
    if not small:
        large = dataclasses.replace(job, height=720, width=1280)
        steps["1280x720"] = (large, looked_at(run("", large, mesh), mesh))
    chips = (target.chip, machine("gpu:h100:1").chip)
    text = "\n".join([programs_table(looked), step_table(steps, chips)])
    packages = ("jax", "jax-cuda13-pjrt")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    date = datetime.now(UTC).date().isoformat()
    text += f"\n*`python scripts/gpu_programs.py`, {target.name}, {versions}, {date}.*\n"
    print(text)
    if not small:
        rewrite(PAGE, "gpu_programs", "programs", text)


if __name__ == "__main__":
    main()
