"""The results of a trajectory: in memory, on disk, and as a dataset with named axes."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import Array, Bool, Float, Int

from jcos.devices import memory, sharding
from jcos.files import any_path, write
from jcos.weights.checkpoint import CheckpointError, leaves, quiet_orbax, source_of, target_of

OUTLINE = "outline.json"
"""The containers of a trace, with its arrays' numbers; written last."""
BAD_LAYER = "first block whose tokens have inf or nan; -1 for none"


class Trace(NamedTuple):
    """The results of a trajectory.

    latents: the final ones, [F, H, W, C]. x0: each step's clean estimate, [S, F, H, W, C].
    block_obs, estimate_obs: what the probe observed after blocks and of the estimates, [S, …].
    finite: whether each step's estimate is free of inf and nan, [S]. layer: the first block whose
    tokens were not, [S]; −1 for none. sigma, timestep: of each step, [S].
    """

    latents: Float[Array, "*axes F H W C"]
    x0: Float[Array, "*axes S F H W C"]
    block_obs: Any
    estimate_obs: Any
    finite: Bool[Array, "*axes S"]
    layer: Int[Array, "*axes S"]
    sigma: Float[Array, "*axes S"]
    timestep: Float[Array, "*axes S"]

    @property
    def origin(self) -> "Origin":
        """What is known of the run that this is of."""
        first = (0,) * (self.latents.ndim - 4)
        sigmas = tuple(sharding.to_host(self.sigma)[first].tolist())
        return Origin(grid=self.latents.shape[-4:-1], sigmas=sigmas)

    def save(self, folder: Path | str, model: Any = "") -> None:
        """Write an Orbax folder; every process calls it and writes its own shards. Observations are
        tuples, dicts and arrays. model: that made it, or its `model_digest`, so that a `Patch` of
        this folder can refuse another. Raises FileExistsError where it exists."""
        folder, model = any_path(folder), model if isinstance(model, str) else model_digest(model)
        arrays, structure = jax.tree.flatten(self._asdict())
        names = [str(i) for i in range(len(arrays))]
        outline = jax.tree.unflatten(structure, names)
        arrays = [a if isinstance(a, jax.Array) else np.asarray(a) for a in arrays]
        if jax.process_count() > 1:  # or one might find what another has just made
            multihost_utils.sync_global_devices("jcos.Trace.save")
        if (folder / OUTLINE).exists():
            raise FileExistsError(f"{folder} exists; remove it or choose another name")
        whole = target_of(folder / "arrays")
        with whole as place, quiet_orbax(), ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(place, dict(zip(names, arrays, strict=True)), force=True)
        if jax.process_index() == 0:
            about = {"kind": "Trace", "model": model}
            write(folder / OUTLINE, json.dumps({"outline": outline, "about": about}))

    @classmethod
    def load(cls, folder: Path | str) -> "Trace":
        """Return what `save` wrote, as numpy arrays; CheckpointError where it is not whole."""
        folder, outline = any_path(folder), _outline(folder)[0]
        whole = source_of(folder / "arrays")
        with whole as place, quiet_orbax(), ocp.PyTreeCheckpointer() as checkpointer:
            stored = checkpointer.metadata(place).item_metadata.tree
            as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in stored}
            arrays = checkpointer.restore(place, restore_args=as_numpy)
        return cls(**_filled(outline, arrays))

    def to_xarray(self, lead: Sequence[str] | None = None) -> Any:
        """Return an `xarray.Dataset` (extra `lab`) with named axes and the coordinates step, sigma
        and timestep.

        lead: names of the leading axes, by default `seed`, or `world` and `seed`; name those of a
        `sweep`. Raises ValueError for another number of them.
        Observations that are an array [S, …] have axes block_obs_0, …; others are left out.
        """
        import xarray

        axes = self.latents.ndim - 4
        lead = ("world", "seed")[max(0, 2 - axes) :] if lead is None else tuple(lead)
        if len(lead) != axes:
            raise ValueError(f"there are {axes} leading axes; name them, in place of {lead}")
        video = ("frame", "row", "column", "channel")
        first = (0,) * len(lead)
        steps = {"sigma": self.sigma, "timestep": self.timestep}
        coords: dict[str, Any] = {"step": np.arange(self.x0.shape[len(lead)])}
        coords |= {name: ("step", np.asarray(a[first])) for name, a in steps.items()}
        data: dict[str, Any] = {
            "latents": ((*lead, *video), np.asarray(self.latents)),
            "x0": ((*lead, "step", *video), np.asarray(self.x0)),
            "finite": ((*lead, "step"), np.asarray(self.finite)),
            "bad_layer": ((*lead, "step"), np.asarray(self.layer), {"long_name": BAD_LAYER}),
        }
        for name in ("block_obs", "estimate_obs"):
            if hasattr(value := getattr(self, name), "ndim"):
                more = [f"{name}_{i}" for i in range(value.ndim - len(lead) - 1)]
                data[name] = ((*lead, "step", *more), np.asarray(value))
        return xarray.Dataset(data, coords)


