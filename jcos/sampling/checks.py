"""Checks of a probe before a run begins.

In a compiled program an index out of range is no error: it would act on the last step or layer, or
on none. So the sizes that a probe is made for and the numbers in its fields are checked (and what
its methods return, as they are called, in `hooks.py`):

- A field is an index if it holds integers and its name is, or ends in `_` and, `layer`, `block`,
  `step`, `frame`, `head`, `token`, `seed` or `world`, singular or plural. An index is at least 0
  and less than the run has; a single number in the plural (`steps: int`) may also be a count.
  Booleans [n] of such a name are a mask, as long as the run has.
- `Probe.field_axes` names the axes of other fields, or says that a field is no index (None).
- Numbers that are unknown, inside a jitted function, are not checked; those of a `sweep` are.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jcos.config import DiTConfig
from jcos.sampling.hooks import describe
from jcos.sampling.inside import KnockOut, Patch
from jcos.sampling.probe import Probe, parts
from jcos.sampling.probes import EstimateEnsemble, SeedEnsemble

NAMES = {"frame": "latent frames", "block": "layers"} | {
    name: f"{name}s" for name in ("layer", "step", "head", "token", "seed", "world")
}
"""Axes by the names of fields."""
AVERAGES = (SeedEnsemble, EstimateEnsemble)


def check_probe(probe: Any, cfg: DiTConfig, steps: int, shape: tuple[int, ...]) -> None:
    """Check what a probe is made for, and its fields.

    shape: worlds, seeds, latent frames, height and width of the run. Raises ValueError where the
    probe is made for another run, IndexError where a number in its fields is out of range.
    """
    worlds, seeds, *video = shape
    counts = {
        "steps": steps,
        "layers": cfg.layers,
        "heads": cfg.heads,
        "latent frames": video[0],
        "tokens": math.prod(cfg.tokens(*video)),
        "seeds": seeds,
        "worlds": worlds,
        "channels": cfg.dim,
        "neurons": cfg.ffn_dim,
    }
    for what, size in probe.made_for():
        if size != counts[what]:
            made = f"{size} {what if size != 1 else what[:-1]}"
            raise ValueError(f"the probe is made for {made}; this run has {counts[what]}")
    for part in all_parts(probe):
        _check_fields(part, counts)
        part.check(counts)


def all_parts(probe: Probe) -> list[Probe]:
    """Return a probe and all that it is made of."""
    return [probe, *(one for part in parts(probe) for one in all_parts(part))]


def check_averages(probe: Probe, seeds: int) -> None:
    """Raise ValueError where a probe averages over seeds, but each seed is alone, so that the run
    would stay as it is. Masks whose values are unknown (inside jit) pass."""
    for part in jax.tree.leaves(probe, is_leaf=lambda p: isinstance(p, AVERAGES)):
        if not isinstance(part, AVERAGES):
            continue
        groups = np.zeros(seeds) if part.groups is None else part.groups
        unknown = isinstance(part.mask, Tracer) or isinstance(groups, Tracer)
        if unknown or not np.any(part.mask) or groups.shape != (seeds,):  # see `made_for`
            continue
        if len(np.unique(groups)) == seeds:
            raise ValueError(
                f"{type(part).__name__} averages over seeds, but here each of {seeds} seed(s) is "
                "alone; give several seeds to average, or switch the mask off"
            )


def check_turns(probe: Probe, seeds: int, together: int | None) -> None:
    """Raise ValueError where there are no turns of `together` seeds (None: all), or a probe
    averages over seeds that do not run at the same time, or tells them apart: in every turn they
    are numbered from 0."""
    if together is None or together >= seeds:
        return
    if together < 1:
        raise ValueError(f"{together} seeds are to be denoised at a time; at least 1")
    for part in all_parts(probe):
        if isinstance(part, AVERAGES) and np.any(_known(part.mask)):
            raise ValueError(f"{type(part).__name__} averages over seeds; leave out {together=}")
    if name := by_seed(probe):
        raise ValueError(f"{name} tells seeds apart; leave out {together=}")


def check_order(probe: Probe) -> None:
    """Raise ValueError where a probe tells seeds apart, so that runs cannot change their place."""
    if name := by_seed(probe):
        raise ValueError(f"{name} tells seeds apart by their place, which is to change")


def by_seed(probe: Probe) -> str:
    """Return the name of a probe in it that tells seeds apart, by their place among those that run
    at the same time; nothing where there is none."""
    for part in all_parts(probe):
        per_seed = dict(part.made_for()).get("seeds", 1) > 1
        per_seed |= any(_axis(type(part), f.name)[0] == "seeds" for f in dataclasses.fields(part))
        per_seed |= isinstance(part, Patch) and len(part.values) > 1
        if per_seed or (isinstance(part, KnockOut) and part.by == "seed"):
            return type(part).__name__
    return ""


# ---- numbers in fields

_swept: ContextVar[Mapping[int, Any]] = ContextVar("_swept")
"""The values of a sweep, by the identity of the tracers that stand for them."""


@contextlib.contextmanager
def swept(one: Any, values: Any) -> Iterator[None]:
    """Within: `one` stands for every entry of the leading axis of `values`."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(values), strict=True)
    token = _swept.set({**_swept.get({}), **{id(leaf): value for leaf, value in pairs}})
    try:
        yield
    finally:
        _swept.reset(token)


