"""What the tests do in processes of their own: runs on eight simulated devices, and on two hosts.

jax counts its devices once per process, and the other tests have one. Called as
`python -m tests.many_devices CASE …`; prints its findings as JSON on the last line.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OLDER_EMITTERS = "--xla_cpu_use_fusion_emitters=false"


def environment() -> dict[str, str]:
    """Of a process that computes on simulated devices."""
    variables = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        # Without the older emitters of conftest.py, whose noise is rounded by its layout.
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "").replace(OLDER_EMITTERS, "").strip(),
        "PYTHONPATH": str(ROOT),
    }
    # As in conftest.py: what was compiled once is not compiled again.
    variables.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
    variables.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    return variables


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


def finish(process: subprocess.Popen[str], seconds: float = 500) -> str:
    """Return the output of a process; AssertionError with its last words where it failed."""
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, err[-3000:]
    return out


def find(case: str, *arguments: str, module: str = "tests.many_devices") -> Any:
    """Return what a case finds in a process of its own."""
    return json.loads(finish(launch("-m", module, case, *arguments)).splitlines()[-1])


def command(*words: object, devices: int = 8) -> None:
    """Run a command in a process that has so many devices."""
    finish(launch("-m", "jcos", *words, JAX_NUM_CPU_DEVICES=str(devices)))


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
        for process in processes:
            process.kill()
            process.communicate()  # closes its pipes


# ---- the cases; jax is imported in the new process alone


def tiny_model() -> Any:
    """Heads and widths that eight devices divide; 12 tokens, which they do not."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from jcos.config import DiTConfig, PixelCodec, Sampling, WanConfig, Words
    from jcos.wan import Wan

    dit = DiTConfig(
        dim=32,
        ffn_dim=64,
        heads=8,
        layers=2,
        in_channels=28,
        out_channels=12,
        text_dim=8,
        text_len=4,
        freq_dim=16,
    )
    sampling = Sampling(steps=2, shift=3.0, guidance=(2.0,))
    words = Words(("left", "right"), 8)
    config = WanConfig("test", dit, PixelCodec(), words, sampling, image="concat")
    model = Wan(config, rngs=nnx.Rngs(0))
    return jax.tree.map(
        lambda a: a + 0.2 * jnp.sin(jnp.arange(a.size, dtype=jnp.float32)).reshape(a.shape), model
    )


def conditions_of(model: Any, worlds: int) -> Any:
    import numpy as np

    from jcos.sampling import trajectory

    frames = np.random.default_rng(0).integers(0, 256, (worlds, 8, 8, 3), np.uint8)
    return trajectory.tree_stack(
        [model.condition(f, ("left", "right")[i % 2], 3) for i, f in enumerate(frames)]
    )


