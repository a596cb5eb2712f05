"""How fast and how large A14B is on one GPU: one call, ten minutes, no network, random weights.

    python scripts/bench_gpu.py               # an H200; with --experts 1 a GPU with 60 GB
    python scripts/bench_gpu.py --tiny        # toy sizes, also on a CPU: does everything work?

Measures, at 81 frames of 480p and 720p: the peak of matrix products, the attention kernel, a
forward pass, a guided step; memory; what clean estimates, energy observation, seeds side by side
and the first-step ensemble cost; compilation with an empty and a filled cache; the same passes in
PyTorch (diffusers, sdpa, with and without torch.compile) where that is installed. Every part is a
process of its own, and what does not fit into the time or the memory is named. Prints a Markdown
table and writes it to --out.
"""

import argparse
import dataclasses
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import SingleDeviceSharding

from jcos.config import Sampling, WanConfig
from jcos.devices import memory
from jcos.files import local_path
from jcos.generation import generate_worlds
from jcos.loop import seed_keys
from jcos.model.attention import KERNELS, attention, using
from jcos.plan.costs import forward_flops
from jcos.sampling import flow, trajectory
from jcos.sampling.probes import Probe, SeedEnsemble, TokenEnergy
from jcos.variants import wan22_i2v_a14b
from jcos.wan import Wan, latent_grid

SEEDS = 3
STEPS = 50
"""Of the video that the ensemble's cost is a share of."""
PACKAGES = ("jax", "jaxlib", "flax", "torch", "diffusers")
GIB = 2**30


class Row(NamedTuple):
    """what: unique in the table. value: in `unit`; None where there was no time for it."""

    what: str
    value: float | None
    unit: str
    note: str = ""


class Size(NamedTuple):
    name: str
    frames: int
    height: int
    width: int


class Lab(NamedTuple):
    """What is measured. repeat: timings of which the fastest counts; matrix: width of the product
    that shows the peak."""

    config: WanConfig
    sizes: tuple[Size, ...]
    repeat: int
    matrix: int

    def tokens(self, size: Size) -> int:
        return math.prod(self.config.dit.tokens(*latent_grid(self.config, *size[1:])))

    def flops(self, size: Size) -> float:
        return sum(forward_flops(self.config.dit, self.tokens(size)).values())


def full_lab(experts: int) -> Lab:
    config = wan22_i2v_a14b()
    if experts == 1:
        sampling = dataclasses.replace(config.sampling, guidance=(3.5,))
        config = dataclasses.replace(config, boundary=None, sampling=sampling)
    sizes = (Size("480p", 81, 480, 832), Size("720p", 81, 720, 1280))
    return Lab(config, sizes, repeat=3, matrix=8192)


def tiny_lab() -> Lab:
    config = wan22_i2v_a14b()
    small = dict(dim=64, ffn_dim=64, heads=2, layers=2, text_dim=16, text_len=8, freq_dim=16)
    dit = dataclasses.replace(config.dit, **small)
    sizes = (Size("480p", 5, 32, 48), Size("720p", 5, 48, 64))
    return Lab(dataclasses.replace(config, dit=dit), sizes, repeat=1, matrix=128)


Rows = Generator[Row, None, float | None]
"""Rows of one measurement, and the seconds that others are compared with."""


def fits(what: str, rows: Rows) -> Rows:
    """The same; where memory runs out, a row that says so."""
    try:
        return (yield from rows)
    except (RuntimeError, MemoryError) as error:  # both jax's and PyTorch's are RuntimeErrors
        if not any(word in str(error) for word in ("RESOURCE_EXHAUSTED", "out of memory")):
            raise
    yield Row(what, None, "", "does not fit")


ENOUGH = 25.0
"""Seconds after which a long call is not timed again."""


def fastest(lab: Lab, run: Callable[[], Any]) -> float:
    """Seconds of the fastest call, after one that is not counted."""
    jax.block_until_ready(run())
    taken: list[float] = []
    while len(taken) < lab.repeat and sum(taken) < ENOUGH:
        start = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - start)
    return min(taken)


# ---- the device


