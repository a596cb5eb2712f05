"""Rounded weights: each file equals its float dequantisation, tensor by tensor."""

import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy

from jcos import wan
from jcos.weights import single
from jcos.weights.checkpoint import CheckpointError, identify
from jcos.weights.quantised import gguf_tensors
from jcos.weights.released import Released, load_released, open_released
from tests.releases import I2V, TI2V, write_release

Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Tensors:
    """A text-to-video transformer with heads of 128, by the original's names."""
    folder = write_release(tmp_path_factory.mktemp("t2v") / "x", 256, 512, 2)
    tensors = safetensors.numpy.load_file(folder / "diffusion_pytorch_model.safetensors")
    shutil.rmtree(folder)
    return tensors


def is_matrix(name: str, tensor: np.ndarray) -> bool:
    return name.startswith("blocks") and tensor.ndim == 2


def read(source: Released) -> Tensors:
    return {name: tensor.read() for name, tensor in source.tensors.items() if "experts" in name}


@pytest.fixture
def torch():
    return import_module("torch")


@pytest.fixture
def save():
    return import_module("safetensors.torch").save_file


def assert_reads(file: Path, want: Tensors) -> Released:
    """The file's tensors are the wanted ones, and so is the model that is loaded of it."""
    source = open_released(file)
    found = read(source)
    assert found.keys() == {f"experts.0.{name}" for name in want}
    for name, a in want.items():
        np.testing.assert_array_equal(found[f"experts.0.{name}"], a.astype(np.float32), name)
    path = "experts.0.blocks.self_attn.q.kernel"
    leaf = jax.ShapeDtypeStruct(source.leaves[path].shape, np.float32)
    layers = np.stack([want[f"blocks.{i}.self_attn.q.weight"].T for i in range(2)])
    np.testing.assert_array_equal(load_released(source, {path: leaf})[path], layers)
    return source


@pytest.mark.extra("verify")
@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_a_single_file_of_comfyui(torch, save, tmp_path, weights, kind):
    made = {k: torch.from_numpy(a).to(getattr(torch, kind)) for k, a in weights.items()}
    file = tmp_path / "wan2.1_t2v.safetensors"
    save({f"model.diffusion_model.{k}": a for k, a in made.items()}, file)
    source = assert_reads(file, {k: a.float().numpy() for k, a in made.items()})
    assert (source.config.name, source.config.dit.heads) == ("wan2.1-t2v-1.3b", 2)
    assert source.notes == []


@pytest.mark.extra("verify")
@pytest.mark.parametrize(("spelling", "per_row"), [("scale_weight", False), ("weight_scale", True)])
def test_float8_with_scales(torch, save, tmp_path, weights, spelling, per_row):
    """ComfyUI's two spellings; made and dequantised by torch."""
    kept, want = {}, {}
    for name, a in weights.items():
        tensor = torch.from_numpy(a) - 0.5
        kept[name], want[name] = tensor.half(), tensor.half().float().numpy()
        if is_matrix(name, a):
            largest = tensor.abs().amax(1, keepdim=True) if per_row else tensor.abs().max()
            scale = (largest / 448).float()
            kept[name] = (tensor / scale).to(torch.float8_e4m3fn)
            want[name] = (kept[name].float() * scale).numpy()
            base = name.removesuffix("weight")
            kept[f"{base}{spelling}"] = scale
            if spelling == "scale_weight":
                kept[f"{base}scale_input"] = torch.ones(1)
            else:
                text = json.dumps({"format": "float8_e4m3fn"}).encode()
                kept[f"{base}comfy_quant"] = torch.tensor(list(text), dtype=torch.uint8)
    if spelling == "scale_weight":
        kept["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    file = tmp_path / "x.safetensors"
    save({f"model.diffusion_model.{k}": a for k, a in kept.items()}, file)
    source = assert_reads(file, want)
    assert source.notes == []
    name = "blocks.0.ffn.0.weight"  # cut as a CLIP's q, k and v are
    last = source.tensors[f"experts.0.{name}"].part(1, 2).read()
    np.testing.assert_array_equal(last, want[name][len(last) :])


@pytest.mark.extra("verify")
@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2"])
def test_plain_float8_says_what_is_lost(torch, save, tmp_path, weights, kind):
    made = {k: torch.from_numpy(a).to(getattr(torch, kind)) for k, a in weights.items()}
    save(made, tmp_path / "x.safetensors")
    want = {k: a.float().numpy() for k, a in made.items()}
    (note,) = assert_reads(tmp_path / "x.safetensors", want).notes
    lost = {"float8_e4m3fn": "6.2% off, and below 0.001 they are 0", "float8_e5m2": "12.5% off"}
    assert lost[kind] in note
    with pytest.warns(UserWarning, match="rounded weights"):
        model = wan.load(tmp_path / "x.safetensors")
    assert model.vae is None


@pytest.mark.extra("verify")
def test_float8_with_half_of_its_scales_or_others(torch, save, tmp_path, weights):
    a, b = "blocks.0.self_attn.q.", "blocks.0.self_attn.k."
    made = {k: torch.from_numpy(v) for k, v in weights.items()}
    made |= {f"{n}weight": made[f"{n}weight"].to(torch.float8_e4m3fn) for n in (a, b)}
    file = tmp_path / "x.safetensors"
    for more, reason in (
        ({f"{a}scale_weight": torch.ones(1)}, f"{b}weight is float8 without a scale"),
        ({f"{n}scale_weight": torch.ones(3, 2) for n in (a, b)}, "its scales (3, 2)"),
        ({f"{n}weight_scale_inv": torch.ones(2, 2) for n in (a, b)}, "weight_scale per block"),
        (
            {f"{a}comfy_quant": torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)},
            "quantised (ComfyUI's nvfp4)",
        ),
    ):
        save(made | more, file)
        with pytest.raises(CheckpointError) as info:
            open_released(file)
        assert reason in str(info.value)


