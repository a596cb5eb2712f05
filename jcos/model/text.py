"""Prompts to rows that the DiT attends to: UMT5's encoder for the releases, a table of words for
the small model.

UMT5's modules are named as in the released file (`blocks.attn.q`, `blocks.ffn.gate`, …). Axis
letters: L tokens of a prompt, H heads, D width.
"""

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jcos.config import UMT5Config, Words
from jcos.files import any_path, fetched, local_path, read_text, shown, write
from jcos.model.layers import RMSNorm
from jcos.model.tokenizer import Tokenizer, clean, warn_if_cut

Rows = Float[Array, "L D"]


class WordEmbedding(nnx.Module):
    """The small model's text encoder: a row per word of a closed vocabulary."""

    def __init__(self, cfg: Words, *, rngs: nnx.Rngs):
        self.table = nnx.Param(jax.random.normal(rngs.params(), (len(cfg.vocabulary), cfg.dim)))

    def __call__(self, ids: Int[Array, " L"]) -> Float[Array, "L D"]:
        """Rows of the words; zeros where the id is negative, as Wan pads its prompts with zeros."""
        return jnp.where(ids[:, None] >= 0, self.table[...][ids], 0.0)


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
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"UMT5 computes in float32 or bfloat16, not in {dtype}")
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
        """A row per token, in `dtype`. mask: False for padding, whose rows mean nothing."""
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
        raise ValueError(f"{shown(file)} holds no embedded prompt: {error}") from None
    if rows.ndim != 2 or rows.dtype.kind != "f":
        raise ValueError(
            f"{shown(file)} holds {rows.dtype} {rows.shape}, no embedded prompt: floats [L, width]"
        )
    return rows


class TextCache:
    """Embedded prompts in a folder, so that not every machine needs the encoder and its 11 GB.

    The folder belongs to one encoder, described in its `encoder.json`; each prompt is a file of
    its rows in the type they were computed in. Without `model` and `tokenizer`, only what is in the
    folder can be had.
    """

    def __init__(
        self, folder: Path | str, model: UMT5 | None = None, tokenizer: Tokenizer | None = None
    ):
        """Raises ValueError where the folder is another encoder's, or no cache."""
        self.folder, self.model, self.tokenizer = any_path(folder), model, tokenizer
        file = self.folder / "encoder.json"
        if model is None or tokenizer is None:
            if model is not None or tokenizer is not None:
                raise ValueError("a text encoder and its tokenizer go together: give both or none")
            self.encoder = _read_encoder(file)
            return
        self.encoder = _describe(model, tokenizer)
        if not file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write(file, json.dumps(self.encoder, indent=1), shared=True)
        elif _read_encoder(file) != self.encoder:
            raise ValueError(f"{self.folder} is of another text encoder; use another folder")

    def embed(self, prompt: str, length: int = 512) -> Rows:
        """Embed a prompt as the function `embed`, but computed only if it is not in the folder; a
        prompt that was cut is told of every time.

        Raises ValueError where it is not and there is no encoder, and where its file is damaged or
        not of this cache.
        """
        cleaned = clean(prompt)
        key = _digest(json.dumps([self.encoder, length, cleaned]).encode())
        file = self.folder / f"{key}.safetensors"
        if file.exists():
            rows, tokens = _read_rows(file, key)
            warn_if_cut(tokens, length)
            return jnp.asarray(np.pad(rows, ((0, length - len(rows)), (0, 0))))
        if self.model is None or self.tokenizer is None:
            raise ValueError(
                f"{self.folder} does not have the prompt {cleaned!r} at length {length}; put it "
                "there on a machine that has the text encoder"
            )
        rows = np.asarray(embed(self.model, self.tokenizer, prompt, length))
        kept = rows[: np.flatnonzero(rows.any(axis=1))[-1] + 1]  # without the zeros behind them
        about = {
            "key": key,
            "prompt": cleaned,
            "tokens": str(self.tokenizer.count(prompt)),
            "sha256": _digest(_content(kept)),
        }
        write(file, safetensors.numpy.save({"rows": kept}, about), shared=True)
        return jnp.asarray(rows)


def _describe(model: UMT5, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what the rows depend on. Norms, position biases and some rows of matrices, which
    quantised files round, stand for all weights."""
    blocks = model.blocks
    small = [model.norm.scale[...], blocks.norm2.scale[...], blocks.pos_embedding[...]]
    small += [blocks.attn.q.kernel[...][:, 0], blocks.ffn.fc1.kernel[...][:, 0]]
    return {
        "config": dataclasses.asdict(model.cfg),
        "dtype": model.dtype,
        "tokenizer": tokenizer.digest,
        "weights": _digest(*(_content(np.asarray(a)) for a in small)),
    }


def _content(array: np.ndarray) -> bytes:
    return f"{array.dtype} {array.shape} ".encode() + array.tobytes()


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _read_encoder(file: Path) -> dict[str, Any]:
    try:
        encoder = json.loads(file.read_bytes())
        if encoder.keys() != {"config", "dtype", "tokenizer", "weights"}:
            raise ValueError
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{file.parent} has no embedded prompts: {file.name} is missing") from None
    except (ValueError, AttributeError):
        raise ValueError(f"{file} is damaged, or not a description of a text encoder") from None
    return encoder


def _read_rows(file: Path, key: str) -> tuple[np.ndarray, int]:
    """The rows, and how many tokens the prompt had: 0 in files that are older than the count."""
    try:
        with fetched(file) as there, safetensors.safe_open(there, framework="numpy") as opened:
            about, rows = opened.metadata() or {}, opened.get_tensor("rows")
        tokens = int(about.get("tokens", 0))
        if about["key"] != key or about["sha256"] != _digest(_content(rows)):
            raise KeyError
    except (safetensors.SafetensorError, KeyError, ValueError):
        raise ValueError(f"{file} is damaged, or not of this folder; remove it") from None
    return rows, tokens
