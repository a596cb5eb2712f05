"""Folders in the layouts of the releases, made from those in `tests/golden/ckpt`.

Nothing here may import `jcos`, as in `conftest`.
"""

import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from tests.conftest import GOLDEN, load_golden, load_release

I2V, TI2V, T2V = (
    GOLDEN / "ckpt" / name for name in ("Wan2.2-I2V-A14B", "Wan2.2-TI2V-5B", "Wan2.1-T2V-1.3B")
)
DIFFSYNTH, KOHYA, LIGHTX2V = (
    GOLDEN / "lora" / f"{name}_high_noise_lora.safetensors"
    for name in ("diffsynth", "kohya_alpha", "lightx2v")
)
PEFT = GOLDEN / "lora" / "peft_diffusers_lora.safetensors"
_SIZES = {
    "num_attention_heads": "num_heads",
    "num_layers": "num_layers",
    "ffn_dim": "ffn_dim",
    "freq_dim": "freq_dim",
    "in_channels": "in_dim",
    "out_channels": "out_dim",
    "eps": "eps",
}


def as_diffusers(release: Path, folder: Path) -> Path:
    """The I2V release in the layout of diffusers: the first expert in two shards, the second in one
    file."""
    maps = json.loads((GOLDEN / "ckpt" / "key_maps_original_to_diffusers.json").read_text())
    for place, kind, tensors in (
        ("transformer", "dit", load_release("i2v_high")),
        ("transformer_2", "dit", load_release("i2v_low")),
        ("vae", "vae21", load_golden("weights/vae21")),
        ("text_encoder", "umt5", load_golden("weights/umt5")),
    ):
        (folder / place).mkdir(parents=True)
        renamed = {maps[kind][name]: a for name, a in tensors.items()}
        stem = "model" if place == "text_encoder" else "diffusion_pytorch_model"
        if place == "transformer":
            _write_shards(folder / place, stem, renamed)
        else:
            safetensors.numpy.save_file(renamed, folder / place / f"{stem}.safetensors")
    for place, expert in (("transformer", "high"), ("transformer_2", "low")):
        sizes = json.loads((release / f"{expert}_noise_model" / "config.json").read_text())
        config: dict[str, Any] = {ours: sizes[theirs] for ours, theirs in _SIZES.items()}
        config |= {
            "_class_name": "WanTransformer3DModel",
            "attention_head_dim": sizes["dim"] // sizes["num_heads"],
            "patch_size": [1, 2, 2],
            "text_dim": load_release(f"i2v_{expert}")["text_embedding.0.weight"].shape[1],
        }
        (folder / place / "config.json").write_text(json.dumps(config))
    index = {
        "_class_name": "WanImageToVideoPipeline",
        "boundary_ratio": 0.9,
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": ["diffusers", "WanTransformer3DModel"],
        "image_encoder": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def _write_shards(folder: Path, stem: str, tensors: dict[str, np.ndarray]) -> None:
    names = sorted(tensors)
    where = {}
    for i, chosen in enumerate((names[::2], names[1::2])):
        file = f"{stem}-{i + 1:05d}-of-00002.safetensors"
        safetensors.numpy.save_file({name: tensors[name] for name in chosen}, folder / file)
        where |= dict.fromkeys(chosen, file)
    index = {"metadata": {}, "weight_map": where}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def edit(file: Path, **changes: Any) -> None:
    """Change entries of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def in_full(message: str) -> str:
    """What a sentence says, together with the list in the file that it names, which is removed."""
    assert len(message) <= 600
    if not (named := re.search(r"\S+jcos-\w+\.txt", message)):
        return message
    file = Path(named[0])
    content = file.read_text(encoding="utf-8")
    file.unlink()
    return f"{message}\n{content}"


def write_pth(path: Path, content: bytes, storages: tuple[bytes, ...] = ()) -> None:
    """A file as torch.save makes it, of a pickle and its storages."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for i, storage in enumerate(storages):
            archive.writestr(f"archive/data/{i}", storage)


def pickled_tensor(
    name: str = "w",
    shape: tuple[int, ...] = (2, 3),
    strides: tuple[int, ...] = (3, 1),
    offset: int = 0,
    kind: str = "FloatStorage",
    elements: int = 6,
) -> bytes:
    """The pickle of a dict with one tensor, written by hand: torch is not needed."""

    def ints(values: tuple[int, ...]) -> bytes:
        return (
            b"("
            + b"".join(pickle.BININT + v.to_bytes(4, "little", signed=True) for v in values)
            + b"t"
        )

    def text(value: str) -> bytes:
        return pickle.BINUNICODE + len(value).to_bytes(4, "little") + value.encode()

    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text("0") + text("cpu")
    storage += ints((elements,))[1:-1] + b"tQ"
    arguments = b"(" + storage + ints((offset,))[1:-1] + ints(shape) + ints(strides) + b"\x89Nt"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"
    return b"\x80\x02}" + text(name) + tensor + b"s."


def write_release(folder: Path, dim: int, ffn_dim: int, layers: int) -> Path:
    """A text-to-video transformer of any size in the original layout; its values mean nothing."""
    like = load_release("t2v")
    small = json.loads((GOLDEN / "ckpt" / "Wan2.1-T2V-1.3B" / "config.json").read_text())
    larger = {small["dim"]: dim, small["ffn_dim"]: ffn_dim, 6 * small["dim"]: 6 * dim}
    sizes = {name: larger.get(small[name], small[name]) for name in ("dim", "ffn_dim", "freq_dim")}
    sizes |= {"num_heads": 2, "num_layers": layers}
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    for name, a in like.items():
        names = [name]
        if name.startswith("blocks."):
            first, _, rest = name.removeprefix("blocks.").partition(".")
            names = [f"blocks.{i}.{rest}" for i in range(layers)] if first == "0" else []
        shape = tuple(larger[size] if size in larger else int(size) for size in a.shape)
        tensors |= {new: rng.random(shape, dtype=np.float32) for new in names}
    folder.mkdir(parents=True)
    safetensors.numpy.save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({**small, **sizes}))
    return folder
