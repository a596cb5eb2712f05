"""Folders as they are published: which model they hold, every tensor in its place, every fault in
one message."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from jcos.config import UMT5Config, VaeConfig
from jcos.model.dit import DiT
from jcos.variants import VARIANTS, vae_2_1, vae_2_2
from jcos.weights.checkpoint import CheckpointError, leaves
from jcos.weights.layouts import is_released
from jcos.weights.names import DIT, UMT5, VAE
from jcos.weights.released import load_released, open_released, part_of
from tests.conftest import load_golden, load_release
from tests.models import release_config
from tests.releases import I2V, T2V, TI2V, as_diffusers, edit, in_full
from tests.translated import translate

SHARD = "diffusion_pytorch_model-00001-of-00002.safetensors"
DIT_SIZES = release_config("i2v_high").dit


@pytest.fixture
def copied(tmp_path) -> Path:
    """The folder with all parts, to be damaged."""
    return shutil.copytree(I2V, tmp_path / "release")


@pytest.fixture(scope="module")
def diffusers(tmp_path_factory) -> Path:
    return as_diffusers(I2V, tmp_path_factory.mktemp("diffusers") / "release")


def expected(folder: Path) -> dict[str, np.ndarray]:
    """Every leaf of a folder, translated from tensors that other code has read."""
    parts = {
        I2V: {"experts.0": "i2v_high", "experts.1": "i2v_low", "vae": "vae21", "text": "umt5"},
        TI2V: {"experts.0": "ti2v", "vae": "vae22", "text": "umt5"},
        T2V: {"experts.0": "t2v"},
    }
    found = {}
    for part, name in parts[folder].items():
        tensors = load_golden(f"weights/{name}") if part in ("vae", "text") else load_release(name)
        table = {"vae": VAE, "text": UMT5}.get(part, DIT)
        found |= {f"{part}.{path}": a for path, a in translate(tensors, table).items()}
    return found


def loaded(folder: Path, dtype=jnp.float32) -> dict[str, jax.Array]:
    source = open_released(folder)
    want = {k: jax.ShapeDtypeStruct(leaf.shape, dtype) for k, leaf in source.leaves.items()}
    return load_released(source, want)


def assert_equal(found, want) -> None:
    assert found.keys() == want.keys()
    for path, a in want.items():
        np.testing.assert_array_equal(np.asarray(found[path]), a, err_msg=path)


def rewrite(file: Path, change) -> None:
    tensors = safetensors.numpy.load_file(file)
    change(tensors)
    safetensors.numpy.save_file(tensors, file)


# ---- what is right


@pytest.mark.parametrize("folder", [I2V, TI2V, T2V], ids=lambda p: p.name)
def test_every_leaf_equals_the_tensors_of_the_release(folder):
    assert_equal(loaded(folder), expected(folder))


def test_the_layout_of_diffusers_gives_the_same_leaves(diffusers):
    original, renamed = open_released(I2V), open_released(diffusers)
    assert_equal(loaded(diffusers), expected(I2V))
    assert renamed.leaves.keys() == original.leaves.keys()
    # That layout does not say how many rows a prompt has; every release has 512.
    dit = dataclasses.replace(renamed.config.dit, text_len=original.config.dit.text_len)
    assert renamed.config.dit.text_len == 512
    assert dataclasses.replace(renamed.config, dit=dit) == original.config


def test_the_model_is_recognised_and_measured():
    found = open_released(I2V)
    config, release = found.config, VARIANTS["wan2.2-i2v-a14b"]()
    assert found.parts == ["experts.0", "experts.1", "vae", "text"]
    for name in ("name", "image", "boundary", "sampling", "negative", "clip", "numerics"):
        assert getattr(config, name) == getattr(release, name)
    sizes = json.loads((I2V / "high_noise_model" / "config.json").read_text())
    dit, text = config.dit, config.text
    for name in ("dim", "ffn_dim", "freq_dim", "text_len"):
        assert getattr(dit, name) == sizes[name]
    assert (dit.layers, dit.heads) == (sizes["num_layers"], sizes["num_heads"])
    assert (dit.in_channels, dit.out_channels) == (36, 16)
    assert config.codec == widths_of(vae_2_1(), "vae21")
    tensors = load_golden("weights/umt5")
    assert isinstance(text, UMT5Config)
    assert (text.vocabulary, text.dim) == tensors["token_embedding.weight"].shape
    assert (text.buckets, text.heads) == tensors["blocks.0.pos_embedding.embedding.weight"].shape
    assert (text.heads * text.head_dim, dit.text_dim) == tensors["blocks.0.attn.q.weight"].shape
    assert text.ffn_dim == len(tensors["blocks.0.ffn.fc1.weight"])
    assert f"blocks.{text.layers - 1}.norm1.weight" in tensors
    assert f"blocks.{text.layers}.norm1.weight" not in tensors


def widths_of(codec: VaeConfig, weights: str) -> VaeConfig:
    tensors = load_golden(f"weights/{weights}")
    encoder, decoder = (len(tensors[n]) for n in ("encoder.conv1.bias", "decoder.head.0.gamma"))
    return dataclasses.replace(codec, encoder_dim=encoder, decoder_dim=decoder)


def test_the_other_releases_are_recognised():
    ti2v, t2v = open_released(TI2V), open_released(T2V)
    assert (ti2v.config.name, t2v.config.name) == (
        VARIANTS["wan2.2-ti2v-5b"]().name,
        VARIANTS["wan2.1-t2v-1.3b"]().name,
    )
    assert ti2v.config.codec == widths_of(vae_2_2(), "vae22")
    assert ti2v.parts == ["experts.0", "vae", "text"]
    # What a folder does not have is described all the same.
    assert t2v.parts == ["experts.0"]
    assert t2v.config.codec == VARIANTS["wan2.1-t2v-1.3b"]().codec
    assert isinstance(t2v.config.text, UMT5Config)
    assert t2v.config.text.dim == t2v.config.dit.text_dim


def test_the_boundary_of_a_diffusers_folder_is_taken(diffusers, tmp_path):
    folder = shutil.copytree(diffusers, tmp_path / "copy")
    edit(folder / "model_index.json", boundary_ratio=0.875)
    assert open_released(folder).config.boundary == 0.875


def test_opening_reads_no_weights(copied):
    """Only headers: the values may be anything."""
    for file in copied.rglob("*.safetensors"):
        content = file.read_bytes()
        header = 8 + int.from_bytes(content[:8], "little")
        file.write_bytes(content[:header] + b"\xff" * (len(content) - header))
    assert open_released(copied).leaves.keys() == open_released(I2V).leaves.keys()


def test_a_tied_embedding_is_read_once(diffusers, tmp_path):
    folder = shutil.copytree(diffusers, tmp_path / "copy")

    def tie(tensors):
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].copy()

    rewrite(folder / "text_encoder" / "model.safetensors", tie)
    assert_equal(loaded(folder), expected(I2V))


def test_leaves_are_loaded_in_the_type_and_place_that_are_wanted():
    source = open_released(I2V)
    path = "experts.1.blocks.ffn.layers_2.kernel"
    device = jax.sharding.SingleDeviceSharding(jax.devices()[-1])
    want = {path: jax.ShapeDtypeStruct(source.leaves[path].shape, jnp.bfloat16)}
    found = load_released(source, want, {path: device})
    assert found.keys() == {path}
    assert found[path].dtype == jnp.bfloat16
    assert found[path].sharding == device
    rounded = expected(I2V)[path].astype(jnp.bfloat16)
    np.testing.assert_array_equal(found[path].view(jnp.uint16), rounded.view(np.uint16))


def test_bfloat16_is_kept_where_the_original_computes_in_it():
    """Weights stored in bfloat16 give the official numerics' very numbers."""
    source = open_released(I2V)
    types = {path: source.stored_type(path, "bfloat16") for path in source.leaves}
    narrow = {path for path, dtype in types.items() if dtype == jnp.bfloat16}
    assert {part_of(path) for path in narrow} == {"experts.0", "experts.1", "text"}
    for name in ("blocks.modulation", "blocks.self_attn.norm_q.scale", "head.head.kernel"):
        assert f"experts.0.{name}" not in narrow
    weights = {k.removeprefix("experts.0."): a for k, a in loaded(I2V).items() if "ts.0." in k}
    config = source.config
    model = jax.eval_shape(lambda: DiT(config.dit, numerics=config.numerics, rngs=nnx.Rngs(0)))

    def run(types) -> jax.Array:
        tree = jax.tree.unflatten(
            jax.tree.structure(model), [weights[k].astype(types[k]) for k in leaves(model)]
        )
        x = jax.random.normal(jax.random.key(0), (3, 6, 4, 36))
        context = jax.random.normal(jax.random.key(1), (11, config.dit.text_dim))
        return jax.jit(lambda m: m(x, jnp.float32(900.5), context)[0])(tree)

    exact = run(dict.fromkeys(weights, jnp.float32))
    stored = run({k: types[f"experts.0.{k}"] for k in weights})
    np.testing.assert_array_equal(stored, exact)
    everything = run(dict.fromkeys(weights, jnp.bfloat16))
    assert not np.array_equal(everything, exact)


