"""What is refused of a probe before a run begins.

In a compiled program an index out of range is no error: it would act on the last step or layer, or
on none. So what a probe is made for, the numbers in its fields and what its methods return are
checked by these rules:

- A field is an index if its name is, or ends in `_` and, `layer`, `block`, `step`, `frame`, `head`,
  `token`, `seed` or `world`, singular or plural, and it holds integers: each is at least 0 and less
  than the run has. A single number in the plural (`steps: int`) may also be how many: up to and
  with what the run has. A row of booleans of such a name is a mask, as long as the run has.
- `Probe.field_axes` says it of other names, or that a field is no index (None).
- Numbers that are not known, inside a jitted function, are not checked; those of a `sweep` are.
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

from jcos.config import DiTConfig
from jcos.devices import mesh
from jcos.model.dit import DiT
from jcos.model.slots import Slots
from jcos.sampling.probe import Probe, Site
from jcos.sampling.probes import Chain, EstimateEnsemble, InWorlds, SeedEnsemble, parts

NAMES = {"frame": "latent frames", "block": "layers"} | {
    name: f"{name}s" for name in ("layer", "step", "head", "token", "seed", "world")
}
"""What fields of a name count."""
RETURNS = {
    "on_latents": ("latent",),
    "on_block": ("tokens", "observation"),
    "on_estimate": ("clean estimate", "observation"),
}
UNKNOWN = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
Shape = jax.ShapeDtypeStruct


def check_probe(
    probe: Any, expert: DiT, steps: int, shape: tuple[int, ...], *, guided: bool = False
) -> list[Shape]:
    """What the probe observes of the tokens after a block. Refuses it where it does not fit a run
    of `shape`: worlds, seeds, latent frames, height and width.

    Raises ValueError where it is made for another run or a method fails or returns something else,
    IndexError where a number in its fields is out of range, TypeError where it is no probe.
    """
    cfg = expert.cfg
    counts = _counts(cfg, steps, shape)
    if not isinstance(probe, Probe):
        raise TypeError(f"{probe!r:.99} is no probe: a probe is an object of a subclass of Probe")
    for what, size in probe.made_for():
        if size != counts[what]:
            made = f"{size} {what if size != 1 else what[:-1]}"
            raise ValueError(f"the probe is made for {made}; this run has {counts[what]}")
    _check_fields(probe, counts)
    return _check_hooks(probe, expert, shape, guided)


def check_averages(probe: Probe, seeds: int) -> None:
    """Raise ValueError where a probe averages over seeds, but no seed has another to average with:
    it would leave the run as it is. Masks whose values are not known yet (inside jit) pass."""
    averages = (SeedEnsemble, EstimateEnsemble)
    for part in jax.tree.leaves(probe, is_leaf=lambda p: isinstance(p, averages)):
        if not isinstance(part, averages):
            continue
        groups = jnp.zeros(seeds) if part.groups is None else part.groups
        if any(isinstance(a, Tracer) for a in (part.mask, groups)):
            continue
        if not np.any(part.mask) or groups.shape != (seeds,):  # the latter is `check_probe`'s
            continue
        sizes = np.unique(groups, return_counts=True)[1]
        if max(sizes) == 1:
            raise ValueError(
                f"{type(part).__name__} averages over seeds, but here each of {seeds} seed(s) is "
                "alone; give several seeds to average, or switch the mask off"
            )


def _counts(cfg: DiTConfig, steps: int, shape: tuple[int, ...]) -> dict[str, int]:
    worlds, seeds, *video = shape
    return {
        "steps": steps,
        "layers": cfg.layers,
        "heads": cfg.heads,
        "latent frames": video[0],
        "tokens": math.prod(cfg.tokens(*video)),
        "seeds": seeds,
        "worlds": worlds,
    }


# ---- numbers in fields

_swept: ContextVar[Mapping[int, Any]] = ContextVar("_swept")
"""The values over which a sweep runs, by the identity of those that stand for one of them."""


@contextlib.contextmanager
def swept(one: Any, values: Any) -> Iterator[None]:
    """Here `one` stands for every entry of the leading axis of `values`."""
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
        if isinstance(value, int | np.generic | np.ndarray | jax.Array):
            single = np.ndim(value) == 0 or types.get(name) in (int, "int")
            _check_numbers(f"{owner.__name__}.{name}", value, axis, counts[axis], plural and single)
        elif isinstance(value, list | tuple):
            for number in value:
                _check_numbers(f"{owner.__name__}.{name}", number, axis, counts[axis], False)
    if not isinstance(probe, Chain | InWorlds):
        for layers in jax.tree.leaves(probe.slots()):
            _check_numbers(f"{owner.__name__}.slots", layers, "layers", counts["layers"], False)
    for part in parts(probe):
        _check_fields(part, counts)


def _axis(owner: type[Probe], name: str) -> tuple[str | None, bool]:
    """What a field indexes, and whether its name is in the plural."""
    word = name.rpartition("_")[2]
    plural = word.endswith("s")
    if name in owner.field_axes:
        word, plural = owner.field_axes[name] or "", False
        if word and word.removesuffix("s") not in NAMES:
            known = ", ".join(f"{name}s" for name in NAMES)
            raise ValueError(f"{owner.__name__}.field_axes has {word!r}; there are {known}")
    return NAMES.get(word.removesuffix("s")), plural


def _check_numbers(field: str, value: Any, axis: str, size: int, may_count: bool) -> None:
    plain = isinstance(value, int | float)
    dtype = np.asarray(value).dtype if plain else getattr(value, "dtype", None)
    if dtype == np.bool_ and np.ndim(value) == 1 and len(value) != size:
        raise ValueError(f"{field} is a mask of {len(value)} {axis}; this run has {size}")
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
    """The numbers that a value is, or stands for in a `sweep` or `vmap`; None inside a program."""
    while isinstance(value, Tracer):
        value = _swept.get({}).get(id(value), getattr(value, "val", None))
    if isinstance(value, jax.Array):
        return np.asarray(value) if value.is_fully_addressable else None
    return np.asarray(value) if isinstance(value, int | np.generic | np.ndarray) else None


# ---- what methods return


def _check_hooks(probe: Probe, expert: DiT, shape: tuple[int, ...], guided: bool) -> list[Shape]:
    """What all of the probe's parts observe after a block."""
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
    return _trace_hooks(
        type(probe), tree, kinds, expert.cfg, expert.numerics.residual, shape, guided
    )


