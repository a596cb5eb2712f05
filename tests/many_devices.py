"""What the tests do in processes of their own: runs on eight simulated devices, and on two hosts.

jax counts its devices once per process, and the other tests have one. `python -m
tests.many_devices` prints the results of every case in `EIGHT` as JSON on the last line.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from jcos import cli, loop, wan
from jcos.config import Sampling
from jcos.devices import memory, mesh, sharding
from jcos.experiments.sweeps import sweep
from jcos.generation import generate
from jcos.model.attention import KERNELS
from jcos.model.attention import attention as attend
from jcos.model.dit import SITES
from jcos.sampling import trajectory
from jcos.sampling.inside import Capture, Swap
from jcos.sampling.probes import SeedEnsemble, States, TokenEnergy, chain
from jcos.wan import Wan
from tests.conftest import NEWER_EMITTERS, ROOT
from tests.models import DIVIDED, kind, randomised, release_config
from tests.releases import I2V


def environment() -> dict[str, str]:
    """Of a process that computes on simulated devices."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        # Without the older emitters of conftest.py, whose noise is rounded by its layout.
        **NEWER_EMITTERS,
        "PYTHONPATH": str(ROOT),
    }


def launch(*words: object, **variables: str) -> subprocess.Popen[str]:
    """Start Python with these words; variables: of the environment."""
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env=environment() | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 900) -> str:
    """Return the output of a process; AssertionError with its last words where it failed."""
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, err[-3000:]
    return out


def find(*words: str, module: str = "tests.many_devices", devices: int = 1) -> Any:
    """Return what a module prints in a process that has so many devices."""
    process = launch("-m", module, *words, JAX_NUM_CPU_DEVICES=str(devices))
    return json.loads(finish(process).splitlines()[-1])


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def hosts(*words: object, devices: int = 4) -> Iterator[list[subprocess.Popen[str]]]:
    """Start the same on two hosts that know each other, of so many devices each; what still runs
    in the end is killed."""
    known = {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_NUM_CPU_DEVICES": str(devices),
    }
    processes = [launch(*words, **known, JAX_PROCESS_ID=str(i)) for i in range(2)]
    try:
        yield processes
    finally:
        for process in processes:  # all of them, before one can tell that another is gone
            process.kill()
        for process in processes:
            process.communicate()  # closes its pipes


# ---- runs


def conditions_of(model: Wan, worlds: int) -> Any:
    frames = np.random.default_rng(0).integers(0, 256, (worlds, 8, 12, 3), np.uint8)
    return trajectory.tree_stack(
        [model.condition(f, ("left", "right")[i % 2], 3) for i, f in enumerate(frames)]
    )


def weighed(z: Any) -> Any:
    """Weigh each token by its number, which shows padding."""
    weights = 1 + jnp.arange(len(z)).reshape(-1, *[1] * (z.ndim - 1)) / len(z)
    return z * weights


def inside(site: Any, z: Any) -> tuple[Any, Any]:
    z = jax.tree.map(weighed, z)
    return z, jax.tree.map(lambda a: a.sum(0), z)


def trace_of(model: Wan, conditions: Any, seeds: int) -> dict[str, Any]:
    """A run with guidance, an average over seeds, a change at every place inside the model, and
    observations of every kind."""
    mean = SeedEnsemble.window(2, 2, at_layers=[0])
    probe = chain(States(), TokenEnergy(), mean, Capture("block", (1,)), kind(inside, *SITES[:-1]))
    trace = generate(model, conditions, range(seeds), probe=probe)
    states, *_ = trace.estimate_obs
    return {"x0": trace.x0, "blocks": trace.block_obs, "noise": states[:, :, 0]}


def differences(values: Any, want: Any) -> dict[str, float]:
    """Return the largest error of every array, relative to its largest value, by its path."""
    values, want = sharding.to_host((values, want))
    pairs = zip(jax.tree_util.tree_leaves_with_path(values), jax.tree.leaves(want), strict=True)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): float(
            np.abs(a - b).max() / np.abs(b).max()
        )
        for (path, a), b in pairs
    }


