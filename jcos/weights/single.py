"""Models in single files, as ComfyUI keeps them: which files belong together, by their names."""

import re
from pathlib import Path

from jcos.files import visible

SUFFIXES = (".safetensors", ".gguf")
COMPANIONS = (".safetensors", ".pth")
_EXPERT = re.compile(r"(?<![a-z])(high|low)(?=[-_ ]?noise|[^a-z])", re.IGNORECASE)
_OTHER = {"high": "low", "low": "high", "High": "Low", "Low": "High", "HIGH": "LOW", "LOW": "HIGH"}
_ONE = re.compile(r"(?!.*noise)(.*wan[-_ ]?2[._]1|.*ti2v)", re.IGNORECASE)
"""Names of models that have one transformer, `low_vram` or not."""
_NAMES = {
    "vae": re.compile(r"(?i).*wan.*vae.*"),
    "text": re.compile(r"(?i).*umt5.*"),
    "vision": re.compile(r"(?i).*clip.*vi[st].*"),
}
_FOLDERS = ("vae", "text_encoders", "text_encoder", "clip", "clip_vision")


def experts(file: Path) -> list[Path]:
    """Return a transformer's files: the one given, or both where its name says high or low noise,
    high first. ValueError where the other is not beside it."""
    file = file.absolute()  # a bare name has no folder
    named = _EXPERT.search(file.name)
    if named is None or _ONE.match(file.name):
        return [file]
    other = file.with_name(_swapped(file.name))
    beside = file.parent.with_name(_swapped(file.parent.name)) / other.name
    if not other.is_file() and beside.is_file():
        other = beside  # in folders HighNoise and LowNoise
    if not other.is_file():
        raise ValueError(f"{file} is one of two experts; the other, {other}, is missing")
    return [file, other] if named[0].lower() == "high" else [other, file]


def companions(file: Path, part: str) -> list[Path]:
    """Return files that may be the transformer's VAE, text or image encoder (`vae`, `text`,
    `vision`), by their names: in its folder or one of ComfyUI's folders beside or in it, the
    largest first."""
    file = file.absolute()
    roots = [file.parent, *list(file.parents)[1:3]]
    folders = [file.parent, *(root / name for root in roots for name in _FOLDERS)]
    files = [p for folder in folders for p in visible(folder) if p.suffix in COMPANIONS]
    found = {p.resolve(): p for p in files if _NAMES[part].fullmatch(p.name) and p.is_file()}
    return sorted(found.values(), key=lambda p: p.stat().st_size, reverse=True)


def tokenizer(files: list[Path]) -> Path:
    """Return the folder of the tokenizer beside one of these files; where it should be if none."""
    places = [f.parent / n for f in files for n in ("tokenizer", Path("google", "umt5-xxl"))]
    return next((place for place in places if place.is_dir()), places[0])


def _swapped(name: str) -> str:
    return _EXPERT.sub(lambda m: _OTHER.get(m[0], _OTHER[m[0].lower()]), name)
