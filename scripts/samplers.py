"""What stochastic samplers do to a distribution: final variance on Gaussian data, answers of the
ideal denoiser, puzzles that the small model solves; beside Euler at the temperatures of Flow-CPS.
And how near steering comes to its exact target, by the number of particles.

python scripts/samplers.py                                # 7 × 7 mazes, 64 of them
python scripts/samplers.py --puzzles 32 --seeds 64 --steps 10
python scripts/samplers.py --solvers euler --particles    # the temperature controls alone
python scripts/samplers.py --solvers --steps 10           # steering alone
"""

import dataclasses
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jcos.config import Sampling, Solver
from jcos.devices import programs
from jcos.experiments.answers import answers_of
from jcos.experiments.sweeps import conditions_of, held_out, play, score
from jcos.files import local_path
from jcos.lab import search
from jcos.lab.ideal import gaussian_variance, ideal_run, same_temperature
from jcos.lab.judges import Estimates, Judge
from jcos.lab.measures import UNBOUNDED, Estimate, estimate
from jcos.lab.tasks import get
from jcos.sampling import flow
from jcos.wan import TINY, Wan, load
from tables import about, interval, markdown, options, save

HEADS = (
    "sampler",
    "temperature",
    "variance",
    "on an answer",
    "likely one, above its prior",
    "solved",
)
LIKELY = 0.7
"""Prior of the first of a maze's routes; the others share the rest."""
SCALE, REPEATS, LEAST_ESS = 2.0, 4, 1e-9
"""Of the reward that steers; searches of each maze; and the effective share of particles below
which some would be drawn at the end."""
STEERED = ("particles", "weight on the first route, above its target", "effective sample size")
CASES: tuple[tuple[Solver, float | None], ...] = (
    *(("cps", eta) for eta in (0.3, 0.7, 0.9)),
    ("renoise", None),
    ("sde", 0.7),
    ("dance", 0.3),
    ("cpws", 0.7),
)


def cases(sampling: Sampling) -> list[Sampling]:
    """Return Euler, every other sampler, and Euler at the temperatures of Flow-CPS."""
    every = [dataclasses.replace(sampling, solver=solver, eta=eta) for solver, eta in CASES]
    same = [round(same_temperature(one), 3) for one in every if one.solver == "cps"]
    return [sampling, *every, *(dataclasses.replace(sampling, temperature=t) for t in same)]


@jax.jit
def weights(
    plan: flow.Plan, keys: Array, answers: Float[Array, "K F h w C"], prior: Float[Array, " K"]
) -> Float[Array, "seeds K"]:
    """Return on which answer each run of the ideal denoiser ends."""
    scale = jnp.asarray(1.0 if plan.temperature is None else plan.temperature)

    def one(key: Array) -> Array:
        noise = scale * jax.random.normal(key, answers.shape[1:])
        return ideal_run(plan.schedule, noise, answers, prior).weights[-1]

    return jax.vmap(one)(keys)


def ideal_ends(model: Wan, plan: flow.Plan, number: int, seeds: int) -> tuple[float, Estimate]:
    """Return how many runs end on an answer, and how many more on the likely one than its prior
    says: of mazes with several."""
    puzzles = [p for p in held_out(get("maze"), 4 * number) if len(p.answers) > 1][:number]
    answers, share, on = answers_of(model, puzzles), [], []
    for i in range(len(puzzles)):
        right = np.asarray(answers.right[i])
        prior = np.where(right, (1 - LIKELY) / max(1, right.sum() - 1), 0.0)
        prior[0] = LIKELY
        with np.errstate(divide="ignore"):
            logs = jnp.asarray(np.log(prior), jnp.float32)
        keys = jax.random.split(jax.random.key(i), seeds)
        ends = np.asarray(weights(plan, keys, jnp.asarray(answers.latents[i]), logs))
        on.append((ends.max(-1) > 0.99).mean())
        share.append((ends.argmax(-1) == 0).mean())
    return float(np.mean(on)), estimate(np.array(share) - LIKELY, UNBOUNDED)


class FirstRoute(Judge):
    """How much of an estimate is the first of its video's two routes, 0..1: the reward of
    `steering`."""

    def __init__(self, routes: Float[Array, "W 2 F h w C"]):
        self.second = routes[:, 1:]
        self.along = routes[:, :1] - self.second

    def __call__(self, at: Estimates) -> Float[Array, "W K"]:
        return self.share(at.x0)

    def share(self, x0: Float[Array, "W K F h w C"]) -> Float[Array, "W K"]:
        axes = (2, 3, 4, 5)
        return jnp.sum((x0 - self.second) * self.along, axes) / jnp.sum(self.along**2, axes)


