"""Runs looked at step by step: clean estimates, what they blend, what the ideal denoiser says."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from jcos.experiments.answers import Answers, answers_of, blend, shares
from jcos.experiments.sweeps import pixels, play, score
from jcos.lab.ideal import ideal, ideal_run
from jcos.lab.measures import Mass
from jcos.lab.tasks import PALETTE, Puzzle, Task
from jcos.sampling import flow
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan


class Watched(NamedTuple):
    """What is kept of a run, by seed and step, on the device and then on the host; A candidates.

    video, ideal_video: clean estimates, of the model and of the ideal denoiser's own trajectory
    from the same noise. on [K, S, A], off [K, S]: the mass of the model's estimates; ideal_on: of
    the ideal denoiser's at the model's x_s; ideal_run_on: on its own trajectory. All three are
    measured alike (`measures.answer_mass`). gap: root mean square distance of the model's x̂0 from
    the ideal one at the same x_s. change: from the step before. blur: from the
    nearest colours that a scene can have.
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
    own = jax.vmap(lambda noise: ideal_run(plan.schedule, noise, latents, prior))(x[:, 0])
    return Watched(
        pixels(model, x0),
        pixels(model, own.x0),
        mass.on,
        mass.off,
        blend(here.x0, answers).on,
        blend(own.x0, answers).on,
        _rms(x0 - here.x0),
        _rms(x0 - _before(x0, answers.still)),
        _blur(model, x0),
    )


def watch_distance(
    model: Wan, plan: flow.Plan, trace: Trace, steps: Int[Array, " shown"]
) -> tuple[Float[Array, "K S"], Float[Array, "K S"], Float[Array, "K shown F h w C"]]:
    """Distance of each estimate to the last and to the one before, over the norm of the last; and
    some of the estimates."""
    del model, plan
    x0 = trace.x0[0]
    size = _rms(x0[:, -1:])
    nothing = jnp.zeros_like(x0[0, 0])
    return _rms(x0 - x0[:, -1:]) / size, _rms(x0 - _before(x0, nothing)) / size, x0[:, steps]


def _before(x0: Float[Array, "K S F h w C"], first: Float[Array, "F h w C"]) -> Array:
    """The estimate before each; `first` before the first."""
    start = jnp.broadcast_to(first, (len(x0), 1, *first.shape))
    return jnp.concatenate([start, x0[:, :-1]], axis=1)


def _rms(x: Float[Array, "*axes F h w C"]) -> Float[Array, "*axes"]:
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=(-4, -3, -2, -1)))


def _blur(model: Wan, x0: Float[Array, "K S F h w C"]) -> Float[Array, "K S"]:
    """Mean distance of pixels from the palette, in levels of 256."""
    video = pixels(model, x0).astype(jnp.float32)
    colours = jnp.asarray(list(PALETTE.values()), jnp.float32)
    apart = [jnp.abs(video - c.reshape(1, 1, 1, 1, 1, 3)).mean(-1) for c in colours]
    nearest = jnp.stack(apart).min(0)
    return nearest.mean((-3, -2, -1))


class Watch(NamedTuple):
    """Runs of P puzzles, looked at in S steps, J of them judged.

    x0 [P, S, F, h, w, C], latents [P, F, h, w, C]: clean estimates and the end. scores, solved
    [P, J]: of the judged estimates (the last step's estimate is the end itself).
    """

    x0: Float[Array | np.ndarray, "P S F h w C"]
    latents: Float[Array | np.ndarray, "P F h w C"]
    scores: Float[np.ndarray, "P J"]
    solved: Bool[np.ndarray, "P J"]


def watch(
    model: Wan, task: Task, puzzles: Sequence[Puzzle], looked: Sequence[int], judged: Sequence[int]
) -> Watch:
    """Plays the puzzles with seed 0; keeps the clean estimates of the steps `looked`, and scores
    those of `judged`, which are among them."""
    trace = play(model, task, puzzles, keep=looked)
    x0, latents = trace.x0[0, :, 0], trace.latents[0, :, 0]
    where = np.array([list(looked).index(step) for step in judged])
    return Watch(x0, latents, *score(model, task, puzzles, x0[:, where]))


_blend = jax.jit(blend)


def masses(
    model: Wan, puzzle: Puzzle, x0: Float[Array | np.ndarray, "S F h w C"], room: int
) -> Mass:
    """The blend of the puzzle's right answers in each clean estimate: on [S, K], off [S].

    room: the most answers that any puzzle of the experiment has, so that all share one compiled
    program.
    """
    answers = jax.tree.map(lambda a: a[0], answers_of(model, [puzzle], room=room))
    on, off = _blend(x0, answers)
    return Mass(on[:, : len(puzzle.answers)], off)


class Routes(NamedTuple):
    """Mass per step [P, S]: on the answer finally taken, on all other right answers, on none."""

    taken: Float[np.ndarray, "P S"]
    others: Float[np.ndarray, "P S"]
    off: Float[np.ndarray, "P S"]


def routes(model: Wan, puzzles: Sequence[Puzzle], watched: Watch) -> Routes:
    """Where the mass is, step by step. The answer taken is the one with most mass at the last
    looked-at step."""
    answers = answers_of(model, puzzles)
    on, off = jax.device_get(jax.jit(jax.vmap(blend))(np.asarray(watched.x0), answers))
    mass = shares(on[:, None], answers)
    return Routes(mass.taken[:, 0], mass.others[:, 0], off)
