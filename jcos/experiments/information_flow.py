"""How far does a perturbation reach? (Paper, section 3.2.)

Noise goes into one step, or into one frame at every step; a clean run beside it shares everything
else. Both are compared after every block of every step, on the device: 1 − CKA of their tokens.

Linear CKA of few tokens in many dimensions is biased: 125 unrelated tokens in 128 dimensions are
said to be half alike. So HSIC is estimated without bias here, and unrelated tokens get 0. Noise at
a frame is judged by the other frames' tokens; so is noise at a step where the two are compared.
"""

import dataclasses
from collections.abc import Generator
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped, UInt8

from jcos.config import WanConfig
from jcos.experiments.answers import Answers, answers_of, blend, chosen
from jcos.experiments.experiment import Experiment, Findings, Place, places
from jcos.experiments.information_flow_figures import figures
from jcos.experiments.information_flow_found import AXES, Found
from jcos.experiments.noise import probe_of
from jcos.experiments.noise_found import Case
from jcos.experiments.puzzles import Progress, pixels, playing
from jcos.experiments.samples import Samples
from jcos.lab.ideal import ideal
from jcos.lab.measures import dissimilarity
from jcos.sampling import flow, probes, trajectory
from jcos.sampling.flow import Schedule, solver_init, solver_step
from jcos.sampling.probes import Latents, Site, Tokens
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flow(Experiment):
    """Paper, section 3.2: noise at a step, and how much every later step and layer differs from the
    clean run (1 − CKA; 0 no effect, 1 nothing in common).

    Which representation the paper compared was not to be had; here it is all tokens after each
    block, of the conditional branch, video by video. Beyond the paper: by layer; the same for noise
    at a frame; noise at the step's own level (x̂0 kept, noise drawn anew), which leaves no pixel
    noise behind; whether the perturbed run ends with the answer of the clean one; and the ideal
    denoiser under the very same noise, compared by its clean estimates, cut into the model's
    patches, as the model's own are. Noise at step 0 is a fresh seed.

    steps, frames: where noise goes, all by default. at_once: perturbed runs that share a clean one,
    by default 8 of puzzles and 1 of clips, which needs the least memory.
    """

    question = "How far does a perturbation reach, and when is a run most sensitive to it?"
    axes = AXES

    steps: tuple[Place, ...] | None = None
    frames: tuple[Place, ...] | None = None
    at_once: int | None = None

    def check(self, config: WanConfig) -> None:
        super().check(config)
        places(self.steps, self.plan(config).steps, "step")
        places(self.frames, self.latent_frames(config), "frame")
        if self.steps == () == self.frames:
            raise ValueError("steps and frames are both empty: there is no place for noise")
        if self.at_once is not None and self.at_once < 1:
            raise ValueError(f"at_once is {self.at_once}; at least 1 run is perturbed at a time")

    def measure(self, model: Wan) -> Generator[Progress, None, Findings]:
        samples = self.samples(model)
        steps, frames = self.plan(model.config).steps, samples.latent[0]
        cases = self.cases(steps, frames)
        answers = answers_of(model, samples.puzzles) if samples.judged else None
        groups = grouped(cases, self.at_once or (8 if samples.judged else 1))
        noise = [[probe_of(case, steps, frames, 0) for case in group] for group in groups]
        reach: Reach = yield from playing(
            model,
            jax.tree.map(lambda a: np.repeat(a, len(groups[0]), axis=1), samples.given),
            self.seeds,
            probes=[Perturbed(trajectory.tree_stack(group), frames) for group in noise],
            plan=self.plan(model.config),
            look=look_at_reach,
            beside=answers,
            chunk=self.chunk,
            what="noise at every step and frame, beside clean runs",
        )
        reach = jax.tree.map(lambda a: case_by_case(a, len(cases)), reach)
        solved, agreed = None, None
        if answers is not None:
            yield Progress("judging", 0, 1)
            solved, agreed = outcomes(samples, answers, reach)
        found = Found(
            cases=cases,
            samples=samples,
            forwards=2 * self.forwards(model.config),
            tokens=reach.tokens,
            x0=reach.x0,
            ideal=reach.ideal,
            solved=solved,
            agreed=agreed,
        )
        yield Progress("drawing", 0, 1)
        return Findings(found.arrays(), list(found.rows()), dict(figures(found)))

    def cases(self, steps: int, frames: int) -> list[Case]:
        """All positions of noise. A single frame has no others that it could be judged by."""
        at_steps = places(self.steps, steps, "step")
        at_frames = places(self.frames, frames, "frame") if frames > 1 else []
        return [
            *(Case("step", step=s, own=own) for own in (False, True) for s in at_steps),
            *(Case("frame", frame=f) for f in at_frames),
        ]


