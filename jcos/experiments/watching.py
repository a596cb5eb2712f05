"""Runs looked at step by step: of puzzles what clean estimates blend, and what the ideal denoiser
says; of clips, where no judge can tell what is right, distances; and films of both, steps × frames.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Float, Int, UInt8

from jcos.experiments import plots
from jcos.experiments.answers import Answers, blend
from jcos.experiments.experiment import Experiment, Picture, Progress, looked_at
from jcos.experiments.samples import Samples
from jcos.experiments.sweeps import Readout, pixels
from jcos.lab.ideal import ideal, ideal_run
from jcos.lab.judges import palette_distance
from jcos.lab.measures import POSITIVE, auroc, rms
from jcos.lab.results import Row, Variable, case_of, measure
from jcos.sampling import flow
from jcos.sampling.probes import States
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan

DISTANCE = "Distance of estimates, over the norm of the last."


def watch(
    experiment: Experiment,
    model: Wan,
    samples: Samples,
    readout: Readout,
    progress: Progress,
    answers: Answers | None = None,
) -> Any:
    """Return what a readout reads of every step of every sample, leaves [P, K, …]. It gets the
    answers, and the latents of every step (`States`); of clips the numbers of the looked-at steps.
    """
    listed = np.array(looked_at(experiment.plan(model.config).steps), np.int32)
    more: dict[str, Any] = {"aux": np.tile(listed, (len(samples), 1))}
    if answers is not None:
        more = {"aux": answers, "probes": [States()]}
    run, what = experiment.sweep(model, progress), "watching every step"
    read = run(samples.conditions, readout=readout, what=what, **more)
    progress("judging every step" if samples.judged else "decoding", 0, 1)
    return jax.tree.map(lambda a: a[0], read)


def failure_rows(
    task: str,
    sign: str,
    values: Float[np.ndarray, "P K S"],
    fails: Bool[np.ndarray, "P K"],
    steps: Iterable[int],
    forwards: Int[np.ndarray, " S"] | None = None,
    draws: int = 2_000,
) -> Iterator[Row]:
    """Yield how well a sign at each of some steps tells the runs that fail. forwards: passes up to
    every step."""
    groups = np.repeat(np.arange(len(fails)), fails.shape[1])
    for step in steps:
        area = auroc(values[..., step].ravel(), fails.ravel(), groups=groups, draws=draws)
        cost = 0 if forwards is None else int(forwards[step])
        yield Row(task, f"AUROC of failure: {sign}", f"step {step}", *area, 0.5, None, cost)


# ---- puzzles


class Watched(NamedTuple):
    """What is kept of a run, by seed and step; A candidates.

    video, ideal_video: clean estimates, of the model and of the ideal denoiser's own trajectory
    from the same noise. on, off: the mass of the model's estimates; ideal_on: of the ideal
    denoiser's at the model's x_s; ideal_run_on: on its own trajectory. gap, change: root mean
    square distance of the model's x̂0 from the ideal one at the same x_s, and from the step before.
    blur: from the nearest colours that a scene can have.
    """

    video: UInt8[Any, "*K S F H W 3"]
    ideal_video: UInt8[Any, "*K S F H W 3"]
    on: Float[Any, "*K S A"]
    off: Float[Any, "*K S"]
    ideal_on: Float[Any, "*K S A"]
    ideal_run_on: Float[Any, "*K S A"]
    gap: Float[Any, "*K S"]
    change: Float[Any, "*K S"]
    blur: Float[Any, "*K S"]


def watch_answers(model: Wan, plan: flow.Plan, trace: Trace, answers: Answers) -> Watched:
    """Return what is kept of one puzzle's run, in world 0."""
    x0, x = trace.x0[0], trace.estimate_obs[0]
    mass = blend(x0, answers)
    latents, prior = answers.latents, answers.log_prior
    at_x = jax.vmap(jax.vmap(lambda x, sigma: ideal(x, sigma, latents, prior)), in_axes=(0, None))
    here = at_x(x, jnp.asarray(plan.schedule.sigmas[:-1]))
    run = jax.vmap(lambda noise: ideal_run(plan.schedule, noise, latents, prior))(x[:, 0])
    still = jnp.broadcast_to(answers.still, (len(x0), 1, *answers.still.shape))
    before = jnp.concatenate([still, x0[:, :-1]], axis=1)
    return Watched(
        pixels(model, x0),
        pixels(model, run.x0),
        mass.on,
        mass.off,
        blend(here.x0, answers).on,
        blend(run.x0, answers).on,
        rms(x0 - here.x0),
        rms(x0 - before),
        palette_distance(pixels(model, x0).astype(jnp.float32)).mean((-3, -2, -1)),
    )


# ---- clips


def watch_distance(
    model: Wan, plan: flow.Plan, trace: Trace, steps: Int[Array, " shown"]
) -> tuple[Float[Array, "K S"], Float[Array, "K S"], Float[Array, "K shown F h w C"]]:
    """Return the distance of each estimate to the last and to the one before (the first: to
    nothing), over the norm of the last; and some of the estimates."""
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
    variables |= films(model.decode(jnp.asarray(x0[:1, 0])), ["clips"], [0], looked_at(steps))
    return experiment.dataset(variables, samples, step=range(steps))


def clip_figures(data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
    """Return the curves of all distances, and the film."""
    names = [str(n) for n, v in data.data_vars.items() if "step" in v.dims and "clip" in v.dims]
    figure = plots.lines(data, names, xlabel="denoising step", ylabel="distance of x̂0, relative")
    yield "distance", Picture(figure, DISTANCE)
    yield from film_figures(data, f"{{}}: puzzle {{}}, the first. {plots.FILM}")


# ---- films


def films(
    videos: UInt8[np.ndarray, "n rows F H W 3"],
    names: Sequence[str],
    samples: Sequence[int],
    rows: Sequence[int] | Sequence[str],
    *,
    labels: tuple[str, str] = ("film_puzzle", "film_step"),
) -> dict[str, Variable]:
    """Return one film for each name: videos of a sample, such as its estimates at some steps.
    labels: the variables that say which sample and which rows these are."""
    sample, row = labels
    return {
        "film": (("film_of", row, "film_frame", "row", "column", "rgb"), videos, {}),
        "film_of": (("film_of",), list(names), {}),
        sample: (("film_of",), list(samples), {}),
        row: ((row,), list(rows), {}),
    }


def film_figures(
    data: xr.Dataset, caption: str, *more: object, sample: str = "film_puzzle"
) -> Iterator[tuple[str, Picture]]:
    """Return the figures of all films, if there are any. caption: to be filled in with the film's
    name, the number of its sample, and more."""
    for name in data["film_of"].values if "film" in data else ():
        film, number = data["film"].sel(film_of=name), int(data[sample].sel(film_of=name))
        rows = [case_of({"step": row}) for row in film[film.dims[0]].values]
        picture = Picture(plots.film_grid(film.values, rows), caption.format(name, number, *more))
        yield f"film-{name}".replace(", ", "-").replace(" ", "-"), picture
