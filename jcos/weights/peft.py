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
from jcos.weights.checkpoint import CheckpointError
from jcos.weights.faults import shorter
from jcos.weights.tensors import metadata_of

from . import spelling

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
        """Return what B A is multiplied by.

        Raises ValueError where the file's rank is not what the configuration says.
        """
        # Patterns may fit a module's name with any prefix, or with none.
        names = tuple(name.partition(".lora_")[0] for name in (key, spelling.bare(key)))
        alpha = self._of("alpha", names, "lora_alpha")
        said = self._of("rank", names, "r")
        if said not in (None, rank):
            raise ValueError(f"has rank {rank}, where {self.source} says {said}")
        if isinstance(alpha, bool) or not isinstance(alpha, int | float):
            raise CheckpointError(f"{self.source} has no number as lora_alpha")
        return alpha / (math.sqrt(rank) if self.about.get("use_rslora") else rank)

    def _of(self, kind: str, names: tuple[str, ...], default: str) -> Any:
        """Find a value as PEFT does: of the first pattern that a name ends in."""
        patterns = self.about.get(f"{kind}_pattern") or {}
        try:
            for pattern, value in patterns.items():
                if any(re.match(rf"(.*\.)?({pattern})$", name) for name in names):
                    return value
        except (re.error, AttributeError):
            raise CheckpointError(f"{self.source} has a {kind}_pattern that is none") from None
        return self.about.get(default)


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
    kind = str(about.get("peft_type") or "LORA")
    if about.get("use_dora"):
        kind = "DoRA"
    if kind.upper() != "LORA":
        raise CheckpointError(f"{source} is of a {shorter(kind, 40)}; it cannot be merged")
    begun = str(about.get("init_lora_weights"))
    if _OF_OTHER_WEIGHTS.fullmatch(begun):
        raise CheckpointError(
            f"{source} says that the LoRA began as {shorter(begun, 40)}, which changes the weights "
            "it is for; save it with PEFT as a plain LoRA"
        )
    return Settings(source, about) if about else None
