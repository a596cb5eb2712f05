"""Tables of names: every tensor one place, every place one tensor, all faults at once."""

import json
import re

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
    place,
)
from tests.conftest import GOLDEN, RELEASES, load_release
from tests.translated import fill, translate

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


@pytest.fixture(scope="module")
def abstract() -> DiT:
    return jax.eval_shape(lambda: DiT(CONFIG, rngs=nnx.Rngs(0)))


def faults(error: pytest.ExceptionInfo[CheckpointError]) -> list[str]:
    """The single faults of a message, whose first words say how many there are."""
    head, _, rest = str(error.value).partition(": ")
    found = rest.split("; ")
    assert int(head.split()[0]) == len(found)
    return found


def test_every_tensor_has_its_place(abstract):
    given = tensors()
    model = leaves(fill(abstract, given, DIT))
    assert model.keys() == leaves(abstract).keys()
    for path, name in {
        "blocks.self_attn.q.kernel": "self_attn.q.weight",
        "blocks.cross_attn.o.kernel": "cross_attn.o.weight",
        "blocks.ffn.layers_0.kernel": "ffn.0.weight",
        "blocks.ffn.layers_2.bias": "ffn.2.bias",
        "blocks.norm3.scale": "norm3.weight",
        "blocks.cross_attn.norm_k.scale": "cross_attn.norm_k.weight",
    }.items():
        stacked = np.stack([given[f"blocks.{i}.{name}"].T for i in range(3)])
        np.testing.assert_array_equal(model[path], stacked)
    np.testing.assert_array_equal(
        model["blocks.modulation"],
        np.concatenate([given[f"blocks.{i}.modulation"] for i in range(3)]),
    )
    np.testing.assert_array_equal(model["head.modulation"], given["head.modulation"][0])
    np.testing.assert_array_equal(
        model["patch_embedding.kernel"], given["patch_embedding.weight"].reshape(8, 16).T
    )
    np.testing.assert_array_equal(
        model["time_embedding.layers_2.kernel"], given["time_embedding.2.weight"].T
    )


def test_no_two_tensors_share_a_place():
    """Every value given is found again exactly once."""
    given = tensors()
    before = np.sort(np.concatenate([a.ravel() for a in given.values()]))
    after = np.sort(np.concatenate([a.ravel() for a in translate(given, DIT).values()]))
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("weights", RELEASES)
def test_every_golden_checkpoint_is_translated_whole(weights):
    given = load_release(weights)
    assert sum(a.size for a in translate(given, DIT).values()) == sum(
        a.size for a in given.values()
    )


def test_many_layers_are_stacked_by_number_and_not_by_spelling():
    rows: list[Row] = [(r"blocks\.bias", "blocks.bias", lambda a: a)]
    given = {f"blocks.{i}.bias": np.full(2, i) for i in reversed(range(12))}
    np.testing.assert_array_equal(translate(given, rows)["blocks.bias"][:, 0], np.arange(12))


def test_unmatched_and_doubly_matched_tensors_and_missing_layers_are_reported_at_once():
    given = tensors()
    given["img_emb.proj.2.weight"] = given["blocks.0.self_attn.k_img.weight"] = np.zeros((8, 8))
    del given["blocks.1.norm3.bias"]
    del given["blocks.2.ffn.0.weight"], given["blocks.0.ffn.0.weight"]
    twice: list[Row] = [*DIT, (r"head\.(head|tail)\.bias", "head.tail", lambda a: a)]
    with pytest.raises(CheckpointError, match=r"^5 tensors cannot be placed: ") as error:
        translate(given, twice)
    assert faults(error) == [
        "blocks.0.self_attn.k_img.weight matches 0 rows",
        "blocks.ffn.layers_0.kernel has layers [1], not 0 to 0",
        "blocks.norm3.bias has layers [0, 2], not 0 to 1",
        "head.head.bias matches 2 rows",
        "img_emb.proj.2.weight matches 0 rows",
    ]


def test_a_row_matches_whole_names_only():
    given = {f"x.{name}": a for name, a in tensors().items()}
    with pytest.raises(CheckpointError, match=rf"^{len(given)} tensors cannot be placed"):
        translate(given, DIT)


def test_wrong_shapes_and_unfilled_places_are_reported_at_once(abstract):
    given = tensors()
    given["head.head.weight"] = np.zeros((24, 8), np.float32)
    for i in range(3):
        given[f"blocks.{i}.ffn.0.bias"] = np.zeros(13, np.float32)
    del given["patch_embedding.bias"]
    with pytest.raises(CheckpointError, match=r"^3 weights do not fit the model: ") as error:
        fill(abstract, given, DIT)
    assert faults(error) == [
        "blocks.ffn.layers_0.bias has shape (3, 13), the model wants (3, 12)",
        "head.head.kernel has shape (8, 24), the model wants (8, 20)",
        "patch_embedding.bias is missing",
    ]


def test_a_checkpoint_with_a_layer_less_does_not_fit(abstract):
    given = {name: a for name, a in tensors().items() if not name.startswith("blocks.2.")}
    with pytest.raises(
        CheckpointError, match=re.escape("has shape (2, 8), the model wants (3, 8)")
    ):
        fill(abstract, given, DIT)


def test_weights_take_the_models_type(abstract):
    given = {name: a.astype(np.float16) for name, a in tensors().items()}
    assert {a.dtype for a in leaves(fill(abstract, given, DIT)).values()} == {np.dtype("float32")}


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


def test_leaves_are_placed_without_reading_tensors():
    given = tensors()
    placed, _ = place({name: a.shape for name, a in given.items()}, DIT)
    translated = translate(given, DIT)
    assert {path: leaf.shape for path, leaf in placed.items()} == {
        path: a.shape for path, a in translated.items()
    }
    leaf = placed["blocks.ffn.layers_0.kernel"]
    assert leaf.stacked
    assert [name for name, _ in leaf.sources] == [f"blocks.{i}.ffn.0.weight" for i in range(3)]
    read: list[str] = []
    built = leaf.build(lambda name: read.append(name) or given[name], np.dtype(np.float16))
    assert read == [name for name, _ in leaf.sources]
    np.testing.assert_array_equal(
        built, translated["blocks.ffn.layers_0.kernel"].astype(np.float16)
    )


def test_a_tensor_of_another_rank_is_reported_with_the_others():
    given = tensors()
    given["head.modulation"] = np.zeros((), np.float32)
    given["stranger"] = np.zeros(3)
    with pytest.raises(CheckpointError, match=r"^2 tensors cannot be placed: ") as error:
        translate(given, DIT)
    assert faults(error) == [
        "head.modulation has shape (), which no such tensor has",
        "stranger matches 0 rows",
    ]


def test_a_large_matrix_is_turned_in_blocks():
    rng = np.random.default_rng(0)
    for dtype in (np.float32, ml_dtypes.bfloat16):
        matrix = rng.random((700, 900)).astype(dtype)
        leaf = names.Leaf((("a", np.transpose),), False, (900, 700))
        found = leaf.build({"a": matrix}.__getitem__, np.dtype(dtype))
        np.testing.assert_array_equal(found, matrix.T)