def device_rows(lab: Lab) -> Iterator[Row]:
    """What the machine can do: the largest rate that the rest is measured against."""
    n, chain = lab.matrix, 16
    a = jax.random.normal(jax.random.key(0), (n, n), jnp.bfloat16) / n**0.5

    @jax.jit
    def products(a: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, chain, lambda _, x: x @ a, a)

    rate = 2 * n**3 * chain / fastest(lab, lambda: products(a)) / 1e12
    yield Row("peak", rate, "TFLOP/s", f"bfloat16 products of {n} × {n}")
    heads, d = lab.config.dit.heads, lab.config.dit.head_dim
    q, k, v = jax.random.normal(jax.random.key(1), (3, 512, heads, d), jnp.bfloat16)
    with using(kernel="xla"):
        want = jax.jit(attention)(q, k, v).astype(jnp.float32)
    off = jnp.abs(jax.jit(attention)(q, k, v).astype(jnp.float32) - want).max()
    note = f"fastest of {', '.join(KERNELS)} here, in bfloat16, at 512 tokens"
    yield Row("attention kernel is off by", float(off / jnp.abs(want).max()), "", note)
    for size in lab.sizes:
        what = f"self-attention alone, {size.name}"
        yield from fits(what, attention_alone(lab, size, what))


def attention_alone(lab: Lab, size: Size, what: str) -> Rows:
    n, heads, d = lab.tokens(size), lab.config.dit.heads, lab.config.dit.head_dim
    q, k, v = jax.random.normal(jax.random.key(2), (3, n, heads, d), jnp.bfloat16)
    f = jax.jit(attention)
    seconds = fastest(lab, lambda: f(q, k, v))
    rate = 4 * n**2 * heads * d / seconds / 1e12
    yield Row(what, rate, "TFLOP/s", f"{1e3 * seconds:.1f} ms")


# ---- jcos


def random_model(config: WanConfig) -> Wan:
    """Weights of the right kind that mean nothing; no text encoder and no VAE."""
    model = jax.eval_shape(lambda: Wan(config, rngs=nnx.Rngs(0)))
    model.text = model.vae = None
    shapes, tree = jax.tree.flatten(model)

    def leaf(number: int, a: jax.ShapeDtypeStruct) -> jax.Array:
        make = jax.jit(lambda key: 0.02 * jax.random.normal(key, a.shape, a.dtype))
        return make(jax.random.key(number))

    return tree.unflatten([leaf(i, a) for i, a in enumerate(shapes)])


class Program(NamedTuple):
    """A compiled run of one guided step. seconds: of tracing, lowering and compiling it."""

    call: Callable[[], Any]
    seconds: float
    held: float
    working: float


def program(
    lab: Lab,
    model: Wan,
    size: Size,
    *,
    seeds: int = 1,
    probe: Probe | None = None,
    keep_x0: bool = True,
) -> Program:
    """One guided Euler step by the first expert; without keep_x0 its clean estimate is dropped."""
    cfg = lab.config.dit
    plan = flow.plan(Sampling(1, 5.0, guidance=(3.5,)))
    text = 0.1 * jnp.ones((1, cfg.text_len, cfg.text_dim), jnp.dtype(lab.config.numerics.text))
    grid = latent_grid(lab.config, *size[1:])
    given = jnp.zeros((1, *grid, cfg.in_channels - cfg.out_channels))
    condition = trajectory.Condition(text, grid, -text, given)
    arguments = (model, plan, condition, seed_keys(range(seeds)))

    @jax.jit
    def run(model: Wan, plan: Any, conditions: Any, keys: Any, probe: Probe) -> Any:
        trace = generate_worlds(model, plan, conditions, keys, probe)
        return trace if keep_x0 else (trace.latents, trace.block_obs)

    start = time.perf_counter()
    compiled = run.lower(*arguments, probe or Probe()).compile()
    seconds, held = time.perf_counter() - start, compiled.memory_analysis()
    assert held is not None
    return Program(
        lambda: compiled(*arguments, probe or Probe()),
        seconds,
        held.argument_size_in_bytes / GIB,
        (held.temp_size_in_bytes + held.output_size_in_bytes) / GIB,
    )


def jcos_rows(lab: Lab) -> Iterator[Row]:
    start = time.perf_counter()
    whole = jax.block_until_ready(random_model(lab.config))
    yield Row("random weights made in", time.perf_counter() - start, "s")
    # One expert runs; the other only lies there, as in a whole run.
    model = jax.tree.map(lambda a: a, whole)
    model.experts = nnx.List(whole.experts[:1])
    steps = {}
    for size in lab.sizes:
        yield from fits(f"forward pass, {size.name}", forward_pass(lab, model, size))
        what = f"guided step, {size.name}"
        steps[size] = yield from fits(what, guided_step(lab, model, size))
    small = lab.sizes[0]
    if (alone := steps[small]) is not None:
        yield from extras(lab, model, small, alone)
    if stats := jax.devices()[0].memory_stats():
        note = f"{lab.config.experts} expert(s) resident, {SEEDS} seeds side by side"
        yield Row("peak memory", stats["peak_bytes_in_use"] / GIB, "GiB", note)
    yield from fits("an expert from the host", brought(lab, model.experts[0]))


