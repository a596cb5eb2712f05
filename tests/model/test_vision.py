"""Wan2.1's image-to-video model: equal to diffusers and transformers, in both layouts."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcos import loop, staged, wan
from jcos.config import Sampling, WanConfig
from jcos.generation import generate
from jcos.media import image
from jcos.weights.layouts import recognise
from jcos.weights.released import open_released
from tests.models import close

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.extra("verify")

SIDE, PATCH, WIDTH = 28, 14, 32
TEXT = 512  # diffusers tells image tokens from a prompt by this length
GUIDANCE = 5.0


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """A small pipeline with random weights, whose CLIP has three blocks."""
    torch.manual_seed(0)
    vision = transformers.CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        hidden_act="gelu",
    )
    sizes = {"shortest_edge": SIDE}
    processor = transformers.CLIPImageProcessor(size=sizes, crop_size=SIDE)
    dit = diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=36,
        out_channels=16,
        text_dim=8,
        freq_dim=16,
        ffn_dim=40,
        num_layers=2,
        image_dim=WIDTH,
        added_kv_proj_dim=32,
        rope_max_seq_len=64,
    )
    for parameter in dit.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    vae = diffusers.AutoencoderKLWan(base_dim=8, z_dim=16)
    tower = transformers.CLIPVisionModel(vision)
    for parameter in tower.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    return diffusers.WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        transformer=dit.eval(),
        vae=vae.eval(),
        scheduler=diffusers.UniPCMultistepScheduler(**flow, flow_shift=3.0),
        image_processor=processor,
        image_encoder=tower.eval(),
    )


@pytest.fixture(scope="module")
def folder(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the layout of diffusers."""
    folder = tmp_path_factory.mktemp("wan21") / "i2v"
    pipeline.save_pretrained(folder)
    return folder


def picture(height: int = 40, width: int = 64) -> np.ndarray:
    smooth = np.linspace(0, 3, height)[:, None, None] + np.linspace(0, 5, width)[:, None]
    return (127 + 120 * np.sin(smooth * [1, 2, 3])).astype(np.uint8)


def test_a_short_run_equals_the_pipeline(pipeline: Any, folder: Path) -> None:
    """First frame, image tokens, guidance and three steps, with the pipeline's own preparation."""
    from PIL import Image

    model = wan.load(folder, profile="float32")
    assert model.config.name == "wan2.1-i2v-14b"
    assert model.config.vision is not None
    rows = np.random.default_rng(1).standard_normal((2, TEXT, 8)).astype(np.float32)
    noise = np.random.default_rng(2).standard_normal((1, 2, 4, 6, 16)).astype(np.float32)
    with torch.no_grad():
        want = pipeline(
            image=Image.fromarray(picture()),
            prompt_embeds=torch.from_numpy(rows[:1]),
            negative_prompt_embeds=torch.from_numpy(rows[1:]),
            height=32,
            width=48,
            num_frames=5,
            num_inference_steps=3,
            guidance_scale=GUIDANCE,
            latents=torch.from_numpy(noise).permute(0, 4, 1, 2, 3),
            output_type="latent",
        ).frames
        seen = pipeline.encode_image(Image.fromarray(picture()))
    first = image.prepare(picture(), image.rule_for(model.config, "diffusers"), 32, 48)
    square = image.for_encoder(picture(), first, SIDE, "diffusers")
    condition = model.condition(first, rows[0], 5, negative=rows[1], seen=square)
    close(condition.image, seen[0], 2e-6)
    sampling = Sampling(3, 3.0, "unipc", "diffusers", (GUIDANCE,))
    with jax.default_matmul_precision("highest"):
        made = generate(model, condition, 0, sampling=sampling, noise=noise)
    close(made.latents[0], want[0].permute(1, 2, 3, 0), 5e-5)
    # The loop that is left and gone on with is the same one.
    *_, last = loop.steps(model, condition, 0, sampling=sampling, noise=noise)
    close(last.x, made.latents, 1e-5)


