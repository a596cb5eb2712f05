"""Spellings of LoRA keys: whatever the prefix, the names and what joins them, one tensor."""

import json

import pytest

from jcos.weights import spelling
from tests.conftest import GOLDEN

MAP = json.loads((GOLDEN / "ckpt" / "key_maps_original_to_diffusers.json").read_text())["dit"]
MODULES = {
    original.removesuffix(".weight"): diffusers.removesuffix(".weight")
    for original, diffusers in MAP.items()
    if original.endswith(".weight")
}
PREFIXES = [
    "",
    "diffusion_model.",
    "model.diffusion_model.",
    "model.",
    "pipe.dit.",
    "module.pipe.dit.",
    "dit.",
    "transformer.",
    "transformer.base_model.model.",
    "base_model.model.",
    "base_model.model.model.",
    "base_model.model.transformer.",
    "unet.",
    "unet.base_model.model.",
    "_orig_mod.",
    "lora_unet_",
    "lora_unet__",
    "lora_unet.",
    "lora_transformer_",
    "lora_dit_",
    "lycoris_",
]
SUFFIXES = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_A.default.weight": "A",
    "lora_B.default_0.weight": "B",
    "lora_A": "A",
    "lora_down.weight": "A",
    "lora_up.weight": "B",
    "lora.down.weight": "A",
    "lora.up.weight": "B",
    "lora_linear_layer.up.weight": "B",
    "alpha": "alpha",
    "diff": "diff",
}


@pytest.mark.slow
@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_spelling_of_every_module(prefix):
    assert len(MODULES) > 20
    for original, diffusers in MODULES.items():
        for module in (original, diffusers):
            for spelled in (module, module.replace(".", "_")):
                for suffix, kind in SUFFIXES.items():
                    key = f"{prefix}{spelled}.{suffix}"
                    found = spelling.parse(key)
                    assert found, key
                    want = (kind, spelling.underscored(f"{original}.weight"))
                    assert (found.kind, found.target) == want, key


@pytest.mark.parametrize(
    ("key", "target"),
    [
        ("diffusion_model.blocks.1.diff_m", "blocks_1_modulation"),
        ("lora_unet_blocks_1.diff_m", "blocks_1_modulation"),
        ("diffusion_model.head.diff_m", "head_modulation"),
        ("lora_unet_head_head.diff_b", "head_head_bias"),
        ("transformer.proj_out.diff_b", "head_head_bias"),
    ],
)
def test_differences_of_biases_and_modulation(key, target):
    found = spelling.parse(key)
    assert found
    assert found.target == target


@pytest.mark.parametrize(
    "key",
    [
        "diffusion_model.vace_blocks.0.self_attn.q.lora_A.weight",
        "lora_te_blocks_0_self_attn_q.lora_down.weight",
        "text_encoder.blocks.0.self_attn.q.lora_A.weight",
        "controlnet.blocks.0.self_attn.q.lora_A.weight",
        "blocks.0.self_attn.q.lora_A.bias",
        "blocks.0.self_attn.q.reshape_weight",
        "blocks.0.self_attn.q.lora_a",
    ],
)
def test_what_only_looks_like_a_module_of_the_transformer(key):
    found = spelling.parse(key)
    known = {spelling.underscored(name) for name in MAP}
    assert found is None or found.target not in known


def test_prefixes_of_the_second_expert():
    for key in (
        "transformer_2.blocks.0.attn1.to_q.lora_A.weight",
        "pipe.dit2.blocks.0.ffn.0.alpha",
    ):
        assert spelling.is_of_second_expert(key)
        assert spelling.parse(key)
    underscored = "lora_transformer_2_blocks_0_attn1_to_q.lora_down.weight"
    assert spelling.is_of_second_expert(underscored)
    found = spelling.parse(underscored)
    assert found
    assert found.target == "blocks_0_self_attn_q_weight"
    for key in ("transformer.blocks.2.ffn.0.alpha", "dit.blocks.0.ffn.2.alpha", "blocks.2.x.alpha"):
        assert not spelling.is_of_second_expert(key)
