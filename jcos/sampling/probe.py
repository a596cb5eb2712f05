"""Interventions and observations: data plus a few pure functions.

A probe acts on the model's input, on the tokens after every block, at places inside the blocks, and
on the clean estimate, and returns each with an observation. Step, frame and layer are arrays inside
the probe, so a sweep over positions is a `vmap` over probes, and one compiled program serves every
mask, also the empty one.

Every trajectory has two named axes: `seed` (same puzzle, other noise) and `world` (runs with the
same noise that differ in condition or intervention). Collectives over them work in any probe.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar, dataclass_transform

import flax.struct
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jcos.model.dit import SITES
from jcos.sampling.hooks import HOOKS, call

T = TypeVar("T")
Latents = Float[Array, "F H W C"]
Tokens = Float[Array, "N D"]
Sizes = tuple[tuple[str, int], ...]
"""Pairs of an axis (steps, layers, heads, neurons, latent frames, tokens, channels, seeds, worlds)
and its length."""
Heads = Float[Array, "N H d"]


class Site(NamedTuple):
    """Where a trajectory is; traced scalars.

    step: denoising step, 0 first. layer: DiT block, 0 first; −1 outside the blocks. branch: 0
    conditional, 1 unconditional. sigma: noise level of this step. key: randomness of this seed at
    this step for this probe in this method (in the model: in this layer and branch), the same in
    every world. last: the clean estimate of the step before, [F, H, W, C], zero at the first.
    estimate: in `on_block`, the clean estimate [F, H, W, C] that the model's head makes of tokens
    [N, D] at this step in this branch, without guidance: a lens.
    """

    step: Int[Array, ""]
    layer: Int[Array, ""]
    branch: Int[Array, ""]
    sigma: Float[Array, ""]
    key: Key[Array, ""]
    last: Latents | None = None
    estimate: Callable[[Tokens], Latents] | None = None

    def at(self, hook: str, layer: Int[Array, ""] | None = None) -> "Site":
        """Return the site in a method of the probe. The key of `on_latents` is the step's own."""
        if hook == "on_latents":
            return self
        here = self.folded(2**31 + HOOKS.index(hook))  # no position in a chain is so large
        return here if layer is None else here._replace(layer=layer).folded(layer, self.branch)

    def folded(self, *numbers: Int[Array, ""] | int) -> "Site":
        """Return the site with the key folded with `numbers`."""
        key = self.key
        for number in numbers:
            key = jax.random.fold_in(key, number)
        return self._replace(key=key)


