"""What do steps buy, and where are they best spent? (Of the paper's limits: distilled models with
four steps struggle; readers suggest to spend steps where the answer forms.)

A schedule is data: its noise levels, the timesteps that the model is told, the solver's table. All
schedules of one length are one compiled program, whatever their shift or spacing; where two experts
share the run, all of one length that divide it alike.

The ideal denoiser (`ideal.py`) runs under every schedule from the same noise. Where a puzzle has
several right answers its first estimate blends them, so it needs more than one step; a model that
does not is one that has a favourite among them.
"""

import dataclasses
import math
from collections.abc import Generator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jcos.config import WanConfig
from jcos.experiments import plots
from jcos.experiments.answers import Answers, answers_of
from jcos.experiments.budget_figures import clip_figures, figures
from jcos.experiments.budget_found import Case, Found, clip_rows
from jcos.experiments.clips import condition_of, latent_frames, read_clips
from jcos.experiments.experiment import Experiment, Findings, Picture
from jcos.experiments.puzzles import Progress, one_world, pixels, playing
from jcos.experiments.samples import Samples
from jcos.lab.ideal import ideal_run
from jcos.loop import first_noise, seed_keys
from jcos.sampling import flow, trajectory
from jcos.sampling.probes import States
from jcos.sampling.trajectory import Condition, Trace
from jcos.wan import Wan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget(Experiment):
    """Score against forwards, paired by puzzle and seed, under many schedules.

    steps: how many, with the model's own spacing. lengths: at which of them spacing is tried:
    shifts, and half of the steps above each of the noise levels `middles`, evenly spaced on both
    sides (high: steps are spent early; low: late; 0.5: evenly).
    frames: of clips, any 4n + 1 that the model's VAE takes; noise is shared at the frames that two
    videos have in common in time. The small model makes videos of the one length that it was
    trained on, so for puzzles there is nothing to vary.
    Of clips: how far each run ends from the one with most steps, or frames, beside the distance of
    two seeds; what comes out is nowhere judged.
    """

    question = "What do steps buy, and where are they best spent?"

    tasks: tuple[str, ...] = ("maze", "tictactoe", "pattern", "rotation", "returns", "bounce")
    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 50)
    lengths: tuple[int, ...] = (4, 8)
    shifts: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0, 8.0)
    middles: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9, 0.95)
    frames: tuple[int, ...] = ()

    def check(self, config: WanConfig) -> None:
        super().check(config)
        if self.sampling.steps is not None:
            raise ValueError(
                f"sampling.steps is {self.sampling.steps}; this experiment takes steps=1,2,4 …"
            )
        if not self.steps or min(self.steps) < 1:
            raise ValueError(f"steps are {self.steps}; name at least one, each at least 1")
        if any(n < 2 for n in self.lengths):
            raise ValueError(
                f"lengths are {self.lengths}; fewer than 2 steps cannot be spaced in two ways"
            )
        if not all(k > 0 and math.isfinite(k) for k in self.shifts):
            raise ValueError(f"shifts are {self.shifts}; each is a positive number")
        if not all(0 < m < 0.999 for m in self.middles):
            raise ValueError(
                f"middles are {self.middles}; each is a noise level above 0 and below 0.999, where "
                "schedules begin"
            )
        if self.frames and self.clips is None:
            raise ValueError(
                f"{config.name} makes puzzles of the one length that it was trained on: "
                "frames are varied of clips only (clips=FILE.json)"
            )
        for frames in self.frames:
            latent_frames(config, frames)

    def measure(self, model: Wan) -> Generator[Progress, None, Findings]:
        samples = self.samples(model)
        if not samples.judged:
            return (yield from self._clips(model, samples))
        cases, ends = self.cases(), []
        answers = answers_of(model, samples.puzzles)
        for case in cases:
            end: End = yield from playing(
                model,
                samples.given,
                self.seeds,
                probes=[States()],
                plan=self.plan_of(model, case),
                look=look_at_end,
                beside=answers,
                chunk=self.chunk,
                what=str(case),
            )
            ends.append(jax.tree.map(lambda a: a[0], end))
        yield Progress("judging", 0, 1)
        readings = {}
        for name, field in (("", "video"), ("ideal ", "ideal_video")):
            judged = [samples.judge(getattr(end, field)) for end in ends]
            for i, measure in enumerate(("score", "solved")):
                readings[f"{name}{measure}"] = np.stack([found[i] for found in judged])
        found = Found(
            cases=cases,
            samples=samples,
            forwards=[self.forwards(model.config, c.steps) for c in cases],
            own=self.sampling.of(model.config).shift,
            readings=readings,
        )
        yield Progress("drawing", 0, 1)
        return Findings(found.arrays(), list(found.rows()), dict(figures(found)))

    def cases(self) -> list[Case]:
        """All schedules; each length has the model's own spacing among them."""
        found = [Case("steps", n) for n in sorted({*self.steps, *self.lengths})]
        for n in sorted(set(self.lengths)):
            found += [Case("shift", n, float(k)) for k in sorted(set(self.shifts))]
            found += [Case("middle", n, m) for m in sorted(set(self.middles))]
        return found

    def plan_of(self, model: Wan, case: Case) -> flow.Plan:
        """The run of a case."""
        sampling = dataclasses.replace(
            self.sampling.of(model.config), steps=case.steps, sigmas=None
        )
        if case.kind == "shift" and case.value is not None:
            sampling = dataclasses.replace(sampling, shift=case.value)
        plan = flow.plan(sampling, model.config.boundary)
        if case.kind != "middle" or case.value is None:
            return plan
        first = float(plan.schedule.sigmas[0])
        levels = flow.at_sigmas(around(case.steps, first, case.value), sampling)
        boundary = model.config.boundary
        high = None if boundary is None else flow.high_noise_steps(levels, boundary)
        return plan.replace(schedule=levels, high_steps=high)

    def _clips(self, model: Wan, samples: Samples) -> Generator[Progress, None, Findings]:
        cases, ends = self.cases(), {}
        for case in cases:
            latents = yield from playing(
                model,
                samples.given,
                self.seeds,
                plan=self.plan_of(model, case),
                look=look_at_latents,
                chunk=self.chunk,
                what=str(case),
            )
            ends[str(case)] = latents[0]
        best = ends[str(Case("steps", max(c.steps for c in cases)))]
        distances = {name: apart(end, best) for name, end in ends.items()}
        if self.frames:
            of_frames = yield from self._frames(model)
            distances |= {str(case): distance for case, distance in of_frames.items()}
            cases = [*cases, *of_frames]
        seeds = apart(best, np.roll(best, 1, axis=1)) if len(self.seeds) > 1 else None
        forwards = [self.forwards(model.config, c.steps) for c in cases]
        yield Progress("decoding", 0, 1)
        shown = [case for case in cases if case.kind == "steps" and case.frames is None]
        videos = model.decode(jnp.asarray(np.stack([ends[str(c)][0, 0] for c in shown])))
        film = plots.film_grid(videos, [str(c) for c in shown])
        told = "The first clip and seed; rows are numbers of steps, columns are frames."
        pictures = dict(
            clip_figures(cases, distances, None if seeds is None else float(seeds.mean()))
        )
        return Findings(
            {
                "case": np.array([str(c) for c in cases]),
                "distance": np.stack([distances[str(c)] for c in cases]),
                "forwards": np.array(forwards),
            },
            list(clip_rows(cases, distances, forwards, seeds)),
            {**pictures, "film": Picture(film, told)},
        )

    def _frames(
        self, model: Wan
    ) -> Generator[Progress, None, dict[Case, Float[np.ndarray, "P K"]]]:
        """How far the clips of each number of frames are from those of the most, at the latent
        frames that they have in common in time, relative."""
        steps = max(self.steps)
        plan = self.plan_of(model, Case("steps", steps))
        numbers = sorted(set(self.frames), reverse=True)
        given = {n: self._given(model, n) for n in numbers}
        full, cfg = jax.tree.map(lambda a: a[0], given[numbers[0]]), model.config.dit
        shape = (*full.grid, cfg.out_channels)
        noise = first_noise(model.config, self.seeds, shape)
        noise, _ = trajectory.draw(cfg, full, seed_keys(self.seeds), noise)
        found, best = {}, None
        for n in numbers:
            shared = np.linspace(0, shape[0] - 1, given[n].grid[0]).round().astype(int)
            latents = yield from playing(
                model,
                given[n],
                self.seeds,
                plan=plan,
                look=look_at_latents,
                start=np.tile(noise[None, :, shared], (len(given[n].context), 1, 1, 1, 1, 1)),
                chunk=self.chunk,
                what=f"{n} frames",
            )
            best = latents[0] if best is None else best
            found[Case("steps", steps, frames=n)] = apart(latents[0], best[:, :, shared])
        return found

    def _given(self, model: Wan, frames: int) -> Condition:
        assert self.clips is not None
        clips = read_clips(self.clips)._replace(frames=frames)
        given = [condition_of(model, clips, clip, self.profile) for clip in clips.clips]
        return one_world(trajectory.tree_stack(given))


