"""LoRA files: the merged transformer equal to the original's, every format, every misfit."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from jcos.model.dit import DiT
from jcos.weights.checkpoint import CheckpointError
from jcos.weights.lora import Adapter, open_adapter
from jcos.weights.names import DIT
from jcos.weights.tensors import tensors_in
from tests.conftest import load_golden, load_release
from tests.models import release_config
from tests.releases import DIFFSYNTH, I2V, KOHYA, LIGHTX2V, PEFT, in_full
from tests.translated import fill

SIZES = release_config("i2v_high").dit
DIM, FFN, LAYERS = SIZES.dim, SIZES.ffn_dim, SIZES.layers


@cache
def expert() -> dict[str, tuple[int, ...]]:
    files = (I2V / "high_noise_model").glob("*.safetensors")
    return {k: t.shape for file in files for k, t in tensors_in(file).items()}


def merged(file: Path, scale: float = 1.0, **options) -> dict[str, np.ndarray]:
    """All weights of the high-noise expert, with a LoRA in them."""
    adapter = open_adapter(file, scale, expert(), **options)
    return {name: adapter.merged(name, a) for name, a in load_release("i2v_high").items()}


@jax.jit
def velocity(model: DiT, latents, t, context) -> jax.Array:
    return model(latents, t, context)[0]


def output(weights: dict[str, np.ndarray]) -> np.ndarray:
    config = release_config("i2v_high").dit
    model = fill(jax.eval_shape(lambda: DiT(config, rngs=nnx.Rngs(0))), weights, DIT)
    given = load_golden("lora/expected")
    latents = np.moveaxis(np.concatenate([given["in.x"], given["in.y"]]), 0, -1)
    found = velocity(
        jax.tree.map(jnp.asarray, model),
        jnp.asarray(latents),
        jnp.float32(given["in.t"][0]),
        jnp.asarray(given["in.context"]),
    )
    return np.moveaxis(np.asarray(found), -1, 0)


def renamed(file: Path, into: Path, change, **more: np.ndarray) -> Path:
    """A LoRA file with other keys (those without one left out) and further tensors."""
    tensors = safetensors.numpy.load_file(file)
    kept = {change(k): a for k, a in tensors.items() if change(k)}
    safetensors.numpy.save_file({**kept, **more}, into / "renamed.safetensors")
    return into / "renamed.safetensors"


def saved(folder: Path, tensors: dict[str, np.ndarray]) -> Path:
    safetensors.numpy.save_file(tensors, folder / "saved.safetensors")
    return folder / "saved.safetensors"


def refused(file: Path, **options) -> str:
    with pytest.raises(CheckpointError) as error:
        open_adapter(file, 1.0, expert(), **options)
    return in_full(str(error.value))


# ---- equal to PyTorch


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "scale", "key"),
    [
        (DIFFSYNTH, 0.0, "out.base"),
        (DIFFSYNTH, 1.0, "out.diffsynth_alpha1"),
        (DIFFSYNTH, 0.5, "out.diffsynth_alpha0.5"),
        (KOHYA, 1.0, "out.kohya_alpha8"),
        (PEFT, 1.0, "out.diffsynth_alpha1"),
        (LIGHTX2V, 1.0, "out.lightx2v_full"),
    ],
)
def test_the_merged_transformer_equals_the_original(file, scale, key):
    want = load_golden("lora/expected")[key]
    found = output(merged(file, scale))
    assert np.abs(found - want).max() / np.abs(want).max() <= 2e-6


# ---- formats


def musubi(key: str) -> str:
    """`diffusion_model.blocks.0.ffn.0.alpha` as `lora_unet_blocks_0_ffn_0.alpha`."""
    found = re.fullmatch(r"diffusion_model\.(.*)\.(lora_.*|alpha)", key)
    assert found
    return f"lora_unet_{found[1].replace('.', '_')}.{found[2]}"


@pytest.mark.parametrize(
    ("file", "change"),
    [
        (DIFFSYNTH, lambda key: f"module.pipe.dit.{key}"),
        (DIFFSYNTH, lambda key: key.replace(".default.", ".high.")),
        (KOHYA, musubi),
    ],
)
def test_every_prefix_and_infix_of_a_format(tmp_path, file, change):
    want, found = merged(file), merged(renamed(file, tmp_path, change))
    for name, a in want.items():
        np.testing.assert_array_equal(found[name], a, err_msg=name)


def test_merging_is_float32_whatever_the_weights_are():
    name = "blocks.0.self_attn.q.weight"
    weight = load_release("i2v_high")[name].astype(ml_dtypes.bfloat16)
    assert open_adapter(DIFFSYNTH, 1.0, expert()).merged(name, weight).dtype == np.float32


# ---- what does not fit


def test_keys_of_the_image_encoder_are_skipped_and_reported(tmp_path):
    extra = {
        "diffusion_model.blocks.0.cross_attn.k_img.lora_down.weight": np.ones((4, DIM), np.float32),
        "diffusion_model.blocks.0.cross_attn.norm_k_img.diff": np.ones(DIM, np.float32),
        "diffusion_model.img_emb.proj.1.diff_b": np.ones(DIM, np.float32),
    }
    file = renamed(LIGHTX2V, tmp_path, lambda key: key, **extra)
    adapter = open_adapter(file, 1.0, expert())
    assert adapter.skipped == sorted(extra)
    assert not adapter.unused
    assert adapter.used == sorted(tensors_in(LIGHTX2V))
    # Of a model that reads pictures, they have found no place.
    reads = {"blocks.1.cross_attn.k_img.weight": (DIM, DIM)}
    adapter = open_adapter(file, 1.0, expert() | reads, allow_unused=True)
    assert len(adapter.unused) == 3
    assert not adapter.skipped


def test_unused_keys_are_all_named_unless_they_are_allowed(tmp_path):
    extra = {f"blocks.{i}.gate.lora_A.weight": np.ones((4, DIM), np.float32) for i in (0, 1)}
    extra[f"blocks.{LAYERS}.self_attn.q.lora_A.weight"] = np.ones((4, DIM), np.float32)
    file = renamed(DIFFSYNTH, tmp_path, lambda key: key, **extra)
    message = refused(file)
    assert message.startswith(f"{file} does not fit the model in 3 places")
    assert f"{LAYERS + 1} blocks, this one has {LAYERS}" in message
    for key in extra:
        assert f"{key} has no place in the model" in message
    adapter = open_adapter(file, 1.0, expert(), allow_unused=True)
    assert adapter.unused == sorted(extra)
    assert adapter.used == sorted(tensors_in(DIFFSYNTH))


def pair(module: str, down: tuple, up: tuple, dtype: type = np.float32) -> dict:
    factors = {"lora_A": down, "lora_B": up}
    return {f"blocks.0.{module}.{k}.weight": np.ones(a, dtype) for k, a in factors.items()}


SQUARE = f"self_attn.q.weight has shape ({DIM}, {DIM}), its factors "


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (  # of another width
            pair("self_attn.q", (4, DIM + 16), (DIM + 16, 4)),
            f"{SQUARE}({DIM + 16}, 4) and (4, {DIM + 16})",
        ),
        (pair("self_attn.q", (4, DIM), (DIM, 8)), f"{SQUARE}({DIM}, 8) and (4, {DIM})"),
        (pair("self_attn.q", (), (DIM, 4)), f"{SQUARE}({DIM}, 4) and ()"),
        (pair("self_attn.q", (0, DIM), (DIM, 0)), f"{SQUARE}({DIM}, 0) and (0, {DIM})"),
        (pair("self_attn.q", (4, DIM), (DIM, 4), np.int8), "self_attn.q.weight has integers"),
        (
            {"blocks.0.self_attn.k.lora_A.weight": np.ones((4, DIM), np.float32)},
            "self_attn.k.weight has of a pair only A",
        ),
        (
            {"blocks.0.self_attn.v.alpha": np.ones((), np.float32)},
            "self_attn.v.weight has of a pair only alpha",
        ),
        (
            {"blocks.0.norm3.diff": np.ones(DIM + 16, np.float32)},
            f"norm3.weight has shape ({DIM},), its diff ({DIM + 16},)",
        ),
        (  # of the same size
            {"blocks.0.ffn.0.diff": np.ones((DIM, FFN), np.float32)},
            f"has shape ({FFN}, {DIM}), its diff ({DIM}, {FFN})",
        ),
        (
            pair("self_attn.q", (4, DIM), (DIM, 4))
            | {"blocks.0.self_attn.q.alpha": np.array(np.nan, np.float32)},
            "self_attn.q.weight has an alpha that is no number",
        ),
        (
            pair("self_attn.q", (4, DIM), (DIM, 4))
            | {"blocks.0.self_attn.q.alpha": np.array([], np.float32)},
            "self_attn.q.weight has an alpha of shape (0,)",
        ),
        ({"something": np.ones(3, np.float32)}, "has no key that is a LoRA of this model's"),
        (
            {"transformer_2.blocks.0.norm3.diff": np.ones(DIM, np.float32)},
            "has no key that is a LoRA of this model's; one is transformer_2.blocks",
        ),
    ],
)
def test_what_does_not_fit(tmp_path, tensors, says):
    assert says in refused(saved(tmp_path, tensors))


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        ("skip_proj.weight", "Skip-LoRA"),
        ("dora_scale", "DoRA"),
        ("lora_magnitude_vector.default.weight", "DoRA"),
        ("hada_w1_a", "LoHa"),
        ("lokr_w2_b", "LoKr"),
        ("lora_mid.weight", "LoCon"),
    ],
)
def test_adapters_of_another_kind(tmp_path, end, kind):
    """Alone with an alpha, as they are published, or among the keys of a LoRA."""
    module = "lora_unet_blocks_0_self_attn_q"
    extra = {
        f"{module}.{end}": np.ones((4, 4), np.float32),
        f"{module}.alpha": np.full(1, 4, np.float32),
    }
    for file in (saved(tmp_path, extra), renamed(DIFFSYNTH, tmp_path, lambda k: k, **extra)):
        message = refused(file, allow_unused=True)
        assert message.startswith(f"{file} is a")
        assert kind in message
        assert len(message) < 250 + len(str(file))


def test_a_deeper_model_is_named_in_a_short_sentence(tmp_path):
    shapes = (("lora_A", (4, DIM)), ("lora_B", (DIM, 4)))
    tensors = {
        f"diffusion_model.blocks.{i}.self_attn.{part}.{factor}.weight": np.zeros(shape, np.float32)
        for i in range(40)
        for part in "qkvo"
        for factor, shape in shapes
    }
    message = refused(saved(tmp_path, tensors))
    assert f"in {8 * (40 - LAYERS)} places (it is of a model with 40 blocks, " in message
    for key in tensors:
        assert (key in message) == (int(key.split(".")[2]) >= LAYERS)


# ---- adapters of PEFT: the file in a folder, alpha from the configuration in it or beside it

RANK = 4


def folder_of(
    folder: Path, name: str = "adapter_model", prefix: str = "base_model.model.", **about: Any
) -> Path:
    """A folder as PEFT saves it; returns the file in it."""
    folder.mkdir(exist_ok=True)
    tensors = {
        prefix + key.removeprefix("transformer."): a
        for key, a in safetensors.numpy.load_file(PEFT).items()
    }
    file = folder / f"{name}.safetensors"
    safetensors.numpy.save_file(tensors, file)
    usual = {"peft_type": "LORA", "r": RANK, "lora_alpha": 16, "use_rslora": False}
    (folder / "adapter_config.json").write_text(json.dumps(usual | about))
    return file


def scales(adapter: Adapter) -> dict[str, float]:
    """What B A is multiplied by, by the tensor."""
    assert {len(changes) for changes in adapter.changes.values()} == {1}
    found = {name: changes[0] for name, changes in adapter.changes.items()}
    return {name: p.scale for name, p in found.items() if len(p.tensors) == 2}


def opened(file: Path, scale: float = 1.0, expert_number: int = 0) -> Adapter:
    return open_adapter(file, scale, expert(), expert=expert_number)


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("adapter_model", "base_model.model."), ("high_noise", "diffusion_model."), ("any", "")],
)
def test_alpha_beside_the_file_whatever_it_is_called(tmp_path, name, prefix):
    file = folder_of(tmp_path / "peft", name, prefix)
    for path in (file, file.parent):
        adapter = opened(path, 0.5)
        assert set(scales(adapter).values()) == {0.5 * 16 / RANK}
        assert "adapter_config.json" in adapter.note
        assert adapter.files == [file, file.parent / "adapter_config.json"]


def test_without_a_configuration_it_is_taken_as_it_is_and_said():
    adapter = opened(PEFT)
    assert set(scales(adapter).values()) == {1.0}
    assert "no alpha" in adapter.note
    assert adapter.files == [PEFT]


@pytest.mark.parametrize(
    ("about", "scale"),
    [({"use_rslora": True}, 16 / RANK**0.5), ({"r": 64, "rank_pattern": {".*": 4}}, 16 / RANK)],
)
def test_what_a_configuration_says_of_the_rank(tmp_path, about, scale):
    assert set(scales(opened(folder_of(tmp_path / "x", **about))).values()) == {scale}


def test_the_first_pattern_that_a_module_ends_in_has_its_alpha(tmp_path):
    patterns = {"attn1.to_q": 2, r"blocks\.1\.attn2.*": 8}
    found = scales(opened(folder_of(tmp_path / "x", alpha_pattern=patterns)))
    assert found["blocks.1.self_attn.q.weight"] == 2 / RANK
    assert found["blocks.1.cross_attn.k.weight"] == 8 / RANK
    assert found["blocks.0.cross_attn.k.weight"] == 16 / RANK


def test_of_both_experts_in_one_file_each_has_its_settings(tmp_path):
    first = safetensors.numpy.load_file(PEFT)
    second = {key.replace("transformer.", "transformer_2."): a for key, a in first.items()}
    settings = {"r": RANK, "lora_alpha": 8}
    about = {f"transformer.{k}": v for k, v in settings.items()}
    about |= {f"transformer_2.{k}": v for k, v in (settings | {"lora_alpha": 2}).items()}
    file = tmp_path / "both.safetensors"
    metadata = {"lora_adapter_metadata": json.dumps(about)}
    safetensors.numpy.save_file(first | second, file, metadata)
    assert set(scales(opened(file, 1.0, 0)).values()) == {8 / RANK}
    assert set(scales(opened(file, 1.0, 1)).values()) == {2 / RANK}


def test_alpha_in_the_file_comes_first(tmp_path):
    file = folder_of(tmp_path / "x", r=99)
    tensors = safetensors.numpy.load_file(file)
    keys = {key.partition(".lora_")[0] for key in tensors}
    alphas = {f"{key}.alpha": np.array(8, np.int64) for key in keys}
    safetensors.numpy.save_file(tensors | alphas, file)
    adapter = opened(file)
    assert set(scales(adapter).values()) == {8 / RANK}
    assert not adapter.note


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"use_dora": True}, "DoRA"),
        ({"init_lora_weights": "pissa_niter_16"}, "pissa"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"lora_alpha": "16"}, "lora_alpha"),
        ({"alpha_pattern": {"attn1.to_q": "3"}}, "alpha_pattern"),
        ({"r": 8}, f"has rank {RANK}, where"),
    ],
)
def test_configurations_of_something_else(tmp_path, about, words):
    file = folder_of(tmp_path / "x", **about)
    message = refused(file)
    assert words in message
    assert str(tmp_path / "x" / "adapter_config.json") in message
    (tmp_path / "x" / "adapter_config.json").write_text("{")
    assert "adapter_config.json is damaged" in refused(file)


def test_folders_without_one_file(tmp_path):
    assert f"{tmp_path} has 0 safetensors files" in refused(tmp_path)
    content = DIFFSYNTH.read_bytes()
    (tmp_path / "._a.safetensors").write_bytes(b"no LoRA")
    (tmp_path / "a.safetensors").write_bytes(content)
    assert opened(tmp_path).file == tmp_path / "a.safetensors"
    (tmp_path / "b.safetensors").write_bytes(content)
    assert "has 2 safetensors files" in refused(tmp_path)
