"""Models filled with tensors that tests hold in memory."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from jcos.weights.checkpoint import CheckpointError, with_leaves
from jcos.weights.faults import listed
from jcos.weights.names import Row, place

M = TypeVar("M")


def translate(tensors: Mapping[str, np.ndarray], table: Sequence[Row]) -> dict[str, np.ndarray]:
    """Return tensors by jcos path, layers stacked. Raises CheckpointError naming all that `place`
    finds wrong."""
    placed, faults = place({name: tensor.shape for name, tensor in tensors.items()}, table)
    if faults:
        raise CheckpointError(listed(f"{len(faults)} tensors cannot be placed", faults))
    return {
        path: leaf.build(tensors.__getitem__, tensors[leaf.sources[0][0]].dtype)
        for path, leaf in placed.items()
    }


def fill(model: M, tensors: Mapping[str, np.ndarray], table: Sequence[Row]) -> M:
    """Return `model` (real or abstract) with the weights of `tensors`."""
    return with_leaves(model, translate(tensors, table))
