"""How fast it runs on this CPU: prints a Markdown table and writes it to out/.

python scripts/benchmark.py              # the shipped model, on an otherwise idle machine
python scripts/benchmark.py --quick      # tiny sizes: does everything work? The numbers say nothing

The comparison with PyTorch needs `pip install 'jcos[lab,verify]'` and is left out without it.
"""

import argparse
import dataclasses
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

from jcos.devices import programs
from jcos.files import local_path
from jcos.generation import generate, generate_worlds
from jcos.lab import search
from jcos.lab.tasks import get
from jcos.loop import seed_keys, steps
from jcos.sampling import flow, trajectory
from jcos.sampling.probes import Noise
from jcos.variants import toy
from jcos.wan import Wan, load
from jcos.weights.checkpoint import abstract_model, with_leaves
from jcos.weights.names import DIT, DIT_OF_DIFFUSERS, original_name, place
from tables import about, diffusers_transformer, markdown, options, save

MAZE = get("maze")
PUZZLE = MAZE.sample(0, "test")


class Lab(NamedTuple):
    """What is measured, and how often.

    seconds: that a timing lasts at least, by calling again; threads of the contender before it spin
    on for milliseconds. chunks: how many noise positions at a time.
    """

    model: Wan
    repeat: int
    seconds: float = 0.3
    videos: int = 32
    chunks: tuple[int, ...] = (25, 10)
    quick: bool = False

    def condition(self) -> trajectory.Condition:
        frame = MAZE.draw(PUZZLE, PUZZLE.answers[0])[0]
        return self.model.condition(frame, PUZZLE.prompt, MAZE.frames)

    def inputs(self, batch: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Latents, timesteps and prompts for `batch` forward passes."""
        cfg, normal = self.model.config.dit, partial(jax.random.normal, jax.random.key(0))
        x = normal((batch, MAZE.frames, MAZE.height // 2, MAZE.width // 2, cfg.in_channels))
        return x, jnp.linspace(900, 100, batch), normal((batch, cfg.text_len, cfg.text_dim))


def quick_lab(repeat: int) -> Lab:
    """The smallest sizes at which every measurement still does what it does at full size."""
    config = toy(tuple(sorted(set(PUZZLE.prompt.split()))))
    dit = dataclasses.replace(config.dit, dim=32, ffn_dim=32, heads=2, layers=2)
    sampling = dataclasses.replace(config.sampling, steps=3)
    shapes = abstract_model(Wan, dataclasses.replace(config, dit=dit, sampling=sampling))
    # No weight is zero: an untrained head answers zero to everything.
    waves = [np.sin(np.arange(a.size)).reshape(a.shape) for a in jax.tree.leaves(shapes)]
    model = jax.tree.structure(shapes).unflatten([jnp.asarray(w, jnp.float32) for w in waves])
    return Lab(model, repeat, 0.0, videos=2, chunks=(2,), quick=True)


class Row(NamedTuple):
    """A line of the table. difference: of its result from that of the group's first, relative."""

    group: str
    contender: str
    seconds: list[float]
    difference: float | None = None

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))


def race(lab: Lab, group: str, runs: dict[str, Any], tolerance: float | None = None) -> list[Row]:
    """Times functions in turns, so that a machine that slows down slows all of them.

    tolerance: AssertionError where the first arrays of their results differ by more (relative).
    """

    def seconds(run: Callable[[], Any]) -> float:
        calls, passed, start = 0, 0.0, time.perf_counter()
        while calls == 0 or passed < lab.seconds:
            jax.block_until_ready(run())
            calls, passed = calls + 1, time.perf_counter() - start
        return passed / calls

    results = [jax.tree.leaves(run())[0] for run in runs.values()]  # compiles, too
    rows = [Row(group, name, []) for name in runs]
    if tolerance is not None:
        first, *others = map(np.asarray, results)
        off = [float(np.abs(a - first).max() / np.abs(first).max()) for a in others]
        assert all(d <= tolerance for d in off), f"{group}: not the same thing, {off} apart"
        rows[1:] = [row._replace(difference=d) for row, d in zip(rows[1:], off, strict=True)]
    for turn in range(lab.repeat):
        for row in rows if turn % 2 == 0 else reversed(rows):
            row.seconds.append(seconds(runs[row.contender]))
    return rows


