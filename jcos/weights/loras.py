"""LoRA files as they are asked for: which file, for which expert, how strong."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jcos.files import check_there, local_path

EXPERTS = {"high": 0, "low": 1}


@dataclass(frozen=True)
class Lora:
    """A LoRA file to merge into an expert: 0 for high noise, 1 for low; None for the only one, or
    as the keys of the file say."""

    file: Path
    expert: int | None = None
    scale: float = 1.0


def parse(lora: "str | Path | Lora") -> Lora:
    """Return what `[high=|low=]FILE[:SCALE]` asks for; ValueError where the file is not there or
    the scale is no number."""
    if isinstance(lora, Lora):
        return lora
    text, expert, scale = str(lora), None, 1.0
    first, equals, rest = text.partition("=")
    if equals and first in EXPERTS:
        text, expert = rest, EXPERTS[first]
    file, colon, number = text.rpartition(":")
    if colon and "/" not in number and not Path(text).exists():
        try:
            text, scale = file, float(number)
        except ValueError:
            scale = math.nan
        if not math.isfinite(scale):
            raise ValueError(f"the scale of a LoRA is {number!r}; give a number: FILE:0.8")
    path = local_path(text)
    check_there(path)
    return Lora(path, expert, scale)


Asked = str | Path | Lora | Iterable[str | Path | Lora] | None
"""One LoRA or several, as `parse` reads them."""


def parse_all(loras: Asked) -> tuple[Lora, ...]:
    """Return all that is asked for."""
    if loras is None:
        return ()
    return tuple(map(parse, [loras] if isinstance(loras, str | Path | Lora) else loras))
