"""Adapters as PEFT and diffusers save them: which file of a folder they are, and how strong.

PEFT writes `adapter_config.json` beside the file, diffusers the same settings into its metadata.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jcos.files import visible
from jcos.weights import spelling
from jcos.weights.checkpoint import CheckpointError
from jcos.weights.faults import shorter
from jcos.weights.tensors import metadata_of

CONFIG = "adapter_config.json"
_NAMES = ("adapter_model.safetensors", "adapter_model.bin", "pytorch_lora_weights.safetensors")
# Ways to begin that take something from the model's weights, so that a file is of those alone.
_OF_OTHER_WEIGHTS = re.compile(r"(pissa|olora|loftq|corda).*", re.IGNORECASE)


def adapter_file(path: Path) -> Path:
    """Return a LoRA file, or the one in a folder; CheckpointError where it has none or several."""
    if not path.is_dir():
        return path
    files = [path / name for name in _NAMES if (path / name).is_file()][:1]
    files = files or visible(path, "*.safetensors")
    if len(files) != 1:
        raise CheckpointError(
            f"{path} has {len(files)} safetensors files; name the LoRA file itself"
        )
    return files[0]


@dataclass(frozen=True)
class Settings:
    """What a configuration says of a LoRA. source: the file that it stands in."""

    source: Path
    about: Mapping[str, Any]

    def factor(self, key: str, rank: int) -> float:
        """Return what B A is multiplied by; ValueError where the configuration has another rank."""
        said = self.about.get("r")
        if said not in (None, rank) and not self.about.get("rank_pattern"):
            raise ValueError(f"has rank {rank}, where {self.source} says {said}")
        root = math.sqrt(rank) if self.about.get("use_rslora") else rank
        # As in PEFT, the first pattern counts that a module's name ends in; it may have a prefix.
        names = [name.partition(".lora_")[0] for name in (key, spelling.bare(key))]
        for pattern, alpha in (self.about.get("alpha_pattern") or {}).items():
            if any(re.fullmatch(rf"(.*\.)?({pattern})", name) for name in names):
                return alpha / root
        return self.about["lora_alpha"] / root


def settings(file: Path, *, second: bool) -> Settings | None:
    """Return the configuration in a LoRA file, or else beside it; None where there is none.

    second: whether the second expert's is wanted of a file for both.
    Raises CheckpointError where it is damaged, or is that of something else than a plain LoRA.
    """
    source, text = file, None
    if file.suffix == ".safetensors":
        text = metadata_of(file).get("lora_adapter_metadata")
    if text is None and file.with_name(CONFIG).is_file():
        source = file.with_name(CONFIG)
        text = source.read_bytes()
    if text is None:
        return None
    try:
        about = dict(json.loads(text))
    except (ValueError, TypeError):
        raise CheckpointError(f"{source} is damaged: its configuration is no JSON object") from None
    component = "transformer_2." if second else "transformer."
    about = {
        name.removeprefix(component): value
        for name, value in about.items()
        if name.startswith(component) or "." not in name
    }
    if not about:
        return None
    kind = "DoRA" if about.get("use_dora") else str(about.get("peft_type") or "LORA")
    begun = str(about.get("init_lora_weights"))
    try:
        patterns = dict(about.get("alpha_pattern") or {})
        any(map(re.compile, patterns))
    except (TypeError, ValueError, re.error):
        raise CheckpointError(f"{source} has an alpha_pattern that is none") from None
    alphas = [about.get("lora_alpha"), *patterns.values()]
    numbers = all(isinstance(a, int | float) and not isinstance(a, bool) for a in alphas)
    for wrong, reason in (
        (kind.upper() != "LORA", f"is of a {shorter(kind, 40)}; it cannot be merged"),
        (
            _OF_OTHER_WEIGHTS.fullmatch(begun),
            f"says that the LoRA began as {shorter(begun, 40)}, from its model's own weights",
        ),
        (not numbers, "has no number as lora_alpha, or in its alpha_pattern"),
    ):
        if wrong:
            raise CheckpointError(f"{source} {reason}")
    return Settings(source, about)