def sample(lab: Lab) -> list[Row]:
    """A whole video: alone, and many at once."""
    one, steps = partial(generate, lab.model, lab.condition()), lab.model.config.sampling.steps
    contenders = {"1 video": one, f"{lab.videos} at once": partial(one, range(lab.videos))}
    alone, many = race(lab, f"{steps}-step sample, per video", contenders)
    return [alone, many._replace(seconds=[s / lab.videos for s in many.seconds])]


def first_call(lab: Lab) -> list[Row]:
    """The first denoising step of a fresh process after imports and loading, its programs compiled,
    or read from the folder that they were stored in (`programs.keep`)."""
    command = [sys.executable, __file__, *["--quick"] * lab.quick, "--first-call"]
    group = "first step of a process, its programs"
    rows = [Row(group, state, []) for state in ("compiled", "kept in a folder")]
    for _ in range(lab.repeat):
        with tempfile.TemporaryDirectory() as folder:
            for row in rows:
                row.seconds.append(float(subprocess.check_output([*command, folder])))
    return rows


def first_step(lab: Lab, folder: Path) -> float:
    """In the fresh process: seconds."""
    programs.keep(folder)
    condition, start = lab.condition(), time.perf_counter()
    done: list[float] = []
    generate(lab.model, condition, on_step=lambda _: done.append(time.perf_counter()))
    return done[0] - start


def noise_positions(lab: Lab) -> list[Row]:
    """Noise at each step in turn: a run per position, or all as one program (rounded otherwise)."""
    plan, keys = flow.plan(lab.model.config.sampling), seed_keys((0,))
    world = trajectory.tree_stack([lab.condition()])
    probes = [Noise.at_steps(plan.steps, MAZE.frames, [step]) for step in range(plan.steps)]

    @partial(jax.jit, static_argnames="chunk")
    def sweep(model: Wan, probes: Noise, chunk: int | None = None) -> trajectory.Trace:
        one = partial(generate_worlds, model, plan, world, keys)
        return trajectory.sweep(one, probes, chunk=chunk)

    def loop() -> trajectory.Trace:
        return trajectory.tree_stack(
            [generate_worlds(lab.model, plan, world, keys, p) for p in probes]
        )

    swept = partial(sweep, lab.model, trajectory.tree_stack(probes))
    contenders = {f"{plan.steps} calls": loop, "1 call": swept}
    contenders |= {f"1 call, {chunk} at a time": partial(swept, chunk) for chunk in lab.chunks}
    return race(lab, f"noise at each of {plan.steps} steps", contenders, tolerance=1e-2)


def against_diffusers(lab: Lab) -> list[Row]:
    """A forward pass in PyTorch, eager and compiled, and here: the same weights, inputs, cores, in
    float32."""
    try:
        torch = import_module("torch")
        wan = import_module("diffusers.models.transformers.transformer_wan")
    except ImportError:
        print("PyTorch is left out. To have it: pip install 'jcos[lab,verify]'", file=sys.stderr)
        return []
    cfg = lab.model.config.dit
    other = diffusers_transformer(cfg)
    other.rope = wan.WanRotaryPosEmbed(cfg.head_dim, cfg.patch, 1024, theta=cfg.rope_theta)
    tensors = {
        original_name(name, DIT_OF_DIFFUSERS): tensor.numpy()
        for name, tensor in other.state_dict().items()
    }
    placed, _ = place({name: tensor.shape for name, tensor in tensors.items()}, DIT)
    kind = np.dtype(np.float32)
    leaves = {path: leaf.build(tensors.__getitem__, kind) for path, leaf in placed.items()}
    model = jax.tree.map(jnp.asarray, with_leaves(lab.model.experts[0], leaves))

    # In C++, which takes minutes; compiled anew for other shapes and threads.
    fused = torch.compile(other, backend="eager" if lab.quick else "inductor")

    @torch.inference_mode()
    def theirs(network: Any, threads: int, *inputs: Any) -> Any:
        torch.set_num_threads(threads)
        return network(*inputs, return_dict=False)[0].movedim(1, -1)

    ours = jax.jit(jax.vmap(lambda m, *inputs: m(*inputs)[0], in_axes=(None, 0, 0, 0)))
    # torch's threads wait for each other busily: with anything else running, 1 can be the fastest.
    rows, counts = [], sorted({1, os.cpu_count() or 1}, reverse=True)
    for batch in (1, lab.videos):
        inputs = lab.inputs(batch)
        x, t, text = (torch.tensor(np.asarray(a)) for a in inputs)
        same = (x.movedim(-1, 1).contiguous(), t, text)
        contenders = {f"PyTorch, {n} thread(s)": partial(theirs, other, n, *same) for n in counts}
        contenders["torch.compile"] = partial(theirs, fused, counts[0], *same)
        contenders["jcos"] = partial(ours, model, *inputs)
        rows += race(lab, f"forward pass, batch {batch}", contenders, tolerance=1e-4)
    return rows


