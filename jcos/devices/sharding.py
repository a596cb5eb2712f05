"""Many devices: the mesh, where every weight lies on it, and the inputs of a run.

    mesh = jcos.make_mesh({"branch": 2, "context": 4})
    with jcos.use_mesh(mesh):
        model = jcos.load(folder)  # restored straight into its shards
        trace = jcos.generate(model, condition, seeds=[0, 1])

The result does not depend on the mesh. Axes (`mesh.AXES`, size 1 where not named):

| axis | what is spread | weights |
|---|---|---|
| world, seed, branch | runs: worlds, seeds, conditional and unconditional pass | whole |
| context | tokens of a video (ring or Ulysses attention) | whole |
| fsdp | tokens as well, inside context | in slices, gathered block by block |
| tensor | heads and hidden width | in slices that stay where they are |

Which dimension of which weight is cut is a table of paths (`RULES`); modules know nothing of it.
"""

import atexit
import json
import math
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jcos.devices.mesh import AXES, BRANCH, FSDP, SEED, TENSOR, WORLD, in_use

M = TypeVar("M")
_HOSTS = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_LOST = re.compile("gloo|DEADLINE_EXC|UNAVAIL|heartbeat|unhealthy|closed by peer", re.IGNORECASE)
"""What jax says where a host is gone."""

RULES: tuple[tuple[str, P], ...] = (
    # Stacked blocks have a leading layer axis, which the scan slices.
    (r"blocks\.\w+_attn\.([qkv]|[kv]_img)\.kernel", P(None, FSDP, TENSOR)),
    (r"blocks\.\w+_attn\.([qkv]|[kv]_img)\.bias", P(None, TENSOR)),
    (r"blocks\.\w+_attn\.norm_(q|k|k_img)\.scale", P(None, TENSOR)),
    (r"blocks\.\w+_attn\.o\.kernel", P(None, TENSOR, FSDP)),
    (r"blocks\.ffn\.layers_0\.kernel", P(None, FSDP, TENSOR)),
    (r"blocks\.ffn\.layers_0\.bias", P(None, TENSOR)),
    (r"blocks\.ffn\.layers_2\.kernel", P(None, TENSOR, FSDP)),
    (r"(text_embedding|time_embedding)\.layers_\d\.kernel", P(FSDP)),
    (r"time_projection\.kernel", P(FSDP)),
    # UMT5
    (r"text\.blocks\.(attn\.[qkv]|ffn\.(fc1|gate))\.kernel", P(None, FSDP, TENSOR)),
    (r"text\.blocks\.(attn\.o|ffn\.fc2)\.kernel", P(None, TENSOR, FSDP)),
    (r"text\.token_embedding", P(None, FSDP)),
)
"""Ends of leaf paths and how the leaf is cut, first match first; all else is whole everywhere."""


