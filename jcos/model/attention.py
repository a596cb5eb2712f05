"""Attention behind one function: kernels that others maintain, and sequences spread over a mesh.

`KERNELS` compute it on one device. Which one, and how devices that share a sequence work together,
is chosen by device, type and shape; `using` overrides the kernel.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from jcos.devices import mesh

Heads = Float[Array, "N H d"]
Keys = Float[Array, "M H d"]
Answer = tuple[Heads, Float[Array, "N H"] | None]
"""The result, and the logarithm of its softmax's denominator if `lse`."""
Count = int | Int[Array, ""] | None
"""How many leading keys are real; None: all. The others are padding and masked out."""

SCORES = 2**28
"""Most scores, of all heads and all problems that are `side_by_side`, that the reference holds at a
time; above, it takes the queries in blocks."""
TILE = 1024, 1024, 512
"""Splash attention's queries, keys, keys at a time; its defaults fail at 75,000 tokens."""


class Problem(NamedTuple):
    """What decides which kernels are possible: the device, and the shapes on one device."""

    platform: str
    dtype: str
    queries: int
    keys: int
    heads: int
    head_dim: int


class Kernel(NamedTuple):
    """run(q, k, v, keys, lse): attention of scaled queries. unsupported: why it cannot do a
    problem, or None. returns_lse: whether it can return the logarithm, which a ring merges by."""

    run: Callable[[Array, Array, Array, Count, bool], Answer]
    unsupported: Callable[[Problem], str | None]
    returns_lse: bool


# Part of what jit caches by, unlike a global variable.
_override = jax.make_user_context("auto")


def using(kernel: str) -> AbstractContextManager[Any]:
    """Within: use this kernel (`KERNELS`) where it can. ValueError for another name."""
    if kernel not in KERNELS:
        raise ValueError(f"no attention kernel is called {kernel!r}: {', '.join(KERNELS)}")
    return _override(kernel)


_problems = jax.make_user_context(1)


def side_by_side(problems: int) -> AbstractContextManager[Any]:
    """Within: every problem is solved this many times at once on a device, and `SCORES` bounds all
    of them together. A function does not know of a `vmap` around it: whoever maps says so here."""
    return _problems(_problems.value * problems)


def attention(
    q: Heads, k: Keys, v: Keys, *, keys: int | None = None, together: bool = False
) -> Heads:
    """Return softmax(q kᵀ / √d) v per head, softmax in float32, in v's type.

    keys: how many leading keys are no padding; None: all. together: q, k and v are rows of one
    sequence, which a mesh in use spreads over devices; else k and v are whole on each of them. Rows
    or heads that the mesh does not divide are whole too.
    """
    with jax.named_scope("attention"):
        q = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(v.dtype)
        k = k.astype(v.dtype)
        # Chosen here: cuDNN is tried by calling it, which shard_map does not allow.
        kernel = _kernel(q, k)
        if mesh.devices(*mesh.AXES) == 1:
            return kernel.run(q, k, v, keys, False)[0]
        rows = mesh.SEQUENCE if q.shape[0] % mesh.devices(*mesh.SEQUENCE) == 0 else None
        heads = mesh.TENSOR if q.shape[1] % mesh.devices(mesh.TENSOR) == 0 else None
        together = together and rows is not None
        cut = P(rows, heads)
        where = (cut, *[cut if together else P(None, heads)] * 2)
        shard = partial(_sequence if together else _alone, keys=keys)
        # shard_map's check of replication does not know what a kernel returns.
        return jax.shard_map(shard, in_specs=where, out_specs=cut, check_vma=False)(q, k, v)


def _alone(q: Heads, k: Keys, v: Keys, keys: Count) -> Heads:
    return _kernel(q, k).run(q, k, v, keys, False)[0]


# ---- one sequence on several devices; inside shard_map


def _sequence(q: Heads, k: Heads, v: Heads, keys: int | None) -> Heads:
    """Attend by Ulysses over the axes that the heads can be spread over. Over the others keys and
    values go round in a ring, or are gathered where a kernel's parts cannot be merged."""
    by_head, by_row = split_axes(q.shape[1])
    if by_head:
        # From some rows of all heads to all rows of some heads, and back.
        q, k, v = (jax.lax.all_to_all(a, by_head, 1, 0, tiled=True) for a in (q, k, v))
    if not by_row:
        x = _alone(q, k, v, keys)
    else:
        method = _ring if _kernel(q, k).returns_lse else _gather
        x = method(q, k, v, keys, by_row)
    return jax.lax.all_to_all(x, by_head, 0, 1, tiled=True) if by_head else x