def search_along(lab: Lab) -> list[Row]:
    """A search of 8 seeds, and its forwards alone, in the same stages: what judging costs."""
    condition, method = lab.condition(), search.epbs(8)
    last = method.rows[0].at(lab.model.config.sampling.steps)

    def forwards() -> jax.Array:
        runs = steps(lab.model, condition, range(8))
        for state in runs:
            if state.step == last:
                state.keep([0])
        assert runs.state is not None
        return runs.state.x

    searched = partial(search.run, lab.model, condition, method)
    contenders = {"its forwards": forwards, "search": lambda: searched().latents}
    return race(lab, "search among 8 seeds", contenders)


COMMANDS = ("jcos --help", "jcos sample maze --wrong", "jcos run none.py", "jcos convert --help")


def startup(lab: Lab) -> list[Row]:
    """What help and mistakes cost: a whole process of a command that has nothing to compute."""
    commands = COMMANDS[:1] if lab.quick else COMMANDS
    rows = [Row("help and mistakes", command, []) for command in commands]
    for row in rows * lab.repeat:
        words, start = row.contender.split()[1:], time.perf_counter()
        subprocess.run([sys.executable, "-m", "jcos", *words], capture_output=True, check=False)
        row.seconds.append(time.perf_counter() - start)
    return rows


def machine() -> dict[str, Any]:
    """What the numbers hold for; the load average is that before the first of them."""
    info = Path("/proc/cpuinfo").read_text() if platform.system() == "Linux" else ""
    cpu = re.search(r"model name\s*: (.+)", info)
    name = cpu[1] if cpu else platform.processor() or platform.machine()
    return about(CPU=name, cores=os.cpu_count(), load=round(os.getloadavg()[0], 2))


def table(rows: list[Row]) -> str:
    heads = ("", "", "median, ms", "range, ms", "speed-up", "off by")
    firsts = {row.group: row for row in reversed(rows)}

    def cells(row: Row) -> tuple[str, ...]:
        first = firsts[row.group]
        times = f"{1e3 * min(row.seconds):,.1f} – {1e3 * max(row.seconds):,.1f}"
        speed_up = f"{first.median / row.median:.2f}"
        off = "" if row.difference is None else f"{row.difference:.0e}"
        group = row.group if row is first else ""
        return group, row.contender, f"{1e3 * row.median:,.1f}", times, speed_up, off

    return markdown(heads, map(cells, rows), left=2)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--repeat", type=int, default=5, help="timings of every contender")
    parser.add_argument("--out", type=local_path, default=Path("out/benchmark"))
    parser.add_argument("--first-call", type=local_path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    lab = quick_lab(arguments.repeat) if arguments.quick else Lab(load(), arguments.repeat)
    if arguments.first_call:
        return print(first_step(lab, arguments.first_call))
    jax.config.update("jax_enable_compilation_cache", False)
    before = machine()
    parts = (sample, first_call, startup, noise_positions, search_along, against_diffusers)
    rows = [row for measure in track(parts, "measuring") for row in measure(lab)]
    out = arguments.out / "quick" if arguments.quick else arguments.out
    save(out, table(rows), before, ({**row._asdict(), "median": row.median} for row in rows))


if __name__ == "__main__":
    main()
