"""Interventions inside the blocks, as data: knock out, patch, steer; what they start from.

A place is one of "heads", "cross", "mlp", "input", "block" and "update", what a block adds
(`model.dit.SITES`). All of it composes with `chain`, `InWorlds` and `sweep`, and says what it
changes.
"""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jcos.config import WanConfig
from jcos.sampling.interventions import Place, places
from jcos.sampling.probe import Change, Probe, Site, Sizes, Tokens
from jcos.sampling.probes import InWorlds, check_masks, choose, counted, unchanged, whole
from jcos.sampling.trace import Origin, Trace, stored

UNITS = {"heads": "heads", "cross": "heads", "mlp": "neurons"}
UNITS |= dict.fromkeys(("block", "input", "update"), "")
"""What a place is made of, where it is not whole tokens."""
NAMES = {
    "heads": "self-attention",
    "cross": "cross-attention",
    "mlp": "feed-forward",
    "block": "tokens",
    "input": "tokens",
    "update": "what the block adds",
}
FILLS = {
    "zero": "set to zero",
    "mean": "set to the mean over tokens",
    "seed": "taken from another seed",
    "world": "taken from another run",
}


def known(place: str) -> str:
    """Return a place; ValueError where there is none of this name."""
    if place not in UNITS:
        raise ValueError(f"no place is called {place!r}; there are {', '.join(UNITS)}")
    return place


class Inside(Probe):
    """A probe that acts at one place, which is static. Raises ValueError for an unknown one."""

    place: str = flax.struct.field(pytree_node=False)

    def sites(self) -> tuple[str, ...]:
        return (known(self.place),)

    def act(self, site: Site, z: Array) -> tuple[Array, Any]:
        """Return what to go on with, and an observation."""
        raise NotImplementedError


def _acting_at(place: str) -> Callable[..., Any]:
    """Return the method that is called at a place."""

    def method(self: Inside, site: Site, z: Any) -> tuple[Any, Any]:
        return self.act(site, z) if self.place == place else (z, ())

    return method


for _place in UNITS:
    setattr(Inside, f"on_{_place}", _acting_at(_place))


class Capture(Inside):
    """Observes a place as it is, [steps, chosen layers, chosen tokens, …]: what `Patch` puts back,
    and what directions are made of.

    layers, tokens: numbers, arrays or sequences; no other layer is held; None for all tokens.
    dtype: values are rounded to it. At "input" there is no axis of layers.
    """

    layers: Any = ()
    tokens: Any = None
    dtype: str | None = flax.struct.field(pytree_node=False, default=None)

    def slots(self) -> Int[Array, " l"]:
        return whole(self.layers, "Capture.layers")

    def act(self, site: Site, z: Any) -> tuple[Any, Array]:
        del site
        read = z[1] - z[0] if self.place == "update" else z
        if self.tokens is not None:
            # Inside a program an index out of range is no error: it gives nan.
            at = read.at[whole(self.tokens, "Capture.tokens")]
            read = at.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return z, read if self.dtype is None else read.astype(self.dtype)