def test_float32_keeps_what_is_published_in_bfloat16():
    source = open_released(I2V)
    types = {path: source.stored_type(path, "float32") for path in source.leaves}
    assert {types[p] for p in types if part_of(p) == "text"} == {np.dtype(jnp.bfloat16)}
    assert {types[p] for p in types if part_of(p) != "text"} == {np.dtype(np.float32)}


# ---- what is wrong


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        open_released(folder)
    return in_full(str(error.value))


def test_what_is_no_release(tmp_path):
    assert refused(tmp_path / "none") == f"{tmp_path / 'none'} is not a folder"
    assert "is no released checkpoint: it has no model_index.json" in refused(tmp_path)
    assert not is_released(tmp_path)
    assert is_released(T2V)


def test_missing_shards_are_named_at_once(copied):
    (copied / "high_noise_model" / SHARD).unlink()
    (copied / "low_noise_model" / "diffusion_pytorch_model-00003-of-00003.safetensors").unlink()
    message = refused(copied)
    assert f"{copied}/high_noise_model/{SHARD} is missing" in message
    assert (
        "low_noise_model/diffusion_pytorch_model-00003-of-00003.safetensors is missing" in message
    )


def test_a_truncated_shard(copied):
    file = copied / "high_noise_model" / SHARD
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    assert f"{file} is truncated: {len(content) - 1} bytes" in refused(copied)
    file.write_bytes(content[:5])
    assert f"{file} is truncated or no safetensors file" in refused(copied)


