"""LoRA files: the merged transformer equal to the original's, every format, every misfit."""

import re
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from jcos.model.dit import DiT
from jcos.weights.checkpoint import CheckpointError
from jcos.weights.lora import open_adapter
from jcos.weights.names import DIT
from jcos.weights.tensors import tensors_in
from tests.conftest import GOLDEN, load_golden, load_release
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


def test_the_cases_differ():
    """Otherwise the test above could not tell one from another."""
    outputs = {k: a for k, a in load_golden("lora/expected").items() if k.startswith("out.")}
    for a in outputs:
        for b in outputs.keys() - {a}:
            assert np.abs(outputs[a] - outputs[b]).max() > 1e-2


# ---- formats


def musubi(key: str) -> str:
    """`diffusion_model.blocks.0.ffn.0.alpha` as `lora_unet_blocks_0_ffn_0.alpha`."""
    found = re.fullmatch(r"diffusion_model\.(.*)\.(lora_.*|alpha)", key)
    assert found
    return f"lora_unet_{found[1].replace('.', '_')}.{found[2]}"


@pytest.mark.parametrize(
    ("file", "change"),
    [
        (DIFFSYNTH, lambda key: f"pipe.dit.{key}"),
        (DIFFSYNTH, lambda key: f"module.pipe.dit.{key}"),
        (DIFFSYNTH, lambda key: f"diffusion_model.{key}"),
        (DIFFSYNTH, lambda key: f"base_model.model.{key}"),
        (DIFFSYNTH, lambda key: key.replace(".default.", ".")),
        (DIFFSYNTH, lambda key: key.replace(".default.", ".high.")),
        (KOHYA, musubi),
    ],
)
def test_every_prefix_and_infix_of_a_format(tmp_path, file, change):
    want, found = merged(file), merged(renamed(file, tmp_path, change))
    for name, a in want.items():
        np.testing.assert_array_equal(found[name], a, err_msg=name)


def test_only_the_tensors_of_the_file_are_changed():
    base, changed = load_release("i2v_high"), merged(DIFFSYNTH)
    targets = {re.sub(r"\.lora_.*", ".weight", key) for key in tensors_in(DIFFSYNTH)}
    assert {name for name in base if not np.array_equal(base[name], changed[name])} == targets


def test_merging_is_float32_whatever_the_weights_are():
    adapter = open_adapter(DIFFSYNTH, 1.0, expert())
    name = "blocks.0.self_attn.q.weight"
    weight = load_release("i2v_high")[name].astype(ml_dtypes.bfloat16)
    assert adapter.merged(name, weight).dtype == np.float32
    untouched = adapter.merged("head.modulation", weight)
    assert untouched is weight


def test_alpha_of_diffusers_metadata(tmp_path):
    tensors = safetensors.numpy.load_file(PEFT)
    file = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(
        tensors,
        file,
        {"lora_adapter_metadata": '{"transformer.r": 4, "transformer.lora_alpha": 8}'},
    )
    want, found = merged(PEFT, 2.0), merged(file)
    np.testing.assert_allclose(found["blocks.0.ffn.0.weight"], want["blocks.0.ffn.0.weight"])


def test_a_file_of_diffusers_for_both_experts(tmp_path):
    first = safetensors.numpy.load_file(PEFT)
    second = {k.replace("transformer.", "transformer_2."): 2 * a for k, a in first.items()}
    file = tmp_path / "both.safetensors"
    safetensors.numpy.save_file({**first, **second}, file)
    name = "blocks.0.cross_attn.v.weight"
    np.testing.assert_array_equal(merged(file, expert=0)[name], merged(PEFT)[name])
    np.testing.assert_allclose(merged(file, expert=1)[name], merged(PEFT, 4.0)[name])


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
    np.testing.assert_array_equal(
        merged(file, allow_unused=True)["blocks.0.ffn.0.weight"],
        merged(DIFFSYNTH)["blocks.0.ffn.0.weight"],
    )


def test_a_lora_of_another_architecture(tmp_path):
    tensors = {}
    for i in range(2):
        for part in "qkvo":
            name = f"blocks.{i}.self_attn.{part}"
            tensors[f"{name}.lora_A.weight"] = np.ones((4, DIM + 16), np.float32)
            tensors[f"{name}.lora_B.weight"] = np.ones((DIM + 16, 4), np.float32)
    message = refused(saved(tmp_path, tensors))
    assert "does not fit the model in 8 places" in message
    for i in range(2):
        assert (
            f"blocks.{i}.self_attn.v.weight has shape ({DIM}, {DIM}), its factors ({DIM + 16}, 4) "
            f"and (4, {DIM + 16})" in message
        )