def on_meshes(
    run: Callable[[Any], dict[str, Any]], meshes: Sequence[str], model: Wan | None = None
) -> dict[str, dict[str, float]]:
    """How results on these meshes differ from those on one device."""
    want, errors = run(model), {}
    for text in meshes:
        devices = sharding.make_mesh(sharding.parse_mesh(text))
        with sharding.use_mesh(devices):
            errors[text] = differences(run(model and sharding.place(model, devices)), want)
    return errors


# ---- the cases on eight devices

LAYOUTS = ("branch=2,tensor=2,context=2", "seed=2,fsdp=4")
"""Axes beside others, and one that does not divide the 18 tokens. More pairs are below."""
SHARED = ("context=8", "context=2,fsdp=4", "context=4,tensor=2")
METHODS = {"all-to-all": 8, "collective-permute": 6, "all-gather": 6}
"""How they share a sequence, by the number of heads; gathered where parts cannot be merged."""


def layouts() -> dict[str, dict[str, float]]:
    model = randomised(DIVIDED)
    conditions = conditions_of(model, 4)
    return on_meshes(lambda model: trace_of(model, conditions, 8), LAYOUTS, model)


def by_step() -> dict[str, float]:
    """Steps that the host calls for, against a program of all of them: how they differ, also with
    weights that wait in host memory or runs that were kept of several, and how many programs they
    are."""
    model, devices = randomised(DIVIDED), sharding.make_mesh({"seed": 2, "branch": 2, "fsdp": 2})
    conditions, programs = conditions_of(model, 1), loop._advance._cache_size  # type: ignore
    with sharding.use_mesh(devices):
        spread = sharding.place(model, devices)
        want = {"x0": generate(spread, conditions, (0, 1)).x0}

        def error() -> float:
            trace = generate(spread, conditions, (0, 1), on_step=lambda _: None)
            return differences({"x0": trace.x0}, want)["x0"]

        before = programs()
        errors = {"resident": error(), "programs": programs() - before}
        runs = loop.steps(spread, conditions, (3, 1, 2, 0))
        for state in runs:
            if state.step == 0:
                state.keep([3, 1])
        assert runs.state is not None
        errors["kept"] = differences({"x": runs.state.x}, {"x": want["x0"][:, :, -1]})["x"]
        spread.experts = jax.tree.map(
            lambda a: jax.device_put(a, a.sharding.with_memory_kind(memory.HOST)), spread.experts
        )
        return errors | {"offloaded": error()}


def sweeps() -> dict[str, dict[str, float]]:
    """A mean over two seeds or a swap between two worlds, of two pairs of pictures; three runs at a
    time, which the mesh makes four of."""

    whole = randomised(DIVIDED)
    pairs = jax.tree.map(lambda a: a.reshape(2, 2, *a.shape[1:]), conditions_of(whole, 4))
    probes = [
        chain(SeedEnsemble.window(2, 2, mean, [0]), Swap.at_layers(2, 2, 18, swap))
        for mean, swap in (((0,), ()), ((), (1,)))
    ]

    def run(model: Wan) -> dict[str, Any]:
        trace = sweep(model, pairs, (3, 4), probes=probes, chunk=3)
        return {"mean": trace.x0[0], "swap": trace.x0[1]}

    return on_meshes(run, ["world=2,seed=4"], whole)


