"""The layouts in which people have the models: where the parts lie, and their headers.

The original's has an expert's shards beside its `config.json` (two folders of them, or the root),
VAE and text encoder as `.pth`. That of diffusers has a folder for every part, ComfyUI's a file.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jcos.files import json_object, visible
from jcos.weights import hub, single
from jcos.weights.checkpoint import CheckpointError
from jcos.weights.names import ANCHORS, without_prefix
from jcos.weights.quantised import GGUF, gguf_tensors
from jcos.weights.tensors import Tensor, check_fetched, tensors_in

Tensors = dict[str, Tensor]

_INDEX = "model_index.json"
_MARKS = (_INDEX, "transformer")
_EXPERTS = ("high_noise_model", "low_noise_model")
_STEMS = ("diffusion_pytorch_model", "model")


class Layout(NamedTuple):
    """Where things should lie in a folder.

    places: a folder with shards, or a file, for each part: `experts.0`, `experts.1`, `vae`,
        `text`, `vision`.
    about: what `model_index.json` of diffusers says; empty in the original layout.
    """

    places: dict[str, Path]
    about: dict[str, Any]
    tokenizer: Path


def is_released(folder: Path) -> bool:
    """Return whether a folder has the mark of one of the layouts, or is a single file."""
    folder = Path(folder)
    if folder.is_file():
        return folder.suffix in single.SUFFIXES
    return any((folder / name).exists() for name in (*_MARKS, "config.json", *_EXPERTS))


def recognise(folder: Path) -> Layout:
    """Return which of them a folder, or the file of a transformer, has; CheckpointError where it
    has none."""
    if folder.is_file() and is_released(folder):
        return _single(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder")
    if not is_released(folder):
        raise CheckpointError(
            f"{folder} is no released checkpoint{hub.remedy(folder)}: it has no {_INDEX}, "
            f"config.json or {_EXPERTS[0]}; of single files (ComfyUI, GGUF) name the transformer's"
        )
    if not any((folder / name).exists() for name in _MARKS):
        return Layout(_original(folder), {}, folder / "google" / "umt5-xxl")
    faults: list[str] = []
    index = read_json(folder / _INDEX, faults) if (folder / _INDEX).exists() else {}
    if faults:
        raise CheckpointError(faults[0])
    base = hub.base_of(folder)
    words = next(
        (f / "tokenizer" for f in (folder, base) if f and (f / "tokenizer").is_dir()), None
    )
    return Layout(_diffusers(folder, index, base), index, words or folder / "tokenizer")


def _single(file: Path) -> Layout:
    files = single.experts(file)
    found = {f"experts.{i}": place for i, place in enumerate(files)}
    header = without_prefix(_headers(files[:1], []), ANCHORS["experts"], file)
    head = header.get("head.head.weight") or header.get("proj_out.weight")
    image = header.get("img_emb.proj.0.weight") or header.get(
        "condition_embedder.image_embedder.norm1.weight"
    )
    sizes = {"vae": head and head.shape[0] // 4, "vision": image and image.shape[0]}
    for part, size in sizes.items():
        near = single.companions(file, part) if size else []
        if fitting := _fitting(near, part, size):
            found[part] = fitting
    if texts := single.companions(file, "text"):
        found["text"] = texts[0]
    return Layout(found, {}, single.tokenizer([file, *texts[:1]]))


def _original(folder: Path) -> dict[str, Path]:
    two = any((folder / name).is_dir() for name in _EXPERTS)
    experts = [folder / name for name in _EXPERTS] if two else [folder]
    found = {f"experts.{i}": place for i, place in enumerate(experts)}
    for part, pattern in (
        ("vae", "Wan2.?_VAE"),
        ("text", "models_t5*"),
        ("vision", "models_clip*"),
    ):
        files = [p for s in (".safetensors", ".pth") for p in visible(folder, pattern + s)]
        if part == "vae" and len(files) > 1:
            channels = read_json(experts[0] / "config.json", []).get("out_dim")
            found[part] = _fitting(files, "vae", channels) or files[0]
        elif files:
            found[part] = files[0]
    return found


def _fitting(files: Iterable[Path], part: str, size: int | None) -> Path | None:
    """Return the first VAE that codes a frame in so many channels, or the first image encoder whose
    tokens are so wide."""
    tensor, axis = (r"decoder\.conv(1|_in)\.weight", 1) if part == "vae" else (ANCHORS[part], 0)
    for file in files:
        for name, found in _headers([file], []).items():
            if re.fullmatch(rf"(.*\.)?({tensor})", name) and found.shape[axis] == size:
                return file
    return None


def _diffusers(folder: Path, index: Mapping[str, Any], base: Path | None) -> dict[str, Path]:
    found = {"experts.0": folder / "transformer"}
    two = index.get("transformer_2") if index else [(folder / "transformer_2").is_dir()]
    if any(two or ()):
        found["experts.1"] = folder / "transformer_2"
    for part, name in (("vae", "vae"), ("text", "text_encoder"), ("vision", "image_encoder")):
        for place in (folder, base):
            if place and (place / name).is_dir():
                found.setdefault(part, place / name)
    return found


def open_weights(place: Path, faults: list[str]) -> Tensors:
    """Return the tensors of a file, or of the shards in a folder: those that the index names, else
    a lone file. What is wrong is added to `faults`."""
    if place.is_file():
        return _headers([place], faults)
    if not place.is_dir():
        faults.append(f"{place} is missing")
        return {}
    for stem in _STEMS:
        if (index := place / f"{stem}.safetensors.index.json").is_file():
            return _shards(index, faults)
    lone = [place / f"{stem}.safetensors" for stem in _STEMS]
    lone = [path for path in lone if path.is_file()]
    lone = lone or visible(place, "*.safetensors")
    if len(lone) != 1:
        faults.append(f"{place} has {len(lone)} safetensors files and no index that names them")
        return {}
    return _headers(lone, faults)


def _shards(index: Path, faults: list[str]) -> Tensors:
    where = read_json(index, faults).get("weight_map", {})
    if not isinstance(where, dict) or not all(isinstance(file, str) for file in where.values()):
        faults.append(f"{index} is damaged: its weight_map does not name files")
        return {}
    return _headers([index.parent / file for file in sorted(set(where.values()))], faults)


def _headers(files: Iterable[Path], faults: list[str]) -> Tensors:
    found: Tensors = {}
    for file in files:
        try:
            found |= gguf_tensors(file) if file.suffix == GGUF else tensors_in(file)
        except CheckpointError as error:
            faults.append(str(error))
    return found


def read_json(path: Path, faults: list[str]) -> dict[str, Any]:
    """Return a file's JSON object; an empty one, and a phrase in `faults`, where it has none."""
    try:
        check_fetched(path)
        return json_object(path)
    except FileNotFoundError:
        faults.append(f"{path} is missing")
    except ValueError as error:
        faults.append(str(error))
    return {}
