"""The results of a trajectory: in memory, on disk, and as a dataset with named axes."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jcos.weights import arrays
from jcos.weights.checkpoint import CheckpointError


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
        arrays.save(folder, self._asdict(), {"kind": "Trace"})

    @classmethod
    def load(cls, folder: Path | str) -> "Trace":
        """Return what `save` wrote, as numpy arrays; CheckpointError where it is not whole."""
        tree, about = arrays.load(folder)
        if about.get("kind") != "Trace":
            raise CheckpointError(f"{folder} holds arrays, but no trace")
        return cls(**tree)

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