class KnockOut(Inside):
    """Removes heads, neurons, tokens or what a block adds to them, at chosen layers and steps. *Is
    this part needed?*

    mask [steps, layers, units]: what is removed, units being heads or neurons; one for whole
    tokens; at "input" layer 0 counts. tokens [N]: where, None for everywhere. by, static: "zero"
    (at "update" it leaves the block out); "mean", over the tokens of the same run, step and layer;
    "seed" or "world", what the seed or world before it has there (resampling).
    Zero is a value that the part may never have, so that an effect may be of the strange value and
    not of the missing part: compare with mean and resampling (arXiv 2309.16042). Controls: as many
    random units of the same layer, and the same units at other steps. A loss that does nothing does
    not show that a part is idle: heads are often redundant (arXiv 1905.10650), and neighbouring
    blocks can often be left out one at a time (arXiv 1605.06431): leave out several.
    """

    mask: Bool[Array, "*sweep S L U"]
    by: str = flax.struct.field(pytree_node=False, default="zero")
    tokens: Bool[Array, "*sweep N"] | None = None

    @classmethod
    def at(
        cls,
        config: WanConfig,
        place: str,
        chosen: Iterable[Any],
        *,
        at_steps: Iterable[Place] | None = None,
        steps: int | None = None,
        **options: Any,
    ) -> "KnockOut":
        """Return the removal of pairs (layer, head or neuron); at "block" and "update" of layers,
        at "input" of layer 0. at_steps: all by default. steps: of the run, by default the model's.
        options: by, tokens.
        Raises IndexError for a layer, head, neuron or step that the model does not have."""
        dit, steps, unit = config.dit, steps or config.sampling.steps, UNITS[known(place)]
        size = {"heads": dit.heads, "neurons": dit.ffn_dim}.get(unit, 1)
        cells, depth = np.zeros((1, dit.layers, size), bool), 1 if place == "input" else dit.layers
        for pair in chosen:
            layer, number = pair if unit else (pair, 0)
            unit_chosen = choose(size, [number], unit[:-1])
            cells[0, :depth] |= np.outer(choose(depth, [layer], "layer"), unit_chosen)
        when = choose(steps, at_steps, "step")
        return cls(place, jnp.asarray(when[:, None, None] & cells), **options)

    def made_for(self) -> Sizes:
        axes = counted(self.mask, "steps", "layers", UNITS[known(self.place)] or "units")
        return tuple(axis for axis in axes if axis[0] != "units")

    def check(self, sizes: Mapping[str, int]) -> None:
        if self.by not in FILLS:
            raise ValueError(f"KnockOut.by is {self.by!r}; there are {', '.join(FILLS)}")
        check_masks(self, "mask", "tokens")
        if self.by in ("seed", "world") and sizes[f"{self.by}s"] < 2:
            raise ValueError(
                f"KnockOut takes the part from another {self.by}, but there is one: give several"
            )

    def changes(self, world: int = 0) -> list[Change]:
        del world
        mask, unit = np.asarray(self.mask), UNITS[self.place][:-1]
        if not unit:
            out = (self.place, self.by) == ("update", "zero")
            what = "block left out" if out else f"{NAMES[self.place]} {FILLS[self.by]}"
            return Change.at(what, "layer", mask[..., 0])
        what = f"{NAMES[self.place]} of layer {{}} {FILLS[self.by]}"
        each = (Change.at(what.format(i), unit, mask[:, i]) for i in range(mask.shape[1]))
        return [change for found in each for change in found]

    def act(self, site: Site, z: Any) -> tuple[Any, tuple[()]]:
        before, after = z if self.place == "update" else (None, z)
        off = self.mask[site.step, 0 if self.place == "input" else site.layer][None]
        if self.tokens is not None:
            off = off & self.tokens[:, None]
        parts = after.reshape(len(after), off.shape[1], -1)

        def removed(parts: Array) -> Array:
            if before is None:
                fill = self._fill(parts)
            else:
                base = before.reshape(parts.shape)
                fill = base + self._fill(parts - base)
            return jnp.where(off[..., None], fill, parts)

        # Others read all tokens once more, or send them: only where something is removed.
        zero = self.by == "zero"
        parts = removed(parts) if zero else jax.lax.cond(off.any(), removed, unchanged, parts)
        left = parts.reshape(after.shape)
        return (left if before is None else (before, left)), ()

    def _fill(self, parts: Float[Array, "N U d"]) -> Array:
        if self.by == "mean":
            mean = parts.astype(jnp.float32).mean(0, keepdims=True)
            return mean.astype(parts.dtype)
        if self.by in ("seed", "world"):
            size = jax.lax.axis_size(self.by)
            return jax.lax.ppermute(parts, self.by, [(i, (i + 1) % size) for i in range(size)])
        return jnp.zeros((), parts.dtype)


class Swap(InWorlds):
    """Gives a world the tokens of the world before it (the first gets the last's), after chosen
    blocks: a `KnockOut` of whole tokens by those of another world."""

    @classmethod
    def at_layers(
        cls,
        steps: int,
        layers: int,
        tokens: int | np.integer | Bool[Array | np.ndarray, " N"],
        chosen: Iterable[Place],
        *,
        at_steps: Iterable[Place] = (0,),
        receivers: Sequence[bool] = (True, False),
    ) -> "Swap":
        """Return a swap after the chosen layers, from a donor in world 1 to the run in world 0
        (paper, section 5.2: of all visual tokens). With two receivers they exchange. tokens: how
        many there are, or a mask of those that are swapped."""
        here = np.outer(choose(steps, at_steps, "step"), choose(layers, chosen, "layer"))
        where = jnp.ones(tokens, bool) if np.ndim(tokens) == 0 else jnp.asarray(tokens)
        swap = KnockOut("block", jnp.asarray(here[..., None]), "world", where)
        return cls(swap, jnp.asarray(receivers))