def _check_fields(probe: Probe, counts: Mapping[str, int]) -> None:
    owner, types = type(probe), {f.name: f.type for f in dataclasses.fields(probe)}
    for name in dir(probe):
        axis, plural = _axis(owner, name)
        if axis is None or isinstance(getattr(owner, name, None), property):
            continue
        value = getattr(probe, name)
        row = isinstance(value, list | tuple)
        single = not row and (np.ndim(value) == 0 or types.get(name) in (int, "int"))
        for number in value if row else [value]:
            _check_numbers(
                f"{owner.__name__}.{name}", number, axis, counts[axis], plural and single
            )
    for layers in jax.tree.leaves(slots := probe.slots()):
        if jnp.ndim(layers) != 1 or not jnp.issubdtype(jnp.asarray(layers).dtype, jnp.integer):
            raise ValueError(
                f"{owner.__name__}.slots returned {describe(slots)}; expected None, or layer "
                "numbers [l] for all of an observation or each part"
            )
        _check_numbers(f"{owner.__name__}.slots", layers, "layers", counts["layers"], False)


def _axis(owner: type[Probe], name: str) -> tuple[str | None, bool]:
    """Return what a field indexes, and whether its name is in the plural."""
    word = name.rpartition("_")[2]
    plural = word.endswith("s")
    if name in owner.field_axes:
        word, plural = owner.field_axes[name] or "", False
        if word and word.removesuffix("s") not in NAMES:
            known = ", ".join(f"{name}s" for name in NAMES)
            raise ValueError(f"{owner.__name__}.field_axes has {word!r}; there are {known}")
    return NAMES.get(word.removesuffix("s")), plural


def _check_numbers(field: str, value: Any, axis: str, size: int, may_count: bool) -> None:
    dtype = np.dtype(int) if type(value) is int else getattr(value, "dtype", None)
    if dtype == np.bool_ and np.ndim(value) == 1 and np.size(value) != size:
        raise ValueError(f"{field} is a mask of {np.size(value)} {axis}; this run has {size}")
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer):
        return
    numbers = _known(value)
    if numbers is None:
        return
    wrong = numbers[(numbers < 0) | (numbers >= size + may_count)]
    if wrong.size:
        one = f"{axis[:-1]} {wrong.flat[0]}"
        end = f"there are {axis} 0 to {size - 1}" + (f", or up to {size} of them" * may_count)
        hint = f"If it is something else, field_axes = {{{field.rpartition('.')[2]!r}: None}}."
        raise IndexError(f"{field}: {one} is out of range: {end}. {hint}")


def _known(value: Any) -> np.ndarray | None:
    """Return the numbers of a value, also under `sweep` or `vmap`; None inside a program."""
    while isinstance(value, Tracer):
        value = _swept.get({}).get(id(value), getattr(value, "val", None))
    if isinstance(value, jax.Array):
        here = value.is_fully_addressable or value.is_fully_replicated
        return np.asarray(value) if here else None
    return np.asarray(value) if isinstance(value, int | np.generic | np.ndarray) else None
