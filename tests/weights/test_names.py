"""Tables of names: every tensor one place, every place one tensor, all faults at once."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from jcos.config import DiTConfig
from jcos.model.dit import DiT
from jcos.weights import names
from jcos.weights.checkpoint import CheckpointError, leaves
from jcos.weights.lora import original_shapes
from jcos.weights.names import (
    DIT,
    DIT_OF_DIFFUSERS,
    UMT5_OF_TRANSFORMERS,
    VAE_2_1_OF_DIFFUSERS,
    VAE_2_2_OF_DIFFUSERS,
    Row,
    original_name,
)
from tests.conftest import GOLDEN
from tests.translated import translate

CONFIG = DiTConfig(
    dim=8,
    ffn_dim=12,
    heads=2,
    layers=3,
    in_channels=4,
    out_channels=5,
    text_dim=6,
    text_len=2,
    freq_dim=10,
)


def tensors() -> dict[str, np.ndarray]:
    """A checkpoint under the names of the releases, all of whose values differ."""
    abstract = jax.eval_shape(lambda: DiT(CONFIG, rngs=nnx.Rngs(0)))
    shapes = original_shapes(leaves(abstract), CONFIG.patch)
    assert len(shapes) == 15 + 3 * 27
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def faults(error: pytest.ExceptionInfo[CheckpointError]) -> list[str]:
    """The single faults of a message, whose first words say how many there are."""
    head, _, rest = str(error.value).partition(": ")
    found = rest.split("; ")
    assert int(head.split()[0]) == len(found)
    return found


def test_many_layers_are_stacked_by_number_and_not_by_spelling():
    rows: list[Row] = [(r"blocks\.bias", "blocks.bias", lambda a: a)]
    given = {f"blocks.{i}.bias": np.full(2, i) for i in reversed(range(12))}
    np.testing.assert_array_equal(translate(given, rows)["blocks.bias"][:, 0], np.arange(12))


def test_unmatched_and_doubly_matched_tensors_and_missing_layers_are_reported_at_once():
    given = tensors()
    given["img_emb.proj.2.weight"] = given["blocks.0.self_attn.k_img.weight"] = np.zeros((8, 8))
    del given["blocks.1.norm3.bias"]
    del given["blocks.2.ffn.0.weight"], given["blocks.0.ffn.0.weight"]
    given["head.modulation"] = np.zeros((), np.float32)
    twice: list[Row] = [*DIT, (r"head\.(head|tail)\.bias", "head.tail", lambda a: a)]
    with pytest.raises(CheckpointError, match=r"^6 tensors cannot be placed: ") as error:
        translate(given, twice)
    assert faults(error) == [
        "blocks.0.self_attn.k_img.weight matches 0 rows",
        "blocks.ffn.layers_0.kernel has layers [1], not 0 to 0",
        "blocks.norm3.bias has layers [0, 2], not 0 to 1",
        "head.head.bias matches 2 rows",
        "head.modulation has shape (), which no such tensor has",
        "img_emb.proj.2.weight matches 0 rows",
    ]


@pytest.mark.parametrize(
    ("kind", "renaming"),
    [
        ("dit", DIT_OF_DIFFUSERS),
        ("vae21", VAE_2_1_OF_DIFFUSERS),
        ("vae22", VAE_2_2_OF_DIFFUSERS),
        ("umt5", UMT5_OF_TRANSFORMERS),
    ],
)
def test_names_of_diffusers_become_the_originals(kind, renaming):
    """The map was made by diffusers' own conversion of tiny models."""
    file = GOLDEN / "ckpt" / "key_maps_original_to_diffusers.json"
    for original, diffusers in json.loads(file.read_text())[kind].items():
        assert original_name(diffusers, renaming) == original
        assert original_name(original, renaming) == original


def test_a_large_matrix_is_turned_in_blocks():
    rng = np.random.default_rng(0)
    for dtype in (np.float32, ml_dtypes.bfloat16):
        matrix = rng.random((700, 900)).astype(dtype)
        leaf = names.Leaf((("a", np.transpose),), False, (900, 700))
        found = leaf.build({"a": matrix}.__getitem__, np.dtype(dtype))
        np.testing.assert_array_equal(found, matrix.T)
