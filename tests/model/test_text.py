"""Prompts: a closed vocabulary, one row per word, zeros behind them; UMT5, equal to PyTorch, and
its tokenizer."""

import re
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from flax import nnx

from jcos.config import UMT5Config, Words
from jcos.model import text
from jcos.model.text import UMT5, WordEmbedding, cached, embed, relative_buckets, word_ids
from jcos.model.tokenizer import Tokenizer, clean
from jcos.weights.names import UMT5_OF_TRANSFORMERS, original_name
from tests.conftest import parameter_count
from tests.models import filled_text, original_text, relative, rms

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


def test_rows_are_the_tables_and_padding_is_zero_without_a_gradient():
    embed = WordEmbedding(WORDS, rngs=nnx.Rngs(0))
    rows = embed(jnp.array([2, 0, 3, -1, -1]))
    np.testing.assert_array_equal(rows[:3], embed.table[...][jnp.array([2, 0, 3])])
    np.testing.assert_array_equal(rows[3:], np.zeros((2, 6)))
    assert not jnp.all(embed.table[...][-1] == 0)  # the last word is not what padding points at
    gradient = jax.grad(lambda e: jnp.sum(e(jnp.array([2, 0, -1]))))(embed)
    np.testing.assert_array_equal(gradient.table[...], np.outer([1, 0, 1, 0], np.ones(6)))


# ---- UMT5, equal to PyTorch


@jax.jit
def encode(model: UMT5, ids: jax.Array, mask: jax.Array) -> jax.Array:
    return model(ids, mask)


@jax.jit
def play_block(blocks: Any, layer: int, x: jax.Array, mask: jax.Array, buckets: jax.Array):
    return jax.tree.map(lambda a: a[layer], blocks)(x, mask, buckets)


def prompts(arrays: dict[str, np.ndarray]):
    """Number, ids, mask and number of tokens of every prompt."""
    for i, (ids, mask) in enumerate(zip(arrays["ids"], arrays["mask"].astype(bool), strict=True)):
        yield i, jnp.asarray(ids, jnp.int32), jnp.asarray(mask), int(mask.sum())


def buckets_of(length: int) -> jax.Array:
    places = np.arange(length)
    return jnp.asarray(relative_buckets(places[None] - places[:, None], 32, 128))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layers"), [("umt5_L24", 3), ("umt5_L200", 1), ("loop_text", 0)])
def test_rows_and_blocks_equal_the_original_text(golden, name, layers):
    arrays, model = golden(f"t5/{name}"), original_text()
    assert len([key for key in arrays if key.startswith("trace.block_")]) == layers
    for i, ids, mask, count in prompts(arrays):
        rows = encode(model, ids, mask)
        assert rows.dtype == jnp.float32
        assert relative(np.asarray(rows)[:count], arrays["out_fp32"][i, :count]) <= 2e-6, i
        x = jnp.asarray(np.asarray(model.token_embedding[...], np.float32)[np.asarray(ids)])
        for layer in range(layers):
            x = play_block(model.blocks, layer, x, mask, buckets_of(len(ids)))
            expected = arrays[f"trace.block_{layer:02}"][i, :count]
            assert relative(np.asarray(x)[:count], expected) <= 2e-6, (i, layer)


def test_buckets_of_distances_equal_the_original_text(golden):
    arrays = golden("t5/rel_buckets")
    np.testing.assert_array_equal(relative_buckets(arrays["rel"], 32, 128), arrays["bucket"])
    far = relative_buckets(np.array([-(10**6), 10**6]), 32, 128)
    np.testing.assert_array_equal(far, [15, 31])


@pytest.mark.slow
def test_bfloat16_is_as_near_to_float32_as_the_originals(golden):
    """Not bit by bit: where sums are rounded depends on the library."""
    for name in ("umt5_L24", "umt5_L200", "loop_text"):
        arrays = golden(f"t5/{name}")
        for i, ids, mask, count in prompts(arrays):
            rows = np.asarray(encode(original_text("bfloat16"), ids, mask))
            assert rows.dtype == jnp.bfloat16
            exact = arrays["out_fp32"][i, :count]
            theirs = arrays["out_bf16"][i, :count].astype(np.float32)
            error = rms(rows[:count].astype(np.float32) - exact) / rms(exact)
            assert 1e-3 < error <= 1.5 * rms(theirs - exact) / rms(exact), (name, i)


def test_the_true_size_has_the_releases_number_of_weights():
    """And its program is made from shapes alone, with no weights in it."""
    model = jax.eval_shape(lambda: UMT5(UMT5Config(), rngs=nnx.Rngs(0)))
    assert parameter_count(model) == 5_680_910_336
    large = [a for a in jax.tree.leaves(model) if a.size > 10**7]
    assert {a.dtype for a in large} == {jnp.dtype("bfloat16")}
    given = jax.ShapeDtypeStruct((512,), jnp.int32), jax.ShapeDtypeStruct((512,), jnp.bool_)
    assert len(encode.lower(model, *given).as_text()) < 3e6  # most of it the table of buckets


