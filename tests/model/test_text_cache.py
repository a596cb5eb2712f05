"""A prompt that was cut is told of whenever it is used, not only when it is embedded."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import tokenizers
from flax import nnx

from jcos.config import UMT5Config
from jcos.model import text
from jcos.model.text import UMT5, TextCache
from jcos.model.tokenizer import Tokenizer

CUT = "the prompt has 9 tokens; only the first 5 and the end token are read"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TextCache:
    """Of an encoder that computes nothing, with a tokenizer of letters."""
    special = ["<pad>", "</s>", "<s>", "<unk>"]
    letters = [(letter, -1.0) for letter in "abcdefgh▁"]
    made = tokenizers.Tokenizer(
        tokenizers.models.Unigram([*((s, 0.0) for s in special), *letters], unk_id=3)
    )
    made.add_special_tokens(special)
    made.save(str(tmp_path / "tokenizer.json"))
    cfg = UMT5Config(vocabulary=16, dim=4, heads=1, head_dim=4, ffn_dim=4, layers=1)
    model, tokenizer = UMT5(cfg, rngs=nnx.Rngs(0)), Tokenizer.load(tmp_path / "tokenizer.json")

    def embed(model: UMT5, tokenizer: Tokenizer, prompt: str, length: int) -> np.ndarray:
        _, mask = tokenizer(prompt, length)
        return np.ones((length, 4), np.float32) * mask[:, None]

    monkeypatch.setattr(text, "embed", embed)
    return TextCache(tmp_path / "prompts", model, tokenizer)


def said(cache: TextCache, prompt: str) -> list[str]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cache.embed(prompt, 6)
    return [str(warning.message) for warning in told]


def test_a_cut_prompt_is_told_of_every_time(cache: TextCache) -> None:
    assert said(cache, "abcdefgh") == [CUT]
    assert said(cache, "abcdefgh") == [CUT]
    assert said(TextCache(cache.folder), "abcdefgh") == [CUT]
    assert said(cache, "abcde") == said(cache, "abcde") == []


def test_files_that_are_older_than_the_count_are_read(cache: TextCache) -> None:
    said(cache, "abcdefgh")
    (file,) = cache.folder.glob("*.safetensors")
    with safetensors.safe_open(file, framework="numpy") as opened:
        about, rows = opened.metadata(), opened.get_tensor("rows")
    del about["tokens"]
    safetensors.numpy.save_file({"rows": rows}, file, about)
    assert said(cache, "abcdefgh") == []
    assert np.asarray(cache.embed("abcdefgh", 6)).shape == (6, 4)
