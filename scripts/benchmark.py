"""How fast it runs on this machine's CPU: prints a Markdown table and writes it beside the other
results.

python scripts/benchmark.py              # the shipped model, for an otherwise idle machine
python scripts/benchmark.py --quick      # whether every measurement works; its numbers say nothing

The comparison with PyTorch needs `pip install -e '.[verify]'` and is left out without it.
"""

import argparse
import dataclasses
import datetime as dt
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from rich.progress import track

from jcos import checkpoint, flow, trajectory
from jcos.config import toy
from jcos.dit import Block, DiT
from jcos.layers import rope_angles, time_features
from jcos.probes import Noise
from jcos.tasks import get
from jcos.wan import Wan, generate, generate_worlds, load, seed_keys

T = TypeVar("T")
MAZE = get("maze")
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "diffusers")


class Lab(NamedTuple):
    """What is measured, and how often.

    seconds: that a timing lasts at least, by calling again: threads of the contender before it go
    on spinning for milliseconds. depths: numbers of layers. chunks: of the swept noise positions.
    """

    model: Wan
    repeat: int
    seconds: float = 0.3
    videos: int = 32
    depths: tuple[int, ...] = (6, 40)
    chunks: tuple[int, ...] = (25, 10)
    quick: bool = False

    @property
    def steps(self) -> int:
        return self.model.config.sampling.steps

    def condition(self) -> trajectory.Condition:
        puzzle = MAZE.sample(0, "test")
        frame = MAZE.draw(puzzle, puzzle.answers[0])[0]
        return self.model.condition(frame, puzzle.prompt, MAZE.frames)

    def inputs(self, batch: int) -> tuple[Float[Array, "B F h w C"], Array, Array]:
        """Latents, timesteps and prompts for `batch` forward passes."""
        cfg, text = self.model.config.dit, self.condition().context
        shape = (batch, MAZE.frames, MAZE.height // 2, MAZE.width // 2, cfg.in_channels)
        latents = jax.random.normal(jax.random.key(0), shape)
        return latents, jnp.linspace(900, 100, batch), jnp.broadcast_to(text, (batch, *text.shape))


def quick_lab(repeat: int) -> Lab:
    """The smallest sizes at which every measurement still does what it does at full size."""
    config = toy(tuple(sorted(set(MAZE.prompt.split()))))
    dit = dataclasses.replace(config.dit, dim=32, ffn_dim=32, heads=2, layers=2)
    sampling = dataclasses.replace(config.sampling, steps=3)
    model = Wan(dataclasses.replace(config, dit=dit, sampling=sampling), rngs=nnx.Rngs(0))
    return Lab(shaken(model), repeat, 0.0, videos=2, depths=(2,), chunks=(2,), quick=True)


def shaken(model: T) -> T:
    """A new model with no weight at zero: an untrained head answers zero to everything."""
    return jax.tree.map(lambda a: a + 0.1 * jnp.sin(jnp.arange(a.size)).reshape(a.shape), model)


class Row(NamedTuple):
    """One line of the table; the first of a group is what the others are compared with.

    seconds: one per repetition. difference: greatest difference from the first one's result,
    relative to its greatest value; None where results are not comparable.
    """

    group: str
    contender: str
    seconds: list[float]
    difference: float | None = None


def race(
    lab: Lab,
    group: str,
    contenders: dict[str, Callable[[], Any]],
    tolerance: float | None = None,
) -> list[Row]:
    """Times contenders in turns, so that a machine that slows down slows all of them.

    tolerance: AssertionError where a result (an array) differs by more from the first one's.
    """

    def seconds(name: str) -> float:
        calls, passed, start = 0, 0.0, time.perf_counter()
        while calls == 0 or passed < lab.seconds:
            jax.block_until_ready(contenders[name]())
            calls, passed = calls + 1, time.perf_counter() - start
        return passed / calls

    results = [jax.block_until_ready(run()) for run in contenders.values()]  # compiles, too
    rows = [Row(group, name, []) for name in contenders]
    if tolerance is not None:
        first, *others = (np.asarray(result, np.float64) for result in results)
        for i, other in enumerate(others, 1):
            difference = float(np.abs(other - first).max() / np.abs(first).max())
            assert difference <= tolerance, f"{rows[i].contender} is {difference:.0e} off"
            rows[i] = rows[i]._replace(difference=difference)
    for turn in range(lab.repeat):
        for row in rows if turn % 2 == 0 else reversed(rows):
            row.seconds.append(seconds(row.contender))
    return rows


def sample(lab: Lab) -> list[Row]:
    """A whole video: alone, and many at once."""
    contenders = {
        "1 video": partial(generate, lab.model, lab.condition()),
        f"{lab.videos} at once": partial(generate, lab.model, lab.condition(), range(lab.videos)),
    }
    one, many = race(lab, f"{lab.steps}-step sample, per video", contenders)
    return [one, many._replace(seconds=[s / lab.videos for s in many.seconds])]


def first_call(lab: Lab) -> list[Row]:
    """The first sample of a fresh process: trace, compile (or read what an earlier process
    compiled from jax's cache on disk) and run."""
    command = [sys.executable, __file__, "--first-call", *["--quick"] * lab.quick]
    call, whole = f"first {lab.steps}-step sample", "the same with imports and loading"
    states = ("empty cache", "filled cache")
    rows = {(group, state): Row(group, state, []) for group in (call, whole) for state in states}
    for _ in range(lab.repeat):
        with tempfile.TemporaryDirectory() as cache:
            set_to = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_ENABLE_COMPILATION_CACHE": "true"}
            for state in states:
                start = time.perf_counter()
                printed = subprocess.check_output(command, env=os.environ | set_to)
                rows[whole, state].seconds.append(time.perf_counter() - start)
                rows[call, state].seconds.append(float(printed))
    return list(rows.values())


def noise_positions(lab: Lab) -> list[Row]:
    """Noise at each step in turn: a run per position, or all positions as one program."""
    plan, keys = flow.schedule(lab.model.config.sampling), seed_keys((0,))
    world = jax.tree.map(lambda a: a[None], lab.condition())
    probes = [Noise.at_steps(lab.steps, MAZE.frames, [step]) for step in range(lab.steps)]

    def loop() -> np.ndarray:
        runs = [generate_worlds(lab.model, plan, world, keys, probe) for probe in probes]
        return np.stack([trace.latents for trace in runs])

    @partial(jax.jit, static_argnames="chunk")
    def swept(model: Wan, probes: Noise, chunk: int | None) -> trajectory.Trace:
        def one(probe: Noise) -> trajectory.Trace:
            return generate_worlds(model, plan, world, keys, probe)

        return trajectory.sweep(one, probes, chunk=chunk)

    def sweep(chunk: int | None) -> Array:
        return swept(lab.model, trajectory.stack(probes), chunk).latents

    contenders = {f"{lab.steps} calls": loop, "1 call": partial(sweep, None)}
    contenders |= {f"1 call, {chunk} at a time": partial(sweep, chunk) for chunk in lab.chunks}
    # A loose tolerance: rounding differs between batch sizes, and grows from step to step.
    return race(lab, f"noise at each of {lab.steps} steps", contenders, tolerance=1e-2)


def forward(
    model: DiT, blocks: list[Block] | None, latents: Array, t: Array, context: Array
) -> Float[Array, "F H W O"]:
    """The velocity; given `blocks`, by those one after the other instead of by the model's scan."""
    if blocks is None:
        return model(latents, t, context)[0]
    cfg, grid = model.cfg, model.cfg.tokens(*latents.shape[:3])
    x = model.patch_embedding(model.patchify(latents))
    e = model.time_embedding(time_features(t[None], cfg.freq_dim))
    time_six = model.time_projection(jax.nn.silu(e)).reshape(1, 6, cfg.dim)
    text = model.text_embedding(jnp.pad(context, ((0, cfg.text_len - len(context)), (0, 0))))
    angles = rope_angles(grid, cfg.head_dim, cfg.rope_theta)
    for block in blocks:
        x = block(x, time_six, text, angles)
    return model.unpatchify(model.head(x, e), grid)


def depth(lab: Lab) -> list[Row]:
    """Blocks written out against blocks scanned."""
    rows = []
    for layers in lab.depths:
        config = dataclasses.replace(lab.model.config.dit, layers=layers)
        model = shaken(DiT(config, rngs=nnx.Rngs(0)))
        blocks = [jax.tree.map(lambda a, i=i: a[i], model.blocks) for i in range(layers)]

        def program(blocks: list[Block] | None) -> tuple[Callable[..., Array], tuple[Any, ...]]:
            # Plain lists of weights as arguments, so that calls do not walk through 40 modules.
            # A new function each time, as jit remembers the programs of those it has seen.
            leaves, tree = jax.tree.flatten((model, blocks))
            jitted = jax.jit(lambda leaves, *inputs: forward(*tree.unflatten(leaves), *inputs))
            return jitted, (leaves, *(a[0] for a in lab.inputs(1)))

        def build(blocks: list[Block] | None) -> Any:
            jitted, arguments = program(blocks)
            return jitted.lower(*arguments).compile()

        forms = {"blocks unrolled": blocks, "blocks scanned": None}
        builds = {name: partial(build, form) for name, form in forms.items()}
        programs = {name: program(form) for name, form in forms.items()}
        runs = {name: partial(jitted, *arguments) for name, (jitted, arguments) in programs.items()}
        rows += race(lab, f"trace and compile a forward pass, {layers} layers", builds)
        rows += race(lab, f"forward pass, {layers} layers", runs, tolerance=1e-4)
    return rows


# Patterns in a leaf's path, replaced in this order: what diffusers calls the tensor.
DIFFUSERS = {
    r"\.(kernel|scale)$": ".weight",
    r"^(text|time)_embedding\.layers_0": r"condition_embedder.\1_embedder.linear_1",
    r"^(text|time)_embedding\.layers_2": r"condition_embedder.\1_embedder.linear_2",
    r"^time_projection": "condition_embedder.time_proj",
    r"^head\.head": "proj_out",
    r"^head\.modulation": "scale_shift_table",
    r"^blocks\.modulation": "blocks.scale_shift_table",
    r"\.self_attn\.": ".attn1.",
    r"\.cross_attn\.": ".attn2.",
    r"\.([qkv])\.": r".to_\1.",
    r"\.o\.": ".to_out.0.",
    r"\.norm3\.": ".norm2.",
    r"\.ffn\.layers_0": ".ffn.net.0.proj",
    r"\.ffn\.layers_2": ".ffn.net.2",
}


def diffusers_tensors(model: DiT) -> dict[str, np.ndarray]:
    """The weights by the names of diffusers' WanTransformer3DModel, in its order but flat."""
    tensors = {}
    for path, leaf in checkpoint.leaves(model).items():
        name, array = path, np.asarray(leaf)
        for pattern, replacement in DIFFUSERS.items():
            name = re.sub(pattern, replacement, name)
        array = array.swapaxes(-1, -2) if path.endswith(".kernel") else array
        if name.startswith("blocks."):
            layers = {name.replace("blocks", f"blocks.{i}"): a for i, a in enumerate(array)}
        else:
            layers = {name: array}
        tensors |= {n: a.ravel() for n, a in layers.items()}
    return tensors


def against_diffusers(lab: Lab) -> list[Row]:
    """A forward pass in PyTorch and here: the same weights and inputs, float32, the same cores."""
    try:
        torch = import_module("torch")
        wan = import_module("diffusers.models.transformers.transformer_wan")
    except ImportError:
        print("Left out: PyTorch. To have it: pip install -e '.[verify]'", file=sys.stderr)
        return []
    torch.set_num_threads(os.cpu_count() or 1)
    model = lab.model.experts[0]
    cfg = model.cfg
    other = wan.WanTransformer3DModel(
        num_attention_heads=cfg.heads,
        attention_head_dim=cfg.head_dim,
        num_layers=cfg.layers,
        patch_size=cfg.patch,
        **{k: getattr(cfg, k) for k in ("in_channels", "out_channels", "text_dim", "freq_dim")},
        **{k: getattr(cfg, k) for k in ("ffn_dim", "eps")},
    ).eval()
    other.rope = wan.WanRotaryPosEmbed(cfg.head_dim, cfg.patch, 1024, theta=cfg.rope_theta)
    tensors, shapes = diffusers_tensors(model), {k: a.shape for k, a in other.state_dict().items()}
    other.load_state_dict({k: torch.tensor(a).reshape(shapes[k]) for k, a in tensors.items()})

    @torch.inference_mode()
    def theirs(x: Any, t: Any, context: Any) -> Any:
        return other(x, t, context, return_dict=False)[0].movedim(1, -1)

    ours = jax.jit(jax.vmap(lambda m, *inputs: m(*inputs)[0], in_axes=(None, 0, 0, 0)))
    rows = []
    for batch in (1, lab.videos):
        inputs = lab.inputs(batch)
        x, t, context = (torch.tensor(np.asarray(a)) for a in inputs)
        contenders = {
            "PyTorch (diffusers, eager)": partial(
                theirs, x.movedim(-1, 1).contiguous(), t, context
            ),
            "jcos": partial(ours, model, *inputs),
        }
        rows += race(lab, f"forward pass, batch {batch}", contenders, tolerance=1e-4)
    return rows


MEASUREMENTS = (sample, first_call, noise_positions, depth, against_diffusers)


def machine() -> dict[str, Any]:
    """What the numbers hold for; `load` is the load average of the minute before."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text() if info.exists() else "", re.M)
    present = {d.name for d in metadata.distributions()}
    return {
        "cpu": found[1] if found else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "date": dt.date.today().isoformat(),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in PACKAGES if name in present},
    }


def span(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def table(rows: list[Row], about: dict[str, Any]) -> str:
    lines = [
        "| | | median | fastest – slowest | speed-up | difference |",
        "|---|---|---|---|---|---|",
    ]
    for group, members in itertools.groupby(rows, key=lambda row: row.group):
        base = None
        for row in members:
            median = statistics.median(row.seconds)
            cells = (
                "" if base else group,
                row.contender,
                span(median),
                f"{span(min(row.seconds))} – {span(max(row.seconds))}",
                f"{base / median:.2f}×" if base else "1",
                "" if row.difference is None else f"{row.difference:.0e}",
            )
            lines.append("| " + " | ".join(cells) + " |")
            base = base or median
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    where = (
        f"{about['cpu']}, {about['cores']} cores (load before: {about['load']}), {about['date']}"
    )
    return "\n".join([*lines, "", f"Medians of {len(rows[0].seconds)}. {where}; {versions}"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--repeat", type=int, default=5, help="timings per contender")
    parser.add_argument("--out", type=Path, default=Path("out/benchmark"))
    parser.add_argument("--first-call", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    lab = quick_lab(arguments.repeat) if arguments.quick else Lab(load(), arguments.repeat)
    if arguments.first_call:  # the fresh process of `first_call`
        condition = lab.condition()
        start = time.perf_counter()
        jax.block_until_ready(generate(lab.model, condition))
        print(time.perf_counter() - start)
        return
    jax.config.update("jax_enable_compilation_cache", False)
    about = machine()
    rows = [row for measure in track(MEASUREMENTS, "measuring") for row in measure(lab)]
    text = table(rows, about)
    print(text)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "table.md").write_text(text + "\n")
    (arguments.out / "table.json").write_text(
        json.dumps({"machine": about, "rows": [row._asdict() for row in rows]}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
