"""The methods of a probe that a run calls, and what they have to return."""

from typing import Any

import jax

from jcos.model.dit import SITES

HOOKS = ("on_latents", "on_block", "on_step", "on_estimate", *(f"on_{site}" for site in SITES[:-1]))
"""Their order decides their random keys."""
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


class ProbeError(ValueError):
    """A method of a probe that fails, or returns something else than it has to."""


def call(probe: Any, hook: str, site: Any, *values: Any) -> tuple[Any, Any]:
    """Return what a method returns: what to go on with (of `on_step`, the reduced observation), and
    an observation. Raises ProbeError where it fails, or what it returns does not fit."""
    name = f"{type(probe).__name__}.{hook}"
    try:
        out = getattr(probe, hook)(site, *values)
    except ProbeError:
        raise
    except UNKNOWN as error:
        raise ProbeError(
            f"{name} needs the value of an array in Python (`if`, `and`, `int`, `range`, numpy), "
            "but step, layer and fields have none before the run: use jnp.where or jax.lax.cond, "
            "or a field that is static (flax.struct.field(pytree_node=False))"
        ) from error
    except Exception as error:
        message = (str(error).strip() or "no message").splitlines()[0]
        raise ProbeError(f"{name} fails with {type(error).__name__}: {message:.300}") from error
    if hook == "on_step":
        return _arrays(name, out), ()
    want = f"{RETURNS[hook]} {describe(values[-1])}"
    pair = (out, ()) if hook == "on_latents" else out
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ProbeError(
            f"{name} returned {describe(out)}; expected two things: {want}, and an observation "
            "(`()` for none)"
        )
    main, observation = pair
    if not _alike(main, values[-1]):
        raise ProbeError(f"{name} returned {describe(main)}; expected {want}")
    return main, _arrays(name, observation)


def _arrays(name: str, observation: Any) -> Any:
    try:
        jax.tree.map(jax.typeof, observation)
    except TypeError as error:
        raise ProbeError(
            f"{name} observed {describe(observation)}; expected arrays, tuples or dicts of them"
        ) from error
    return observation


def _alike(main: Any, first: Any) -> bool:
    """Return whether arrays, or pairs of them, have the same shapes and types."""
    if isinstance(first, tuple):
        pair = isinstance(main, tuple) and len(main) == len(first)
        return pair and all(map(_alike, main, first))
    return hasattr(main, "dtype") and (main.shape, main.dtype) == (first.shape, first.dtype)


def describe(value: Any) -> str:
    """Return float32[12, 32] for an array."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"{len(value)} things ({', '.join(describe(one) for one in value):.200})"
    return f"{value!r:.60}"