def split_axes(heads: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split the sequence axes of the mesh in use: those over which a device's `heads` are spread by
    an all-to-all, the inner axis first so that it brings neighbouring rows together, and the
    others, over which rows stay spread."""
    busy = tuple(axis for axis in mesh.SEQUENCE if mesh.devices(axis) > 1)
    by_head = next(busy[i:] for i in range(len(busy) + 1) if heads % mesh.devices(*busy[i:]) == 0)
    return by_head, busy[: len(busy) - len(by_head)]


def _ring(q: Heads, k: Heads, v: Heads, keys: int | None, axes: tuple[str, ...]) -> Heads:
    """Pass keys and values round; merge the parts by online softmax in float32."""
    size, here = mesh.devices(*axes), jax.lax.axis_index(axes)
    kernel, rows = _kernel(q, k), k.shape[0]
    total, top = jnp.zeros(q.shape, jnp.float32), jnp.full(q.shape[:2], -jnp.inf)
    weight = jnp.zeros_like(top)
    for turn in range(size):
        real = None if keys is None else jnp.clip(keys - (here - turn) % size * rows, 0, rows)
        part, lse = kernel.run(q, k, v, real, True)
        assert lse is not None
        higher = jnp.maximum(top, lse)
        old, new = jnp.exp(top - higher), jnp.exp(lse - higher)
        total = total * old[..., None] + part.astype(jnp.float32) * new[..., None]
        weight, top = weight * old + new, higher
        if turn < size - 1:
            k, v = jax.lax.ppermute((k, v), axes, [(i, (i + 1) % size) for i in range(size)])
    return (total / weight[..., None]).astype(v.dtype)


def _gather(q: Heads, k: Heads, v: Heads, keys: int | None, axes: tuple[str, ...]) -> Heads:
    """Gather all keys and values on every device: the bytes that a ring moves, but held at once."""
    k, v = (jax.lax.all_gather(a, axes, axis=0, tiled=True) for a in (k, v))
    return _alone(q, k, v, keys)


# ---- on one device


def _kernel(q: Heads, k: Keys) -> Kernel:
    """Return the kernel for these shapes on the device that the program is for."""
    problem = Problem(mesh.platform(), str(q.dtype), q.shape[0], k.shape[0], *q.shape[1:])
    name, why = choose(problem, _override.value)
    if why:
        _warn(why)
    return KERNELS[name]


def choose(problem: Problem, kernel: str = "auto") -> tuple[str, str | None]:
    """Return a kernel's name, and a sentence where another was asked for or would be faster."""
    fast = _FAST.get(problem.platform, "xla") if kernel == "auto" else kernel
    why = KERNELS[fast].unsupported(problem)
    if why is None:
        return fast, None
    small = problem.queries * problem.keys * problem.heads < SCORES
    sentence = f"attention falls back from {fast} to xla: {why}"
    return "xla", None if small and kernel == "auto" else sentence


@cache
def _warn(sentence: str) -> None:
    """Warn once per process."""
    logging.getLogger("jcos").warning(sentence)


def _reference(q: Array, k: Array, v: Array, keys: Count, lse: bool) -> Answer:
    """Compute it in plain XLA, as a reference; queries in blocks where scores are many."""
    block = SCORES // (_problems.value * q.shape[1] * k.shape[0])
    if block >= q.shape[0]:
        return _scores(q, k, v, keys)
    block = max(block, 1)
    turns = -(-q.shape[0] // block)
    blocks = jnp.pad(q, ((0, turns * block - q.shape[0]), (0, 0), (0, 0)))
    parts = jax.lax.map(
        lambda some: _scores(some, k, v, keys), blocks.reshape(turns, block, *q.shape[1:])
    )
    out, top = (a.reshape(-1, *a.shape[2:])[: q.shape[0]] for a in parts)
    return out, top if lse else None


def _scores(q: Array, k: Array, v: Array, keys: Count) -> tuple[Array, Array]:
    # Heads first, keys transposed, softmax spelled out: each makes XLA's CPU code, also of the
    # gradient, up to twice as fast as einsum and jax.nn.softmax.
    q, k, v = q.transpose(1, 0, 2), k.transpose(1, 2, 0), v.transpose(1, 0, 2)
    scores = jnp.matmul(q, k, preferred_element_type=jnp.float32)
    if keys is not None:
        real = (jnp.arange(scores.shape[-1]) < keys)[None, None]
        scores = jnp.where(real, scores, jnp.finfo(scores.dtype).min)
    top = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    out = jnp.matmul((weights / total).astype(v.dtype), v).transpose(1, 0, 2)
    return out, (top + jnp.log(total))[..., 0].T


def _cudnn(q: Array, k: Array, v: Array, keys: Count, lse: bool) -> Answer:
    """Call NVIDIA's flash attention. Its logarithm comes rounded to bfloat16, too coarse to merge
    parts by. Lengths are padded to even ones, which jax's gradient of it needs."""
    del lse
    n, m = q.shape[0], k.shape[0]
    real = jnp.array([n, m if keys is None else keys], jnp.int32)
    padded = keys is not None or n % 2 or m % 2
    q, k, v = (jnp.pad(a, ((0, a.shape[0] % 2), (0, 0), (0, 0))) for a in (q, k, v))
    q, k, v, real = _mapped_alike(q, k, v, real)
    x = jax.nn.dot_product_attention(
        q[None],
        k[None],
        v[None],
        scale=1.0,
        query_seq_lengths=real[:1] if padded else None,
        key_value_seq_lengths=real[1:] if padded else None,
        implementation="cudnn",
    )
    return x[0, :n], None


def _mapped_alike(*arrays: Array) -> tuple[Array, ...]:
    """Give each array, under `vmap`, every mapped axis that one of them has.

    jax's rule for mapping its cuDNN call takes the axes of all for those of the queries, which are
    fewer where only prompts differ. A choice between an array and itself has the axes of its
    condition, and is compiled to nothing.
    """
    of_all = jnp.stack([a.ravel()[0] == 0 for a in arrays]).any()
    return tuple(jnp.where(of_all, a, a) for a in arrays)


def _cudnn_unsupported(problem: Problem) -> str | None:
    if problem.platform != "gpu":
        return f"cuDNN is for NVIDIA's GPUs, this is a {problem.platform}"
    if problem.dtype not in ("bfloat16", "float16"):
        return f"cuDNN's attention takes bfloat16 or float16, these are {problem.dtype}"
    if problem.head_dim > 128 or problem.head_dim % 8:
        return f"cuDNN takes heads of a multiple of 8, at most 128; these are {problem.head_dim}"
    return _broken_cudnn() if jax.default_backend() == "gpu" else None


@cache
def _broken_cudnn() -> str | None:
    """Call cuDNN once, since its versions do not always fit: why it fails, or None."""
    with jax.ensure_compile_time_eval():
        one = jnp.ones((128, 1, 64), jnp.bfloat16)
        try:
            jax.block_until_ready(_cudnn(one, one, one, None, False)[0])
        except (RuntimeError, NotImplementedError, ValueError) as error:
            return f"jax cannot call cuDNN here ({str(error).splitlines()[0]})"
    return None


def _splash(q: Array, k: Array, v: Array, keys: Count, lse: bool) -> Answer:
    """Call jax's flash attention for TPUs (Pallas), interpreted on other devices. Lengths are
    padded to its tiles, and padded keys are masked by segment."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    (n, heads, _), m = q.shape, k.shape[0]
    tile_q = min(TILE[0], _up(n, 128))
    tile_k = min(TILE[1], _up(m, TILE[2] if m > TILE[2] else 128))
    behind_q, behind_k = _up(n, tile_q) - n, _up(m, tile_k) - m
    segments = None
    if keys is not None or behind_k:
        real = jnp.arange(m + behind_k) < (m if keys is None else keys)
        segments = splash.SegmentIds(jnp.ones(n + behind_q, jnp.int32), real.astype(jnp.int32))
    run = splash.make_splash_mha(
        splash.MultiHeadMask([splash.FullMask((n + behind_q, m + behind_k))] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash.BlockSizes(tile_q, tile_k, min(TILE[2], tile_k)),
        save_residuals=lse,
        interpret=mesh.platform() != "tpu",
    )
    q, k, v = (
        jnp.pad(a.transpose(1, 0, 2), ((0, 0), (0, behind), (0, 0)))
        for a, behind in ((q, behind_q), (k, behind_k), (v, behind_k))
    )
    result: Any = run(q, k, v, segments)
    out, top = (result[0], result[1][0][:, :n].T) if lse else (result, None)
    return out[:, :n].transpose(1, 0, 2), top


def _up(length: int, to: int) -> int:
    return -(-length // to) * to


def _splash_unsupported(problem: Problem) -> str | None:
    if problem.platform != "tpu":
        return f"splash attention is for TPUs, this is a {problem.platform}"
    if problem.dtype != "bfloat16":
        return f"splash attention multiplies in bfloat16, these are {problem.dtype}"
    if problem.head_dim % 128:
        return f"splash attention takes heads of a multiple of 128, these are {problem.head_dim}"
    return None


KERNELS = {
    "xla": Kernel(_reference, lambda problem: None, returns_lse=True),
    "cudnn": Kernel(_cudnn, _cudnn_unsupported, returns_lse=False),
    "splash": Kernel(_splash, _splash_unsupported, returns_lse=True),
}
_FAST = {"gpu": "cudnn", "tpu": "splash"}
"""What is faster than XLA, by platform."""