def around(steps: int, first: float, middle: float) -> Float[np.ndarray, " S"]:
    """Noise levels from `first` down, half of the steps (one more if they are odd) above `middle`,
    evenly spaced on both sides; the 0 at the end is left out."""
    above = math.ceil(steps / 2)
    return np.concatenate(
        [
            np.linspace(first, middle, above, endpoint=False),
            np.linspace(middle, 0.0, steps - above, endpoint=False),
        ]
    )


def apart(
    ends: Float[np.ndarray, "P K F h w C"], others: Float[np.ndarray, "P K F h w C"]
) -> Float[np.ndarray, "P K"]:
    """Root mean square distance, over the norm of the others."""
    axes = (-4, -3, -2, -1)
    off, size = (np.square(a, dtype=np.float64).sum(axes) for a in (ends - others, others))
    return np.sqrt(off / size)


class End(NamedTuple):
    """How a run ended, by seed, and how the ideal denoiser's does from the same noise."""

    video: UInt8[Any, "*K F H W 3"]
    ideal_video: UInt8[Any, "*K F H W 3"]


def look_at_end(model: Wan, plan: flow.Plan, trace: Trace, answers: Answers) -> End:
    noise, latents, prior = trace.estimate_obs[0][:, 0], answers.latents, answers.log_prior
    own = jax.vmap(lambda x: ideal_run(plan.schedule, x, latents, prior).x0[-1])(noise)
    return End(pixels(model, trace.latents[0]), pixels(model, own))


def look_at_latents(
    model: Wan, plan: flow.Plan, trace: Trace, beside: tuple[()]
) -> Float[Array, "K F h w C"]:
    del model, plan, beside
    return trace.latents[0]
