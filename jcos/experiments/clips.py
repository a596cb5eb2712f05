"""Prompts with pictures for experiments on released models, listed in a file (clips.json)."""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jcos.config import PixelCodec, WanConfig
from jcos.files import check_file, check_new_file, local_path, read_text, shown, write
from jcos.media import image
from jcos.model.text import PROMPT_FILES, read_prompt
from jcos.sampling.trajectory import Condition
from jcos.variants import Profile
from jcos.wan import Wan, check_picture, latent_grid

EXAMPLE = {
    "frames": 81,
    "height": 480,
    "width": 832,
    "clips": [
        {
            "prompt": "The red dot moves along the corridors to the blue square.",
            "picture": "picture-1.png",
            "negative": None,
        },
        {"prompt": "The red dot moves to the green square.", "picture": "picture-2.png"},
    ],
}
"""Two clips, which `configs/swap.py` takes as a pair."""


@dataclasses.dataclass(frozen=True)
class Clip:
    """What one video is made of: texts, or files of them (.txt) or of embedded prompts (.npy)."""

    prompt: str
    picture: str | None = None
    negative: str | None = None


class Clips(NamedTuple):
    """A file of clips: where its relative paths start, the clips, and the size of their videos."""

    folder: Path
    clips: tuple[Clip, ...]
    frames: int | None
    height: int | None
    width: int | None


SIZES = ("frames", "height", "width")


def write_example(file: Path) -> None:
    """Write a file of clips to be filled in. ValueError where there is one, or none can be."""
    check_new_file(local_path(file))
    if file.exists():
        raise ValueError(f"{shown(file)} exists and is not replaced; give another name")
    write(file, json.dumps(EXAMPLE, indent=1) + "\n")


def read_clips(file: Path) -> Clips:
    """Return what a file like `EXAMPLE` says; all but clips and their prompts may be left out.

    Paths are relative to the file. Raises ValueError naming the first clip and field in which
    something is missing, unknown or of another kind.
    """
    try:
        return _clips(file.parent, json.loads(read_text(local_path(file))))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shown(file)} is no file of clips: {error}") from None


def _clips(folder: Path, content: Any) -> Clips:
    _check_fields("it", content, ("clips", *SIZES))
    for name in SIZES:
        number = content.get(name)
        if number is not None and (type(number) is not int or number < 1):
            raise ValueError(f"{name} is {_short(number)}; it is a whole number of at least 1")
    listed = content.get("clips")
    if not isinstance(listed, list) or not listed:
        raise ValueError(f'"clips" is {_short(listed)}; it is a list [{{…}}, …] of at least one')
    clips = tuple(_clip(f"clip {i}", folder, fields) for i, fields in enumerate(listed))
    return Clips(folder, clips, *map(content.get, SIZES))


def _clip(name: str, folder: Path, content: Any) -> Clip:
    _check_fields(name, content, [field.name for field in dataclasses.fields(Clip)])
    if content.get("prompt") is None:
        raise ValueError(f"{name} has no prompt")
    for field, text in content.items():
        if text is not None and not isinstance(text, str):
            raise ValueError(f"{name}: {field} is {_short(text)}; it is a text in quotes")
    clip = Clip(**content)
    for field, file in _named(clip).items():
        try:
            check_file(folder / local_path(file))
        except ValueError as error:
            raise ValueError(f"{name}: {field}: {error}") from None
    return clip


def _check_fields(what: str, content: Any, known: Sequence[str]) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{what} is {_short(content)}; it is an object {{…}}")
    for name in content:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"{what} has {_short(name)}; {hint}known are {', '.join(known)}")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _named(clip: Clip) -> dict[str, str]:
    """Return the files that a clip names, by field."""
    texts = {field: text for field, text in dataclasses.asdict(clip).items() if text is not None}
    return {f: t for f, t in texts.items() if f == "picture" or t.endswith(PROMPT_FILES)}