def test_the_original_layout_is_the_same_model(pipeline: Any, folder: Path, tmp_path: Path) -> None:
    """models_clip….pth has both halves of the CLIP, in float16, with q, k and v in one tensor."""
    source = open_released(folder)
    dit = {n.removeprefix("experts.0."): t for n, t in source.tensors.items() if n[0] == "e"}
    from safetensors.numpy import save_file

    release = tmp_path / "Wan2.1-I2V-14B-720P"
    release.mkdir()
    save_file(
        {n: t.read() for n, t in dit.items()}, release / "diffusion_pytorch_model.safetensors"
    )
    sizes = {"dim": 32, "ffn_dim": 40, "num_heads": 2, "num_layers": 2, "in_dim": 36}
    sizes |= {"out_dim": 16, "freq_dim": 16, "text_len": TEXT, "eps": 1e-6}
    (release / "config.json").write_text(json.dumps({"model_type": "i2v", **sizes}))
    state = pipeline.image_encoder.state_dict()
    state = {n.removeprefix("vision_model."): t.clone() for n, t in state.items()}
    made = {f"textual.{n}": torch.zeros(2) for n in ("token_embedding.weight", "blocks.0.a")}
    made["log_scale"] = torch.zeros(())
    made["visual.cls_embedding"] = state["embeddings.class_embedding"][None, None]
    made["visual.pos_embedding"] = state["embeddings.position_embedding.weight"][None]
    made["visual.patch_embedding.weight"] = state["embeddings.patch_embedding.weight"]
    made["visual.head"] = torch.zeros(WIDTH, 8)
    for ours, name in (("pre_norm", "pre_layrnorm"), ("post_norm", "post_layernorm")):
        made |= {f"visual.{ours}.{end}": state[f"{name}.{end}"] for end in ("weight", "bias")}
    for i in range(3):
        here, there = f"visual.transformer.{i}", f"encoder.layers.{i}"
        for end in ("weight", "bias"):
            qkv = [state[f"{there}.self_attn.{c}_proj.{end}"] for c in "qkv"]
            made[f"{here}.attn.to_qkv.{end}"] = torch.cat(qkv)
            for ours, name in (
                ("attn.proj", "self_attn.out_proj"),
                ("norm1", "layer_norm1"),
                ("norm2", "layer_norm2"),
                ("mlp.0", "mlp.fc1"),
                ("mlp.2", "mlp.fc2"),
            ):
                made[f"{here}.{ours}.{end}"] = state[f"{there}.{name}.{end}"]
    file = release / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
    torch.save({n: t.contiguous() for n, t in made.items()}, file)
    opened = open_released(release)
    assert opened.config.name == source.config.name
    for path, leaf in opened.leaves.items():
        read = lambda name, s=opened: s.tensors[name].read()  # noqa: E731
        other = source.leaves[path].build(lambda n: source.tensors[n].read(), np.dtype(np.float32))
        np.testing.assert_array_equal(leaf.build(read, np.dtype(np.float32)), other, path)
    # Beside a transformer's single file too, where another one is larger but does not fit.
    wide = {"vision_model.embeddings.patch_embedding.weight": np.zeros((64, 3, 99, 99), np.float32)}
    save_file(wide, release / "clip_vision_g.safetensors")
    assert recognise(release / "diffusion_pytorch_model.safetensors").places["vision"] == file


def test_the_shift_follows_the_size(folder, tmp_path, monkeypatch) -> None:
    shifts = []

    def stop(sizes: Any, config: WanConfig, *_: Any) -> None:
        shifts.append(config.sampling.shift)
        raise ValueError("stop")

    def shift(*size: int, **more: Any) -> float:
        with pytest.raises(ValueError, match="stop"):
            staged.run(folder, "a cat", picture(), out=tmp_path, size=(size[0], size[1]), **more)
        return shifts[-1]

    monkeypatch.setattr(wan, "check_mesh", stop)
    assert (shift(832, 480), shift(720, 1280)) == (3.0, 5.0)
    assert (shift(832, 480, shift=7.0), shift(832, 480, profile="diffsynth")) == (7.0, 5.0)
    assert shift(832, 480, profile="diffusers") == 5.0  # whose pipelines keep it in a file


@pytest.mark.filterwarnings("default")  # those of PyTorch's libraries are theirs
def test_verify_covers_it(folder: Path) -> None:
    from convert import against

    with jax.default_matmul_precision("highest"), torch.no_grad():
        rows = list(against.compare(open_released(folder)))
    places = {(row.part, row.place) for row in rows}
    assert places >= {("vision", "picture"), ("vision", "block 0"), ("vision", "block 1")}
    assert places >= {("experts.0", "image embedding"), ("run", "3 steps, guidance")}
    assert not [row for row in rows if not row.error <= row.allowed]


def test_it_is_converted(folder: Path, tmp_path: Path) -> None:
    from convert.stream import Job, convert

    convert(Job(folder, tmp_path / "wan", dtype="float32"))
    made, direct = (wan.load(f, profile="float32") for f in (tmp_path / "wan", folder))
    assert made.config.vision == direct.config.vision
    jax.tree.map(np.testing.assert_array_equal, made.vision, direct.vision)
    jax.tree.map(np.testing.assert_array_equal, made.experts, direct.experts)


def test_a_folder_without_the_encoder_says_so(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("image_encoder"))
    with pytest.raises(ValueError, match="has no image encoder"):
        wan.check_vae(wan.read_config(bare), bare)
    model = wan.load(bare, profile="float32")
    rows = np.zeros((1, 8), np.float32)
    with pytest.raises(ValueError, match="without its image encoder"):
        model.condition(jnp.zeros((32, 48, 3)), rows, 5, negative=rows)