@lru_cache(256)
def _trace_hooks(
    owner: type[Probe],
    tree: Any,
    kinds: tuple[Any, ...],
    cfg: DiTConfig,
    residual: str,
    shape: tuple[int, ...],
    guided: bool,
) -> list[Shape]:
    """Calls every method with abstract values, on all named axes."""
    worlds, seeds, *video = shape
    latent: Any = Shape((*video, cfg.out_channels), jnp.float32)
    tokens = Shape((math.prod(cfg.tokens(*video)), cfg.dim), jnp.dtype(residual))
    whole: Any = Shape((), jnp.int32)
    real: Any = Shape((), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    site, fields = Site(whole, whole, whole, real, key, latent), list(kinds)
    observed: dict[str, Any] = {}

    def trace(hook: str, *values: Any, branches: int = 1) -> None:
        def call(fields: list[Any], site: Site, *values: Any) -> tuple[()]:
            observed[hook] = _call(tree.unflatten(fields), hook, site, values)
            return ()

        if getattr(owner, hook) is getattr(Probe, hook):
            return
        axes = {"world": worlds, "seed": seeds} | ({mesh.BRANCH: 2} if branches > 1 else {})
        for axis in reversed(axes):
            mapped = (None, Site(None, None, None, None, 0, 0), *[0] * len(values))  # type: ignore
            call = jax.vmap(call, mapped, axis_name=axis)
        sizes = tuple(axes.values())
        wide = site._replace(key=_more(key, sizes), last=_more(latent, sizes))
        jax.eval_shape(call, fields, wide, *(_more(value, sizes) for value in values))

    trace("on_latents", latent)
    trace("on_block", tokens, branches=1 + guided)
    slots = jax.eval_shape(lambda fields: _slots(tree.unflatten(fields)), fields)
    kept = Slots(slots, observed.get("on_block", ()))
    rows = zip(kept.chosen, kept.leaves, strict=True)
    stacked = [_more(leaf, (cfg.layers if at is None else len(at),)) for at, leaf in rows]
    trace("on_step", kept.tree.unflatten(stacked))
    trace("on_estimate", latent, latent)
    return kept.leaves


def _more(tree: Any, sizes: tuple[int, ...]) -> Any:
    """With leading axes of these sizes."""
    return jax.tree.map(lambda a: Shape((*sizes, *a.shape), a.dtype), tree)


def _slots(probe: Probe) -> Any:
    slots = probe.slots()
    for layers in jax.tree.leaves(slots):
        if jnp.ndim(layers) != 1 or not jnp.issubdtype(jnp.asarray(layers).dtype, jnp.integer):
            raise ValueError(
                f"{type(probe).__name__}.slots returned {_told(slots)}; expected None, or an array "
                "of layer numbers [l], for all of an observation or for each part"
            )
    return jax.tree.map(jnp.asarray, slots)


def _call(probe: Probe, hook: str, site: Site, values: tuple[Any, ...]) -> Any:
    """The shapes of what a method observes; ValueError where it fails or returns something else."""
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
        said = (str(error).strip() or "no message").splitlines()[0]
        raise ValueError(f"{name} fails with {type(error).__name__}: {said:.300}") from error
    if hook == "on_step":
        return _shapes(name, out)
    *_, first = values
    names = RETURNS[hook]
    want = f"{names[0]} {_told(first)}"
    if len(names) == 1:
        main, observation = out, ()
    elif isinstance(out, tuple | list) and len(out) == 2:
        main, observation = out
    else:
        raise ValueError(
            f"{name} returned {_told(out)}; expected two things: {want}, and an observation "
            "(`()` for none)"
        )
    if not hasattr(main, "dtype") or (main.shape, main.dtype) != (first.shape, first.dtype):
        raise ValueError(f"{name} returned {_told(main)}; expected {want}")
    return _shapes(name, observation)


def _shapes(name: str, observation: Any) -> Any:
    try:
        return jax.tree.map(lambda a: Shape(jnp.shape(a), jax.typeof(a).dtype), observation)
    except TypeError as error:
        raise ValueError(
            f"{name} observed {_told(observation)}; expected arrays, or tuples and dicts of them"
        ) from error


def _told(value: Any) -> str:
    """float32[12, 32] of an array; of other things what they are."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"{len(value)} things ({', '.join(_told(one) for one in value):.200})"
    return f"{value!r:.60}"