def trace_of(model: Any, conditions: Any, seeds: int) -> dict[str, Any]:
    """A run with guidance, an average over seeds, a change at every place inside the model, and
    observations of every kind."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jcos.devices.sharding import to_host
    from jcos.generation import generate
    from jcos.sampling.probe import Probe
    from jcos.sampling.probes import SeedEnsemble, States, TokenEnergy, TokenFeatures, chain

    mean = SeedEnsemble.window(2, 2, at_layers=[0] if seeds > 1 else [])

    class Inside(Probe):
        """Weighs each token by its number, so that padding would be found."""

        def on_input(self, site, tokens):
            return self.seen(tokens)

        def on_attention(self, site, qk):
            (q, seen), (k, _) = map(self.seen, qk)
            return (q, k), seen

        def on_heads(self, site, z):
            return self.seen(z)

        def on_cross(self, site, z):
            return self.seen(z)

        def on_mlp(self, site, h):
            return self.seen(h)

        def on_update(self, site, tokens):
            after, seen = self.seen(tokens[1])
            return (tokens[0], after), seen

        def seen(self, z):
            weights = 1 + jnp.arange(len(z)).reshape(-1, *[1] * (z.ndim - 1)) / len(z)
            return z * weights, (z * weights).sum(0)

    probe = chain(States(), TokenEnergy(), mean, TokenFeatures((1,)), Inside())
    trace = generate(model, conditions, range(seeds), probe=probe)
    found = to_host((trace.x0, trace.block_obs, trace.estimate_obs[0]))
    x0, (_, energy, _, features, inside), states = jax.tree.map(np.asarray, found)
    assert inside["mlp"].shape[3:] == (2, 64)
    return {"x0": x0, "energy": energy, "features": features, "noise": states[:, :, 0]} | inside


def differences(found: dict[str, Any], want: dict[str, Any]) -> dict[str, float]:
    import numpy as np

    return {
        name: float(np.abs(found[name] - a).max() / np.abs(a).max()) for name, a in want.items()
    }


def eight() -> None:
    import jax

    jax.config.update("jax_num_cpu_devices", 8)


def on_meshes(
    run: Callable[[Any], dict[str, Any]], meshes: Sequence[str], model: Any = None
) -> dict[str, dict[str, float]]:
    """How results on these meshes differ from the same on one device, relative to the largest."""
    from jcos.devices import sharding

    want, found = run(model), {}
    for text in meshes:
        mesh = sharding.make_mesh(sharding.parse_mesh(text))
        with sharding.use_mesh(mesh):
            found[text] = differences(run(model and sharding.place(model, mesh)), want)
    return found


def layouts(worlds: str, seeds: str, *meshes: str) -> dict[str, dict[str, float]]:
    eight()
    model = tiny_model()
    conditions = conditions_of(model, int(worlds))
    return on_meshes(lambda model: trace_of(model, conditions, int(seeds)), meshes, model)


def by_step(text: str) -> dict[str, float]:
    """Steps that the host calls for, against a program of all of them: how they differ, also with
    weights that wait in host memory, and how many programs they are."""
    eight()
    import jax
    import numpy as np

    from jcos.devices import memory, sharding
    from jcos.generation import generate
    from jcos.loop import _advance

    model, mesh = tiny_model(), sharding.make_mesh(sharding.parse_mesh(text))
    conditions, found = conditions_of(model, 1), {}
    with sharding.use_mesh(mesh):
        spread = sharding.place(model, mesh)
        want = sharding.to_host(generate(spread, conditions, (0, 1)).x0)

        def off() -> float:
            trace = generate(spread, conditions, (0, 1), on_step=lambda _: None)
            return float(np.abs(sharding.to_host(trace.x0) - want).max() / np.abs(want).max())

        found["off"] = off()
        found["programs"] = _advance._cache_size()  # type: ignore[attr-defined]
        spread.experts = jax.tree.map(
            lambda a: jax.device_put(a, a.sharding.with_memory_kind(memory.HOST)), spread.experts
        )
        return found | {"waiting, off": off()}


def sweeps(*meshes: str) -> dict[str, dict[str, float]]:
    """A sweep: a mean over two seeds or a swap between two worlds, of two pairs of pictures; three
    runs at a time."""
    eight()
    import jax

    from jcos.experiments.sweeps import sweep
    from jcos.sampling.probes import SeedEnsemble, Swap, chain

    def trace_of(model: Any) -> dict[str, Any]:
        conditions = conditions_of(model, 4)
        conditions = jax.tree.map(lambda a: a.reshape(2, 2, *a.shape[1:]), conditions)
        probes = [
            chain(SeedEnsemble.window(2, 2, mean, [0]), Swap.at_layers(2, 2, 12, swap))
            for mean, swap in (((0,), ()), ((), (1,)))
        ]
        trace = sweep(model, conditions, (3, 4), probes=probes, chunk=3)
        return {"mean": trace.x0[0], "swap": trace.x0[1]}

    return on_meshes(trace_of, meshes, tiny_model())


def attention(*meshes: str) -> dict[str, list]:
    """Every way to share a sequence, 50 tokens of 8 heads, against the reference."""
    eight()
    import jax
    import numpy as np

    from jcos.devices import mesh, sharding
    from jcos.model.attention import attention, using

    q, k, v = jax.random.normal(jax.random.key(0), (3, 50, 8, 16))
    want = {True: attention(q, k, v), False: attention(q, k[:7], v[:7])}

    @jax.jit
    def on_mesh(q, k, v):
        rows = None if mesh.padded(50) == 50 else 50
        own = attention(*(mesh.spread(a) for a in (q, k, v)), keys=rows, together=True)
        return own[:50], attention(mesh.spread(q), k[:7], v[:7])[:50]

    found = {}
    for text in meshes:
        for method in ("ulysses", "ring", "gather"):
            with (
                sharding.use_mesh(sharding.make_mesh(sharding.parse_mesh(text))),
                using(method=method),
            ):
                own, other = on_mesh(q, k, v)
                program = on_mesh.lower(q, k, v).compile().as_text() or ""
            off = max(np.abs(own - want[True]).max(), np.abs(other - want[False]).max())
            exchanges = ("all-to-all", "collective-permute", "all-gather")
            found[f"{text} {method}"] = [
                float(off),
                *[f"{name}(" in program for name in exchanges],
            ]
    return found


def undivided(*meshes: str) -> dict[str, dict[str, float]]:
    """What these meshes do not divide: attention of 50 tokens of 3 heads, and the program of
    docs/launch.md, whose picture has 6 x 10 cells; 7 x 9 are decoded."""
    eight()
    import jax
    import numpy as np

    from jcos import generation, wan
    from jcos.config import Sampling
    from jcos.devices import sharding
    from jcos.model.attention import attention

    release = ROOT / "tests" / "golden" / "ckpt" / "Wan2.2-I2V-A14B"
    sampling = Sampling(1, 5.0, "euler", "euler", (2.0, 2.0))
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 50, 3, 16)).astype(np.float32)
    rows = rng.standard_normal((4, 64)).astype(np.float32)
    picture = rng.integers(0, 256, (48, 80, 3), np.uint8)
    cells = rng.standard_normal((2, 7, 9, 16)).astype(np.float32)

    def run(_: None) -> dict[str, Any]:
        model = wan.load(release, profile="float32", text=False)
        condition = model.condition(picture, rows, 5, negative=rows[:1])
        trace = generation.generate(model, condition, (0, 1), sampling=sampling)
        made = {
            "together": jax.jit(lambda *a: attention(*a, keys=45, together=True))(q, k, v),
            "alone": jax.jit(lambda *a: attention(*a))(q, k[:7], v[:7]),
            "picture": condition.channels,
            "latents": trace.latents,
            "levels": model.decode(cells).astype(np.float32) / 255,
        }
        return sharding.to_host(made)

    return on_meshes(run, meshes)


def weights() -> dict[str, Any]:
    """Slices of A14B's weights, and the shipped model restored straight into slices."""
    eight()
    import jax
    import numpy as np
    from flax import nnx

    from jcos import wan
    from jcos.devices import sharding
    from jcos.variants import VARIANTS
    from jcos.weights import checkpoint

    model = jax.eval_shape(lambda: wan.Wan(VARIANTS["wan2.2-i2v-a14b"](), rngs=nnx.Rngs(0)))
    model.vae = None
    leaves = checkpoint.leaves(model)

    def held(mesh: Any, store: tuple[str, ...]) -> float:
        """Share of all bytes on one device."""
        where = sharding.shardings(model, mesh, store=store)
        sizes = {k: int(np.prod(a.shape)) * a.dtype.itemsize for k, a in leaves.items()}
        mine = [
            int(np.prod(where[k].shard_shape(a.shape))) * a.dtype.itemsize
            for k, a in leaves.items()
        ]
        return sum(mine) / sum(sizes.values())

    meshes = {
        t: sharding.make_mesh(sharding.parse_mesh(t)) for t in ("fsdp=8", "tensor=8", "context=8")
    }
    found: dict[str, Any] = {text: held(mesh, ("fsdp",)) for text, mesh in meshes.items()}
    found["context=8, stored over context"] = held(meshes["context=8"], ("fsdp", "context"))
    whole = wan.load()
    with sharding.use_mesh(sharding.make_mesh({"fsdp": 4, "tensor": 2})):
        spread = wan.load()
    pairs = zip(jax.tree.leaves(whole), jax.tree.leaves(spread), strict=True)
    found["equal"] = all(np.array_equal(a, b) for a, b in pairs)
    kernel = spread.experts[0].blocks.self_attn.q.kernel[...]
    found["slice"] = kernel.addressable_shards[0].data.shape
    found["whole"] = kernel.shape
    return found


def host() -> dict[str, float]:
    """One of two hosts with four devices each: seeds apart, each video on the devices of a host."""
    from jcos.devices import sharding

    sharding.init_distributed(timeout=60)
    model = tiny_model()
    want = trace_of(model, conditions_of(model, 1), 2)
    mesh = sharding.make_mesh({"seed": 2, "context": 4})
    with sharding.use_mesh(mesh):
        spread = sharding.place(model, mesh)
        return differences(trace_of(spread, conditions_of(spread, 1), 2), want)


def lost() -> None:
    """One of two hosts, of which the second goes away without a word."""
    import jax

    from jcos.devices import sharding

    sharding.init_distributed(timeout=10)
    if jax.process_index() == 1:
        os._exit(1)
    mesh = sharding.make_mesh({"seed": 2})
    with sharding.use_mesh(mesh):
        keys = sharding.place_inputs(jax.numpy.arange(2))
        sharding.to_host(keys)


CASES = {
    f.__name__: f for f in (layouts, by_step, sweeps, attention, undivided, weights, host, lost)
}

if __name__ == "__main__":
    print(json.dumps(CASES[sys.argv[1]](*sys.argv[2:])))
