"""How fast A14B is on one GPU: one call, ten minutes, no network, random weights of one expert.

    python scripts/bench_gpu.py               # a GPU with 60 GB or more
    python scripts/bench_gpu.py --tiny        # toy sizes, also on a CPU: does everything work?

Measures, at 81 frames of 480p and 720p: the peak of matrix products, a forward pass, a guided step
and its memory; what energy observation, captured tokens, seeds side by side and the first-step
ensemble cost; the first step with an empty and a filled compilation cache; the same passes in
PyTorch (diffusers, sdpa, with and without torch.compile) where that is installed. jcos and PyTorch
have a process each, and what does not fit into the time or the memory is named. Prints a Markdown
table and writes it to --out.
"""

import argparse
import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jcos.config import Sampling, WanConfig
from jcos.devices import memory
from jcos.files import local_path
from jcos.generation import generate_worlds
from jcos.loop import seed_keys
from jcos.plan.costs import Job, forward_flops
from jcos.sampling import flow, trajectory
from jcos.sampling.inside import Capture
from jcos.sampling.probes import Probe, SeedEnsemble, TokenEnergy
from jcos.variants import VARIANTS
from jcos.wan import Wan
from jcos.weights.checkpoint import abstract_model
from tables import about, diffusers_transformer, markdown, options, save

SEEDS = 3
STEPS = 50
"""Of the video that the ensemble's cost is a share of."""
ENOUGH = 25.0
"""Seconds after which a long call is not timed again."""
GIB = 2**30


class Row(NamedTuple):
    """what: unique in the table. value: in `unit`; None where there was no time or no room."""

    what: str
    value: float | None
    unit: str
    note: str = ""


class Lab(NamedTuple):
    """What is measured. repeat: timings of which the fastest counts; matrix: width of the product
    that shows the peak; backend: of torch.compile."""

    config: WanConfig
    jobs: dict[str, Job]
    repeat: int
    matrix: int
    backend: str


def make_lab(tiny: bool) -> Lab:
    config = VARIANTS["wan2.2-i2v-a14b"]()
    sampling = dataclasses.replace(config.sampling, guidance=(3.5,))
    config = dataclasses.replace(config, boundary=None, sampling=sampling)  # one expert
    sizes = {"480p": (81, 480, 832), "720p": (81, 720, 1280)}
    if tiny:
        small = dict(dim=64, ffn_dim=64, heads=2, layers=2, text_dim=16, text_len=8, freq_dim=16)
        config = dataclasses.replace(config, dit=dataclasses.replace(config.dit, **small))
        sizes = {"480p": (5, 32, 48), "720p": (5, 48, 64)}
    jobs = {name: Job(config, *size) for name, size in sizes.items()}
    how = (1, 128, "eager") if tiny else (3, 8192, "inductor")
    return Lab(config, jobs, *how)