def test_the_weights_are_not_copied():
    """Neither as they are nor in float32, but a layer at a time."""
    cfg = UMT5Config(vocabulary=100, dim=256, heads=4, head_dim=64, ffn_dim=640, layers=24)
    model = jax.eval_shape(lambda: UMT5(cfg, dtype="bfloat16", rngs=nnx.Rngs(0)))
    given = jax.ShapeDtypeStruct((8,), jnp.int32), jax.ShapeDtypeStruct((8,), jnp.bool_)
    memory = encode.lower(model, *given).compile().memory_analysis()
    assert memory is not None
    assert memory.argument_size_in_bytes > 3e7
    assert memory.temp_size_in_bytes < 0.2 * memory.argument_size_in_bytes


OF_TRANSFORMERS = {
    "vocab_size": "vocabulary",
    "d_model": "dim",
    "d_kv": "head_dim",
    "d_ff": "ffn_dim",
    "num_layers": "layers",
    "num_heads": "heads",
    "relative_attention_num_buckets": "buckets",
    "relative_attention_max_distance": "max_distance",
    "layer_norm_epsilon": "eps",
}


@pytest.mark.extra("verify")
def test_umt5_equals_transformers():
    """Another size and other bucket counts than the golden data's, random weights, two prompts."""
    torch, transformers = map(import_module, ("torch", "transformers"))
    cfg = UMT5Config(50, 24, 2, 10, 40, 2, buckets=16, max_distance=20)
    sizes = {theirs: getattr(cfg, ours) for theirs, ours in OF_TRANSFORMERS.items()}
    reference = transformers.UMT5EncoderModel(
        transformers.UMT5Config(**sizes, feed_forward_proj="gated-gelu")
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in reference.parameters():
            # Of a trained model's size: much larger ones make every rounding of a score visible.
            noise = torch.randn(weight.shape, generator=generator) * 0.7 * weight.shape[-1] ** -0.5
            weight.copy_((noise + (weight.ndim == 1)).bfloat16())
    tensors = {
        original_name(name, UMT5_OF_TRANSFORMERS): weight.detach().numpy()
        for name, weight in reference.named_parameters()
    }
    model = filled_text(cfg, tensors)
    ids = np.random.default_rng(0).integers(2, 50, (2, 60)).astype(np.int32)
    mask = np.arange(60) < np.array([[60], [31]])
    with torch.no_grad():
        expected = reference.double()(torch.tensor(ids), torch.tensor(mask))[0].numpy()
    for i, count in enumerate(mask.sum(1)):
        rows = encode(model, jnp.asarray(ids[i]), jnp.asarray(mask[i]))
        assert relative(rows[:count], expected[i, :count]) <= 2e-6


# ---- the tokenizer

PIECES = ["▁a", "▁ball", "▁red", "▁moves", "▁A", "<", ">", "&", "é", "'", "▁", *"abcdelmnorsv"]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    """A tokenizer of UMT5's kind with a few pieces, where a release has it."""
    special = ["<pad>", "</s>", "<s>", "<unk>"]
    vocabulary = [(piece, 0.0) for piece in special] + [
        (p, -len(PIECES[0]) / len(p)) for p in PIECES
    ]
    made = tokenizers.Tokenizer(tokenizers.models.Unigram(vocabulary, unk_id=3))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.decoder = tokenizers.decoders.Metaspace()
    made.add_special_tokens(special)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    made.enable_padding(length=99)  # what a file says of padding must not matter
    made.enable_truncation(3)
    folder = tmp_path_factory.mktemp("release")
    (folder / "google" / "umt5-xxl").mkdir(parents=True)
    made.save(str(folder / "google" / "umt5-xxl" / "tokenizer.json"))
    return folder / "google" / "umt5-xxl" / "tokenizer.json"


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file) -> Tokenizer:
    return Tokenizer.load(tokenizer_file)


def pieces_of(file, ids) -> list[str | None]:
    known = tokenizers.Tokenizer.from_file(str(file))
    return [known.id_to_token(int(i)) for i in ids]


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("A red  ball\n\tmoves ", "A red ball moves"),
        ("\u3000a\u00a0red\u2003\u2028ball\x0b", "a red ball"),
        ("a &lt; b &amp;amp; c &eacute;", "a < b & c é"),
        ("&amp;amp;lt;", "<"),
        ("a < &amp;amp;lt;", "a < &lt;"),  # ftfy leaves entities alone where there are tags
        ("schÃ¶n â€” l\u2019Ã©toile", "schön — l'étoile"),
        ("\u201cquoted\u201d \ufb01n \uff21", '"quoted" fin A'),
        ("红色的球  移动", "红色的球 移动"),
        (" \n ", ""),
    ],
)
def test_prompts_are_cleaned_as_in_the_original_text(prompt, cleaned):
    assert clean(prompt) == cleaned


