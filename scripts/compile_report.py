"""What XLA makes of jcos's programs for machines that are not here: the tables of docs/.

    python scripts/compile_report.py                # docs/pods.md and docs/performance.md
    python scripts/compile_report.py --only curves  # formulas alone: no compiler, no time
    python scripts/compile_report.py --tiny         # toy sizes, printed alone: does it compile?

`machines`: every released model on common machines, planned as `jcos plan` does; seconds for a GPU,
a minute or two for a TPU slice on two cores (some of them alone: `jcos plan`).
`programs`: every program that a run on one GPU consists of, compiled with weights as shapes, four
minutes. `curves`: how a video's cost grows, by formula. Needs the extras `tpu` and `gpu`, but no
device.
"""

import dataclasses
import os
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jcos import wan
from jcos.devices import sharding
from jcos.devices.sharding import abstract_runs
from jcos.files import local_path
from jcos.generation import generate_worlds
from jcos.lab import training
from jcos.plan import compiled, costs, forecast
from jcos.plan.costs import Job
from jcos.plan.machines import GIB, machine
from jcos.sampling.inside import Capture, Swap
from jcos.sampling.probes import Probe, SeedEnsemble, TokenEnergy
from jcos.variants import VARIANTS, toy
from jcos.weights.checkpoint import abstract_model
from tables import about, markdown, options, rewrite

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = {"machines": "pods.md", "curves": "pods.md", "programs": "performance.md"}
SIZES = {"480p": (81, 480, 832), "720p": (81, 720, 1280), "704p": (121, 704, 1280)}
VIDEOS = (
    ("wan2.2-i2v-a14b", "480p"),
    ("wan2.2-i2v-a14b", "720p"),
    ("wan2.2-ti2v-5b", "704p"),
    ("wan2.1-t2v-1.3b", "480p"),
    ("wan2.2-t2v-a14b", "720p"),
    ("wan2.1-t2v-14b", "720p"),
)
MACHINES = (
    *("h100:1", "h200:1", "h100:8", "h200:8"),
    *("v5e-8", "v5p-8", "v6e-8", "v5p-32", "v5e-16", "v6e-16"),
)
COMPILERS = ("libtpu", "jax-cuda13-pjrt")
SEEDS = 3
TINY = (
    *("a whole run", f"… {SEEDS} seeds, ensemble", "… 2 worlds, swap"),
    "the small model, a training step in bfloat16",
)
"""What is compiled at toy sizes."""
A14B = VARIANTS["wan2.2-i2v-a14b"]()


# ---- machines


def machines() -> str:
    if lacking := [name for name in MACHINES if not compiled.installed(machine(name))]:
        raise SystemExit(f"no compiler for {', '.join(lacking)} here; the page stays as it is")
    rows = []
    for video, name in product(VIDEOS, MACHINES):
        rows.append(row(*video, name))
        print(*rows[-1], sep=" | ", flush=True)
    return markdown(("video", "machine", *forecast.COLUMNS), rows, left=3)


def row(name: str, size: str, where: str) -> tuple[str, ...]:
    """The most promising mesh, or, where the compiler refuses it, one of the next two."""
    job, target = Job(VARIANTS[name](), *SIZES[size]), machine(where)
    for sizes in forecast.meshes(job, target)[:3]:
        for option in forecast.options(job, target, [sizes]):
            if not option.trouble:
                *cells, step, expected, video = option.cells()
                limit = f"{step} ({option.limit})"
                return (f"{name} {size}", where, *cells, limit, expected, video)
    return (f"{name} {size}", where, "–", "does not fit", *4 * [""])


def curves() -> str:
    """How one video's cost grows with its frames and its size; formulas alone."""
    chip, steps = machine("h200:1").chip, 50
    sampling = dataclasses.replace(A14B.sampling, steps=steps)
    config, rows = dataclasses.replace(A14B, sampling=sampling), []
    for height, width in ((480, 832), (720, 1280)):
        for frames in (5, 21, 41, 81, 121, 161):
            job = Job(config, frames, height, width)
            parts = costs.forward_flops(config.dit, job.tokens)
            whole, held = sum(parts.values()), costs.memory(job, {}, chip.copies)
            energies = 4 * steps * config.dit.layers * job.tokens
            sizes = (held.temporaries / GIB, held.outputs / GIB, energies / GIB)
            rows.append(
                (
                    f"{frames} × {width}x{height}",
                    f"{job.tokens:,}",
                    f"{whole / 1e12:,.0f}",
                    f"{parts['self-attention'] / whole:.0%}",
                    f"{costs.step_flops(job) / chip.flops:.2f}",
                    *(f"{size:.2f}" for size in sizes),
                )
            )
    work = ("tokens", "TFLOP per pass", "of it self-attention", "H200: s/step at the peak")
    return markdown(
        ("A14B", *work, "working GiB", "clean estimates GiB", "token energies GiB"), rows
    )


# ---- programs of one GPU: what it is, a jitted function, arguments (large ones as shapes)

Program = tuple[str, Any, tuple]