def make_mesh(sizes: Mapping[str, int] | None = None, machine: Sequence[Any] | None = None) -> Mesh:
    """Return a mesh of all devices (of all hosts), or of `machine`: devices that may only be
    described (`jax.experimental.topologies`).

    sizes: of the axes in `mesh.AXES` that are larger than 1; −1 for one of them: the rest. Raises
    ValueError where an axis is unknown or the sizes do not make up the devices.
    """
    machine = list(jax.devices() if machine is None else machine)
    shape = mesh_shape(sizes or {}, len(machine))
    # Two axes may share one of a slice (a 4 × 4 torus as 2 × 8), which `jax.make_mesh` refuses.
    placed = create_device_mesh(shape, machine, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_shape(sizes: Mapping[str, int], count: int) -> tuple[int, ...]:
    """Return the size of every axis of a mesh of `count` devices; arguments, errors as above."""
    if unknown := sorted(sizes.keys() - set(AXES)):
        raise ValueError(f"a mesh has no axis {unknown[0]!r}; its axes are {', '.join(AXES)}")
    known = math.prod(size for size in sizes.values() if size != -1)
    rest = count // known if known > 0 else 0
    shape = tuple(rest if sizes.get(name) == -1 else sizes.get(name, 1) for name in AXES)
    if min(shape) < 1 or math.prod(shape) != count or list(sizes.values()).count(-1) > 1:
        raise ValueError(f"a mesh {describe(sizes)} does not make up {count} device(s)")
    return shape


def check_runs(
    sizes: Mapping[str, int],
    heads: int,
    *,
    worlds: int = 1,
    seeds: int = 1,
    passes: int = 0,
    together: int | None = None,
) -> None:
    """Raise ValueError where runs of a model with so many heads cannot be spread evenly over a mesh
    of these sizes. passes: of a step, 0 for any. together: seeds at a time, None for all."""
    for what, count, axis in (
        ("world(s)", worlds, WORLD),
        ("seed(s)", seeds, SEED),
        ("seed(s) at a time", min(together or seeds, seeds), SEED),
        ("pass(es) of a step", passes, BRANCH),
        ("heads", heads, TENSOR),
    ):
        if count % sizes.get(axis, 1):
            raise ValueError(f"{count} {what} do not divide over the mesh's {axis}={sizes[axis]}")


def parse_mesh(text: str) -> dict[str, int]:
    """Read `"branch=2,context=4"` as sizes for `make_mesh`; ValueError where it is none."""
    sizes: dict[str, int] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, size = part.partition("=")
        if not re.fullmatch(r"-?\d+", size.strip()) or name.strip() in sizes:
            raise ValueError(f"{text!r} is no mesh; write it as branch=2,context=4")
        sizes[name.strip()] = int(size)
    return sizes


def describe(sizes: Mapping[str, int] | Mesh) -> str:
    """Return `branch=2,context=4`, without axes of size 1."""
    shape = sizes.shape if isinstance(sizes, Mesh) else sizes
    return ",".join(f"{name}={size}" for name, size in shape.items() if size != 1) or "of size 1"


def use_mesh(mesh: Mesh | None) -> AbstractContextManager[Any]:
    """Within: load, generate and lower on this mesh, or on one device for None. Not to be entered
    in a jitted function. Functions are compiled anew for another mesh."""
    return nullcontext() if mesh is None else jax.set_mesh(mesh)


def leaf_path(path: tuple[Any, ...]) -> str:
    """Return `experts.0.blocks.self_attn.q.kernel`, as checkpoints name leaves."""
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def spec_of(path: str) -> P:
    """Return the rule for a leaf of this path."""
    return next((s for rule, s in RULES if re.search(rf"(^|\.)(?:{rule})$", path)), P())


def shardings(model: Any, mesh: Mesh | AbstractMesh) -> dict[str, NamedSharding]:
    """Return where every leaf of a model (or of its shapes) lies, by path: for `wan.load` and
    `checkpoint.restore`. A dimension that an axis does not divide stays whole."""

    def fitted(path: str, leaf: Any) -> NamedSharding:
        sizes = zip(leaf.shape, spec_of(path), strict=False)
        spec = (axis if axis and size % mesh.shape[axis] == 0 else None for size, axis in sizes)
        return NamedSharding(mesh, P(*spec))

    leaves = ((leaf_path(path), a) for path, a in jax.tree_util.tree_leaves_with_path(model))
    return {path: fitted(path, leaf) for path, leaf in leaves}


def abstract(model: M, mesh: Mesh) -> M:
    """Return the model as shapes with `shardings`, for `jit(…).lower`."""
    where = shardings(model, mesh)

    def shape(path: tuple[Any, ...], leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where[leaf_path(path)])

    return jax.tree_util.tree_map_with_path(shape, model)


def place(model: M, mesh: Mesh) -> M:
    """Move a model's arrays to where they lie on the mesh."""
    where = shardings(model, mesh)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.device_put(leaf, where[leaf_path(path)]), model
    )


def place_inputs(tree: M, axis: str | None = None) -> M:
    """Spread the leading axis of a run's inputs over an axis of the mesh in use (conditions over
    `world`, keys and noise over `seed`), or put them whole on every device. Every host passes the
    same; without a mesh they stay as they are."""
    if not in_use():
        return tree
    where = NamedSharding(jax.sharding.get_mesh(), _leading(axis))

    def put(a: Any) -> jax.Array:
        a = jnp.asarray(a)
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            # Keys themselves cannot be sent to other hosts.
            bits = jax.device_put(jax.random.key_data(a), where)
            return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(a))
        return jax.device_put(a, where)

    return jax.tree.map(put, tree)


def abstract_runs(tree: M, mesh: Mesh, axis: str | None = None) -> M:
    """Return shapes of inputs with shardings, as `place_inputs` would lay them out."""
    where = NamedSharding(mesh, _leading(axis))
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), tree)


def _leading(axis: str | None) -> P:
    return P() if axis is None else P(axis)


def to_host(tree: M) -> M:
    """Return numpy arrays on every host, gathered from all that have a part of them: for decoding
    and writing."""

    def gather(a: Any) -> np.ndarray:
        if isinstance(a, jax.Array) and not a.is_fully_addressable:
            return multihost_utils.process_allgather(a, tiled=True)
        return np.asarray(a)

    return jax.tree.map(gather, tree)


def is_first_host() -> bool:
    """Return whether this process writes what all hosts have in common."""
    return jax.process_index() == 0


def from_first_host(tree: M) -> M:
    """Return the first host's values, numbers and arrays of equal shapes, on every host."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def on_all_hosts(here: Any) -> Any:
    """Return whether something holds on every host; of an array, which of its entries do."""
    if jax.process_count() == 1:
        return here
    return multihost_utils.process_allgather(np.array(here)).all(0)


def wait_for_hosts() -> None:
    """Return when all hosts have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("jcos")


