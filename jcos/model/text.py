"""Prompts to rows that the DiT attends to: UMT5's encoder for the releases, a table of words for
the small model.

UMT5's modules are named as in the released file (`blocks.attn.q`, `blocks.ffn.gate`, …). Axis
letters: L tokens of a prompt, H heads, D width.
"""

import dataclasses
import hashlib
import json
import math
import re
import warnings
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jcos.config import UMT5Config, Words
from jcos.devices import sharding
from jcos.files import any_path, fetched, local_path, read_text, shown, visible, write
from jcos.model.layers import RMSNorm
from jcos.model.tokenizer import Tokenizer, clean

Rows = Float[Array, "L D"]


class WordEmbedding(nnx.Module):
    """The small model's text encoder: a row per word of a closed vocabulary."""

    def __init__(self, cfg: Words, *, rngs: nnx.Rngs):
        self.table = nnx.Param(jax.random.normal(rngs.params(), (len(cfg.vocabulary), cfg.dim)))

    def __call__(self, ids: Int[Array, " L"]) -> Float[Array, "L D"]:
        """Return rows of the words; zeros where the id is negative, as Wan pads its prompts with
        zeros."""
        return _looked_up(self.table[...], jnp.asarray(ids))


@jax.jit
def _looked_up(table: Float[Array, "words D"], ids: Int[Array, " L"]) -> Rows:
    return jnp.where(ids[:, None] >= 0, table[ids], 0.0)


def word_ids(cfg: Words, prompt: str, length: int) -> Int[np.ndarray, " L"]:
    """Return vocabulary numbers of a prompt's words, padded with −1; an empty prompt is all
    padding.

    Raises ValueError where a word is not in the vocabulary or the prompt has more than `length`
    words.
    """
    words = prompt.replace("\ufeff", " ").lower().split()  # a byte-order mark is no letter
    unknown = sorted(set(words) - set(cfg.vocabulary))
    if unknown:
        known = ", ".join(sorted(cfg.vocabulary))
        raise ValueError(f"the model does not know {', '.join(unknown)}; it knows: {known}")
    if len(words) > length:
        raise ValueError(f"the prompt has {len(words)} words; this model reads at most {length}")
    ids = [cfg.vocabulary.index(word) for word in words]
    return np.array(ids + [-1] * (length - len(ids)), np.int32)


# ---- UMT5


def relative_buckets(
    distance: Int[np.ndarray, "..."], buckets: int, max_distance: int
) -> Int[np.ndarray, "..."]:
    """Return rows of the bias table for distances key − query, in float32 as the original has it.

    Half of the buckets are for keys that follow. In each half, half are one distance each; the
    others widen logarithmically up to `max_distance`, behind which everything is in the last.
    """
    half = buckets // 2
    single = half // 2
    n = np.abs(distance)
    widening = np.log(np.maximum(n, 1).astype(np.float32) / np.float32(single))
    widening *= np.float32(half - single) / np.float32(math.log(max_distance / single))
    far = np.minimum(single + widening.astype(np.int32), half - 1)
    return np.where(distance > 0, half, 0) + np.where(n < single, n, far)