def test_an_index_that_names_absent_files_and_tensors(copied):
    path = copied / "high_noise_model" / "diffusion_pytorch_model.safetensors.index.json"
    where = json.loads(path.read_text())["weight_map"]
    edit(path, weight_map=where | {"ghost": "none.safetensors", "blocks.9.x": SHARD})
    message = refused(copied)
    assert f"{path.parent / 'none.safetensors'} is missing" in message
    assert f"blocks.9.x is not in {SHARD}, where {path} says it is" in message


def test_wrong_shapes_and_names_are_listed_at_once(copied):
    """A name of no tensor hides neither a shape that is wrong nor a tensor that is not there."""

    def change(tensors):
        tensors["blocks.0.ffn.0.bias"] = np.zeros(DIT_SIZES.ffn_dim + 1, np.float32)
        tensors["head.head.bias"] = np.zeros(7, np.float32)
        tensors["ghost.weight"] = tensors.pop("head.modulation")

    for part in ("high", "low"):
        folder = copied / f"{part}_noise_model"
        index = folder / "diffusion_pytorch_model.safetensors.index.json"
        where = json.loads(index.read_text())["weight_map"]
        rewrite(folder / where["head.head.bias"], change)
        del where["head.modulation"]
        edit(index, weight_map=where)
    message = refused(copied)
    for part in ("experts.0", "experts.1"):
        assert f"{part}.blocks.ffn.layers_0.bias has layers of different shapes" in message
        assert f"{part}.head.head.bias has shape (7,), the model wants (64,)" in message
        assert f"{part}.ghost.weight matches 0 rows" in message
        assert f"{part}.head.modulation is missing" in message