def grouped(cases: list[Case], at_once: int) -> list[list[Case]]:
    """Groups of one size, of at most so many cases: each begins with a clean run, and the last is
    filled up with such."""
    number = -(-len(cases) // at_once)
    size = -(-len(cases) // number)
    filled = cases + [Case("none")] * (number * size - len(cases))
    return [[Case("none"), *filled[i : i + size]] for i in range(0, len(filled), size)]


def case_by_case(
    values: Shaped[np.ndarray, "groups P size *axes"], number: int
) -> Shaped[np.ndarray, "Q P *axes"]:
    """What groups saw as what each case saw."""
    cases = np.moveaxis(values, 2, 1)
    return cases.reshape(-1, *cases.shape[2:])[:number]


class Put(NamedTuple):
    """What a probe put into a latent: fresh noise, in which frames, and in which of them on top of
    (1 − σ) x̂0 of the step before."""

    fresh: Float[Array, "*S F H W C"]
    here: Bool[Array, "*S F 1 1 1"]
    own: Bool[Array, "*S F 1 1 1"]


class Perturbed(probes.Probe):
    """Full noise, in each world its own (none in world 0); observes how much every world differs
    from world 0: `dissimilarity` [steps, layers, G = 1 + frames], and of the estimates what was put
    in (`Put`).

    noise: its arrays have an axis of worlds before that of steps.
    """

    noise: probes.Noise
    frames: int = flax.struct.field(pytree_node=False)

    def on_latents(self, site: Site, x: Latents) -> Latents:
        return self._noise().on_latents(site, x)

    def on_block(self, site: Site, tokens: Tokens) -> tuple[Tokens, Float[Array, " G"]]:
        del site
        clean = jax.lax.all_gather(tokens, "world")[0]
        return tokens, dissimilarity(clean, tokens, self.frames)

    def on_estimate(self, site: Site, x: Latents, x0: Latents) -> tuple[Latents, Put]:
        noise = self._noise()
        here = noise.mask[site.step] > 0
        own = here & (False if noise.renoise is None else noise.renoise[site.step])
        here, own = (a[:, None, None, None] for a in (here, own))
        last = jnp.zeros_like(x) if site.last is None else site.last
        return x0, Put(x - jnp.where(own, (1 - site.sigma) * last, 0.0), here, own)

    def _noise(self) -> probes.Noise:
        """Of this world."""
        return jax.tree.map(lambda a: a[jax.lax.axis_index("world")], self.noise)


class Reach(NamedTuple):
    """What is kept of a clean run and W perturbed ones, by seed.

    tokens [W, K, S, L, G = 1 + F], x0, ideal [W, K, S, G]: `dissimilarity` of tokens, of clean
    estimates, and of those of the ideal denoiser. on, video: how the clean and each perturbed run
    end. All but tokens and x0 of puzzles only.
    """

    tokens: Float[Any, "*W K S L G"]
    x0: Float[Any, "*W K S G"]
    ideal: Float[Any, "*W K S G"] | None
    on: Float[Any, "*W 2 K A"] | None
    video: UInt8[Any, "*W 2 K F H W 3"] | None


def look_at_reach(model: Wan, plan: flow.Plan, trace: Trace, answers: Answers | None) -> Reach:
    """`Reach` of one group of cases on one puzzle."""
    frames = trace.x0.shape[3]

    def apart(x0: Float[Array, "N K S F h w C"]) -> Float[Array, "W K S G"]:
        patches = jax.vmap(jax.vmap(jax.vmap(model.experts[0].patchify)))(x0)
        one = jax.vmap(jax.vmap(lambda a, b: dissimilarity(a, b, frames)))
        return jax.vmap(one, in_axes=(None, 0))(patches[0], patches[1:])

    seen, x0 = trace.block_obs[1:], apart(trace.x0)
    if answers is None:
        return Reach(seen, x0, None, None, None)
    run = jax.vmap(jax.vmap(lambda put: ideal_perturbed(plan.schedule, put, answers)))
    on, video = blend(trace.latents, answers).on, pixels(model, trace.latents)
    return Reach(seen, x0, apart(run(trace.estimate_obs)), beside_first(on), beside_first(video))


def beside_first(ends: Shaped[Array, "N *axes"]) -> Shaped[Array, "W 2 *axes"]:
    """The clean run's beside each perturbed one's."""
    return jnp.stack([jnp.broadcast_to(ends[:1], ends[1:].shape), ends[1:]], axis=1)


def ideal_perturbed(schedule: Schedule, put: Put, answers: Answers) -> Float[Array, "S F H W C"]:
    """Clean estimates of the ideal denoiser, into whose trajectory the same noise is put. It begins
    with the latent of step 0."""
    latents, prior = jnp.asarray(answers.latents), answers.log_prior

    def step(state, scanned):
        sigma, row, (fresh, here, own) = scanned
        x = jnp.where(here, jnp.where(own, (1 - sigma) * state.last, 0.0) + fresh, state.x)
        x0 = ideal(x, sigma, latents, prior).x0
        return solver_step(state, x, x0, row), x0

    levels = jnp.asarray(schedule.sigmas[:-1]), jnp.asarray(schedule.table)
    return jax.lax.scan(step, solver_init(put.fresh[0]), (*levels, put))[1]


def outcomes(
    samples: Samples, answers: Answers, reach: Reach
) -> tuple[Bool[np.ndarray, "Q P K"], Float[np.ndarray, "Q P K"]]:
    """Whether the perturbed run is solved; and whether it ends with the clean run's answer, of
    puzzles with several that both solve, else nan."""
    assert reach.on is not None
    assert reach.video is not None
    _, solved = samples.judge(reach.video.swapaxes(0, 1))
    clean, noisy = np.moveaxis(solved.swapaxes(0, 1), 2, 0)
    choice = np.stack([chosen(on, answers) for on in reach.on])
    known = clean & noisy & samples.several[None, :, None]
    return noisy, np.where(known, choice[:, :, 0] == choice[:, :, 1], np.nan)