def _linear(n_in: int, n_out: int, dtype: str, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(
        n_in, n_out, use_bias=False, dtype=jnp.dtype(dtype), param_dtype=jnp.bfloat16, rngs=rngs
    )


class BiasedAttention(nnx.Module):
    """Multi-head self-attention with a bias per head and distance. Scores are not divided by √d."""

    def __init__(self, cfg: UMT5Config, dtype: str, rngs: nnx.Rngs):
        width = cfg.heads * cfg.head_dim
        self.q, self.k, self.v = (_linear(cfg.dim, width, dtype, rngs) for _ in range(3))
        self.o = _linear(width, cfg.dim, dtype, rngs)
        self.heads = cfg.heads

    def __call__(self, x: Rows, bias: Float[Array, "H L L"]) -> Rows:
        q, k, v = (
            rearrange(project(x), "l (h d) -> h l d", h=self.heads)
            for project in (self.q, self.k, self.v)
        )
        scores = jnp.matmul(q, k.swapaxes(1, 2)) + bias
        weights = jax.nn.softmax(scores.astype(jnp.float32)).astype(v.dtype)
        return self.o(rearrange(jnp.matmul(weights, v), "h l d -> l (h d)"))


class GatedMLP(nnx.Module):
    """Two linear layers, the hidden one multiplied by a GELU of a third."""

    def __init__(self, cfg: UMT5Config, dtype: str, rngs: nnx.Rngs):
        self.gate = _linear(cfg.dim, cfg.ffn_dim, dtype, rngs)
        self.fc1 = _linear(cfg.dim, cfg.ffn_dim, dtype, rngs)
        self.fc2 = _linear(cfg.ffn_dim, cfg.dim, dtype, rngs)

    def __call__(self, x: Rows) -> Rows:
        return self.fc2(self.fc1(x) * jax.nn.gelu(self.gate(x), approximate=True))


class EncoderBlock(nnx.Module):
    """Attention and feed-forward, normed before and added; each block has a position bias."""

    def __init__(self, cfg: UMT5Config, dtype: str, rngs: nnx.Rngs):
        self.norm1, self.norm2 = RMSNorm(cfg.dim, cfg.eps), RMSNorm(cfg.dim, cfg.eps)
        self.attn = BiasedAttention(cfg, dtype, rngs)
        self.ffn = GatedMLP(cfg, dtype, rngs)
        self.pos_embedding = nnx.Param(
            jax.random.normal(rngs.params(), (cfg.buckets, cfg.heads), jnp.bfloat16)
        )

    def __call__(self, x: Rows, mask: Bool[Array, " L"], buckets: Int[Array, "L L"]) -> Rows:
        # Norms keep float32 scales; linear layers round the product as a bfloat16 one would be.
        with jax.named_scope("attn"):
            x = x + self.attn(self.norm1(x), self.bias(mask, buckets).astype(x.dtype))
        with jax.named_scope("ffn"):
            return x + self.ffn(self.norm2(x))

    def bias(self, mask: Bool[Array, " L"], buckets: Int[Array, "L L"]) -> Float[Array, "H L L"]:
        """Return the bias of every head, query and key. As in the original, the lowest number takes
        the place of padding's, so that even then scores are finite."""
        bias = rearrange(self.pos_embedding[...][buckets], "q k h -> h q k")
        return jnp.where(mask[None, None], bias, jnp.finfo(bias.dtype).min)


class UMT5(nnx.Module):
    """UMT5's encoder for one prompt. Matrices are held in bfloat16, as every release stores them.

    dtype: what is computed in: "bfloat16" as the original runs it, or "float32", exact.
    """

    def __init__(self, cfg: UMT5Config, *, dtype: str = "float32", rngs: nnx.Rngs):
        self.token_embedding = nnx.Param(
            jax.random.normal(rngs.params(), (cfg.vocabulary, cfg.dim), jnp.bfloat16)
        )
        self.blocks = jax.vmap(lambda key: EncoderBlock(cfg, dtype, nnx.Rngs(key)))(
            jax.random.split(rngs.params(), cfg.layers)
        )
        self.norm = RMSNorm(cfg.dim, cfg.eps)
        self.cfg = cfg
        self.dtype = dtype

    def __call__(self, ids: Int[Array, " L"], mask: Bool[Array, " L"]) -> Rows:
        """Return a row per token, in `dtype`. mask: False for padding, whose rows mean nothing."""
        cfg, places = self.cfg, np.arange(len(ids))
        buckets = jnp.asarray(
            relative_buckets(places[None] - places[:, None], cfg.buckets, cfg.max_distance)
        )

        def body(x: Rows, layer: Int[Array, ""]) -> tuple[Rows, None]:
            # A layer is taken out in the body, and the stack bound to x, because XLA for the CPU
            # otherwise makes a float32 copy of the whole stack before the loop: 19 GB.
            x, blocks = jax.lax.optimization_barrier((x, self.blocks))
            block = jax.tree.map(
                lambda a: jax.lax.dynamic_index_in_dim(a, layer, keepdims=False), blocks
            )
            return block(x, mask, buckets), None

        x = self.token_embedding[...][ids].astype(self.dtype)
        x, _ = jax.lax.scan(body, x, jnp.arange(cfg.layers))
        return self.norm(x).astype(self.dtype)


@jax.jit
def _encode(model: UMT5, ids: Int[Array, " L"], mask: Bool[Array, " L"]) -> Rows:
    return jnp.where(mask[:, None], model(ids, mask), 0)


def embed(model: UMT5, tokenizer: Tokenizer, prompt: str, length: int = 512) -> Rows:
    """Return rows of a prompt, its end token included, with zeros behind them: what the DiT reads.

    Compiled once per length. Warns where the prompt has more tokens than that.
    """
    ids, mask = tokenizer(prompt, length)
    if ids.max() >= model.cfg.vocabulary:
        raise ValueError(f"token {ids.max()} is beyond the text encoder's {model.cfg.vocabulary}")
    return _encode(model, jnp.asarray(ids), jnp.asarray(mask))


# ---- embedded prompts on disk


PROMPT_FILES = (".txt", ".npy")
"""How a prompt ends that is the name of a file: of its words, or of its rows."""


def read_prompt(text: str, folder: Path = Path()) -> str | Float[np.ndarray, "_ text"]:
    """Return a prompt as it is given by name: the text itself, the words of a `.txt` file
    (`read_text`), or the rows [L, text] of a `.npy` file, relative to `folder`. Raises ValueError
    where such a file cannot be read or is empty."""
    if not text.endswith(PROMPT_FILES):
        return text
    file = folder / local_path(text)
    if text.endswith(".txt"):
        words = read_text(file).strip()
        if not words:
            raise ValueError(f"{shown(file)} holds no prompt: it is empty")
        return words
    try:
        rows = np.asarray(np.load(file, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        why = error if isinstance(error, OSError) else "it is no array of NumPy's"
        raise ValueError(f"{shown(file)} holds no embedded prompt: {why}") from None
    if rows.ndim != 2 or rows.dtype.kind != "f":
        raise ValueError(
            f"{shown(file)} holds {rows.dtype} {rows.shape}, no embedded prompt: floats [L, width]"
        )
    return rows


def cached(
    folder: Path | str,
    prompts: Sequence[str],
    dtype: str,
    length: int,
    load: Callable[[], tuple[UMT5 | None, Tokenizer | None]],
) -> Callable[[str], Rows]:
    """Return what reads the rows of these prompts, each from its file in a folder, so that not
    every machine needs the encoder and its 11 GB.

    dtype: that they are computed in. load: the encoder and its tokenizer, if there is one; called
    where a file is lacking, on all hosts together. Raises ValueError where a file is damaged, not
    all are of one encoder, or one is lacking and there is no encoder.
    """
    folder = any_path(folder)

    def file(prompt: str) -> Path:
        key = _digest(json.dumps([dtype, length, clean(prompt)]).encode())
        return folder / f"{key}.safetensors"

    def rows(prompt: str) -> Rows:
        found, about = _read_rows(file(prompt))
        if about["note"]:  # that it was cut
            warnings.warn(about["note"], stacklevel=2)
        return jnp.asarray(np.pad(found, ((0, length - len(found)), (0, 0))))

    prompts, encoders, damage = list(dict.fromkeys(prompts)), set(), None
    lacking = [prompt for prompt in prompts if not file(prompt).exists()]
    there = [file(prompt) for prompt in prompts if prompt not in lacking]
    try:  # of any prompts, where none of these is there
        others = (f for f in visible(folder, "*.safetensors") if re.fullmatch("[0-9a-f]+", f.stem))
        stored = map(_read_rows, there or others)
        same = (about for rows, about in stored if rows.dtype == jnp.dtype(dtype))
        encoders |= {about.get("encoder", "") for about in islice(same, len(prompts))}
    except ValueError as error:
        damage = error
    intact, complete = sharding.on_all_hosts(np.array([damage is None, not lacking]))
    if not intact:  # on all hosts, or some would wait for the others
        raise damage or ValueError(f"{folder} has a damaged file on another host")
    model = tokenizer = None
    if not complete:
        model, tokenizer = load()
    if model is not None and tokenizer is not None:
        encoders.add(_identity(model, tokenizer))
    if len(encoders) > 1 or "" in encoders:
        raise ValueError(f"{folder} has prompts of another text encoder; use another folder")
    for prompt in lacking:
        if file(prompt).exists():  # from another process by now
            continue
        if model is None or tokenizer is None:
            raise ValueError(
                f"{folder} does not have the prompt {clean(prompt)!r}; put it there on a machine "
                "that has the text encoder"
            )
        with warnings.catch_warnings(record=True, action="always") as notes:
            found = np.asarray(embed(model, tokenizer, prompt, length))
        found = found[: np.flatnonzero(found.any(axis=1))[-1] + 1]  # without the zeros behind
        about = {
            "key": file(prompt).stem,
            "encoder": min(encoders),
            "note": "; ".join(str(n.message) for n in notes if n.category is UserWarning),
            "sha256": _digest(_content(found)),
        }
        write(file(prompt), safetensors.numpy.save({"rows": found}, about), shared=True)
    return rows


def _identity(model: UMT5, tokenizer: Tokenizer) -> str:
    """Return what the rows depend on. Norms, position biases and some rows of matrices, which
    quantised files round, stand for all weights."""
    blocks = model.blocks
    small = [model.norm.scale[...], blocks.norm2.scale[...], blocks.pos_embedding[...]]
    small += [blocks.attn.q.kernel[...][:, 0], blocks.ffn.fc1.kernel[...][:, 0]]
    about = json.dumps([dataclasses.asdict(model.cfg), model.dtype, tokenizer.digest])
    return _digest(about.encode(), *(_content(np.asarray(a)) for a in small))


def _content(array: np.ndarray) -> bytes:
    return f"{array.dtype} {array.shape} ".encode() + array.tobytes()


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _read_rows(file: Path) -> tuple[np.ndarray, dict[str, str]]:
    """Return the rows in a file, and what it says of them."""
    try:
        with fetched(file) as there, safetensors.safe_open(there, framework="numpy") as opened:
            about, rows = opened.metadata() or {}, opened.get_tensor("rows")
        if [about["key"], about["sha256"]] != [file.stem, _digest(_content(rows))]:
            raise ValueError
    except (safetensors.SafetensorError, KeyError, ValueError):
        raise ValueError(f"{file} is damaged, or not of this folder; remove it") from None
    return rows, about