def write_gguf(file: Path, tensors: Tensors, kinds: dict[str, str], order: str = "LITTLE") -> Any:
    """Write a file with the format's own library; returns its float dequantisation."""
    gguf = pytest.importorskip("gguf")
    writer, want = gguf.GGUFWriter(file, "wan", endianess=gguf.GGUFEndian[order]), {}
    rng = np.random.default_rng(0)
    for name, a in tensors.items():
        kind = gguf.GGMLQuantizationType[kinds.get(name, "F32")]
        try:
            data = gguf.quants.quantize(a, kind)
        except NotImplementedError:  # the library reads these, but does not write them
            block, size = gguf.GGML_QUANT_SIZES[kind]
            data = rng.integers(0, 64, (*a.shape[:-1], a.shape[-1] // block * size), np.uint8)
        want[name] = gguf.quants.dequantize(data, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
        folded = want[name].shape
        if kinds.get(name) == "Q8_0" and name.endswith("self_attn.v.weight"):
            writer.add_array(f"comfy.gguf.orig_shape.{name}", [int(size) for size in folded])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return want


def test_gguf(tmp_path, weights):
    kinds = ("Q8_0", "Q4_K", "Q6_K", "Q5_1", "Q4_0", "IQ4_XS", "BF16", "F16")
    names = [name for name, a in weights.items() if is_matrix(name, a)]
    chosen = {name: kinds[i % len(kinds)] for i, name in enumerate(names)}
    with np.errstate(all="ignore"):
        want = write_gguf(tmp_path / "wan.gguf", weights, chosen)
        assert_reads(tmp_path / "wan.gguf", want)


def test_a_gguf_that_is_cut_or_big_endian(tmp_path, weights):
    write_gguf(tmp_path / "big.gguf", {"x": np.ones((2, 2), np.float32)}, {}, "BIG")
    with pytest.raises(CheckpointError, match="big-endian"):
        gguf_tensors(tmp_path / "big.gguf")
    write_gguf(tmp_path / "x.gguf", dict(list(weights.items())[:4]), {})
    data = (tmp_path / "x.gguf").read_bytes()
    for end in (10, len(data) // 2):
        (tmp_path / "x.gguf").write_bytes(data[:end])
        with pytest.raises(CheckpointError, match="truncated or no GGUF"):
            gguf_tensors(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("wan2.1_t2v_low_vram", 1),
        ("Wan2_2-TI2V-5B_high_res", 1),
        ("wan_slow", 1),
        ("wan2.1_high_noise", 2),
        ("Wan2_2-I2V-A14B-LOW_fp8", 2),
        ("x_lowNoise", 2),
    ],
)
def test_how_many_transformers_a_model_of_this_name_has(name, count):
    if count == 1:
        assert len(single.experts(Path(f"{name}.safetensors"))) == 1
        return
    with pytest.raises(ValueError, match="one of two experts"):
        single.experts(Path(f"{name}.safetensors"))


def test_two_experts_with_vae_and_text_encoder_of_comfyui(tmp_path, weights):
    """The other expert, VAE and text encoder are found where ComfyUI keeps them."""
    models, names = tmp_path / "models", ("wan_HIGH_fp8.safetensors", "wan_LOW_fp8.safetensors")
    for name in ("diffusion_models", "vae", "text_encoders"):
        (models / name).mkdir(parents=True)
    high, low = (models / "diffusion_models" / name for name in names)
    safetensors.numpy.save_file(weights, high)
    with pytest.raises(ValueError, match=f"one of two experts; the other, {low}, is missing"):
        open_released(high)
    safetensors.numpy.save_file({name: -a for name, a in weights.items()}, low)
    shutil.copy(I2V / "Wan2.1_VAE.pth", models / "vae" / "wan_2.1_vae.pth")
    shutil.copy(TI2V / "Wan2.2_VAE.pth", models / "vae" / "wan2.2_vae.pth")
    text = models / "text_encoders" / "umt5_xxl.pth"
    shutil.copy(I2V / "models_t5_umt5-xxl-enc-bf16.pth", text)
    source = open_released(low)
    assert source.config.name == "wan2.2-t2v-a14b"
    assert source.parts == ["experts.0", "experts.1", "vae", "text"]
    name = "blocks.1.ffn.0.weight"
    for i, sign in enumerate((1, -1)):
        np.testing.assert_array_equal(
            source.tensors[f"experts.{i}.{name}"].read(), sign * weights[name]
        )
    assert identify(high) == identify(low)
    safetensors.numpy.save_file(weights, low)
    assert identify(high) != {**identify(low), "weights": ""}
