"""Observations of chosen layers, stored as they arise: a layer that is not chosen costs nothing."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped


class Slots:
    """Buffers for the parts of an observation of which only some layers are kept; the other parts
    are stacked over all layers by the scan over blocks.

    layers: numbers of the layers that are kept [l], in any order, or None for all; or a pytree of
        these, a prefix of the observation. shapes: of the observation of one layer.
    """

    def __init__(self, layers: Any, shapes: Any):
        self.leaves, self.tree = jax.tree.flatten(shapes)
        self.chosen: list[Int[Array, " l"] | None] = []
        jax.tree.map(
            lambda one, part: self.chosen.extend([one] * len(jax.tree.leaves(part))),
            layers,
            shapes,
            is_leaf=lambda one: one is None,
        )

    def empty(self) -> list[Any]:
        """Return buffers of nan, or of 0 for integers."""
        buffers = []
        for layers, leaf in zip(self.chosen, self.leaves, strict=True):
            fill = jnp.nan if jnp.issubdtype(leaf.dtype, jnp.inexact) else 0
            shape = None if layers is None else (len(layers), *leaf.shape)
            buffers.append(shape and jnp.full(shape, fill, leaf.dtype))
        return buffers

    def put(
        self, buffers: list[Any], observation: Any, layer: Int[Array, ""]
    ) -> tuple[list[Any], list[Any]]:
        """Return the buffers with the observation of a layer, and the parts to be stacked."""
        leaves = jax.tree.leaves(observation)
        rows = list(zip(buffers, leaves, self.chosen, strict=True))
        buffers = [None if at is None else _put(buffer, a, at, layer) for buffer, a, at in rows]
        return buffers, [leaf if at is None else None for _, leaf, at in rows]

    def observation(self, buffers: list[Any], stacked: list[Any]) -> Any:
        """Return [l, …] or [layers, …] of every part."""
        rows = zip(buffers, stacked, self.chosen, strict=True)
        parts = [leaf if at is None else _in_order(buffer, at) for buffer, leaf, at in rows]
        return self.tree.unflatten(parts)


def _put(
    buffer: Shaped[Array, "l ..."],
    value: Shaped[Array, "..."],
    layers: Int[Array, " l"],
    layer: Int[Array, ""],
) -> Shaped[Array, "l ..."]:
    """Write the layer's slot alone, the first of several; nothing where it has none."""
    if not len(layers):
        return buffer
    here = layers == layer
    slot = jnp.argmax(here)
    new = jnp.where(here.any(), value, jax.lax.dynamic_index_in_dim(buffer, slot, 0, False))
    return jax.lax.dynamic_update_index_in_dim(buffer, new, slot, 0)


def _in_order(buffer: Shaped[Array, "l ..."], layers: Int[Array, " l"]) -> Shaped[Array, "l ..."]:
    """Fill both slots of a layer that is chosen twice."""
    if len(layers) < 2:
        return buffer
    return buffer[jnp.argmax(layers[:, None] == layers[None], 1)]