class Change(NamedTuple):
    """What a probe changes in a run.

    what: in words. axis: "frame" (of the latent), "layer", "head" or "neuron" (`what` says of which
    layer). size: how many of these there are. steps: of the run. cells: pairs of step and place.
    """

    what: str
    axis: str
    size: int
    steps: int
    cells: Sequence[tuple[int, int]]

    @classmethod
    def at(cls, what: str, axis: str, mask: Bool[Array | np.ndarray, "S N"]) -> "list[Change]":
        """Return the change of the cells of a mask; nothing where all are off."""
        steps, size = mask.shape
        cells = [(int(step), int(place)) for step, place in np.argwhere(np.asarray(mask))]
        return [cls(what, axis, size, steps, cells)] if cells else []

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Change":
        cells = [(step, place) for step, place in data["cells"]]
        return cls(data["what"], data["axis"], data["size"], data["steps"], cells)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a dictionary; `text`: in a sentence."""
        return self._asdict() | {"text": str(self)}

    def __str__(self) -> str:
        steps, places = (sorted(set(side)) for side in zip(*self.cells, strict=True))
        if len(self.cells) < len(steps) * len(places):
            return f"{self.what} at {len(self.cells)} pairs of step and {self.axis}"
        words = [self.what]
        if len(places) < self.size or self.axis == "layer":
            words.append(f"{'after' if self.axis == 'layer' else 'in'} {self.axis}")
            words.append(_ranges(places))
        if len(steps) < self.steps:
            words.append(f"at step {_ranges(steps)}")
        return " ".join(words)


def _ranges(numbers: Sequence[int]) -> str:
    """Return 1, 2, 3, 7 as `1–3, 7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{r[0]}–{r[-1]}" if len(r) > 2 else ", ".join(map(str, r)) for r in runs)


def _pytree(cls: type) -> type:
    """Make a class a frozen dataclass and a pytree.

    Not by `flax.struct`: trees of two classes that JAX registers as dataclasses count as equal, and
    `jit` may take the program of the one for the other.
    """
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    static = [f.name for f in fields if not f.metadata.get("pytree_node", True)]
    arrays = [f.name for f in fields if f.name not in static]

    def flatten(probe: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return [getattr(probe, n) for n in arrays], tuple(getattr(probe, n) for n in static)

    def with_keys(probe: Any) -> tuple[list[Any], tuple[Any, ...]]:
        leaves, known = flatten(probe)
        keys = map(jax.tree_util.GetAttrKey, arrays)
        return list(zip(keys, leaves, strict=True)), known

    def unflatten(known: Any, leaves: Iterable[Any]) -> Any:
        probe = object.__new__(cls)
        for name, value in zip((*arrays, *static), (*leaves, *known), strict=True):
            object.__setattr__(probe, name, value)
        return probe

    jax.tree_util.register_pytree_with_keys(cls, with_keys, unflatten, flatten)
    return cls


@dataclass_transform(frozen_default=True, field_specifiers=(flax.struct.field, dataclasses.field))
class _Pytree:
    """What `_pytree` makes of every class below it."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__()
        _pytree(dataclasses.dataclass(frozen=True, **options)(cls))

    def replace(self: T, **fields: Any) -> T:
        """Return a copy with other values of these fields."""
        return dataclasses.replace(self, **fields)  # type: ignore[type-var]


class Probe(_Pytree):
    """An intervention or observation that does nothing; subclasses override what they need.

    Fields are arrays, or static and marked with `flax.struct.field(pytree_node=False)`.
    `tree_stack` of several probes has leading axes (`*sweep` below), which `sweep` takes off again.
    TypeError where a subclass has a method that is nearly named like one of these.

    field_axes: the axes that fields index, where their names mislead (`checks.py`); None for no
        index: `{"depth": "layers", "seed": None}`.
    """

    field_axes: ClassVar[Mapping[str, str | None]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in dir(cls):
            if not name.startswith("_") and name not in HOOKS and callable(getattr(cls, name)):
                _check_name(cls, name)

    def made_for(self) -> Sizes:
        """Return the sizes of runs that the probe's arrays fit, like (("steps", 50), ("layers",
        40)): others are refused before they begin."""
        return ()

    def check(self, sizes: Mapping[str, int]) -> None:
        """Raise ValueError where the probe does not fit a run of these sizes (those of `made_for`,
        of the tokens' channels and of the neurons of a feed-forward layer)."""
        del sizes

    def changes(self, world: int = 0) -> list[Change]:
        """Return what the probe changes in the runs of a world; nothing where it does not say."""
        del world
        return []

    def on_latents(self, site: Site, x: Latents) -> Latents:
        """Return the model's input [F, H, W, C] at this step."""
        del site
        return x

    def on_block(self, site: Site, tokens: Tokens) -> tuple[Tokens, Any]:
        """Return tokens [N, D] to continue with after a block, and an observation (any pytree)."""
        del site
        return tokens, ()

    def on_input(self, site: Site, tokens: Tokens) -> tuple[Tokens, Any]:
        """Return the tokens [N, D] that enter the first block, and an observation, which has no
        layer axis. Branches differ in their prompt alone, so far."""
        del site
        return tokens, ()

    def on_attention(self, site: Site, qk: tuple[Heads, Heads]) -> tuple[tuple[Heads, Heads], Any]:
        """Return queries and keys [N, heads, d] of self-attention, normed and rotated, in float32,
        and an observation. The map itself, N × N, is never there."""
        del site
        return qk, ()

    def on_heads(self, site: Site, z: Heads) -> tuple[Heads, Any]:
        """Return what the heads of self-attention add up from, [N, heads, d], before the output
        projection, and an observation."""
        del site
        return z, ()

    def on_cross(self, site: Site, z: Heads) -> tuple[Heads, Any]:
        """Return the same of cross-attention to the prompt."""
        del site
        return z, ()

    def on_mlp(self, site: Site, h: Float[Array, "N M"]) -> tuple[Float[Array, "N M"], Any]:
        """Return hidden units [N, ffn_dim], after the activation, and an observation."""
        del site
        return h, ()

    def on_update(
        self, site: Site, tokens: tuple[Tokens, Tokens]
    ) -> tuple[tuple[Tokens, Tokens], Any]:
        """Return what entered a block and what leaves it [N, D], and an observation. The second
        goes on, to `on_block`; their difference is what the block adds."""
        del site
        return tokens, ()

    def sites(self) -> tuple[str, ...]:
        """Return the places in the model (`SITES`) that the probe uses. Elsewhere it is not called,
        and costs nothing. By default those whose methods the class defines."""
        return tuple(s for s in SITES if defines(type(self), f"on_{s}"))

    def slots(self) -> Any:
        """Return the layers whose observations are kept: None for all, or an array of numbers [l],
        or a pytree of these, a prefix of the observation. Others are dropped as they arise."""
        return None

    def slots_of(self, site: str) -> Any:
        """Return `slots` of a place's observation."""
        slots, sites = self.slots(), self.sites()
        by_place = isinstance(slots, Mapping) and (len(sites) > 1 or {*slots} == {*sites})
        return slots.get(site) if by_place else slots

    def observation(self, observed: Mapping[str, Any]) -> Any:
        """Return the observation by place as `on_step` gets it: that of the only place that the
        probe uses, or a dict of several."""
        sites = self.sites() or ("block",)
        return observed[sites[0]] if len(sites) == 1 else {site: observed[site] for site in sites}

    def on_step(self, site: Site, observed: Any) -> Any:
        """Reduce the conditional observations [layers, …], or [l, …] as `slots` says. Of a probe
        that acts at several places they are a dict by place ("heads", "block", …)."""
        del site
        return observed

    def on_estimate(self, site: Site, x: Latents, x0: Latents) -> tuple[Latents, Any]:
        """Return the clean estimate to continue with, and an observation (`Trace.estimate_obs`).
        x: the model's input. x0: its estimate x − σv, after guidance."""
        del site, x
        return x0, ()

    def call(self, hook: str, site: Site, *values: Any) -> tuple[Any, Any]:
        """Return what a method returns: what to go on with (of `on_step`, the reduced observation),
        and an observation; a probe that wraps others calls theirs by it too. Raises ValueError
        where the method fails, or what it returns does not fit."""
        return call(self, hook, site, *values)


def parts(probe: Probe) -> list[Probe]:
    """Return the probes in the fields of another."""
    values = [getattr(probe, field.name) for field in dataclasses.fields(probe)]
    leaves = jax.tree.leaves(values, is_leaf=lambda value: isinstance(value, Probe))
    return [leaf for leaf in leaves if isinstance(leaf, Probe)]


def defines(cls: type, hook: str) -> bool:
    """Return whether a class of probes has its own method of this name; a `Combination` has its
    parts'."""
    method = getattr(cls, hook)
    return method is not getattr(Probe, hook) and not hasattr(method, "of_parts")


def _check_name(cls: type, name: str) -> None:
    """Raise TypeError where a name is nearly that of a method that a run calls."""
    near = difflib.get_close_matches(name.lower(), HOOKS, 1, 0.0 if name.startswith("on_") else 0.8)
    if near:
        raise TypeError(f"{cls.__name__}.{name} would never be called: is {near[0]} meant?")
