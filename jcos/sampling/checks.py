"""Checks of a probe before a run begins.

In a compiled program an index out of range is no error: it would act on the last step or layer, or
on none. So the sizes that a probe is made for, the numbers in its fields and what its methods
return are checked:

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
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from jcos.config import DiTConfig, Numerics
from jcos.devices import mesh
from jcos.model.dit import DiT, computed_at
from jcos.model.slots import Slots
from jcos.sampling.inside import KnockOut, Patch
from jcos.sampling.probe import Probe, Site
from jcos.sampling.probes import Chain, EstimateEnsemble, InWorlds, SeedEnsemble, parts

NAMES = {"frame": "latent frames", "block": "layers"} | {
    name: f"{name}s" for name in ("layer", "step", "head", "token", "seed", "world")
}
"""Axes by the names of fields."""
RETURNS = {
    "on_latents": "latent",
    "on_block": "tokens",
    "on_estimate": "clean estimate",
    "on_input": "tokens",
    "on_attention": "queries and keys",
    "on_heads": "the heads' outputs",
    "on_cross": "the heads' outputs",
    "on_mlp": "hidden units",
    "on_update": "tokens before and after the block",
}
"""The first thing that methods return; all but `on_latents` an observation too."""
UNKNOWN = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
AVERAGES = (SeedEnsemble, EstimateEnsemble)
Shape = jax.ShapeDtypeStruct


def check_probe(
    probe: Any, expert: DiT, steps: int, shape: tuple[int, ...], *, guided: bool = False
) -> list[Shape]:
    """Return what the probe observes of the tokens after a block.

    shape: worlds, seeds, latent frames, height and width of the run. Raises ValueError where the
    probe is made for another run or a method fails or returns something else, IndexError where a
    number in its fields is out of range, TypeError where it is no probe.
    """
    cfg, (worlds, seeds, *video) = expert.cfg, shape
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
    if not isinstance(probe, Probe):
        raise TypeError(f"{probe!r:.99} is no probe: a probe is an object of a subclass of Probe")
    for what, size in probe.made_for():
        if size != counts[what]:
            made = f"{size} {what if size != 1 else what[:-1]}"
            raise ValueError(f"the probe is made for {made}; this run has {counts[what]}")
    _check_fields(probe, counts)
    for part in all_parts(probe):
        part.check(counts)
    return _check_hooks(probe, expert, shape, guided)


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


def difference(a: Any, b: Any, name: str = "") -> str:
    """Return in words the first difference of two pytrees that is not in their arrays."""
    if type(a) is not type(b):
        kinds = ("None" if v is None else f"{type(v).__name__}" for v in (a, b))
        return "{} is {} here and {} there".format(name or "one", *kinds)
    if dataclasses.is_dataclass(a):
        for field in dataclasses.fields(a):
            one, other = getattr(a, field.name), getattr(b, field.name)
            where = f"{type(a).__name__}.{field.name}"
            if not field.metadata.get("pytree_node", True):
                if one != other:
                    return f"{where} is {one!r:.60} here and {other!r:.60} there"
            elif jax.tree.structure(one) != jax.tree.structure(other):
                return difference(one, other, where)
    if isinstance(a, tuple | list) and len(a) == len(b):
        for one, other in zip(a, b, strict=True):
            if jax.tree.structure(one) != jax.tree.structure(other):
                return difference(one, other, name)
    return f"{name or type(a).__name__} differs in more than arrays"


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
    if not isinstance(probe, Chain | InWorlds):
        for layers in jax.tree.leaves(probe.slots()):
            _check_numbers(f"{owner.__name__}.slots", layers, "layers", counts["layers"], False)
    for part in parts(probe):
        _check_fields(part, counts)


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


# ---- what methods return


def _check_hooks(probe: Probe, expert: DiT, shape: tuple[int, ...], guided: bool) -> list[Shape]:
    """Return what all parts of the probe observe in a block."""
    if isinstance(probe, Chain | InWorlds):
        return [leaf for part in parts(probe) for leaf in _check_hooks(part, expert, shape, guided)]
    leaves, tree = jax.tree.flatten(probe)
    try:
        types = [jax.typeof(leaf) for leaf in leaves]
    except TypeError as error:
        raise TypeError(
            f"{type(probe).__name__} has a field that holds no array ({error!s:.200}): mark it "
            "as static, flax.struct.field(pytree_node=False), or give an array"
        ) from error
    kinds = tuple(Shape(a.shape, a.dtype, weak_type=a.weak_type) for a in types)
    return _trace_hooks(tree, kinds, expert.cfg, expert.numerics, shape, guided)


@lru_cache(256)
def _trace_hooks(
    tree: Any,
    kinds: tuple[Any, ...],
    cfg: DiTConfig,
    numerics: Numerics,
    shape: tuple[int, ...],
    guided: bool,
) -> list[Shape]:
    """Call every method with abstract values, on all named axes."""
    worlds, seeds, *video = shape
    observed: list[Any] = []

    def step(fields: Any, number: Array, sigma: Array, world: Array, seed: Array) -> None:
        probe, value = tree.unflatten(fields), world + seed
        latent = jnp.full((*video, cfg.out_channels), value)
        key = jax.random.key(seed.astype(jnp.int32))
        site = Site(number, number, number, sigma, key, latent, lambda _: latent)

        def block(branch: Array) -> None:
            tokens = math.prod(cfg.tokens(*video))
            computed = jax.tree.map(
                lambda a: jnp.full(a.shape, value + branch, a.dtype),
                computed_at(cfg, numerics, tokens),
            )
            used = {"block", *probe.sites()}
            found = {s: _call(probe, f"on_{s}", site, z) for s, z in computed.items() if s in used}
            observed.append(found)

        _call(probe, "on_latents", site, latent)
        if guided:
            jax.vmap(block, axis_name=mesh.BRANCH)(jnp.zeros(2))
        else:
            block(jnp.zeros(()))
        _call(probe, "on_step", site, _stacked(probe, observed[-1], cfg.layers, value))
        _call(probe, "on_estimate", site, latent, latent)

    runs = jax.vmap(step, (None, None, None, None, 0), axis_name=mesh.SEED)
    runs = jax.vmap(runs, (None, None, None, 0, None), axis_name=mesh.WORLD)
    scalar = jnp.int32(0), jnp.float32(0)
    jax.eval_shape(runs, kinds, *scalar, jnp.zeros(worlds), jnp.zeros(seeds))
    return jax.tree.leaves(observed[-1])


def _stacked(probe: Probe, observed: dict[str, Any], layers: int, value: Array) -> Any:
    """Return the observation, by place `observed` of one layer, of all layers that are kept."""
    _slots(probe)
    stacked = {}
    for place, shapes in observed.items():
        slots = Slots(probe.slots_of(place), shapes)
        stacked[place] = slots.tree.unflatten(
            [
                jnp.full(leaf.shape if place == "input" else (count, *leaf.shape), value).astype(
                    leaf.dtype
                )
                for at, leaf in zip(slots.chosen, slots.leaves, strict=True)
                for count in [layers if at is None else len(at)]
            ]
        )
    return probe.observation(stacked)


def _slots(probe: Probe) -> Any:
    slots = probe.slots()
    for layers in jax.tree.leaves(slots):
        if jnp.ndim(layers) != 1 or not jnp.issubdtype(jnp.asarray(layers).dtype, jnp.integer):
            raise ValueError(
                f"{type(probe).__name__}.slots returned {_describe(slots)}; expected None, or "
                "layer numbers [l] for all of an observation or each part"
            )
    return jax.tree.map(jnp.asarray, slots)


def _call(probe: Probe, hook: str, site: Site, *values: Any) -> Any:
    """Return the shapes of a method's observation; ValueError where it fails or does not fit."""
    name = f"{type(probe).__name__}.{hook}"
    try:
        out = getattr(probe, hook)(site, *values)
    except UNKNOWN as error:
        raise ValueError(
            f"{name} needs the value of an array in Python (`if`, `and`, `int`, `range`, numpy), "
            "but step, layer and fields have none before the run: use jnp.where or jax.lax.cond, "
            "or a field that is static (flax.struct.field(pytree_node=False))"
        ) from error
    except Exception as error:
        message = (str(error).strip() or "no message").splitlines()[0]
        raise ValueError(f"{name} fails with {type(error).__name__}: {message:.300}") from error
    if hook == "on_step":
        return _shapes(name, out)
    *_, first = values
    want = f"{RETURNS[hook]} {_describe(first)}"
    pair = (out, ()) if hook == "on_latents" else out
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(
            f"{name} returned {_describe(out)}; expected two things: {want}, and an observation "
            "(`()` for none)"
        )
    main, observation = pair
    if not _alike(main, first):
        raise ValueError(f"{name} returned {_describe(main)}; expected {want}")
    return _shapes(name, observation)


def _shapes(name: str, observation: Any) -> Any:
    try:
        return jax.tree.map(lambda a: Shape(jnp.shape(a), jax.typeof(a).dtype), observation)
    except TypeError as error:
        raise ValueError(
            f"{name} observed {_describe(observation)}; expected arrays, tuples or dicts of them"
        ) from error


def _alike(main: Any, first: Any) -> bool:
    """Whether arrays, or pairs of them, have the same shapes and types."""
    if isinstance(first, tuple):
        pair = isinstance(main, tuple) and len(main) == len(first)
        return pair and all(map(_alike, main, first))
    return hasattr(main, "dtype") and (main.shape, main.dtype) == (first.shape, first.dtype)


def _describe(value: Any) -> str:
    """Return float32[12, 32] for an array."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"{len(value)} things ({', '.join(_describe(one) for one in value):.200})"
    return f"{value!r:.60}"