def brought(lab: Lab, expert: Any) -> Rows:
    """What experts in turns cost: each comes from host memory once per run."""
    host = SingleDeviceSharding(jax.devices()[0], memory_kind=memory.HOST)
    waiting = jax.block_until_ready(jax.device_put(expert, host))
    seconds = fastest(lab, lambda: memory.on_device(waiting))
    rate = sum(a.nbytes for a in jax.tree.leaves(waiting)) / seconds / 1e9
    yield Row("an expert from the host", seconds, "s", f"{rate:.3g} GB/s")


def forward_pass(lab: Lab, model: Wan, size: Size) -> Rows:
    cfg = lab.config.dit
    x = jnp.ones((*latent_grid(lab.config, *size[1:]), cfg.in_channels))
    text = jnp.zeros((cfg.text_len, cfg.text_dim), jnp.dtype(lab.config.numerics.text))
    forward = jax.jit(lambda dit, x, t, text: dit(x, t, text)[0])
    once = fastest(lab, lambda: forward(model.experts[0], x, jnp.float32(900), text))
    yield Row(f"forward pass, {size.name}", once, "s")
    yield Row(f"forward pass, {size.name}, rate", lab.flops(size) / once / 1e12, "TFLOP/s")


def guided_step(lab: Lab, model: Wan, size: Size) -> Rows:
    step = program(lab, model, size)
    alone = fastest(lab, step.call)
    yield Row(f"guided step, {size.name}", alone, "s")
    yield Row(f"compilation of it, cache empty, {size.name}", step.seconds, "s")
    yield Row(f"weights of one expert, {size.name}", step.held, "GiB")
    yield Row(f"working memory, {size.name}", step.working, "GiB", "beside the weights")
    return alone


def extras(lab: Lab, model: Wan, size: Size, alone: float) -> Iterator[Row]:
    """What looking and intervening cost on top of a guided step of one seed."""
    jax.clear_caches()
    again = program(lab, model, size).seconds
    yield Row(f"compilation of it, cache filled, {size.name}", again, "s")

    def share(seconds: float, of: float) -> float:
        return 100 * (seconds / of - 1)

    def energy() -> Row:
        seconds = fastest(lab, program(lab, model, size, probe=TokenEnergy()).call)
        return Row("energy observation", share(seconds, alone), "%", "of a guided step; goal < 2")

    def estimates() -> Row:
        bare = fastest(lab, program(lab, model, size, keep_x0=False).call)
        return Row("clean estimates", share(alone, bare), "%", "of a guided step; goal < 2")

    def seeds() -> Row:
        many = fastest(lab, program(lab, model, size, seeds=SEEDS).call)
        note = f"{many:.2f} s; {SEEDS} runs in turns take {SEEDS * alone:.2f} s"
        return Row(f"{SEEDS} seeds side by side", 100 * many / (SEEDS * alone), "%", note)

    def ensemble() -> Row:
        probe = SeedEnsemble.window(1, lab.config.dit.layers)
        together = fastest(lab, program(lab, model, size, seeds=SEEDS, probe=probe).call)
        cost = 100 * (together - alone) / (STEPS * alone)
        return Row("first-step ensemble", cost, "%", f"of a video of {STEPS} steps; goal ≤ 5")

    measurements = {
        "energy observation": energy,
        "clean estimates": estimates,
        f"{SEEDS} seeds side by side": seeds,
        "first-step ensemble": ensemble,
    }
    for what, measure in measurements.items():
        yield from fits(what, (make() for make in (measure,)))


# ---- diffusers


def diffusers_rows(lab: Lab) -> Iterator[Row]:
    """The same passes in PyTorch: a transformer of the same sizes with random bfloat16 weights."""
    torch = import_module("torch")
    wan = import_module("diffusers.models.transformers.transformer_wan")
    there = "cuda" if torch.cuda.is_available() else "cpu"
    cfg = lab.config.dit
    same = ("in_channels", "out_channels", "text_dim", "freq_dim", "ffn_dim", "eps")
    sizes = {"num_layers": cfg.layers} | {name: getattr(cfg, name) for name in same}
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(there):
        model = wan.WanTransformer3DModel(cfg.patch, cfg.heads, cfg.head_dim, **sizes).eval()

    def seconds(forward: Callable[..., Any], size: Size) -> float:
        grid = latent_grid(lab.config, *size[1:])
        x = torch.randn(1, cfg.in_channels, *grid, device=there)
        text = torch.randn(1, cfg.text_len, cfg.text_dim, device=there)
        t, taken = torch.full((1,), 900, device=there, dtype=torch.int64), []
        while len(taken) <= lab.repeat and (len(taken) < 2 or sum(taken[1:]) < ENOUGH):
            start = time.perf_counter()
            with torch.inference_mode():
                forward(x, t, text, return_dict=False)
            if there == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
        return min(taken[1:])

    def rows(name: str, forward: Callable[..., Any], size: Size) -> Rows:
        once = seconds(forward, size)
        yield Row(f"diffusers, {name}, forward pass, {size.name}", once, "s")
        note = "two passes, one after the other, as its pipelines do"
        yield Row(f"diffusers, {name}, guided step, {size.name}", 2 * once, "s", note)

    for name, forward in (("sdpa", model), ("torch.compile", torch.compile(model))):
        for size in lab.sizes:
            what = f"diffusers, {name}, guided step, {size.name}"
            yield from fits(what, rows(name, forward, size))


