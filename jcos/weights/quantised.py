"""Quantised checkpoints, recognised so that they are refused by name: their numbers are no weights
without scales, which jcos does not read."""

import re
from collections.abc import Mapping
from typing import Any

from jcos.weights.faults import shorter
from jcos.weights.tensors import Tensor

# By the names of what such files hold beside the weights, or in their place.
_KINDS = [
    (
        r".*\.(nested_)?(absmax|quant_map)|.*\.quant_state\..+|.*\.(SCB|weight_format)",
        "bitsandbytes",
    ),
    (r".*\.weight\._(data|scale|shift)", "quanto"),
    (r".*\._?weight[:_](qdata|_data)", "torchao"),
    (r".*\.(wscales|smooth_factor)", "SVDQuant"),
    (r".*\.(qweight|qzeros|g_idx|scales)", "GPTQ or AWQ"),
    (r".*\.comfy_quant|(.*\.)?scaled_fp8|.*\.scale_(weight|input)", "ComfyUI's, with scales"),
    (r".*(weight|input|output)_(scale(_inv|_2)?|zero_point)", "with weight_scale"),
]


def quantisation(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str | None:
    """Return the name of how the weights are quantised; None where they are floats.

    about: the folder's `config.json`.
    """
    for pattern, kind in _KINDS:
        if any(re.fullmatch(pattern, name) for name in tensors):
            return kind
    if config := about.get("quantization_config"):
        method = config.get("quant_method") if isinstance(config, dict) else None
        return shorter(str(method or "as its config.json says"), 60)
    whole = [name for name, tensor in tensors.items() if tensor.dtype.kind in "iub"]
    if whole:
        return f"{len(whole)} tensors of integers without scales, such as {shorter(whole[0], 100)}"
    return None
