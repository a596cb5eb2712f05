"""Runs looked at step by step: clean estimates, what they blend, what the ideal denoiser says."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from jcos.experiments.answers import Answers, blend
from jcos.experiments.experiment import Experiment, Progress
from jcos.experiments.samples import Samples
from jcos.experiments.sweeps import pixels
from jcos.lab.ideal import ideal, ideal_run
from jcos.lab.tasks import PALETTE
from jcos.sampling import flow
from jcos.sampling.probes import States
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan


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


def watch(
    experiment: Experiment, model: Wan, samples: Samples, answers: Answers, progress: Progress
) -> Watched:
    """Return what every step of every puzzle shows, leaves [P, K, …]."""
    watched = experiment.sweep(model, progress)(
        samples.conditions,
        probes=[States()],
        readout=watch_answers,
        aux=answers,
        what="watching every step",
    )
    progress("judging every step", 0, 1)
    return jax.tree.map(lambda a: a[0], watched)


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
        _blur(model, x0),
    )


def rms(x: Float[Array, "*axes F h w C"]) -> Float[Array, "*axes"]:
    """Return the root mean square of each latent."""
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=(-4, -3, -2, -1)))


def _blur(model: Wan, x0: Float[Array, "K S F h w C"]) -> Float[Array, "K S"]:
    """Return the mean distance of pixels from the palette, in levels of 256."""
    video = pixels(model, x0).astype(jnp.float32)
    colours = [jnp.asarray(c, jnp.float32).reshape(1, 1, 1, 1, 1, 3) for c in PALETTE.values()]
    apart = [jnp.abs(video - colour).mean(-1) for colour in colours]
    return jnp.stack(apart).min(0).mean((-3, -2, -1))