def check_equal(options: Mapping[str, object]) -> None:
    """Raise ValueError, on every host, where an option has not one value on all of them."""
    if jax.process_count() == 1:
        return
    text = json.dumps({name: str(value) for name, value in options.items()}).encode()
    longest = multihost_utils.process_allgather(np.array(len(text))).max()
    rows = multihost_utils.process_allgather(np.frombuffer(text.ljust(longest), np.uint8))
    first, *others = (json.loads(row.tobytes()) for row in rows)
    for host, other in enumerate(others, 1):
        for name in first | other:
            if (here := first.get(name)) != (there := other.get(name)):
                raise ValueError(
                    f"{name} is {here} on host 0 and {there} on host {host}: start the same "
                    "command on all hosts"
                )


@contextmanager
def among_hosts() -> Iterator[None]:
    """Turn what jax says where another host is gone into a ConnectionError; after any error the
    process ends without waiting for the other hosts, which then notice."""
    try:
        yield
    except Exception as error:
        if jax.process_count() > 1:
            atexit.register(_leave)  # before jax, which would wait until it aborts
            why = str(error).partition("\n")[0]
            if isinstance(error, jax.errors.JaxRuntimeError) and _LOST.search(why):
                raise ConnectionError(
                    f"another host ended: see its message, then start all again ({why})"
                ) from None
        raise


def _leave() -> None:
    sys.stdout.flush()
    if is_first_host():
        time.sleep(5)  # without it jax aborts those that are about to say the same
    os._exit(2)


def init_distributed(
    coordinator: str | None = None,
    hosts: int | None = None,
    host: int | None = None,
    *,
    timeout: int = 120,
) -> None:
    """Join this process with those of the other hosts; call it before anything else of jax.

    TPU pods, SLURM and Open MPI need no arguments. Elsewhere: the first host's address with a free
    port (`10.0.0.1:1234`), the number of processes, and which of them this is; by default what
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say.
    timeout: seconds to wait for the others at the start, and later for a sign of life of each: a
    run that has lost a host then ends on all of them.
    Raises ValueError where it comes too late or the other hosts are not known, and ConnectionError
    where the first host does not answer in time; where others do not come to it, jax would abort:
    the process ends with a sentence and exit code 2.
    """
    missing = [name for name in _HOSTS if not os.environ.get(name)]
    if coordinator is None and not missing:
        coordinator, *numbers = (os.environ[name] for name in _HOSTS)
        if not all(re.fullmatch(r"\d+", number) for number in numbers):
            raise ValueError(f"{_HOSTS[1]} and {_HOSTS[2]} are {numbers}; they are whole numbers")
        hosts, host = map(int, numbers)
    if address := coordinator or os.environ.get(_HOSTS[0]):
        host_and_port(address)
    if hosts is not None and hosts < 1:
        raise ValueError(f"hosts is {hosts}; it is at least 1")
    if hosts is not None and host is not None and not 0 <= host < hosts:
        raise ValueError(f"host is {host}; with {hosts} hosts they are 0 to {hosts - 1}")
    jax.config.update("jax_enable_preemption_service", False)  # by which SIGTERM ends nothing
    place = f" at {address}" if address else ""
    unmet = f"the hosts did not meet{place} within {timeout} s"
    late = threading.Timer(timeout, _end, (f"{unmet}: start all of them",))
    late.daemon = True
    try:
        if coordinator is not None and host:  # or jax ends the process, and names no address
            _reach(coordinator, timeout)
        late.start()
        jax.distributed.initialize(
            coordinator,
            hosts,
            host,
            initialization_timeout=timeout + 10,  # at which jax aborts
            heartbeat_timeout_seconds=timeout,
            shutdown_timeout_seconds=timeout,
        )
    except (ValueError, RuntimeError, OSError) as error:
        why = str(error).strip().splitlines()[0]
        if isinstance(error, jax.errors.JaxRuntimeError | OSError):
            raise ConnectionError(f"{unmet} ({why}): start all of them") from None
        if isinstance(error, ValueError) and missing:
            raise ValueError(
                f"no other hosts are known: set {', '.join(missing)} on every host, or name them, "
                "init_distributed('address:port', hosts=…, host=…); only TPU pods, SLURM and Open "
                "MPI need none of it"
            ) from None
        raise ValueError(
            f"this process cannot join others ({why}): init_distributed must come once, before "
            "anything else of jax"
        ) from None
    finally:
        late.cancel()


def _end(why: str) -> None:
    print(f"jcos: {why}", file=sys.stderr, flush=True)
    os._exit(2)


def host_and_port(address: str) -> tuple[str, int]:
    """Return both parts of an address; ValueError where it has not both."""
    host, _, port = address.rpartition(":")
    if not (host and re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65536):
        raise ValueError(f"address is {address!r}; it is HOST:PORT with a port of 1 to 65535")
    return host.strip("[]"), int(port)


def _reach(coordinator: str, timeout: float) -> None:
    """Return when a port answers; OSError where it does not in time."""
    place = host_and_port(coordinator)
    end = time.monotonic() + timeout
    while True:
        try:
            return socket.create_connection(place, timeout).close()
        except OSError:
            if time.monotonic() > end:
                raise
        time.sleep(0.2)