class Patch(Inside):
    """Puts stored activations back, of another run, step, seed or prompt. *Is what this part holds
    enough to change the answer?*

    values [donor's seeds, donor's steps, layers, tokens, …]: as `Capture` observes them; of one
    seed, or of as many as run. source [steps]: which of the donor's steps is put at each step, −1
    for none. layers [l], tokens [n]: what is stored, None for all tokens. basis [r, D]: only these
    orthonormal directions are put back; the rest stays (for the last axis of the place).
    Controls: the run's own activations (nothing may change), those of an unrelated run, other
    tokens, random directions of as many dimensions. A patched subspace can act through a dormant
    path that the model does not use (arXiv 2311.17030). Of one pair an effect says little: average
    over many, in both directions (arXiv 2404.15255).
    """

    values: Float[Array, "..."]
    source: Int[Array, "*sweep S"]
    layers: Int[Array, "*sweep l"]
    tokens: Any = None
    basis: Float[Array, "*sweep r D"] | None = None
    origin: Origin = flax.struct.field(pytree_node=False, default=Origin())

    @classmethod
    def of(
        cls,
        place: str,
        donor: Array | np.ndarray | Trace | Path | str,
        layers: Iterable[int],
        *,
        steps: int | None = None,
        at_steps: Iterable[Place] | None = None,
        from_step: Place | None = None,
        tokens: Any = None,
        basis: Array | None = None,
    ) -> "Patch":
        """Return a patch of what `Capture(place, layers, tokens)` observed.

        donor: the trace of that run, or the folder that it was saved in: runs on another grid, with
        another step plan, or by another model than the folder was saved with are refused. Or
        `Trace.block_obs` alone, of which the shape is checked.
        steps: of the run, by default the donor's; others have another plan, which is then not
        compared. at_steps: where it is patched, by default at every step. from_step: the donor's
        step that is put there; by default the same step.
        Raises IndexError for a step that does not exist, ValueError for layers that do not fit or
        a trace of several probes.
        """
        values, origin = donor, Origin()
        if isinstance(donor, Trace | Path | str):
            trace, origin = stored(donor)
            values, origin = (
                trace.block_obs,
                origin if steps is None else origin._replace(sigmas=()),
            )
        if not hasattr(values, "shape"):
            raise ValueError("Patch: the trace is of several probes; give the one observation")
        values, chosen = jnp.asarray(values), np.array([*map(operator.index, layers)], np.int32)
        values = values[:, :, None] if place == "input" else values
        steps = values.shape[1] if steps is None else steps
        if place != "input" and values.shape[2] != len(chosen):
            raise ValueError(f"Patch: {values.shape[2]} layers are stored, {len(chosen)} are named")
        on = choose(steps, at_steps, "step")
        source = np.arange(steps)
        if from_step is not None:
            source[:] = choose(values.shape[1], [from_step], "stored step").argmax()
        places(source[on].tolist(), values.shape[1], "stored step")
        source = jnp.asarray(np.where(on, source, -1), jnp.int32)
        return cls(place, values, source, jnp.asarray(chosen), tokens, basis, origin)

    def made_for(self) -> Sizes:
        return counted(self.source, "steps")

    def check(self, sizes: Mapping[str, int]) -> None:
        if self.place == "update":
            raise ValueError('Patch: what a block adds cannot be put back; patch "block"')
        rows = sizes["tokens"] if self.tokens is None else len(self.tokens)
        width = {
            "heads": (sizes["heads"], sizes["channels"] // sizes["heads"]),
            "neurons": (sizes["neurons"],),
        }.get(UNITS[self.place], (sizes["channels"],))
        found, expected = self.values.shape[3:], (rows, *width)
        if found != expected:
            held, here = ("×".join(map(str, shape)) for shape in (found, expected))
            raise ValueError(
                f"Patch holds {held} numbers (tokens × width) at {self.place!r}, this run has "
                f"{here}: they were stored from another model or grid"
            )
        if self.values.shape[0] not in (1, sizes["seeds"]):
            raise ValueError(
                f"Patch holds {self.values.shape[0]} seeds, this run has {sizes['seeds']}: store "
                "one, or as many"
            )

    def changes(self, world: int = 0) -> list[Change]:
        del world
        steps = np.flatnonzero(np.asarray(self.source) >= 0)
        if not len(steps):
            return []
        what = f"{NAMES[self.place]} of a stored run"
        layers = [0] if self.place == "input" else np.asarray(self.layers).tolist()
        cells = [(int(s), int(k)) for s in steps for k in layers]
        return [Change(what, "layer", max(layers) + 1, len(self.source), cells)]

    def act(self, site: Site, z: Array) -> tuple[Array, tuple[()]]:
        step = self.source[site.step]
        here = jnp.bool_(True) if self.place == "input" else (self.layers == site.layer).any()
        slot = 0 if self.place == "input" else jnp.argmax(self.layers == site.layer)
        seed = jax.lax.axis_index("seed") if len(self.values) > 1 else 0
        donor = self.values[seed, step, slot].astype(z.dtype)
        tokens = None if self.tokens is None else whole(self.tokens, "Patch.tokens")
        rows = z if tokens is None else z[tokens]
        if self.basis is None:
            new = donor
        else:
            exact = jnp.float32
            basis, apart = self.basis.astype(exact), donor.astype(exact) - rows.astype(exact)
            new = rows + (apart @ basis.T @ basis).astype(z.dtype)
        new = jnp.where(here & (step >= 0), new, rows)
        return new if tokens is None else z.at[tokens].set(new), ()


class Steer(Probe):
    """Adds a direction to the tokens after chosen blocks. *Does this direction cause what it goes
    with?*

    direction [D]. weight [seeds or 1, steps, layers]: how much of it, 0 for none. tokens [N]: to
    which, None for all. With the difference of two means (`difference`), weight 1 moves a token
    from one mean to the other (activation addition, arXiv 2308.10248, 2312.06681).
    Controls: a random direction of the same length; the direction with its sign turned; the same at
    steps after the answer is decided (`until`), where it should do less. Say what else it costs:
    the share of runs whose video stays legal. A few channels are large in every token; state the
    result with and without them.
    """

    direction: Float[Array, "*sweep D"]
    weight: Float[Array, "*sweep K S L"]
    tokens: Bool[Array, "*sweep N"] | None = None

    @classmethod
    def at(
        cls,
        config: WanConfig,
        direction: Array | np.ndarray,
        layers: Iterable[Place],
        *,
        when: Bool[np.ndarray, "*K S"] | Iterable[Place] | None = None,
        strength: float = 1.0,
        steps: int | None = None,
        tokens: Array | np.ndarray | None = None,
    ) -> "Steer":
        """Return a direction after some layers. when: steps, or a mask [steps] or [seeds, steps]
        (`until`); all by default. Raises IndexError for a layer or step that is not there,
        ValueError for a direction of another width."""
        steps = steps or config.sampling.steps
        if np.shape(direction) != (config.dit.dim,):
            raise ValueError(
                f"the direction has shape {np.shape(direction)}; the tokens of {config.name} have "
                f"{config.dit.dim} channels"
            )
        chosen = list(range(steps) if when is None else when)
        mask = np.asarray(chosen)
        if mask.dtype != np.bool_:
            mask = choose(steps, chosen, "step")
        where = choose(config.dit.layers, layers, "layer")
        weight = np.float32(strength) * (np.atleast_2d(mask)[..., None] & where)
        tokens = None if tokens is None else jnp.asarray(tokens)
        return cls(jnp.asarray(direction, jnp.float32), jnp.asarray(weight), tokens)

    def made_for(self) -> Sizes:
        seeds, *rest = counted(self.weight, "seeds", "steps", "layers")
        return (*([seeds] * (seeds[1] > 1)), *rest, *counted(self.direction, "channels"))

    def check(self, sizes: Mapping[str, int]) -> None:
        del sizes
        check_masks(self, "tokens")

    def changes(self, world: int = 0) -> list[Change]:
        del world
        return Change.at("a direction added", "layer", (np.asarray(self.weight) != 0).any(0))

    def on_block(self, site: Site, tokens: Tokens) -> tuple[Tokens, tuple[()]]:
        seed = jax.lax.axis_index("seed") if len(self.weight) > 1 else 0
        push = self.weight[seed, site.step, site.layer] * self.direction[None]
        if self.tokens is not None:
            push = push * self.tokens[:, None]
        return (tokens + push).astype(tokens.dtype), ()


def difference(
    of: Float[Array | np.ndarray, "*a D"], less: Float[Array | np.ndarray, "*b E"]
) -> Float[Array, " D"]:
    """Return the mean of some tokens [..., D] less that of others, in float32: a direction for
    `Steer`. Raises ValueError where their widths differ, or one has no tokens."""
    if of.shape[-1] != less.shape[-1]:
        raise ValueError(f"tokens have {of.shape[-1]} and {less.shape[-1]} channels; give the same")
    if not np.size(of) or not np.size(less):
        raise ValueError(f"tokens of {of.shape} and {less.shape} have no mean; choose some of both")
    means = (np.asarray(a, np.float32).reshape(-1, a.shape[-1]).mean(0) for a in (of, less))
    first, second = means
    return jnp.asarray(first - second)


def until(commitment: Iterable[float], steps: int) -> Bool[np.ndarray, "K S"]:
    """Return, for each seed, the steps before its commitment step, a mask for `Steer.at`; its
    negation is the steps from there on. nan: never decided, so all steps."""
    last = np.array([steps if np.isnan(c) else c for c in commitment], float)
    return np.arange(steps)[None] < last[:, None]