def steering(
    model: Wan, sampling: Sampling, number: int, particles: Sequence[int]
) -> list[list[str]]:
    """Return a row for each number of particles. The ideal denoiser solves mazes with two routes,
    equally likely, and is steered by exp(SCALE × share of the first one): how much more weight the
    particles give to this route than the exact target, and their effective sample size."""
    shallow = dataclasses.replace(model.config.dit, layers=1)  # it only takes the place of a model
    model = Wan(dataclasses.replace(model.config, dit=shallow), rngs=nnx.Rngs(0))
    puzzles = [p for p in held_out(get("maze"), 8 * number) if len(p.answers) == 2][:number]
    puzzles, which = puzzles * REPEATS, np.tile(np.arange(len(puzzles)), REPEATS)
    answers = answers_of(model, puzzles)
    reward = FirstRoute(jnp.asarray(answers.latents))
    target, rows = 1 / (1 + np.exp(-SCALE)), []
    for count in particles:
        method = search.smc(count, "first", scale=SCALE, ess=0.7, eta=1.0)
        # All weighted particles are the result, not one that is drawn from them.
        last = dataclasses.replace(method.rows[-1], keep=count, ess=LEAST_ESS)
        result = search.run(
            model,
            conditions_of(model, puzzles),
            dataclasses.replace(method, rows=(*method.rows[:-1], last)),
            [1000 * i for i in range(len(puzzles))],
            judges={"first": reward},
            sampling=sampling,
            probe=answers.ideal,
        )
        on_first = (result.weights * np.asarray(reward.share(result.particles))).sum(1)
        bias = estimate(on_first - target, UNBOUNDED, groups=which)
        size = estimate(1 / np.square(result.weights).sum(1), (0.0, np.inf), groups=which)
        rows.append([f"{count}", interval(bias, "+"), interval(size)])
        print(*rows[-1], flush=True)
    return rows


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--checkpoint", type=local_path, default=TINY)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--puzzles", type=int, default=64)
    parser.add_argument("--mazes", type=int, default=48, help="of the ideal denoiser")
    parser.add_argument("--seeds", type=int, default=256, help="of the ideal denoiser")
    solvers = sorted({"euler", *(solver for solver, _ in CASES)})
    parser.add_argument("--solvers", choices=solvers, nargs="*", default=solvers)
    parser.add_argument("--particles", type=int, nargs="*", default=(2, 4, 8, 16))
    parser.add_argument("--out", type=local_path, default=Path("out"))
    arguments = parser.parse_args()
    programs.keep_in_cache()
    model, rows = load(arguments.checkpoint), []
    puzzles = held_out(get("maze7"), arguments.puzzles)
    euler = model.config.sampling_with(steps=arguments.steps, solver="euler")
    for sampling in cases(euler):
        if sampling.solver not in arguments.solvers:
            continue
        plan = flow.plan(sampling)
        on, share = ideal_ends(model, plan, arguments.mazes, arguments.seeds)
        latents = play(model, puzzles, sampling=sampling).latents[0, :, 0]
        solved = estimate(score(model, puzzles, latents)[1])
        variance = sampling.temperature**2 * gaussian_variance(plan.schedule)
        name = sampling.solver + ("" if sampling.eta is None else f" {sampling.eta}")
        numbers = f"{sampling.temperature:g}", f"{variance:.3f}", f"{on:.3f}"
        rows.append([name, *numbers, interval(share, "+"), interval(solved)])
        print(*rows[-1], flush=True)
    where = about(
        steps=arguments.steps,
        puzzles=arguments.puzzles,
        mazes=arguments.mazes,
        seeds=arguments.seeds,
        CPU=f"{os.cpu_count()} × {platform.machine()}, shared machine",
    )
    steered = steering(model, euler, arguments.mazes, arguments.particles)
    for folder, heads, lines in (("samplers", HEADS, rows), ("steering", STEERED, steered)):
        if lines:
            cells = (dict(zip(heads, line, strict=True)) for line in lines)
            save(arguments.out / folder, markdown(heads, lines), where, cells)


if __name__ == "__main__":
    main()
