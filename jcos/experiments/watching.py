"""Runs looked at step by step: what clean estimates blend, and what the ideal denoiser says."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from jcos.experiments.answers import Answers, blend
from jcos.experiments.experiment import Experiment, Progress
from jcos.experiments.samples import Samples
from jcos.experiments.sweeps import Readout, pixels
from jcos.lab.ideal import ideal, ideal_run
from jcos.lab.judges import palette_distance
from jcos.lab.measures import auroc, rms
from jcos.lab.results import Row
from jcos.sampling import flow
from jcos.sampling.probes import States
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan


def watch(
    experiment: Experiment,
    model: Wan,
    samples: Samples,
    readout: Readout,
    progress: Progress,
    answers: Answers | None = None,
) -> Any:
    """Return what a readout reads of every step of every sample, leaves [P, K, …]. With answers it
    gets them, and the latents of every step (`States`)."""
    more: dict[str, Any] = {} if answers is None else {"aux": answers, "probes": [States()]}
    run, what = experiment.sweep(model, progress), "watching every step"
    read = run(samples.conditions, readout=readout, what=what, **more)
    progress("judging every step", 0, 1)
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