PARTS: dict[str, Callable[[Lab], Iterator[Row]]] = {
    "device": device_rows,
    "jcos": jcos_rows,
    "diffusers": diffusers_rows,
}
SHARES = {"device": 0.15, "jcos": 0.8, "diffusers": 1.0}
"""By when of the time each part is stopped; the next begins earlier if it is done."""


# ---- the whole


def work(part: str, lab: Lab) -> None:
    """In a part's own process: every row is printed as soon as it is known."""
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        for row in fits(f"{part}, the rest", (row for row in PARTS[part](lab))):
            print("ROW " + json.dumps(row), flush=True)


def collect(arguments: argparse.Namespace) -> list[Row]:
    start, rows = time.time(), []
    for part, share in SHARES.items():
        if part == "diffusers" and not (find_spec("torch") and find_spec("diffusers")):
            rows.append(
                Row("diffusers", None, "s", "not installed: pip install -e '.[lab,verify]'")
            )
            continue
        until = start + 60 * arguments.minutes * share
        command = [sys.executable, __file__, "--part", part, *["--tiny"] * arguments.tiny]
        command += ["--experts", str(arguments.experts)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            out, _ = process.communicate(timeout=max(until - time.time(), 1))
            end = "" if process.returncode == 0 else f"it ended with {process.returncode}"
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
            end = "there was no time for the rest"
        rows += [Row(*json.loads(line[4:])) for line in out.splitlines() if line[:4] == "ROW "]
        rows += [Row(f"{part}, incomplete", None, "", end)] if end else []
    return [*rows, *verdicts(rows)]


def verdicts(rows: list[Row]) -> list[Row]:
    """What the parts say together."""
    known = {row.what: row.value for row in rows if row.value is not None}
    found = []
    for size in ("480p", "720p"):
        rate, peak = known.get(f"forward pass, {size}, rate"), known.get("peak")
        if rate and peak:
            found.append(Row(f"share of the peak, {size}", 100 * rate / peak, "%"))
        ours = known.get(f"guided step, {size}")
        for name in ("sdpa", "torch.compile"):
            theirs = known.get(f"diffusers, {name}, guided step, {size}")
            if ours and theirs:
                what = f"speed-up over diffusers, {name}, {size}"
                found.append(Row(what, theirs / ours, "×", "goal ≥ 1.5"))
    return found


def table(rows: list[Row], about: dict[str, Any]) -> str:
    lines = ["| what | measured | |", "|---|--:|---|"]
    for what, value, unit, note in rows:
        shown = "–" if value is None else f"{value:.3g} {unit}".strip()
        lines.append(f"| {what} | {shown} | {note} |")
    return "\n".join([*lines, "", ", ".join(f"{name} {value}" for name, value in about.items())])


def machine() -> dict[str, Any]:
    """Asked in a process of its own: this one must not hold the device."""
    code = "import jax; d = jax.devices()[0]; print(d.device_kind)"
    kind = subprocess.check_output([sys.executable, "-c", code], text=True).strip()
    about = {"device": kind, "date": time.strftime("%Y-%m-%d")}
    return about | {d.name: d.version for d in metadata.distributions() if d.name in PACKAGES}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="toy sizes")
    parser.add_argument("--minutes", type=float, default=9.5, help="time for everything")
    parser.add_argument("--experts", type=int, choices=(1, 2), default=2, help="in memory")
    parser.add_argument("--out", type=local_path, default=Path("out/bench_gpu"))
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        lab = tiny_lab() if arguments.tiny else full_lab(arguments.experts)
        return work(arguments.part, lab)
    memory.claim()  # of this process's children; it has no device itself
    about = machine()
    rows = collect(arguments)
    text = table(rows, about)
    print(text)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "table.md").write_text(text + "\n")
    record = {"machine": about, "rows": [row._asdict() for row in rows]}
    (arguments.out / "table.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
