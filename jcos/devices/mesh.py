"""The mesh in use, as the model sees it: names of its axes, how rows are laid out over it.

A mesh is in use within `sharding.use_mesh(mesh)`, and jitted functions are compiled for it. Without
one, every function here does nothing. `sharding.py` decides where weights lie.
"""

import math
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array

WORLD, SEED, BRANCH = DATA = ("world", "seed", "branch")
"""Axes over which runs are spread: worlds, seeds, and the two branches of guidance."""
CONTEXT, FSDP = SEQUENCE = ("context", "fsdp")
"""Axes over which the tokens of one video are spread, the outer first: over `context` weights are
whole, over `fsdp` they are stored in slices too."""
TENSOR = "tensor"
"""The axis over which heads and the feed-forward's hidden width are spread."""
AXES = (*DATA, *SEQUENCE, TENSOR)

T = TypeVar("T")


def in_use() -> bool:
    """Return whether a mesh with these axes is in use."""
    return set(AXES) <= set(jax.sharding.get_abstract_mesh().axis_names)


def devices(*axes: str) -> int:
    """Return over how many devices the mesh spreads these axes together; 1 without a mesh."""
    if not in_use():
        return 1
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes[axis] for axis in axes)


def platform() -> str:
    """Return where the program will run: `cpu`, `gpu` or `tpu`. Devices of a mesh may be absent."""
    device = jax.sharding.get_abstract_mesh().abstract_device if in_use() else None
    name = (device and device.platform) or jax.default_backend()
    return _KINDS.get(name, name)


_KINDS = {"cuda": "gpu", "rocm": "gpu"}


def constrain(tree: T, *spec: str | tuple[str, ...] | None) -> T:
    """Lay arrays out over the mesh, one entry of `spec` per leading axis; whole along the others.
    Axes that `trajectory.run` maps over (world, seed, branch) are spread without being named."""
    if not in_use():
        return tree
    return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, PartitionSpec(*spec)), tree)


def padded(rows: int) -> int:
    """Return the next number of rows that the devices of a sequence divide."""
    return -(-rows // devices(*SEQUENCE)) * devices(*SEQUENCE)


def spread(x: Array, second: str | None = None) -> Array:
    """Spread rows over the sequence axes, padded with zero rows where they do not divide; and the
    second axis over `second` where that divides it."""
    if not in_use():
        return x
    behind = padded(x.shape[0]) - x.shape[0]
    over = (SEQUENCE,) if second is None or x.shape[1] % devices(second) else (SEQUENCE, second)
    return constrain(jnp.pad(x, ((0, behind), *[(0, 0)] * (x.ndim - 1))), *over)
