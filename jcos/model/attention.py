"""Attention behind one function: kernels that others keep, and sequences spread over a mesh.

`KERNELS` is the table of what computes it on one device, `METHODS` of how devices that share a
sequence work together. Both are chosen by device, type and shape; `using` overrides the choice.
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
"""The result, and the logarithm of its softmax's denominator if that was asked for."""
Count = int | Int[Array, ""] | None
"""How many leading keys are real; None: all. The others are padding and are left out."""

SCORES = 2**28
"""Most scores of all heads, and of all problems that are `side_by_side`, that the reference holds
at a time; it takes queries in turns above."""
TILE = 1024, 1024, 512
"""Queries, keys, and keys multiplied at a time, of a step of splash attention: its own defaults run
out of scalar memory at 75,000 tokens."""


class Problem(NamedTuple):
    """What decides which kernel can: the device, and the shapes that one device sees."""

    platform: str
    dtype: str
    queries: int
    keys: int
    heads: int
    head_dim: int


class Kernel(NamedTuple):
    """run(q, k, v, keys, lse): attention of scaled queries; lse: return its logarithm as well.

    refuses: why it cannot do a problem, or None. merges: whether it can return the logarithm, which
    parts of a ring are merged by.
    """

    run: Callable[[Array, Array, Array, Count, bool], Answer]
    refuses: Callable[[Problem], str | None]
    merges: bool


class Wish(NamedTuple):
    kernel: str = "auto"
    method: str = "auto"


# Part of what jit caches by, unlike a global variable.
_wish = jax.make_user_context(Wish())


def using(kernel: str = "auto", method: str = "auto") -> AbstractContextManager[Any]:
    """Inside: attention by this kernel (`KERNELS`) and over the sequence's devices by this method
    (`METHODS`, or `ulysses` where heads divide), if they can.

    ValueError where there is none of that name.
    """
    for what, name, known in (
        ("kernel", kernel, ("auto", *KERNELS)),
        ("method", method, ("auto", "ulysses", *METHODS)),
    ):
        if name not in known:
            raise ValueError(f"no attention {what} is called {name!r}: {', '.join(known)}")
    return _wish(Wish(kernel, method))


_problems = jax.make_user_context(1)


def side_by_side(problems: int) -> AbstractContextManager[Any]:
    """Inside: every problem is solved this many times at once on a device.

    A `vmap` around a function is hidden from it; whoever maps says so here, and `SCORES` bounds all
    of them together.
    """
    return _problems(_problems.value * problems)


def attention(
    q: Heads, k: Keys, v: Keys, *, keys: int | None = None, together: bool = False
) -> Heads:
    """softmax(q kᵀ / √d) v per head, softmax in float32, result in v's type.

    keys: that many leading keys are real, the others are padding; None: all of them.
    together: q, k and v are rows of one sequence, which a mesh in use spreads over devices; else k
        and v are whole on each of them. Rows or heads that the mesh does not divide are whole too.
    """
    with jax.named_scope("attention"):
        q = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(v.dtype)
        k = k.astype(v.dtype)
        # Found here, because a device that has to be asked cannot be inside shard_map.
        kernel = _kernel(q, k)
        if mesh.devices(*mesh.AXES) == 1:
            return kernel.run(q, k, v, keys, False)[0]
        rows = mesh.SEQUENCE if q.shape[0] % mesh.devices(*mesh.SEQUENCE) == 0 else None
        heads = mesh.TENSOR if q.shape[1] % mesh.devices(mesh.TENSOR) == 0 else None
        together = together and rows is not None
        along, beside = P(rows, heads), P(None, heads)
        where = (along, *[along if together else beside] * 2)
        shard = partial(_together, keys=keys) if together else partial(_alone, keys=keys)
        # What a kernel leaves behind is not tracked by shard_map's check of replication.
        return jax.shard_map(shard, in_specs=where, out_specs=along, check_vma=False)(q, k, v)


def _alone(q: Heads, k: Keys, v: Keys, keys: Count) -> Heads:
    return _kernel(q, k).run(q, k, v, keys, False)[0]


def _all_here(q: Heads, k: Keys, v: Keys, keys: Count, axes: tuple[str, ...]) -> Heads:
    del axes
    return _alone(q, k, v, keys)


# ---- one sequence on several devices; inside shard_map


def _together(q: Heads, k: Heads, v: Heads, keys: int | None) -> Heads:
    """Ulysses over the axes that the heads can be spread over, `METHODS` over the others."""
    by_head, by_row = split_axes(q.shape[1])
    if by_head:
        # From some rows of all heads to all rows of some heads, and back.
        q, k, v = (jax.lax.all_to_all(a, by_head, 1, 0, tiled=True) for a in (q, k, v))
    method = METHODS[_method(_kernel(q, k))] if by_row else _all_here
    x = method(q, k, v, keys, by_row)
    return jax.lax.all_to_all(x, by_head, 0, 1, tiled=True) if by_head else x


