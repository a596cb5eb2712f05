"""What stochastic samplers do to a distribution: final variance on Gaussian data, answers of the
ideal denoiser, puzzles that the small model solves; each beside Euler at the same temperature.

python scripts/samplers.py                                # 7 × 7 mazes, 64 of them
python scripts/samplers.py --puzzles 32 --seeds 64 --steps 10
"""

import argparse
import dataclasses
import os
import platform
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jcos.config import Sampling, Solver
from jcos.devices import programs
from jcos.experiments.answers import answers_of
from jcos.experiments.sweeps import held_out, play, score
from jcos.files import local_path
from jcos.lab.ideal import gaussian_variance, ideal_run, same_temperature
from jcos.lab.measures import estimate
from jcos.lab.tasks import get
from jcos.sampling import flow
from jcos.wan import TINY, Wan, load
from tables import about, markdown, save

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
CASES: tuple[tuple[Solver, float | None], ...] = (
    ("euler", None),
    *(("cps", eta) for eta in (0.3, 0.7, 0.9)),
    ("renoise", None),
    ("sde", 0.7),
    ("dance", 0.3),
    ("cpws", 0.7),
)


def cases(sampling: Sampling) -> list[Sampling]:
    """Return every sampler, and Euler at the temperatures of Flow-CPS."""
    every = [dataclasses.replace(sampling, solver=s, eta=eta) for s, eta in CASES]
    cold = [
        dataclasses.replace(sampling, temperature=round(same_temperature(one), 3))
        for one in every
        if one.solver == "cps"
    ]
    return every + cold


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


def ideal_ends(
    model: Wan, plan: flow.Plan, number: int, seeds: int
) -> tuple[float, tuple[float, float, float]]:
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
    found = estimate(np.array(share) - LIKELY, (-np.inf, np.inf))
    return float(np.mean(on)), (found.mean, found.low, found.high)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=local_path, default=TINY)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--puzzles", type=int, default=64)
    parser.add_argument("--mazes", type=int, default=48, help="of the ideal denoiser")
    parser.add_argument("--seeds", type=int, default=256, help="of the ideal denoiser")
    parser.add_argument("--out", type=local_path, default=Path("out/samplers"))
    arguments = parser.parse_args()
    programs.keep_in_cache()
    model, rows = load(arguments.checkpoint), []
    puzzles = held_out(get("maze7"), arguments.puzzles)
    for sampling in cases(model.config.sampling_with(steps=arguments.steps, solver="euler")):
        plan = flow.plan(sampling)
        on, (share, low, high) = ideal_ends(model, plan, arguments.mazes, arguments.seeds)
        latents = play(model, puzzles, sampling=sampling).latents[0, :, 0]
        solved = estimate(score(model, puzzles, latents)[1])
        variance = sampling.temperature**2 * gaussian_variance(plan.schedule)
        rows.append(
            {
                "sampler": sampling.solver + ("" if sampling.eta is None else f" {sampling.eta}"),
                "temperature": f"{sampling.temperature:g}",
                "variance": f"{variance:.3f}",
                "on": f"{on:.3f}",
                "share": f"{share:+.3f} [{low:+.3f}, {high:+.3f}]",
                "solved": f"{solved.mean:.3f} [{solved.low:.3f}, {solved.high:.3f}]",
            }
        )
        print(" ".join(rows[-1].values()), flush=True)
    where = about(
        steps=arguments.steps,
        puzzles=arguments.puzzles,
        mazes=arguments.mazes,
        seeds=arguments.seeds,
        CPU=f"{os.cpu_count()} × {platform.machine()}, shared machine",
    )
    save(arguments.out, markdown(HEADS, (row.values() for row in rows)), where, rows)


if __name__ == "__main__":
    main()
