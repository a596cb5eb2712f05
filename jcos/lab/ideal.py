"""The exact yardstick: what a denoiser that has learnt everything would say.

The right answers of a small puzzle can be listed and are equally likely, so the clean video given a
noisy one, E[x0 | x_s, puzzle], is a closed form: a blend of the answers, weighted by how well each
explains x_s. Early blends of several answers are what any good denoiser shows; only what differs
from this one is a model's own.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jcos.config import Sampling
from jcos.sampling import flow
from jcos.sampling.flow import Schedule, solver_init, solver_step, step_noise
from jcos.sampling.probes import Latents, Probe, Site, Sizes

LEAST_SIGMA = 1e-6
"""Below it nothing changes any more, and float32 divides by its square without overflow."""


class Ideal(NamedTuple):
    """x0 [F, H, W, C]: E[x0 | x_s, puzzle]. weights [K]: the posterior of each answer."""

    x0: Float[Array, "*axes F H W C"]
    weights: Float[Array, "*axes K"]


def posterior(
    x: Float[Array, "F H W C"],
    sigma: Float[Array, ""],
    answers: Float[Array, "K F H W C"],
    log_prior: Float[Array, " K"] | None = None,
) -> Float[Array, " K"]:
    """How likely each answer a_k is, given x = (1 − σ) a_k + σ ε: softmax of
    −‖x − (1 − σ) a_k‖² / 2σ² plus the log of the prior (equal by default; −inf leaves one out).

    Computed as differences from the first answer, of which float32 loses nothing: what all answers
    share, most of the video, never enters.
    """
    left = 1.0 - sigma
    change = (answers - answers[:1]).reshape(len(answers), -1)
    middle = (0.5 * (answers + answers[:1])).reshape(len(answers), -1)
    ratio = change @ x.reshape(-1) - left * jnp.sum(change * middle, axis=-1)
    logits = ratio * left / jnp.square(jnp.maximum(sigma, LEAST_SIGMA))
    return jax.nn.softmax(logits if log_prior is None else logits + log_prior)


def ideal(
    x: Float[Array, "F H W C"],
    sigma: Float[Array, ""],
    answers: Float[Array, "K F H W C"],
    log_prior: Float[Array, " K"] | None = None,
) -> Ideal:
    """The ideal denoiser at one latent."""
    weights = posterior(x, sigma, answers, log_prior)
    return Ideal(jnp.tensordot(weights, answers, 1), weights)


def ideal_run(
    schedule: Schedule,
    noise: Float[Array, "F H W C"],
    answers: Float[Array, "K F H W C"],
    log_prior: Float[Array, " K"] | None = None,
) -> Ideal:
    """The trajectory of the ideal denoiser from this noise: leaves [S, …], a row per step. Noise of
    a stochastic solver follows from this noise, too."""

    def step(state, scanned):
        sigma, row, key = scanned
        best = ideal(state.x, sigma, answers, log_prior)
        fresh = step_noise(row, key, state.x)
        return solver_step(state, state.x, best.x0, row, fresh), best

    rows = jnp.asarray(schedule.sigmas[:-1]), jnp.asarray(schedule.table)
    rows = (*rows, step_keys(schedule, noise))
    return jax.lax.scan(step, solver_init(noise), rows)[1]


def step_keys(schedule: Schedule, noise: Float[Array, "F H W C"]) -> Key[Array, " S"] | None:
    """Return a key per step, made of the first noise; None where the solver draws nothing."""
    if schedule.table.shape[-1] == 8:
        return None
    bits = jax.lax.bitcast_convert_type(noise.reshape(-1)[0].astype(jnp.float32), jnp.uint32)
    return jax.random.split(jax.random.fold_in(jax.random.key(0), bits), schedule.steps)


class IdealDenoiser(Probe):
    """Lets the ideal denoiser make the run, in place of the model whose run it is: what it says
    replaces every clean estimate. With another probe behind it, that one's intervention is done to
    the ideal denoiser (as far as it is one on latents or estimates: it has no tokens).

    answers [K, F, H, W, C], or [W, K, F, H, W, C] of each world; log_prior [K] or [W, K]: as in
    `posterior`.
    """

    answers: Float[Any, "*sweep K F H W C"]
    log_prior: Float[Any, "*sweep K"]

    def made_for(self) -> Sizes:
        worlds = (("worlds", len(self.answers)),) if self.answers.ndim == 6 else ()
        return (*worlds, ("latent frames", self.answers.shape[-4]))

    def on_estimate(self, site: Site, x: Latents, x0: Latents) -> tuple[Latents, tuple[()]]:
        answers, prior = jnp.asarray(self.answers), jnp.asarray(self.log_prior)
        if answers.ndim == 6:
            world = jax.lax.axis_index("world")
            answers, prior = answers[world], prior[world]
        return ideal(x, site.sigma, answers, prior).x0.astype(x0.dtype), ()


def gaussian_variance(schedule: Schedule) -> float:
    """Return the variance with which a run ends whose data are N(0, 1), under the exact denoiser: 1
    is right, below 1 is a lower temperature.

    Of solvers without memory (Euler and the stochastic ones); ValueError for others.
    """
    table = np.asarray(schedule.table, np.float64)
    if table[:, 1:5].any() or table[:, 7].any():
        raise ValueError("a solver with memory has no variance of single steps")
    sigmas, now = np.asarray(schedule.sigmas, np.float64), 1.0
    for t, row in zip(sigmas[:-1], table, strict=True):
        shrink = (1 - t) / ((1 - t) ** 2 + t**2)
        now = (row[5] + row[6] * shrink) ** 2 * now + np.square(row[8:]).sum()
    return now


def same_temperature(sampling: Sampling) -> float:
    """Return the temperature at which Euler ends with the variance of this sampling on N(0, 1):
    the control for what a stochastic solver gains. ValueError as `gaussian_variance`."""
    euler = dataclasses.replace(sampling, solver="euler", eta=None)
    ends = (gaussian_variance(flow.schedule(one)) for one in (sampling, euler))
    return float(np.sqrt(next(ends) / next(ends)))