def test_tokens_are_numbered_ended_and_padded(tokenizer, tokenizer_file):
    ids, mask = tokenizer("  a red&nbsp;ball\n", 8)
    assert (ids.dtype, mask.dtype) == (np.int32, np.bool_)
    expected = ["▁a", "▁red", "▁ball", "</s>", "<pad>", "<pad>", "<pad>", "<pad>"]
    assert pieces_of(tokenizer_file, ids) == expected
    assert (ids[3], ids[4]) == (1, 0)
    assert mask.tolist() == [True] * 4 + [False] * 4
    ids, mask = tokenizer(" \t\n", 3)  # an empty one is its end
    assert (ids.tolist(), mask.tolist()) == ([1, 0, 0], [True, False, False])


def test_a_long_prompt_is_cut_before_its_end_and_says_so(tokenizer, tokenizer_file):
    message = r"^the prompt has 5 tokens; only the first 2 and the end token are read$"
    with pytest.warns(UserWarning, match=message):
        ids, mask = tokenizer("a red ball moves", 3)
    assert pieces_of(tokenizer_file, ids) == ["▁a", "▁red", "</s>"]
    assert mask.all()
    ids, mask = tokenizer("a red ball moves", 5)  # as many as there is room for: no warning
    assert pieces_of(tokenizer_file, ids)[-2:] == ["▁moves", "</s>"]
    assert mask.all()
    with pytest.warns(UserWarning, match="only the first 0"):
        assert tokenizer("a", 1)[0].tolist() == [1]


def test_tokenizers_are_found_in_every_layout(tokenizer, tokenizer_file, tmp_path):
    released = tokenizer_file.parent.parent.parent
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    for place in (released, tokenizer_file.parent, tmp_path, tmp_path / "tokenizer"):
        found = Tokenizer.load(place)
        assert found == tokenizer
        assert hash(found) == hash(tokenizer)


