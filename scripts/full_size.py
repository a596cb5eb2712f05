"""Conversion and restoring at true size, measured: a synthetic Wan2.2-TI2V-5B in release layout.

    python scripts/full_size.py --work /tmp/full    # about 35 GB of disk, 14 GB of memory

Writes shards of random float32 weights under the released names (20 GB, kept for the next call),
converts them to bfloat16 with `python -m convert`, killed half-way and resumed, restores the
transformer in a fresh process and runs one forward pass at a small size. Builds the two experts of
A14B as shapes and counts their parameters. Prints the table of docs/performance.md, row by row.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from jcos.convert.work import JOURNAL  # type: ignore[import-not-found]
from jcos.files import local_path
from jcos.model.dit import DiT
from jcos.variants import VARIANTS, wan22_ti2v_5b
from jcos.weights.checkpoint import leaves, parameter_count

Measured = tuple[str, str]
"""What was measured, and what it was."""
SHARD = 2_500_000_000
"""Bytes per shard. The releases have larger ones, which would take more memory to make here and the
same to read."""
STDERR = 2
"""The table alone goes to stdout."""
CPU_FLAGS = "--xla_disable_hlo_passes=while-loop-invariant-code-motion"
"""XLA for the CPU multiplies bfloat16 matrices as float32; without this it makes a float32 copy of
all blocks before the loop over them, 20 GB."""


def released_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the transformer's tensors as they are released."""
    cfg = wan22_ti2v_5b().dit
    dim, ffn = cfg.dim, cfg.ffn_dim
    patch = (dim, cfg.in_channels, *cfg.patch)
    yield "patch_embedding.weight", patch
    yield "patch_embedding.bias", (dim,)
    for name, n_in in (("text_embedding", cfg.text_dim), ("time_embedding", cfg.freq_dim)):
        for layer, size in ((0, n_in), (2, dim)):
            yield f"{name}.{layer}.weight", (dim, size)
            yield f"{name}.{layer}.bias", (dim,)
    yield "time_projection.1.weight", (6 * dim, dim)
    yield "time_projection.1.bias", (6 * dim,)
    for i in range(cfg.layers):
        block = f"blocks.{i}"
        yield f"{block}.modulation", (1, 6, dim)
        for kind in ("self_attn", "cross_attn"):
            for part in "qkvo":
                yield f"{block}.{kind}.{part}.weight", (dim, dim)
                yield f"{block}.{kind}.{part}.bias", (dim,)
            for norm in ("norm_q", "norm_k"):
                yield f"{block}.{kind}.{norm}.weight", (dim,)
        yield f"{block}.norm3.weight", (dim,)
        yield f"{block}.norm3.bias", (dim,)
        yield f"{block}.ffn.0.weight", (ffn, dim)
        yield f"{block}.ffn.0.bias", (ffn,)
        yield f"{block}.ffn.2.weight", (dim, ffn)
        yield f"{block}.ffn.2.bias", (dim,)
    yield "head.modulation", (1, 2, dim)
    yield "head.head.weight", (int(np.prod(cfg.patch)) * cfg.out_channels, dim)
    yield "head.head.bias", (int(np.prod(cfg.patch)) * cfg.out_channels,)


def write_release(folder: Path) -> None:
    """The synthetic release. Values repeat with a long period: random enough, and quickly made."""
    folder.mkdir(parents=True)
    pool = (0.02 * np.random.default_rng(0).standard_normal(2**24 + 7)).astype(np.float32)
    shards: list[dict[str, np.ndarray]] = [{}]
    index, start = {}, 0
    for name, shape in released_shapes():
        size = int(np.prod(shape))
        if sum(a.nbytes for a in shards[-1].values()) + 4 * size > SHARD:
            _flush(folder, shards)
        shards[-1][name] = np.resize(np.roll(pool, start), size).reshape(shape)
        index[name] = len(shards) - 1
        start += 1009
    _flush(folder, shards)
    count = len(shards) - 1
    for i in range(count):
        (folder / f"{i}.part").rename(folder / _shard(i, count))
    weights = {name: _shard(i, count) for name, i in index.items()}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weights})
    )
    cfg = wan22_ti2v_5b().dit
    config = {
        "_class_name": "WanModel",
        "dim": cfg.dim,
        "eps": cfg.eps,
        "ffn_dim": cfg.ffn_dim,
        "freq_dim": cfg.freq_dim,
        "in_dim": cfg.in_channels,
        "model_type": "ti2v",
        "num_heads": cfg.heads,
        "num_layers": cfg.layers,
        "out_dim": cfg.out_channels,
        "text_len": cfg.text_len,
    }
    (folder / "config.json").write_text(json.dumps(config))  # the last: with it, it is whole


def _flush(folder: Path, shards: list[dict[str, np.ndarray]]) -> None:
    save_file(shards[-1], folder / f"{len(shards) - 1}.part")
    shards[-1] = {}
    shards.append({})


def _shard(i: int, count: int) -> str:
    return f"diffusion_pytorch_model-{i + 1:05d}-of-{count:05d}.safetensors"


def peak_memory(process: subprocess.Popen) -> int:
    """Largest resident memory in bytes, polled until the process ends."""
    status, peak = Path(f"/proc/{process.pid}/status"), 0
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for line in status.read_text().splitlines():
                if line.startswith("VmRSS"):
                    peak = max(peak, 1024 * int(line.split()[1]))
        time.sleep(0.05)
    return peak


