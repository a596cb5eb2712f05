"""Prompts to rows that the DiT attends to."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jcos.config import Words


class WordEmbedding(nnx.Module):
    """The small model's text encoder: a row per word of a closed vocabulary."""

    def __init__(self, cfg: Words, *, rngs: nnx.Rngs):
        self.table = nnx.Param(jax.random.normal(rngs.params(), (len(cfg.vocabulary), cfg.dim)))

    def __call__(self, ids: Int[Array, " L"]) -> Float[Array, "L D"]:
        """Rows of the words; zeros where the id is negative, as Wan pads its prompts with zeros."""
        return jnp.where(ids[:, None] >= 0, self.table[...][ids], 0.0)


def word_ids(cfg: Words, prompt: str, length: int) -> Int[np.ndarray, " L"]:
    """Vocabulary numbers of a prompt's words, padded with −1; an empty prompt is all padding.

    Raises ValueError where a word is not in the vocabulary or the prompt has more than `length`
    words.
    """
    words = prompt.lower().split()
    unknown = sorted(set(words) - set(cfg.vocabulary))
    if unknown:
        known = ", ".join(sorted(cfg.vocabulary))
        raise ValueError(
            f"the model does not know the word(s) {', '.join(unknown)}; it knows: {known}"
        )
    if len(words) > length:
        raise ValueError(f"the prompt has {len(words)} words; this model reads at most {length}")
    ids = [cfg.vocabulary.index(word) for word in words]
    return np.array(ids + [-1] * (length - len(ids)), np.int32)