def run(what: str, job: Job, mesh: Mesh, probe: Probe | None = None, worlds: int = 1) -> Program:
    """`jcos.generate`, side by side where there are several worlds."""
    model, plan, condition, keys, probe = compiled.arguments(job, mesh, probe)
    many = jax.tree.map(lambda a: jax.ShapeDtypeStruct((worlds, *a.shape[1:]), a.dtype), condition)
    return what, generate_worlds, (model, plan, abstract_runs(many, mesh), keys, probe)


def sampling(job: Job, mesh: Mesh) -> Iterator[Program]:
    steps, layers, tokens = job.steps, job.config.dit.layers, job.tokens
    many = dataclasses.replace(job, seeds=SEEDS)
    features = Capture("block", layers=(0,), tokens=jnp.arange(0, tokens, 64))
    yield run("a whole run", job, mesh)
    yield run("… token energies observed", job, mesh, TokenEnergy())
    yield run("… every 64th token of a block observed", job, mesh, features)
    yield run(f"… {SEEDS} seeds", many, mesh)
    yield run(f"… {SEEDS} seeds, ensemble", many, mesh, SeedEnsemble.window(steps, layers))
    swap = Swap.at_layers(steps, layers, tokens, [layers // 2])
    yield run("… 2 worlds, swap", job, mesh, swap, worlds=2)


def coding(job: Job, mesh: Mesh) -> Iterator[Program]:
    model = abstract_runs(abstract_model(wan.Wan, job.config), mesh)

    def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return abstract_runs(jax.ShapeDtypeStruct(sizes, dtype), mesh)

    video = (model.vae, shape(job.frames, job.height, job.width, 3))
    latents = (model.vae, shape(*job.latent, job.config.dit.out_channels))
    rows = job.config.dit.text_len
    words = (model.text, shape(rows, dtype=jnp.int32), shape(rows, dtype=jnp.bool))
    yield "VAE, a video encoded", jax.jit(lambda vae, x: vae.encode(x)), video
    yield "VAE, a video decoded", jax.jit(lambda vae, x: vae.decode(x)), latents
    yield "… in tiles", jax.jit(lambda vae, x: vae.decode(x, tiles=(30, 52))), latents
    yield "text encoder, a prompt", jax.jit(lambda t, ids, mask: t(ids, mask)), words


def learning(mesh: Mesh, tiny: bool) -> Iterator[Program]:
    """Of the small model, on one of its canvases if tiny; in bfloat16 with the gradient of cuDNN's
    attention."""
    recipe, config = training.Recipe(), toy(training.vocabulary())
    for linear in ("float32", "bfloat16"):
        numerics = dataclasses.replace(config.numerics, linear=linear)
        variant = dataclasses.replace(config, numerics=numerics)
        state = jax.eval_shape(partial(training.initial, recipe, variant))
        batch = jax.tree.map(
            jnp.asarray, training.batches(recipe, variant, 0)[: 1 if tiny else None]
        )
        taken = (abstract_runs(state, mesh), abstract_runs(batch, mesh))
        what = f"the small model, a training step in {linear}"
        yield what, training.make_update(recipe, variant), taken


def programs(tiny: bool) -> str:
    mesh = sharding.make_mesh({}, compiled.described(machine("h200")))
    job = Job(A14B, *SIZES["480p"])
    if tiny:
        dit = dataclasses.replace(A14B.dit, dim=256, ffn_dim=256, heads=2, layers=3)
        small = dataclasses.replace(A14B, dit=dit)
        job = costs.in_turns(Job(small, 5, 48, 80))
    rows = []
    coded = () if tiny else coding(job, mesh)
    for what, function, taken in (*sampling(job, mesh), *coded, *learning(mesh, tiny)):
        if tiny and what not in TINY:
            continue
        held, text = compiled.compile_for(mesh, function, *taken)
        sizes = (held.arguments, held.temporaries, held.outputs)
        kernel = next((name for name, call in compiled.ATTENTION.items() if call in text), "–")
        rows.append((what, *(f"{size / GIB:.2f}" for size in sizes), kernel))
        print(*rows[-1], sep=" | ", flush=True)
    sizes = ("weights and inputs GiB", "working GiB", "results GiB")
    return markdown(("program", *sizes, "attention"), rows)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--only", choices=PAGES, help="one of the tables")
    parser.add_argument("--docs", type=local_path, default=DOCS, help="folder of the pages")
    parser.add_argument("--tiny", action="store_true", help="programs at toy sizes, printed alone")
    arguments = parser.parse_args()
    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")
    if arguments.tiny:
        return print(programs(tiny=True))
    tables = {"curves": curves, "machines": machines, "programs": partial(programs, tiny=False)}
    made = (item for item in about().items() if item[0] in ("date", "jax", *COMPILERS))
    where = ", ".join(f"{name} {value}" for name, value in made)
    for name in [arguments.only] if arguments.only else tables:
        text = f"{tables[name]()}\n*`python scripts/compile_report.py --only {name}`, {where}.*\n"
        rewrite(arguments.docs / PAGES[name], "compile_report", name, text)
    print(f"The tables are in {arguments.docs}")


if __name__ == "__main__":
    main()
