"""Self-attention in numbers, without its map: where chosen queries look.

A map of N × N is never there: a few queries at a time meet all keys, and what is left of their
weights is the mass on each region of keys and the entropy. For 32,760 tokens and 40 heads the map
of one layer would take 172 GB in float32.
"""

from collections.abc import Iterable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jcos.sampling.probe import Heads, Probe, Site
from jcos.sampling.probes import whole

WEIGHTS = 2**26
"""Most attention weights, of all heads, that are held at a time."""


class AttentionMass(Probe):
    """Observes where queries look, in chosen layers: a dict of mass [heads, groups, regions] and
    entropy [heads, groups] (in nats; log N is the most). *Which tokens does this head read?*

    layers [l]: block numbers; others cost little and are not held. queries [n]: token numbers.
    groups [groups, n]: which queries are averaged together. regions [regions, N]: masks of keys;
    they may overlap. dtype, static: queries and keys are rounded to it, as attention does.
    With latent frames as groups and regions (`by_frame`), mass is frame × frame, and its first
    column the share on the first frame. Mass says what a head reads, not what that does: knock it
    out (`KnockOut`). Control: a region's share of all keys is what uniform attention gives.
    """

    layers: Int[Array, "*sweep l"]
    queries: Int[Array, "*sweep n"]
    groups: Bool[Array, "*sweep G n"]
    regions: Bool[Array, "*sweep R N"]
    dtype: str = flax.struct.field(pytree_node=False, default="float32")

    @classmethod
    def by_frame(
        cls,
        grid: tuple[int, int, int],
        layers: Iterable[Any],
        *,
        every: int = 1,
        dtype: str = "float32",
    ) -> "AttentionMass":
        """Return the mass frame × frame. grid: of tokens (`DiTConfig.tokens`). every: one query in
        so many is looked at. Raises ValueError where a frame would have none."""
        frames, height, width = grid
        numbers = np.arange(frames * height * width)
        each = numbers[None] // (height * width) == np.arange(frames)[:, None]
        queries = each & (numbers % max(every, 1) == 0)
        if every < 1 or not queries.any(1).all():
            raise ValueError(f"every is {every}; a frame has {height * width} tokens")
        return cls.between(queries, each, layers, dtype=dtype)

    @classmethod
    def between(
        cls,
        queries: Bool[np.ndarray, "..."],
        regions: Bool[np.ndarray, "..."],
        layers: Iterable[Any],
        *,
        dtype: str = "float32",
    ) -> "AttentionMass":
        """Return the mass that regions of queries put on regions of keys, masks [regions, N].
        Raises ValueError where a region of queries is empty, or the masks are of two grids."""
        queries, regions = np.asarray(queries), np.asarray(regions)
        if (queries.ndim, regions.ndim) != (2, 2) or queries.shape[1] != regions.shape[1]:
            shapes = f"{list(queries.shape)} and {list(regions.shape)}"
            raise ValueError(f"masks of queries and of keys are {shapes}; both are [regions, N]")
        numbers = np.flatnonzero(queries.any(0))
        if not queries.any(1).all():
            raise ValueError(f"region {int(np.argmin(queries.any(1)))} of queries has no token")
        return cls(
            whole(list(layers), "AttentionMass.layers"),
            jnp.asarray(numbers, jnp.int32),
            jnp.asarray(queries[:, numbers]),
            jnp.asarray(regions),
            dtype,
        )

    def made_for(self) -> Any:
        return (("tokens", self.regions.shape[-1]),)

    def slots(self) -> Int[Array, " l"]:
        return self.layers

    def on_attention(
        self, site: Site, qk: tuple[Heads, Heads]
    ) -> tuple[tuple[Heads, Heads], dict[str, Array]]:
        q, k = qk

        def look(_: Any) -> dict[str, Array]:
            return self._look(q, k)

        shapes = jax.eval_shape(look, ())
        nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        wanted = (self.layers == site.layer).any()
        return qk, jax.lax.cond(wanted, look, lambda _: nothing, ())

    def _look(self, q: Heads, k: Heads) -> dict[str, Array]:
        _, heads, width = q.shape
        some = (q[self.queries] * width**-0.5).astype(self.dtype)
        keys = k.astype(self.dtype)
        count = len(some)
        at_once = min(count, max(1, WEIGHTS // (heads * len(k))))
        turns = -(-count // at_once)
        some = jnp.pad(some, ((0, turns * at_once - count), (0, 0), (0, 0)))

        def part(rows: Float[Array, "c H d"]) -> tuple[Array, Array]:
            scores = jnp.einsum("chd,nhd->hcn", rows, keys, preferred_element_type=jnp.float32)
            weights = jax.nn.softmax(scores)
            mass = jnp.einsum("hcn,rn->chr", weights, self.regions.astype(jnp.float32))
            entropy = jax.nn.logsumexp(scores, axis=-1) - (weights * scores).sum(-1)
            return mass, entropy.T

        parts = jax.lax.map(part, some.reshape(turns, at_once, heads, width))
        mass, entropy = (a.reshape(-1, *a.shape[2:])[:count] for a in parts)
        share = self.groups / self.groups.sum(-1, keepdims=True)
        return {
            "mass": jnp.einsum("gc,chr->hgr", share, mass),
            "entropy": jnp.einsum("gc,ch->hg", share, entropy),
        }
