"""Observations of chosen layers, held as they arise: a layer that is not chosen costs nothing."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped


class Slots:
    """A buffer for every part of an observation of which some layers are kept; the other parts are
    stacked over all layers by the scan over blocks.

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
        """Buffers that nothing was put into: nan, if the numbers have one."""
        return [
            None if layers is None else _empty(layers, leaf)
            for layers, leaf in zip(self.chosen, self.leaves, strict=True)
        ]

    def put(
        self, held: list[Any], observed: Any, layer: Int[Array, ""]
    ) -> tuple[list[Any], list[Any]]:
        """The buffers with what is kept of a layer, and what is stacked."""
        leaves = jax.tree.leaves(observed)
        rows = list(zip(held, leaves, self.chosen, strict=True))
        held = [None if at is None else _put(buffer, leaf, at, layer) for buffer, leaf, at in rows]
        return held, [leaf if at is None else None for _, leaf, at in rows]

    def observation(self, held: list[Any], stacked: list[Any]) -> Any:
        """[l, …] or [layers, …] of every part."""
        rows = zip(held, stacked, self.chosen, strict=True)
        parts = [leaf if at is None else _in_order(buffer, at) for buffer, leaf, at in rows]
        return self.tree.unflatten(parts)


def _empty(layers: Int[Array, " l"], leaf: jax.ShapeDtypeStruct) -> Shaped[Array, "l ..."]:
    fill = jnp.nan if jnp.issubdtype(leaf.dtype, jnp.inexact) else 0
    return jnp.full((len(layers), *leaf.shape), fill, leaf.dtype)


def _put(
    buffer: Shaped[Array, "l ..."],
    value: Shaped[Array, "..."],
    layers: Int[Array, " l"],
    layer: Int[Array, ""],
) -> Shaped[Array, "l ..."]:
    """Writes the layer's slot alone, the first of several; nothing where it has none."""
    if not len(layers):
        return buffer
    here = layers == layer
    slot = jnp.argmax(here)
    new = jnp.where(here.any(), value, jax.lax.dynamic_index_in_dim(buffer, slot, 0, False))
    return jax.lax.dynamic_update_index_in_dim(buffer, new, slot, 0)


def _in_order(buffer: Shaped[Array, "l ..."], layers: Int[Array, " l"]) -> Shaped[Array, "l ..."]:
    """With a layer that is chosen twice in both of its slots."""
    if len(layers) < 2:
        return buffer
    return buffer[jnp.argmax(layers[:, None] == layers[None], 1)]