def test_a_configuration_of_another_size(copied):
    layers, ffn_dim = DIT_SIZES.layers, DIT_SIZES.ffn_dim
    for part in ("high", "low"):
        edit(copied / f"{part}_noise_model" / "config.json", ffn_dim=ffn_dim - 1)
    message = refused(copied)
    for part in ("experts.0", "experts.1"):
        assert (
            f"{part}.blocks.ffn.layers_0.bias has shape ({layers}, {ffn_dim}), the model wants "
            f"({layers}, {ffn_dim - 1})"
        ) in message
        assert f"{part}.blocks.ffn.layers_2.kernel has shape" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 1009}, r"dim \d+ is not a multiple of heads 1009$"),
        ({"dim": None}, r"cannot be read: config\.json has no number for dim$"),
        ({"in_dim": 20}, r"2 expert\(s\) with 20 channels in and 16 out are no known release"),
        ({"model_type": "s2v"}, r"it is a WanModel of type s2v; models of type t2v, i2v, ti2v can"),
        ({"num_layers": 40}, r"modulation has shape \(\d+, 6, \d+\), the model wants \(40,"),
    ],
)
def test_a_configuration_of_no_release(copied, change, message):
    for part in ("high", "low"):
        edit(copied / f"{part}_noise_model" / "config.json", **change)
    assert re.search(message, refused(copied))


def test_a_configuration_that_is_damaged(copied):
    path = copied / "low_noise_model" / "config.json"
    path.write_text('{"dim": 64, "ffn_dim": 144, "num_layers": 2, "eps": 1e-6}')
    assert refused(copied).endswith(
        "config.json has no number for freq_dim, num_heads, in_dim, out_dim, text_len"
    )
    path.write_text("[1]")
    assert f"{path} is damaged, or no JSON object" in refused(copied)
    path.unlink()
    assert f"{path} is missing" in refused(copied)


def test_experts_that_differ(copied):
    edit(copied / "low_noise_model" / "config.json", text_len=9)
    assert "its experts differ" in refused(copied)


def test_an_expert_alone(copied):
    shutil.rmtree(copied / "low_noise_model")
    assert f"{copied / 'low_noise_model'} is missing" in refused(copied)
    assert "give the folder of both" in refused(copied / "high_noise_model")


def test_an_expert_with_a_place_for_image_tokens_differs(copied):
    def change(tensors):
        tensors["img_emb.proj.0.weight"] = np.zeros(3, np.float32)

    folder = copied / "high_noise_model"
    rewrite(folder / SHARD, change)
    assert "its experts differ" in refused(copied)


def test_parts_of_different_models(copied):
    shutil.copy(TI2V / "Wan2.2_VAE.pth", copied / "Wan2.1_VAE.pth")
    assert "its parts do not belong together: the transformer makes 16 channels" in refused(copied)


def test_a_folder_without_shards(diffusers, tmp_path):
    folder = shutil.copytree(diffusers, tmp_path / "copy")
    shutil.rmtree(folder / "transformer_2")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    message = refused(folder)
    assert f"{folder / 'transformer_2'} is missing" in message
    assert f"{folder / 'vae'} has 0 safetensors files and no index that names them" in message


def test_a_part_that_is_not_there():
    source = open_released(T2V)
    want = {"vae.conv1.bias": jax.ShapeDtypeStruct((32,), jnp.float32)}
    with pytest.raises(CheckpointError, match=r"has no weights of vae$"):
        load_released(source, want)