@pytest.mark.extra("verify")
@pytest.mark.parametrize(
    "prompt",
    ["a red ball moves", "", "A  ball < é & 'q'", "ball</s>red <pad> a", "a red ball " * 9],
)
def test_tokens_equal_those_of_transformers(tokenizer, tokenizer_file, prompt):
    """The original asks transformers for padding to, and truncation at, the full length."""
    transformers = import_module("transformers")
    reference = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_file), eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    expected = reference(clean(prompt), padding="max_length", truncation=True, max_length=16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        ids, mask = tokenizer(prompt, 16)
    assert ids.tolist() == expected["input_ids"]
    assert mask.astype(int).tolist() == expected["attention_mask"]


# ---- rows of a prompt


@pytest.mark.slow
@pytest.mark.parametrize(("prompt", "tokens"), [(" a red   ball", 4), ("", 1)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_of_a_prompt_end_in_zeros(tokenizer, prompt, tokens, dtype):
    model = original_text(dtype)
    ids, mask = tokenizer(prompt, 12)
    rows = embed(model, tokenizer, prompt, 12)
    assert (rows.shape, rows.dtype) == ((12, model.cfg.dim), dtype)
    assert np.asarray(rows).any(axis=1).tolist() == [True] * tokens + [False] * (12 - tokens)
    expected = encode(model, jnp.asarray(ids), jnp.asarray(mask))[:tokens]
    assert relative(rows[:tokens], np.asarray(expected)) <= 1e-6


# ---- embedded prompts on disk


def none() -> tuple[None, None]:
    return None, None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_embedded_prompts_are_read_without_the_encoder(tokenizer, tmp_path, dtype, monkeypatch):
    model, folder = original_text(dtype), tmp_path / "new" / "prompts"
    monkeypatch.setattr(text, "embed", embedded := Mock(side_effect=embed))
    prompts = ["a  red ball", ""]
    for load in (lambda: (model, tokenizer), none):
        rows = cached(folder, prompts * 2, dtype, 12, load)
        for prompt in prompts:
            read = rows(f" {prompt}\n")
            assert read.dtype == jnp.dtype(dtype)
            np.testing.assert_array_equal(read, embed(model, tokenizer, prompt, 12))
    assert len(list(folder.iterdir())) == embedded.call_count == 2
    assert max(f.stat().st_size for f in folder.iterdir()) < 2000  # padding is not stored
    other = {"float32": "bfloat16", "bfloat16": "float32"}[dtype]
    cached(folder, ["a ball"], other, 12, lambda: (original_text(other), tokenizer))


def test_damaged_and_foreign_files_are_named(tokenizer, tmp_path):
    def rows(prompt: str) -> jax.Array:
        return cached(tmp_path, [prompt], "float32", 12, lambda: (original_text(), tokenizer))(
            prompt
        )

    rows("a red ball")
    (file,) = tmp_path.glob("*.safetensors")
    whole = file.read_bytes()
    rows("a ball")
    (other,) = set(tmp_path.glob("*.safetensors")) - {file}
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    message = f"{file} is damaged, or not of this folder; remove it"
    for content in (b"", whole[:-8], bytes(flipped), other.read_bytes()):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            rows("a red ball")
    file.unlink()
    np.testing.assert_array_equal(
        rows("a red ball"), embed(original_text(), tokenizer, "a red ball", 12)
    )
    assert file.stat().st_size == len(whole)


def test_a_cut_prompt_is_told_of_every_time(tokenizer, tmp_path):
    """Not only when it is embedded."""
    prompts = ["a red ball moves", "a red"]
    message = r"^the prompt has 5 tokens; only the first 2 and the end token are read$"
    for load in (lambda: (original_text(), tokenizer), none):
        rows = cached(tmp_path, prompts, "float32", 3, load)
        with pytest.warns(UserWarning, match=message):
            rows(prompts[0])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            rows(prompts[1])


# ---- what is refused


def load(folder: Path, content: str) -> Tokenizer:
    (folder / "tokenizer.json").write_text(content)
    return Tokenizer.load(folder)


def small_text() -> UMT5:
    return jax.eval_shape(lambda: UMT5(UMT5Config(5, 4, 1, 2, 4, 1), rngs=nnx.Rngs(0)))


def of_another(folder: Path, tokenizer: Tokenizer) -> None:
    cached(folder, ["a red ball"], "float32", 12, lambda: (original_text(), tokenizer))
    louder = jax.tree.map(lambda a: 2 * a, original_text())
    cached(folder, ["a red ball", "a"], "float32", 12, lambda: (louder, tokenizer))


def of_another_prompt(folder: Path, tokenizer: Tokenizer) -> None:
    cached(folder, ["a red ball"], "float32", 12, lambda: (original_text(), tokenizer))
    louder = jax.tree.map(lambda a: 2 * a, original_text())
    cached(folder, ["a"], "float32", 12, lambda: (louder, tokenizer))


def of_none(folder: Path, tokenizer: Tokenizer) -> None:
    stored(folder, tokenizer, "a red ball", 12)
    (file,) = folder.iterdir()
    with safetensors.safe_open(file, "numpy") as opened:
        about = opened.metadata()
    del about["encoder"]
    safetensors.numpy.save_file(safetensors.numpy.load_file(file), file, about)
    cached(folder, ["a red ball"], "float32", 12, none)


def stored(folder: Path, tokenizer: Tokenizer, prompt: str, length: int) -> None:
    cached(folder, ["a red ball"], "float32", 12, lambda: (original_text(), tokenizer))
    cached(folder, [prompt], "float32", length, none)


OTHER_KIND = tokenizers.Tokenizer(tokenizers.models.Unigram([("a", 0.0), ("b", 0.0)])).to_str()
NO_TOKENIZER = "tokenizer.json is not a tokenizer's file"
REFUSED = [
    (lambda f, t: word_ids(WORDS, "dog left cat dog", 8), "not know cat, dog; it knows: ball, le"),
    (lambda f, t: word_ids(WORDS, "move ball left", 2), "has 3 words; this model reads at most 2"),
    (lambda f, t: embed(small_text(), t, "a red", 4), "token 6 is beyond the text encoder's 5"),
    (lambda f, t: t("a", 0), "length is 0"),
    (lambda f, t: Tokenizer.load(f), "no tokenizer; .* google/umt5-xxl/tokenizer.json beside"),
    (lambda f, t: load(f, ""), NO_TOKENIZER),
    (lambda f, t: load(f, "{}"), NO_TOKENIZER),
    (lambda f, t: load(f, '{"model": {"type": "Un'), NO_TOKENIZER),
    (lambda f, t: load(f, OTHER_KIND), "not UMT5's: there, <pad> is token 0 and </s> 1"),
    (of_another, "of another text encoder; use another folder"),
    (of_another_prompt, "of another text encoder; use another folder"),
    (of_none, "of another text encoder; use another folder"),
    (lambda f, t: stored(f, t, "a red ball", 13), "does not have the prompt"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("call", "says"), REFUSED)
def test_what_cannot_be_read_is_refused(tokenizer, tmp_path, call, says):
    with pytest.raises(ValueError, match=says) as error:
        call(tmp_path, tokenizer)
    assert len(str(error.value)) <= 600