def _asked(config: WanConfig, clips: Clips) -> list[int]:
    """Return frames, height and width asked for, by default the model's."""
    return [getattr(clips, name) or getattr(config.clip, name) for name in SIZES]


def size_of(config: WanConfig, file: Path) -> tuple[int, int]:
    """Return height and width that a file of clips asks for."""
    _, height, width = _asked(config, read_clips(file))
    return height, width


def check_clips(config: WanConfig, file: Path, profile: Profile | None = None) -> None:
    """Raise ValueError where a model does not make videos of a file of clips, as far as is known
    without its weights: with the clip and the field."""
    clips = read_clips(file)
    latent_frames(config, clips.frames)
    sizes: dict[tuple[int, int], int] = {}
    for i, clip in enumerate(clips.clips):
        try:
            check_picture(config, clip.picture is not None)
            size = _size(config, clips, clip, profile)
            latent_grid(config, clips.frames or config.clip.frames, *size)
            for field in ("prompt", "negative"):
                _check_rows(config, clips.folder, field, getattr(clip, field))
        except ValueError as error:
            raise ValueError(f"{shown(file)}, clip {i}: {error}") from None
        sizes.setdefault(size, i)
    if len(sizes) > 1:
        them = ", ".join(f"{w} × {h} (clip {i})" for (h, w), i in list(sizes.items())[:4])
        raise ValueError(
            f"the clips of {shown(file)} make videos of different sizes, {them}; put pictures of "
            "one shape into a file"
        )


def _size(config: WanConfig, clips: Clips, clip: Clip, profile: Profile | None) -> tuple[int, int]:
    """Return height and width of a clip's video."""
    _, height, width = _asked(config, clips)
    if clip.picture is None:
        return height, width
    picture = image.read_picture(clips.folder / clip.picture, profile)
    if isinstance(config.codec, PixelCodec):
        return picture.shape[0], picture.shape[1]
    return image.frame_size(picture, image.rule_for(config, profile), height, width)


def _check_rows(config: WanConfig, folder: Path, field: str, text: str | None) -> None:
    rows = None if text is None else read_prompt(text, folder)
    if isinstance(rows, np.ndarray):
        length, width = config.dit.text_len, config.dit.text_dim
        if rows.ndim != 2 or rows.shape[1] != width or rows.shape[0] > length:
            raise ValueError(
                f"{field}: {text} has shape {rows.shape}; {config.name} reads at most {length} "
                f"rows of {width}"
            )


def latent_frames(config: WanConfig, frames: int | None) -> int:
    """Return those of videos of so many frames, or of as many as the model makes by itself.
    ValueError where it makes none of that length."""
    size = config.clip
    return latent_grid(config, frames or size.frames, size.height, size.width)[0]


def digest(file: Path) -> str:
    """Return SHA-256 of a file of clips and of all files that it names."""
    whole, clips = hashlib.sha256(file.read_bytes()), read_clips(file)
    for name in (name for clip in clips.clips for name in _named(clip).values()):
        whole.update((clips.folder / name).read_bytes())
    return whole.hexdigest()


def condition_of(model: Wan, clips: Clips, clip: Clip, profile: Profile | None = None) -> Condition:
    """Return a clip's condition, its picture brought to the model's size by a profile's rule."""
    frames, height, width = _asked(model.config, clips)
    prompt = read_prompt(clip.prompt, clips.folder)
    negative = None if clip.negative is None else read_prompt(clip.negative, clips.folder)
    if clip.picture is None:
        return model.condition(None, prompt, frames, negative=negative, size=(height, width))
    picture, config = image.read_picture(clips.folder / clip.picture, profile), model.config
    if isinstance(model.codec, PixelCodec):  # which takes pictures as they are
        return model.condition(picture, prompt, frames, negative=negative)
    first, seen = image.first_frame(picture, config, profile, height, width)
    return model.condition(first, prompt, frames, negative=negative, seen=seen)