def folder_size(folder: Path) -> int:
    """Bytes of all files; of a folder that is being written, of those that stay."""
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            size += path.stat().st_size if path.is_file() else 0
    return size


def kill_halfway(process: subprocess.Popen, unfinished: Path, size: int) -> bool:
    """Kills a conversion when its journal names a finished part and half of `size` bytes are
    written; False where it was finished before."""
    journal = unfinished / JOURNAL
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            begun = bool(json.loads(journal.read_text()).get("parts"))
            if begun and folder_size(unfinished) >= size / 2:
                break
        time.sleep(0.05)
    process.kill()
    return process.wait() == -signal.SIGKILL and unfinished.exists()


def convert(source: Path, target: Path) -> Iterator[Measured]:
    """Converts twice: in one go, then killed half-way and resumed. What it took."""
    command = [sys.executable, "-m", "convert", str(source), str(target), "--only", "dit"]
    unfinished = target.with_name(f".{target.name}.unfinished")
    for folder in (target, unfinished):
        shutil.rmtree(folder, ignore_errors=True)
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=STDERR)
    peak = peak_memory(process)
    whole = time.monotonic() - start
    if process.returncode:
        raise SystemExit("the conversion failed")
    read, written = folder_size(source), folder_size(target)
    cfg = wan22_ti2v_5b().dit
    largest = 2 * cfg.layers * cfg.dim * cfg.ffn_dim
    yield "read, float32", f"{read / 1e9:.1f} GB"
    yield "written, bfloat16", f"{written / 1e9:.1f} GB"
    yield "conversion", f"{whole:.0f} s, {read / 1e9 / whole:.2f} GB/s"
    yield "its peak memory", f"{peak / 1e9:.1f} GB"
    yield "allowed: twice the largest leaf and 1 GB", f"{(2 * largest + 1e9) / 1e9:.1f} GB"

    shutil.rmtree(target)
    start = time.monotonic()
    killed = kill_halfway(subprocess.Popen(command, stdout=STDERR), unfinished, written)
    until = time.monotonic() - start
    if not killed:
        yield "resumed after a kill", f"it was done in {until:.0f} s, before it could be killed"
        return
    left, start = folder_size(unfinished), time.monotonic()
    if subprocess.run(command, stdout=STDERR).returncode:
        raise SystemExit("the conversion could not be resumed")
    what = f"resumed after a kill at {until:.0f} s, {left / 1e9:.1f} GB written"
    yield what, f"{time.monotonic() - start:.0f} s"


def restore_and_run(target: Path) -> None:
    """In a process of its own: restores and runs one forward pass. Prints what it took as JSON."""
    import jax.numpy as jnp

    from jcos import load

    start = time.monotonic()
    model = load(target, text=False, vae=False)
    jax.block_until_ready(model)
    restored = time.monotonic() - start
    cfg = model.config.dit
    latents = jax.random.normal(jax.random.key(0), (2, 8, 8, cfg.in_channels))
    context = jnp.zeros((cfg.text_len, cfg.text_dim))
    forward = jax.jit(lambda dit, x, t, c: dit(x, t, c)[0])
    seconds, v = [], latents
    for _ in range(2):
        start = time.monotonic()
        v = jax.block_until_ready(forward(model.experts[0], latents, jnp.float32(900), context))
        seconds.append(time.monotonic() - start)
    assert bool(jnp.isfinite(v).all())
    print(
        json.dumps(
            {
                "restored": f"{restored:.0f} s",
                "parameters": f"{parameter_count(model.experts):,}",
                "first forward, 2 × 4 × 4 tokens": f"{seconds[0]:.1f} s",
                "second forward": f"{seconds[1]:.1f} s",
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=local_path, default=Path("out/full_size"))
    parser.add_argument("--restore", type=local_path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.restore:
        restore_and_run(arguments.restore)
        return
    source, target = arguments.work / "Wan2.2-TI2V-5B", arguments.work / "converted"
    if not (source / "config.json").exists():
        shutil.rmtree(source, ignore_errors=True)
        write_release(source)
    print("| what | measured |\n|---|---|", flush=True)
    for name, value in measured(source, target):
        print(f"| {name} | {value} |", flush=True)
    day = datetime.now(UTC).date().isoformat()
    print(f"\n{os.cpu_count()} × {platform.machine()} CPU, {day}; `python {' '.join(sys.argv)}`")


def measured(source: Path, target: Path) -> Iterator[Measured]:
    """Rows of the table, each as soon as it is known."""
    yield from convert(source, target)
    command = [sys.executable, __file__, "--restore", str(target)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "XLA_FLAGS": CPU_FLAGS}
    )
    peak = peak_memory(process)
    assert process.stdout is not None
    if process.returncode:
        raise SystemExit("restoring failed")
    yield from json.loads(process.stdout.read().splitlines()[-1]).items()
    yield "peak memory of restoring and running", f"{peak / 1e9:.1f} GB"
    for name in ("wan2.2-i2v-a14b", "wan2.2-t2v-a14b"):
        config = VARIANTS[name]()
        start = time.monotonic()
        dit = jax.eval_shape(lambda c=config: DiT(c.dit, rngs=nnx.Rngs(0)))
        count, tensors = parameter_count(dit), len(leaves(dit))
        took = f"{time.monotonic() - start:.1f} s"
        yield f"{name}, one expert as shapes", f"{count:,} parameters in {tensors} leaves, {took}"


if __name__ == "__main__":
    main()
