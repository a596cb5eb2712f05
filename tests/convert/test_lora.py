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

from convert.lora import open_adapter
from jcos.model.dit import DiT
from jcos.weights.checkpoint import CheckpointError
from jcos.weights.names import DIT, fill
from jcos.weights.released import open_released
from jcos.weights.tensors import Tensor, tensors_in
from tests.conftest import GOLDEN, load_golden, load_release

DIFFSYNTH, KOHYA, LIGHTX2V = (
    GOLDEN / "lora" / f"{name}_high_noise_lora.safetensors"
    for name in ("diffsynth", "kohya_alpha", "lightx2v")
)
PEFT = GOLDEN / "lora" / "peft_diffusers_lora.safetensors"


@cache
def expert() -> dict[str, Tensor]:
    folder = GOLDEN / "ckpt" / "Wan2.2-I2V-A14B" / "high_noise_model"
    return {k: t for file in folder.glob("*.safetensors") for k, t in tensors_in(file).items()}


def merged(file: Path, scale: float = 1.0, **options) -> dict[str, np.ndarray]:
    """All weights of the high-noise expert, with a LoRA in them."""
    adapter = open_adapter(file, scale, expert(), **options)
    return {name: adapter.merged(name, a) for name, a in load_release("i2v_high").items()}


@jax.jit
def velocity(model: DiT, latents, t, context) -> jax.Array:
    return model(latents, t, context)[0]


def output(weights: dict[str, np.ndarray]) -> np.ndarray:
    config = open_released(GOLDEN / "ckpt" / "Wan2.2-I2V-A14B").config.dit
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


def refused(file: Path, **options) -> str:
    with pytest.raises(CheckpointError) as error:
        open_adapter(file, 1.0, expert(), **options)
    return str(error.value)


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


@pytest.mark.parametrize(
    "change",
    [
        lambda key: f"pipe.dit.{key}",
        lambda key: f"module.pipe.dit.{key}",
        lambda key: f"diffusion_model.{key}",
        lambda key: f"base_model.model.{key}",
        lambda key: key.replace(".default.", "."),
        lambda key: key.replace(".default.", ".high."),
    ],
)
def test_every_prefix_and_infix_of_diffsynth(tmp_path, change):
    want, found = merged(DIFFSYNTH), merged(renamed(DIFFSYNTH, tmp_path, change))
    for name, a in want.items():
        np.testing.assert_array_equal(found[name], a, err_msg=name)


def musubi(key: str) -> str:
    module, dot, rest = key.removeprefix("diffusion_model.").partition(".lora_")
    if not dot:
        module, dot, rest = module.rpartition(".alpha")[0], ".alpha", ""
    return f"lora_unet_{module.replace('.', '_')}{dot}{rest}"


def test_underscores_of_musubi(tmp_path):
    assert musubi("diffusion_model.blocks.0.ffn.0.alpha") == "lora_unet_blocks_0_ffn_0.alpha"
    want, found = merged(KOHYA), merged(renamed(KOHYA, tmp_path, musubi))
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
    patterned = {"lora_adapter_metadata": '{"transformer.alpha_pattern": {"blocks.0": 2}}'}
    safetensors.numpy.save_file(tensors, file, patterned)
    assert "has an alpha_pattern or use_rslora" in refused(file)


def test_alpha_of_peft_beside_the_file(tmp_path):
    file = tmp_path / "adapter_model.safetensors"
    safetensors.numpy.save_file(safetensors.numpy.load_file(PEFT), file)
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 2}')
    name = "blocks.1.self_attn.o.weight"
    np.testing.assert_allclose(merged(file)[name], merged(PEFT, 0.5)[name])


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
        "diffusion_model.blocks.0.cross_attn.k_img.lora_down.weight": np.ones((4, 64), np.float32),
        "diffusion_model.blocks.0.cross_attn.norm_k_img.diff": np.ones(64, np.float32),
        "diffusion_model.img_emb.proj.1.diff_b": np.ones(64, np.float32),
    }
    file = renamed(LIGHTX2V, tmp_path, lambda key: key, **extra)
    adapter = open_adapter(file, 1.0, expert())
    assert adapter.skipped == sorted(extra)
    assert not adapter.unused
    assert adapter.used == sorted(tensors_in(LIGHTX2V))


def test_unused_keys_are_all_named_unless_they_are_allowed(tmp_path):
    extra = {f"blocks.{i}.gate.lora_A.weight": np.ones((4, 64), np.float32) for i in (0, 1)}
    extra["blocks.2.self_attn.q.lora_A.weight"] = np.ones((4, 64), np.float32)
    file = renamed(DIFFSYNTH, tmp_path, lambda key: key, **extra)
    message = refused(file)
    assert message.startswith(f"{file} does not fit the model in 3 places: ")
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
            tensors[f"{name}.lora_A.weight"] = np.ones((4, 80), np.float32)
            tensors[f"{name}.lora_B.weight"] = np.ones((80, 4), np.float32)
    file = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(tensors, file)
    message = refused(file)
    assert "does not fit the model in 8 places" in message
    for i in range(2):
        assert (
            f"blocks.{i}.self_attn.v.weight has shape (64, 64), its factors (80, 4) and (4, 80)"
            in message
        )


def test_ranks_differences_and_halves_that_do_not_fit(tmp_path):
    tensors = {
        "blocks.0.self_attn.q.lora_A.weight": np.ones((4, 64), np.float32),
        "blocks.0.self_attn.q.lora_B.weight": np.ones((64, 8), np.float32),
        "blocks.0.self_attn.k.lora_A.weight": np.ones((4, 64), np.float32),
        "blocks.0.self_attn.v.alpha": np.ones((), np.float32),
        "blocks.0.norm3.diff": np.ones(80, np.float32),
    }
    file = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(tensors, file)
    message = refused(file)
    assert "in 4 places" in message
    assert "self_attn.q.weight has shape (64, 64), its factors (64, 8) and (4, 64)" in message
    assert "self_attn.k.weight has of a pair only A" in message
    assert "self_attn.v.weight has of a pair only alpha" in message
    assert "norm3.weight has shape (64,), its diff (80,)" in message


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("blocks.0.self_attn.q.skip_proj.weight", "a Skip-LoRA, which chains"),
        ("blocks.0.self_attn.q.dora_scale", "a DoRA, which changes"),
    ],
)
def test_adapters_of_another_kind(tmp_path, key, kind):
    file = renamed(DIFFSYNTH, tmp_path, lambda k: k, **{key: np.ones((4, 4), np.float32)})
    assert refused(file, allow_unused=True).startswith(f"{file} is {kind}")


def test_a_file_without_any_lora():
    file = GOLDEN / "lora" / "expected.safetensors"
    assert refused(file) == f"{file} has no key that is a LoRA of this model's"