def test_ranks_differences_and_halves_that_do_not_fit(tmp_path):
    tensors = {
        "blocks.0.self_attn.q.lora_A.weight": np.ones((4, DIM), np.float32),
        "blocks.0.self_attn.q.lora_B.weight": np.ones((DIM, 8), np.float32),
        "blocks.0.self_attn.k.lora_A.weight": np.ones((4, DIM), np.float32),
        "blocks.0.self_attn.v.alpha": np.ones((), np.float32),
        "blocks.0.norm3.diff": np.ones(DIM + 16, np.float32),
        "blocks.0.self_attn.o.lora_A.weight": np.ones((), np.float32),
        "blocks.0.self_attn.o.lora_B.weight": np.ones((DIM, 4), np.float32),
    }
    message = refused(saved(tmp_path, tensors))
    assert "in 5 places" in message
    assert f"self_attn.o.weight has shape ({DIM}, {DIM}), its factors ({DIM}, 4) and ()" in message
    assert (
        f"self_attn.q.weight has shape ({DIM}, {DIM}), its factors ({DIM}, 8) and (4, {DIM})"
        in message
    )
    assert "self_attn.k.weight has of a pair only A" in message
    assert "self_attn.v.weight has of a pair only alpha" in message
    assert f"norm3.weight has shape ({DIM},), its diff ({DIM + 16},)" in message


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        ("skip_proj.weight", "Skip-LoRA"),
        ("dora_scale", "DoRA"),
        ("lora_magnitude_vector.default.weight", "DoRA"),
        ("hada_w1_a", "LoHa"),
        ("hada_t1", "LoHa"),
        ("lokr_w1", "LoKr"),
        ("lokr_w2_b", "LoKr"),
        ("oft_blocks", "OFT"),
        ("oft_R.default.weight", "OFT"),
        ("boft_R", "BOFT"),
        ("a1.weight", "GLoRA"),
        ("on_input", "IA3"),
        ("ia3_l", "IA3"),
        ("lora_mid.weight", "LoCon"),
        ("vera_lambda_b", "VeRA"),
        ("lora_E", "AdaLoRA"),
    ],
)
@pytest.mark.parametrize("module", ["blocks.0.self_attn.q", "lora_unet_blocks_0_self_attn_q"])
def test_adapters_of_another_kind(tmp_path, module, end, kind):
    """Alone with an alpha, as they are published, or among the keys of a LoRA."""
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


def test_of_the_second_expert_alone(tmp_path):
    file = renamed(PEFT, tmp_path, lambda k: k.replace("transformer.", "transformer_2."))
    assert "give it as low=FILE" in refused(file)
    np.testing.assert_array_equal(
        merged(file, expert=1)["blocks.0.ffn.0.weight"], merged(PEFT)["blocks.0.ffn.0.weight"]
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, []])
def test_an_alpha_that_is_no_number(tmp_path, value):
    key = "diffusion_model.blocks.0.self_attn.q.alpha"
    file = renamed(KOHYA, tmp_path, lambda k: k, **{key: np.array(value, np.float32)})
    assert "blocks.0.self_attn.q.weight has an alpha" in refused(file)


def test_factors_that_are_integers_or_of_rank_zero(tmp_path):
    q, k = "blocks.0.self_attn.q", "blocks.0.self_attn.k"
    tensors = {
        f"{q}.lora_A.weight": np.ones((4, DIM), np.int8),
        f"{q}.lora_B.weight": np.ones((DIM, 4), np.int8),
        f"{k}.lora_A.weight": np.ones((0, DIM), np.float32),
        f"{k}.lora_B.weight": np.ones((DIM, 0), np.float32),
    }
    message = refused(saved(tmp_path, tensors))
    assert f"{q}.weight has integers" in message
    assert f"{k}.weight has shape ({DIM}, {DIM}), its factors ({DIM}, 0)" in message


def test_a_difference_of_the_same_size_but_another_shape(tmp_path):
    file = saved(tmp_path, {"blocks.0.ffn.0.diff": np.ones((DIM, FFN), np.float32)})
    assert f"has shape ({FFN}, {DIM}), its diff ({DIM}, {FFN})" in refused(file)


def test_a_factor_that_is_no_number_is_named(tmp_path):
    tensors = safetensors.numpy.load_file(DIFFSYNTH)
    (name,) = [key for key in tensors if ".1.ffn.2.lora_B" in key]
    tensors[name] = np.full_like(tensors[name], np.nan)
    adapter = open_adapter(saved(tmp_path, tensors), 1.0, expert())
    with pytest.raises(CheckpointError, match=r"LoRA of blocks\.1\.ffn\.2\.weight"):
        adapter.check_finite()
    open_adapter(DIFFSYNTH, 1.0, expert()).check_finite()


def test_a_file_without_any_lora():
    file = GOLDEN / "lora" / "expected.safetensors"
    assert f"{file} has no key that is a LoRA of this model's" in refused(file)
