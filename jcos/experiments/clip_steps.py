"""What clips show step by step, where no judge can tell what is right: distances, and a film."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int

from jcos.experiments import plots
from jcos.experiments.experiment import Experiment, Picture, Progress, looked_at
from jcos.experiments.films import film_figures, films
from jcos.experiments.samples import Samples
from jcos.experiments.sweeps import Readout
from jcos.experiments.watching import rms
from jcos.lab.measures import POSITIVE
from jcos.lab.results import Variable, measure
from jcos.sampling import flow
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan

DISTANCE = "Distance of estimates, over the norm of the last."


def clip_steps(
    experiment: Experiment, model: Wan, samples: Samples, progress: Progress
) -> xr.Dataset:
    """Return the distance of every estimate of every clip to the last, and to the one before."""
    to_end, change, x0 = watch_clips(experiment, model, samples, watch_distance, progress)
    names = {"distance to the end": to_end, "distance to the step before": change}
    return clip_dataset(experiment, model, samples, names, x0)


def watch_clips(
    experiment: Experiment, model: Wan, samples: Samples, readout: Readout, progress: Progress
) -> Any:
    """Return what a readout reads of every clip; its last is estimates at the looked-at steps."""
    listed = np.array(looked_at(experiment.plan(model.config).steps), np.int32)
    read = experiment.sweep(model, progress)(
        samples.conditions,
        readout=readout,
        aux=np.tile(listed, (len(samples), 1)),
        what="watching every step",
    )
    progress("decoding", 0, 1)
    return jax.tree.map(lambda a: a[0], read)


def watch_distance(
    model: Wan, plan: flow.Plan, trace: Trace, steps: Int[Array, " shown"]
) -> tuple[Float[Array, "K S"], Float[Array, "K S"], Float[Array, "K shown F h w C"]]:
    """Return the distance of each estimate to the last and to the one before (the first: to
    nothing), over the norm of the last; and some of the estimates."""
    del model, plan
    x0 = trace.x0[0]
    before = jnp.concatenate([jnp.zeros_like(x0[:, :1]), x0[:, :-1]], axis=1)
    size = rms(x0[:, -1:])
    return rms(x0 - x0[:, -1:]) / size, rms(x0 - before) / size, x0[:, steps]


def clip_dataset(
    experiment: Experiment,
    model: Wan,
    samples: Samples,
    distances: Mapping[str, Float[np.ndarray, "P K S"]],
    x0: Float[Array | np.ndarray, "P K s F h w C"],
) -> xr.Dataset:
    """Return distances by name, and a film of the first clip's estimates at the looked-at steps."""
    steps = next(iter(distances.values())).shape[-1]
    variables: dict[str, Variable] = {
        name.replace(" ", "_").replace(",", ""): measure(
            "clip seed step", values, name, DISTANCE, span=POSITIVE
        )
        for name, values in distances.items()
    }
    variables |= experiment.costs(model.config)
    variables |= films(["clips"], [0], looked_at(steps), model.decode(jnp.asarray(x0[:1, 0])))
    labels = {"step": range(steps), "seed": list(experiment.seeds)}
    return xr.Dataset(variables, labels | samples.coordinates())


def clip_figures(data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
    """Return the curves of all distances, and the film."""
    names = [str(n) for n, v in data.data_vars.items() if "step" in v.dims and "clip" in v.dims]
    figure = plots.lines(data, names, xlabel="denoising step", ylabel="distance of x̂0, relative")
    yield "distance", Picture(figure, DISTANCE)
    yield from film_figures(data, "the first")