class Origin(NamedTuple):
    """Which run values are stored from: the `model_digest`, frames, height and width of the latent,
    the noise levels of the steps; empty where that is not known."""

    model: str = ""
    grid: tuple[int, ...] = ()
    sigmas: tuple[float, ...] = ()

    def apart(self, run: "Origin") -> str:
        """Return in words how a run differs from this one; nothing where it does not."""
        if self.model and run.model and self.model != run.model:
            return "another model"
        if self.grid and self.grid != run.grid:
            sizes = ("×".join(map(str, grid)) for grid in (self.grid, run.grid))
            return "another grid: {} latent cells, this run has {}".format(*sizes)
        if self.sigmas and len(self.sigmas) != len(run.sigmas):
            return f"another step plan: {len(self.sigmas)} steps, this run has {len(run.sigmas)}"
        if self.sigmas and not np.allclose(self.sigmas, run.sigmas, atol=1e-5):
            return "another step plan: its noise levels differ"
        return ""


def stored(source: Trace | Path | str) -> tuple[Trace, Origin]:
    """Return a trace, or the one in a folder of `Trace.save`, with its origin. Raises
    CheckpointError as `Trace.load`."""
    if isinstance(source, Trace):
        return source, source.origin
    trace = Trace.load(source)
    return trace, trace.origin._replace(model=_outline(source)[1])


def _outline(folder: Path | str) -> tuple[Any, str]:
    """Return the outline in a folder, and the digest of the model."""
    try:
        content = json.loads((any_path(folder) / OUTLINE).read_text())
        about = content["about"]
        return {"Trace": content["outline"]}[about["kind"]], about.get("model", "")
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{folder} holds no trace, or not all of it") from None


def _filled(outline: Any, leaves: dict[str, Any]) -> Any:
    """Return the arrays in the containers of a tree, which names them by number."""
    match outline:
        case dict():
            return {key: _filled(value, leaves) for key, value in outline.items()}
        case list():
            return tuple(_filled(value, leaves) for value in outline)
        case str():
            return leaves[outline]
    return None


def model_digest(model: Any) -> str:
    """Return a digest of a model's transformers and of the numerics that they compute in."""
    return digest(leaves(model.experts), repr((model.config.dit, model.config.numerics)))


def described(structure: Any) -> str:
    """Return the structure of a pytree as text, alike in every process: without addresses."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(structure))


def digest(tree: Any, about: str = "") -> str:
    """Return a digest of a text and a pytree, alike in every process. Of arrays over a million
    numbers, 4,096 count; masks count whole."""
    leaves, structure = jax.tree.flatten(tree)
    digest = hashlib.sha256(f"{about} {described(structure)}".encode())
    for leaf in leaves:
        array = jnp.asarray(leaf)
        digest.update(f"{array.shape} {array.dtype}".encode())
        if array.sharding.memory_kind == memory.HOST:
            array = sharding.to_host(array)
        if array.size > 1_000_000 and array.dtype != np.bool_:
            array = array.reshape(-1)[:: array.size // 4096]
        digest.update(np.ascontiguousarray(sharding.to_host(array)).tobytes())
    return digest.hexdigest()
