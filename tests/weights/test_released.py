"""Folders as they are published: which model they hold, every tensor in its place, every fault in
one message."""

import dataclasses
import json
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


@pytest.mark.slow
@pytest.mark.parametrize("folder", [I2V, TI2V, T2V], ids=lambda p: p.name)
def test_every_leaf_equals_the_tensors_of_the_release(folder):
    assert_equal(loaded(folder), expected(folder))


@pytest.mark.slow
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
    assert config.codec == widths_of(vae_2_1(), "vae21")
    tensors = load_golden("weights/umt5")
    assert isinstance(text, UMT5Config)
    assert (text.vocabulary, text.dim) == tensors["token_embedding.weight"].shape
    assert (text.buckets, text.heads) == tensors["blocks.0.pos_embedding.embedding.weight"].shape
    assert (text.heads * text.head_dim, dit.text_dim) == tensors["blocks.0.attn.q.weight"].shape


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


def test_opening_reads_no_weights(copied):
    """Only headers: the values may be anything."""
    for file in copied.rglob("*.safetensors"):
        content = file.read_bytes()
        header = 8 + int.from_bytes(content[:8], "little")
        file.write_bytes(content[:header] + b"\xff" * (len(content) - header))
    assert open_released(copied).leaves.keys() == open_released(I2V).leaves.keys()


def test_the_boundary_is_that_of_the_folder_and_a_tied_embedding_is_read_once(diffusers, tmp_path):
    folder = shutil.copytree(diffusers, tmp_path / "copy")
    edit(folder / "model_index.json", boundary_ratio=0.875)

    def tie(tensors):
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].copy()

    rewrite(folder / "text_encoder" / "model.safetensors", tie)
    assert open_released(folder).config.boundary == 0.875
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


@pytest.mark.slow
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

INDEX = "high_noise_model/diffusion_pytorch_model.safetensors.index.json"
LOW = "low_noise_model/diffusion_pytorch_model-00003-of-00003.safetensors"


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        open_released(folder)
    return in_full(str(error.value))


def test_what_is_no_release(tmp_path):
    assert refused(tmp_path / "none") == f"{tmp_path / 'none'} is not a folder"
    assert "is no released checkpoint: it has no model_index.json" in refused(tmp_path)
    assert not is_released(tmp_path)
    assert is_released(T2V)


def experts_say(**changes):
    """Both configurations with other entries."""

    def change(folder: Path) -> None:
        for part in ("high", "low"):
            edit(folder / f"{part}_noise_model" / "config.json", **changes)

    return change


def without_shards(folder: Path) -> None:
    (folder / "high_noise_model" / SHARD).unlink()
    (folder / LOW).unlink()


def cut_to(size: int):
    def change(folder: Path) -> None:
        file = folder / "high_noise_model" / SHARD
        file.write_bytes(file.read_bytes()[:size])

    return change


def with_image_tokens(folder: Path) -> None:
    rewrite(
        folder / "high_noise_model" / SHARD,
        lambda tensors: tensors.update({"img_emb.proj.0.weight": np.zeros(3, np.float32)}),
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without_shards, [f"{SHARD} is missing", f"{LOW} is missing"]),
        (cut_to(-1), [f"{SHARD} is truncated or no safetensors file"]),
        (cut_to(5), [f"{SHARD} is truncated or no safetensors file"]),
        (
            lambda folder: edit(folder / INDEX, weight_map={"ghost": "none.safetensors"}),
            ["none.safetensors is missing"],
        ),
        (experts_say(num_heads=1009), ["is not a multiple of heads 1009"]),
        (
            lambda folder: (folder / "low_noise_model" / "config.json").write_text('{"dim": 64}'),
            ["cannot be read: 'ffn_dim' is missing"],
        ),
        (experts_say(in_dim=20), ["2 expert(s) with 20 channels in and 16 out are no known"]),
        (experts_say(model_type="s2v"), ["it is a WanModel of type s2v; models of type t2v, i2v"]),
        (
            experts_say(ffn_dim=DIT_SIZES.ffn_dim - 1),
            [f"{p}.blocks.ffn.layers_{i}" for p in ("experts.0", "experts.1") for i in (0, 2)],
        ),
        (
            lambda folder: (folder / "low_noise_model" / "config.json").write_text("[1]"),
            ["low_noise_model/config.json is damaged, or no JSON object"],
        ),
        (
            lambda folder: (folder / "low_noise_model" / "config.json").unlink(),
            ["low_noise_model/config.json is missing"],
        ),
        (
            lambda folder: edit(folder / "low_noise_model" / "config.json", text_len=9),
            ["its experts differ"],
        ),
        (with_image_tokens, ["its experts differ"]),
        (
            lambda folder: shutil.rmtree(folder / "low_noise_model"),
            ["low_noise_model is missing"],
        ),
        (
            lambda folder: shutil.copy(TI2V / "Wan2.2_VAE.pth", folder / "Wan2.1_VAE.pth"),
            ["its parts do not belong together: the transformer makes 16 channels"],
        ),
    ],
)
def test_every_fault_is_in_one_message(copied, change, says):
    change(copied)
    message = refused(copied)
    for words in says:
        assert words in message


def test_an_expert_alone(copied):
    assert "give the folder of both" in refused(copied / "high_noise_model")


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


def test_folders_without_shards(diffusers, tmp_path):
    folder = shutil.copytree(diffusers, tmp_path / "copy")
    shutil.rmtree(folder / "transformer_2")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    message = refused(folder)
    assert f"{folder / 'transformer_2'} is missing" in message
    assert f"{folder / 'vae'} has 0 safetensors files and no index that names them" in message