def split_axes(heads: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of the sequence axes of the mesh in use: those over which `heads` (of a device) are spread by
    an all-to-all, and those left, over which rows stay spread.

    The inner axis comes first, so that rows that an all-to-all brings together are neighbours.
    """
    busy = tuple(axis for axis in mesh.SEQUENCE if mesh.devices(axis) > 1)
    wish = _wish.value.method
    if wish in METHODS:
        return (), busy
    by_head = next(busy[i:] for i in range(len(busy) + 1) if heads % mesh.devices(*busy[i:]) == 0)
    by_row = busy[: len(busy) - len(by_head)]
    if wish == "ulysses" and by_row:
        _say(f"{heads} heads do not divide over {busy}: rows stay spread over {by_row}")
    return by_head, by_row


def _method(kernel: Kernel) -> str:
    wish = _wish.value.method
    if kernel.merges:
        return wish if wish in METHODS else "ring"
    if wish == "ring":
        _say("this kernel's parts cannot be merged: keys are gathered instead of passed round")
    return "gather"


def _ring(q: Heads, k: Heads, v: Heads, keys: int | None, axes: tuple[str, ...]) -> Heads:
    """Keys and values go round; what each part contributes is merged by online softmax in
    float32."""
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
    """Every device gets all keys and values: as many bytes as a ring moves, but held at once."""
    k, v = (jax.lax.all_gather(a, axes, axis=0, tiled=True) for a in (k, v))
    return _alone(q, k, v, keys)


METHODS: dict[str, Callable[[Heads, Heads, Heads, int | None, tuple[str, ...]], Heads]] = {
    "ring": _ring,
    "gather": _gather,
}


# ---- on one device


def _kernel(q: Heads, k: Keys) -> Kernel:
    """The kernel for these shapes on the device that the program is for."""
    problem = Problem(mesh.platform(), str(q.dtype), q.shape[0], k.shape[0], *q.shape[1:])
    name, why = choose(problem, _wish.value.kernel)
    if why:
        _say(why)
    return KERNELS[name]


def choose(problem: Problem, wish: str = "auto") -> tuple[str, str | None]:
    """Which kernel, and a sentence where another one was wished for or would be faster."""
    fast = _FAST.get(problem.platform, "xla") if wish == "auto" else wish
    why = KERNELS[fast].refuses(problem)
    if why is None:
        return fast, None
    small = problem.queries * problem.keys * problem.heads < SCORES
    sentence = f"attention falls back from {fast} to xla: {why}"
    return "xla", None if small and wish == "auto" else sentence


@cache
def _say(sentence: str) -> None:
    """Once per process."""
    logging.getLogger("jcos").warning(sentence)


def _reference(q: Array, k: Array, v: Array, keys: Count, lse: bool) -> Answer:
    """Plain XLA: what the others are compared with. Queries in turns where scores are many."""
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
    # Heads first, keys transposed, softmax spelled out: each of them alone makes XLA's CPU code for
    # this function and its gradient up to twice as fast as the obvious einsum and jax.nn.softmax.
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
    """NVIDIA's flash attention. The logarithm that jax returns of it is rounded to bfloat16: too
    coarse to merge parts by. Lengths are padded to even ones, which jax's gradient of it needs."""
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
    """The arrays; under `vmap`, each of them has every axis that one of them has.

    jax's rule for mapping its cuDNN call takes the axes of all for those of the queries, which are
    fewer where prompts alone differ. A choice between an array and itself has the axes of what it
    depends on, and is compiled to nothing.
    """
    of_all = jnp.stack([a.ravel()[0] == 0 for a in arrays]).any()
    return tuple(jnp.where(of_all, a, a) for a in arrays)


def _refuses_cudnn(problem: Problem) -> str | None:
    if problem.platform != "gpu":
        return f"cuDNN is for NVIDIA's GPUs, this is a {problem.platform}"
    if problem.dtype not in ("bfloat16", "float16"):
        return f"cuDNN's attention takes bfloat16 or float16, these are {problem.dtype}"
    if problem.head_dim > 128 or problem.head_dim % 8:
        return f"cuDNN takes heads of a multiple of 8, at most 128; these are {problem.head_dim}"
    return _broken_cudnn() if jax.default_backend() == "gpu" else None


@cache
def _broken_cudnn() -> str | None:
    """Why jax cannot call cuDNN here, found out by calling it: its versions do not always fit."""
    with jax.ensure_compile_time_eval():
        one = jnp.ones((128, 1, 64), jnp.bfloat16)
        try:
            jax.block_until_ready(_cudnn(one, one, one, None, False)[0])
        except (RuntimeError, NotImplementedError, ValueError) as error:
            return f"jax cannot call cuDNN here ({str(error).splitlines()[0]})"
    return None


def _splash(q: Array, k: Array, v: Array, keys: Count, lse: bool) -> Answer:
    """jax's own flash attention for TPUs (Pallas), interpreted on other devices. Lengths are padded
    to its tiles and padded keys masked by segment."""
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
    found: Any = run(q, k, v, segments)
    out, top = (found[0], found[1][0][:, :n].T) if lse else (found, None)
    return out[:, :n].transpose(1, 0, 2), top


def _up(length: int, to: int) -> int:
    return -(-length // to) * to


def _refuses_splash(problem: Problem) -> str | None:
    if problem.platform != "tpu":
        return f"splash attention is for TPUs, this is a {problem.platform}"
    if problem.dtype != "bfloat16":
        return f"splash attention multiplies in bfloat16, these are {problem.dtype}"
    if problem.head_dim % 128:
        return f"splash attention takes heads of a multiple of 128, these are {problem.head_dim}"
    return None


KERNELS = {
    "xla": Kernel(_reference, lambda problem: None, merges=True),
    "cudnn": Kernel(_cudnn, _refuses_cudnn, merges=False),
    "splash": Kernel(_splash, _refuses_splash, merges=True),
}
_FAST = {"gpu": "cudnn", "tpu": "splash"}
"""What is faster than XLA's own code, by platform."""
