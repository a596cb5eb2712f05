"""Interventions and observations: data plus four pure functions.

A probe acts on the model's input, on the tokens after every block, and on the clean estimate, and
returns each with an observation. Step, frame and layer are arrays inside the probe, so a sweep over
positions is a `vmap` over probes, and one compiled program serves every mask, also the empty one.

Every trajectory has two named axes: `seed` (same puzzle, other noise) and `world` (runs with the
same noise that differ in condition or intervention). Collectives over them work in any probe.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import flax.struct
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

Latents = Float[Array, "F H W C"]
Tokens = Float[Array, "N D"]
Sizes = tuple[tuple[str, int], ...]
"""Pairs of an axis (steps, layers, latent frames, tokens, seeds, worlds) and its length."""
HOOKS = ("on_latents", "on_block", "on_step", "on_estimate")
"""The methods of a probe that a run calls."""


class Site(NamedTuple):
    """Where a trajectory is; traced scalars.

    step: denoising step, 0 first. layer: DiT block, 0 first; −1 outside the blocks. branch: 0
    conditional, 1 unconditional. sigma: noise level of this step. key: randomness of this seed at
    this step for this probe in this method (after blocks: in this layer and branch), the same in
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

    what: in words. axis: "frame" (of the latent) or "layer". size: how many of these there are.
    steps: of the run. cells: pairs of step and frame or layer.
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


class Probe(flax.struct.PyTreeNode):
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

    def slots(self) -> Any:
        """Return the layers whose observations are kept: None for all, or an array of numbers [l],
        or a pytree of these, a prefix of the observation. Others are dropped as they arise."""
        return None

    def on_step(self, site: Site, observed: Any) -> Any:
        """Reduce the conditional observations [layers, …], or [l, …] as `slots` says."""
        del site
        return observed

    def on_estimate(self, site: Site, x: Latents, x0: Latents) -> tuple[Latents, Any]:
        """Return the clean estimate to continue with, and an observation (`Trace.estimate_obs`).
        x: the model's input. x0: its estimate x − σv, after guidance."""
        del site, x
        return x0, ()


def _check_name(cls: type, name: str) -> None:
    """Raise TypeError where a name is nearly that of a method that a run calls."""
    near = difflib.get_close_matches(name.lower(), HOOKS, 1, 0.0 if name.startswith("on_") else 0.8)
    if near:
        raise TypeError(f"{cls.__name__}.{name} would never be called: is {near[0]} meant?")
