"""Prompts: a closed vocabulary, one row per word, zeros behind them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jcos.config import Words
from jcos.text import WordEmbedding, word_ids
from jcos.training import vocabulary

WORDS = Words(("ball", "left", "move", "right"), 6)


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("move ball left", [2, 0, 1, -1, -1]),
        ("  Move\tBALL ", [2, 0, -1, -1, -1]),
        ("left left right move ball", [1, 1, 3, 2, 0]),
        ("", [-1] * 5),
    ],
)
def test_words_are_rows_of_the_vocabulary_padded_to_length(prompt, ids):
    found = word_ids(WORDS, prompt, 5)
    assert found.dtype == np.int32
    assert found.tolist() == ids


def test_unknown_words_are_named_with_what_is_known():
    message = r"^the model does not know the word\(s\) cat, dog; it knows: ball, left, move, right$"
    with pytest.raises(ValueError, match=message):
        word_ids(WORDS, "move dog left cat dog", 8)


def test_a_prompt_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match=r"^the prompt has 3 words; this model reads at most 2$"):
        word_ids(WORDS, "move ball left", 2)


def test_rows_are_the_tables_and_padding_is_zero():
    embed = WordEmbedding(WORDS, rngs=nnx.Rngs(0))
    rows = embed(jnp.array([2, 0, 3, -1, -1]))
    np.testing.assert_array_equal(rows[:3], embed.table[...][jnp.array([2, 0, 3])])
    np.testing.assert_array_equal(rows[3:], np.zeros((2, 6)))
    assert not jnp.all(embed.table[...][-1] == 0)  # the last word is not what padding points at


def test_padding_has_no_gradient():
    embed = WordEmbedding(WORDS, rngs=nnx.Rngs(0))
    gradient = jax.grad(lambda e: jnp.sum(e(jnp.array([2, 0, -1]))))(embed)
    np.testing.assert_array_equal(gradient.table[...], np.outer([1, 0, 1, 0], np.ones(6)))


def test_the_training_vocabulary_reads_every_prompt():
    from jcos.tasks import TASKS

    words = Words(vocabulary(), 4)
    assert list(words.vocabulary) == sorted(set(words.vocabulary))
    for task in TASKS.values():
        for seed in range(20):
            ids = word_ids(words, task.sample((7, seed), "test").prompt, 8)
            assert ids.max() >= 0