def attention() -> dict[str, tuple[float, bool]]:
    """Every way to share a sequence, 50 tokens: the error, and whether its program exchanges as its
    name says."""

    def on_mesh(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows = None if mesh.padded(50) == 50 else 50
        together = attend(*(mesh.spread(a) for a in (q, k, v)), keys=rows, together=True)
        return together[:50], attend(mesh.spread(q), k[:7], v[:7])[:50]

    errors = {}
    plain = KERNELS["xla"]
    for exchange, heads in METHODS.items():
        q, k, v = jax.random.normal(jax.random.key(0), (3, 50, heads, 16))
        want = jax.jit(lambda q, k, v: (attend(q, k, v), attend(q, k[:7], v[:7])))(q, k, v)
        KERNELS["xla"] = plain._replace(returns_lse=exchange != "all-gather")
        for text in SHARED:
            program = jax.jit(lambda *a: on_mesh(*a))  # traced anew for each
            with sharding.use_mesh(sharding.make_mesh(sharding.parse_mesh(text))):
                made = program.lower(q, k, v).compile()
                off = max(np.abs(a - b).max() for a, b in zip(made(q, k, v), want, strict=True))
            errors[f"{text} {exchange}"] = float(off), f"{exchange}(" in (made.as_text() or "")
    KERNELS["xla"] = plain
    return errors


def undivided() -> dict[str, dict[str, float]]:
    """What the mesh does not divide: attention of 50 tokens of 3 heads, and the program of
    docs/launch.md, whose picture has 6 x 10 cells; 7 x 9 are decoded."""
    sampling = Sampling(1, 5.0, "euler", "euler", (2.0, 2.0))
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 50, 3, 16)).astype(np.float32)
    rows = rng.standard_normal((4, release_config("i2v_high").dit.text_dim)).astype(np.float32)
    picture = rng.integers(0, 256, (48, 80, 3), np.uint8)
    cells = rng.standard_normal((2, 7, 9, 16)).astype(np.float32)

    def run(_: None) -> dict[str, Any]:
        model = wan.load(I2V, profile="float32", text=False)
        condition = model.condition(picture, rows, 5, negative=rows[:1])
        return {
            "together": jax.jit(lambda *a: attend(*a, keys=45, together=True))(q, k, v),
            "alone": jax.jit(lambda *a: attend(*a))(q, k[:7], v[:7]),
            "picture": condition.channels,
            "latents": generate(model, condition, (0, 1), sampling=sampling).latents,
            "levels": model.decode(cells).astype(np.float32) / 255,
        }

    return on_meshes(run, ["tensor=2,context=4"])


def slices() -> dict[str, Any]:
    """The shipped model restored straight into slices."""
    whole = wan.load()
    with sharding.use_mesh(sharding.make_mesh({"fsdp": 4, "tensor": 2})):
        spread = wan.load()
    kernel = spread.experts[0].blocks.self_attn.q.kernel[...]
    pairs = zip(jax.tree.leaves(whole), jax.tree.leaves(spread), strict=True)
    return {
        "equal": all(np.array_equal(a, b) for a, b in pairs),
        "whole": kernel.shape,
        "slice": kernel.addressable_shards[0].data.shape,
    }


EIGHT = (layouts, by_step, sweeps, attention, undivided, slices)

# ---- the cases on two hosts


def host(*commands: str) -> None:
    """One of two hosts, which runs these commands, lists of words as JSON."""
    sharding.init_distributed(timeout=60)
    with mock.patch.object(sharding, "init_distributed"):
        for words in commands:
            cli.main(json.loads(words))


def lost() -> None:
    """One of two hosts with other options, of which the second fails: it waits for nobody."""
    sharding.init_distributed(timeout=10)
    try:
        sharding.check_equal({"out": "x", "set": "y" * jax.process_index()})
    except ValueError as error:
        print(error)
    with sharding.among_hosts(), sharding.use_mesh(sharding.make_mesh({"seed": 2})):
        if jax.process_index() == 1:
            raise ValueError
        sharding.to_host(sharding.place_inputs(jnp.arange(2)))


if __name__ == "__main__":
    if words := sys.argv[1:]:
        {"host": host, "lost": lost}[words[0]](*words[1:])
    else:
        print(json.dumps({case.__name__: case() for case in EIGHT}))
