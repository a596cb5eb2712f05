"""The results of a trajectory: in memory, on disk, and as a dataset with named axes."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import Array, Bool, Float, Int

from jcos.files import any_path, write
from jcos.weights.checkpoint import CheckpointError, quiet_orbax, source_of, target_of

OUTLINE = "outline.json"
"""The containers of a trace, with its arrays' numbers; written last."""


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

    def save(self, folder: Path | str) -> None:
        """Write an Orbax folder; every process calls it and writes its own shards. Observations are
        tuples, dicts and arrays. Raises FileExistsError where it exists."""
        folder = any_path(folder)
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
            write(folder / OUTLINE, json.dumps({"outline": outline, "about": {"kind": "Trace"}}))

    @classmethod
    def load(cls, folder: Path | str) -> "Trace":
        """Return what `save` wrote, as numpy arrays; CheckpointError where it is not whole."""
        folder = any_path(folder)
        try:
            content = json.loads((folder / OUTLINE).read_text())
            outline = {"Trace": content["outline"]}[content["about"]["kind"]]
        except (OSError, ValueError, KeyError, TypeError):
            raise CheckpointError(f"{folder} holds no trace, or not all of it") from None
        whole = source_of(folder / "arrays")
        with whole as place, quiet_orbax(), ocp.PyTreeCheckpointer() as checkpointer:
            stored = checkpointer.metadata(place).item_metadata.tree
            as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in stored}
            arrays = checkpointer.restore(place, restore_args=as_numpy)
        return cls(**_filled(outline, arrays))

    def to_xarray(self) -> Any:
        """Return an `xarray.Dataset` (extra `lab`) with named axes and the coordinates step, sigma
        and timestep; leading axes are `seed`, or `world` and `seed`.

        Observations that are an array [S, …] have axes block_obs_0, …; others are left out.
        """
        import xarray

        lead = ("seed", "world")[: self.latents.ndim - 4][::-1]
        video = ("frame", "row", "column", "channel")
        first = (0,) * len(lead)
        steps = {"sigma": self.sigma, "timestep": self.timestep}
        coords: dict[str, Any] = {"step": np.arange(self.x0.shape[len(lead)])}
        coords |= {name: ("step", np.asarray(a[first])) for name, a in steps.items()}
        data: dict[str, Any] = {
            "latents": ((*lead, *video), np.asarray(self.latents)),
            "x0": ((*lead, "step", *video), np.asarray(self.x0)),
            "finite": ((*lead, "step"), np.asarray(self.finite)),
        }
        for name in ("block_obs", "estimate_obs"):
            if hasattr(value := getattr(self, name), "ndim"):
                more = [f"{name}_{i}" for i in range(value.ndim - len(lead) - 1)]
                data[name] = ((*lead, "step", *more), np.asarray(value))
        return xarray.Dataset(data, coords)


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