@contextlib.contextmanager
def memory_for(what: str) -> Iterator[None]:
    """Say that something does not fit where memory runs out within."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # both jax's and PyTorch's are RuntimeErrors
        if not any(word in str(error) for word in ("RESOURCE_EXHAUSTED", "out of memory")):
            raise
        report(Row(what, None, "", "does not fit"))


def report(row: Row) -> None:
    """Print a row for the parent process, as soon as it is known."""
    print("ROW " + json.dumps(row), flush=True)


def measure(what: str, unit: str, run: Callable[[], float], note: str = "") -> float | None:
    """Return a number, which is also reported; None where memory runs out."""
    with memory_for(what):
        value = run()
        report(Row(what, value, unit, note))
        return value
    return None


def fastest(lab: Lab, run: Callable[[], Any], *, warm: bool = False) -> float:
    """Seconds of the fastest call, after one that is not counted where it was never called."""
    if not warm:
        jax.block_until_ready(run())
    taken: list[float] = []
    while len(taken) < lab.repeat and sum(taken) < ENOUGH:
        start = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - start)
    return min(taken)


# ---- jcos


def random_model(config: WanConfig) -> Wan:
    """Weights of the right kind that mean nothing; no text encoder and no VAE."""
    model = abstract_model(Wan, config)
    model.text = model.vae = None
    shapes, tree = jax.tree.flatten(model)

    @partial(jax.jit, static_argnums=(1, 2))
    def leaf(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        return 0.02 * jax.random.normal(key, shape, dtype)

    keys = jax.random.split(jax.random.key(0), len(shapes))
    return tree.unflatten([leaf(k, a.shape, a.dtype) for k, a in zip(keys, shapes, strict=True)])


class Program(NamedTuple):
    """A compiled run of one guided step. first: seconds of its first call, tracing, lowering and
    compiling included. working: GiB next to the weights."""

    call: Callable[[], Any]
    first: float
    working: float


def program(model: Wan, job: Job, *, seeds: int = 1, probe: Probe | None = None) -> Program:
    """One guided Euler step."""
    config, cfg = job.config, job.config.dit
    plan = flow.plan(Sampling(1, 5.0, guidance=(3.5,)))
    text = 0.1 * jnp.ones((1, cfg.text_len, cfg.text_dim), jnp.dtype(config.numerics.text))
    channels = jnp.zeros((1, *job.latent, cfg.in_channels - cfg.out_channels))
    condition = trajectory.Condition(text, job.latent, -text, channels)
    arguments = (model, plan, condition, seed_keys(range(seeds)), probe or Probe())
    start = time.perf_counter()
    compiled = jax.jit(generate_worlds).lower(*arguments).compile()
    call, sizes = partial(compiled, *arguments), compiled.memory_analysis()
    jax.block_until_ready(call())
    first = time.perf_counter() - start
    assert sizes is not None
    return Program(call, first, (sizes.temp_size_in_bytes + sizes.output_size_in_bytes) / GIB)


def jcos_rows(lab: Lab) -> None:
    measure("peak", "TFLOP/s", partial(peak, lab), f"bfloat16, {lab.matrix} × {lab.matrix}")
    model = jax.block_until_ready(random_model(lab.config))
    steps = {}
    for name, job in lab.jobs.items():
        once = measure(f"forward pass, {name}", "s", partial(forward_pass, lab, model, job))
        if once is not None:
            rate = sum(forward_flops(lab.config.dit, job.tokens).values()) / once / 1e12
            report(Row(f"forward pass, {name}, rate", rate, "TFLOP/s"))
        steps[name] = guided_step(lab, model, name, job)
    name, job = next(iter(lab.jobs.items()))
    if (alone := steps[name]) is not None:
        extras(lab, model, job, name, alone)


def peak(lab: Lab) -> float:
    """The rate of matrix products, which the rest is measured against."""
    n, chain = lab.matrix, 16
    a = jax.random.normal(jax.random.key(0), (n, n), jnp.bfloat16) / n**0.5
    run = jax.jit(lambda a: jax.lax.fori_loop(0, chain, lambda _, x: x @ a, a))
    return 2 * n**3 * chain / fastest(lab, lambda: run(a)) / 1e12


def forward_pass(lab: Lab, model: Wan, job: Job) -> float:
    cfg = lab.config.dit
    x = jnp.ones((*job.latent, cfg.in_channels))
    text = jnp.zeros((cfg.text_len, cfg.text_dim), jnp.dtype(lab.config.numerics.text))
    forward = jax.jit(lambda dit, x, t, text: dit(x, t, text)[0])
    return fastest(lab, lambda: forward(model.experts[0], x, jnp.float32(900), text))


def guided_step(lab: Lab, model: Wan, name: str, job: Job) -> float | None:
    with memory_for(f"guided step, {name}"):
        step = program(model, job)
        seconds = fastest(lab, step.call, warm=True)
        report(Row(f"guided step, {name}", seconds, "s"))
        report(Row(f"first step, cold, {name}", step.first, "s", "compiled"))
        report(Row(f"working memory, {name}", step.working, "GiB", "next to the weights"))
        return seconds
    return None


def extras(lab: Lab, model: Wan, job: Job, name: str, alone: float) -> None:
    """What looking and intervening cost on top of a guided step of one seed, `alone` seconds."""
    jax.clear_caches()
    warm = "read from the compilation cache"
    measure(f"first step, warm, {name}", "s", lambda: program(model, job).first, warm)

    def timed(**options: Any) -> float:
        return fastest(lab, program(model, job, **options).call, warm=True)

    def ensemble() -> float:
        probe = SeedEnsemble.window(1, lab.config.dit.layers)
        return 100 * (timed(seeds=SEEDS, probe=probe) - alone) / (STEPS * alone)

    def seeds() -> float:
        return 100 * timed(seeds=SEEDS) / (SEEDS * alone)

    share = "of a guided step; goal < 2"
    energy = partial(timed, probe=TokenEnergy())
    measure("energy observation", "%", lambda: 100 * (energy() / alone - 1), share)
    some = Capture("block", layers=(0,), tokens=jnp.arange(0, job.tokens, 64))
    capture, what = partial(timed, probe=some), "capture of every 64th token of a block"
    measure(what, "%", lambda: 100 * (capture() / alone - 1), share)
    measure(f"{SEEDS} seeds side by side", "%", seeds, f"of the time of {SEEDS} runs in turns")
    measure("first-step ensemble", "%", ensemble, f"of a video of {STEPS} steps; goal ≤ 5")


# ---- diffusers


def diffusers_rows(lab: Lab) -> None:
    """The same passes in PyTorch: a transformer of the same sizes with random bfloat16 weights."""
    import torch  # type: ignore[import-not-found]

    there, cfg = "cuda" if torch.cuda.is_available() else "cpu", lab.config.dit
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(there):
        model = diffusers_transformer(cfg)

    def seconds(forward: Callable[..., Any], job: Job) -> float:
        x = torch.randn(1, cfg.in_channels, *job.latent, device=there)
        text = torch.randn(1, cfg.text_len, cfg.text_dim, device=there)
        t = torch.full((1,), 900, device=there, dtype=torch.int64)

        def call() -> None:
            with torch.inference_mode():
                forward(x, t, text, return_dict=False)
            if there == "cuda":
                torch.cuda.synchronize()

        return fastest(lab, call)

    fused = torch.compile(model, backend=lab.backend)
    for how, forward in (("sdpa", model), ("torch.compile", fused)):
        for name, job in lab.jobs.items():
            what = f"diffusers, {how}, forward pass, {name}"
            once = measure(what, "s", partial(seconds, forward, job))
            if once is not None:
                note = "two passes, one after the other, as its pipelines do"
                report(Row(f"diffusers, {how}, guided step, {name}", 2 * once, "s", note))


PARTS: dict[str, tuple[Callable[[Lab], None], float]] = {
    "jcos": (jcos_rows, 0.8),
    "diffusers": (diffusers_rows, 1.0),
}
"""By when of the time each part is stopped; the next begins earlier if it is done."""


# ---- the whole


def work(part: str, lab: Lab) -> None:
    """In the process of a part."""
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        with memory_for(f"{part}, the rest"):
            PARTS[part][0](lab)


def collect(tiny: bool, minutes: float) -> list[Row]:
    start, rows = time.time(), []
    for part, (_, share) in PARTS.items():
        if part == "diffusers" and not (find_spec("torch") and find_spec("diffusers")):
            rows.append(Row(part, None, "s", "not installed: pip install torch diffusers"))
            continue
        command = [sys.executable, __file__, "--part", part, *["--tiny"] * tiny]
        try:
            limit = max(start + 60 * minutes * share - time.time(), 1)
            done = subprocess.run(command, stdout=subprocess.PIPE, timeout=limit, check=False)
            out, end = done.stdout, f"it ended with {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired as late:
            out, end = late.stdout or b"", "there was no time for the rest"
        lines = out.decode().splitlines()
        rows += [Row(*json.loads(line[4:])) for line in lines if line[:4] == "ROW "]
        rows += [Row(f"{part}, incomplete", None, "", end)] if end else []
    return [*rows, *verdicts(rows)]


def verdicts(rows: list[Row]) -> list[Row]:
    """What the parts say together."""
    known = {row.what: row.value for row in rows if row.value is not None}
    made = []
    for size in ("480p", "720p"):
        rate, most, step = f"forward pass, {size}, rate", "peak", f"guided step, {size}"
        if {rate, most} <= known.keys():
            made.append(Row(f"share of the peak, {size}", 100 * known[rate] / known[most], "%"))
        for how in ("sdpa", "torch.compile"):
            theirs = f"diffusers, {how}, {step}"
            if {step, theirs} <= known.keys():
                faster = known[theirs] / known[step]
                what = f"speed-up over diffusers, {how}, {size}"
                made.append(Row(what, faster, "×", "goal ≥ 1.5"))
    return made


def table(rows: list[Row]) -> str:
    values = ["–" if r.value is None else f"{r.value:.3g} {r.unit}".strip() for r in rows]
    lines = [(r.what, value, r.note) for r, value in zip(rows, values, strict=True)]
    return markdown(("what", "measured", ""), lines, left=3)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--tiny", action="store_true", help="toy sizes")
    parser.add_argument("--minutes", type=float, default=9.5, help="time for everything")
    parser.add_argument("--out", type=local_path, default=Path("out/bench_gpu"))
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        return work(arguments.part, make_lab(arguments.tiny))
    memory.claim()  # of this process's children; it has no device itself
    code = "import jax; print(jax.devices()[0].device_kind)"
    device = subprocess.check_output([sys.executable, "-c", code], text=True).strip()
    rows = collect(arguments.tiny, arguments.minutes)
    save(arguments.out, table(rows), about(device=device), (row._asdict() for row in rows))


if __name__ == "__main__":
    main()
