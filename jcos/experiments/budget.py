"""What do steps buy, and where are they best spent? (Of the paper's limits: distilled models with
four steps struggle; readers suggest to spend steps where the answer forms.)

A schedule is data: its noise levels, the timesteps of the model, the solver's table. All schedules
of one length are one compiled program, whatever their shift or spacing; where two experts share the
run, all of one length that divide it alike.

The ideal denoiser (`ideal.py`) runs under every schedule from the same noise. Where a puzzle has
several right answers its first estimate blends them, so it needs more than one step; a model that
does not is one that has a favourite among them.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, UInt8

from jcos.config import WanConfig
from jcos.experiments import plots
from jcos.experiments.answers import Answers, answers_of
from jcos.experiments.clips import latent_frames
from jcos.experiments.experiment import Experiment, Picture, Progress, case_labels
from jcos.experiments.parameters import NONEMPTY, AtLeastTwo, Count, Positive, Rule
from jcos.experiments.samples import Samples
from jcos.experiments.sweeps import pixels, read_latents
from jcos.lab.ideal import ideal_run
from jcos.lab.measures import GAINS, POSITIVE
from jcos.lab.results import DENOISERS, measure, of_kind
from jcos.loop import first_noise, seed_keys
from jcos.sampling import flow, trajectory
from jcos.sampling.probes import States
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan

Level = Annotated[float, Rule(lambda m: 0 < m < 0.999, "above 0 and below 0.999")]
"""A noise level below that at which schedules begin."""


class Case(NamedTuple):
    """A schedule. kind: "steps" for the model's spacing, "shift" for another shift (value),
    "middle" for half of the steps above the noise level `value`. frames: of the video, where they
    differ from the clips'."""

    kind: str
    steps: int
    value: float | None = None
    frames: int | None = None

    def __str__(self) -> str:
        words = {"steps": "", "shift": ", shift {:g}", "middle": ", half above σ {:g}"}
        spacing = words[self.kind].format(self.value)
        frames = "" if self.frames is None else f", {self.frames} frames"
        return f"{self.steps} step{'s' * (self.steps > 1)}{spacing}{frames}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget(Experiment):
    """Score against forwards, paired by puzzle and seed, under many schedules.

    steps: how many, with the model's spacing. lengths: at which of them spacing is tried: shifts,
    and half of the steps above each of the noise levels `middles`, evenly spaced on both sides.
    frames: of clips, any 4n + 1 that the model's VAE takes; noise is shared at the frames that two
    videos have in common in time.
    Of clips: how far each run ends from the one with most steps, or frames; what comes out is
    nowhere judged.
    """

    question = "What do steps buy, and where are they best spent?"

    tasks: tuple[str, ...] = ("maze", "tictactoe", "pattern", "rotation", "returns", "bounce")
    steps: Annotated[tuple[Count, ...], NONEMPTY] = (1, 2, 4, 8, 16, 50)
    lengths: tuple[AtLeastTwo, ...] = (4, 8)
    shifts: tuple[Positive, ...] = (1.0, 2.0, 3.0, 5.0, 8.0)
    middles: tuple[Level, ...] = (0.25, 0.5, 0.75, 0.9, 0.95)
    frames: tuple[int, ...] = ()

    def check(self, config: WanConfig) -> None:
        super().check(config)
        if self.sampling.steps is not None:
            raise ValueError(
                f"sampling.steps is {self.sampling.steps}; this experiment takes steps=1,2,4 …"
            )
        if self.sampling.sigmas is not None:
            raise ValueError("leave out sampling.sigmas: this experiment tries many schedules")
        if self.frames and self.clips is None:
            raise ValueError(
                f"{config.name} makes puzzles of the one length that it was trained on: "
                "frames are varied of clips only (clips=FILE.json)"
            )
        for frames in self.frames:
            latent_frames(config, frames)

    def cases(self) -> list[Case]:
        """Return all schedules; each length has the model's spacing among them."""
        cases = [Case("steps", n) for n in sorted({*self.steps, *self.lengths})]
        for n in sorted(set(self.lengths)):
            cases += [Case("shift", n, float(k)) for k in sorted(set(self.shifts))]
            cases += [Case("middle", n, m) for m in sorted(set(self.middles))]
        return cases

    def plan_of(self, model: Wan, case: Case) -> flow.Plan:
        """Return the run of a case."""
        sampling = dataclasses.replace(
            self.sampling.of(model.config), steps=case.steps, sigmas=None
        )
        if case.kind == "shift":
            sampling = dataclasses.replace(sampling, shift=case.value)
        boundary = model.config.boundary
        plan = flow.plan(sampling, boundary)
        if case.kind != "middle":
            return plan
        assert case.value is not None
        first = float(plan.schedule.sigmas[0])
        levels = flow.at_sigmas(around(case.steps, first, case.value), sampling)
        high = None if boundary is None else flow.high_noise_steps(levels, boundary)
        return plan.replace(schedule=levels, high_steps=high)

    def measure(self, model: Wan, progress: Progress) -> xr.Dataset:
        samples, ends = self.samples(model), {}
        read: dict[str, Any] = {"readout": read_latents}
        if samples.judged:
            answers = answers_of(model, samples.puzzles)
            read = {"readout": read_ends, "aux": answers, "probes": [States()]}
        for case in self.cases():
            about = {"plan": self.plan_of(model, case), "what": str(case)}
            ends[case] = self.sweep(model, progress)(samples.conditions, **about, **read)[0]
        if samples.judged:
            progress("judging", 0, 1)
            cases, variables = list(ends), gains(samples, ends)
            together = self.tasks[0] if len(samples.groups) == 1 else "all tasks"
            labels = {
                "denoiser": list(DENOISERS),
                "together": ("puzzle", [together] * len(samples)),
            }
        else:
            best = ends[Case("steps", max(c.steps for c in ends))]
            distances = {case: apart(end, best) for case, end in ends.items()}
            distances |= self._frames(model, progress) if self.frames else {}
            cases, labels = list(distances), {}
            values, name = np.stack(list(distances.values())), "distance of the end"
            variables = {"distance": measure("case clip seed", values, name, CLIPS, span=POSITIVE)}
        labels |= case_labels(
            cases,
            kind=[c.kind for c in cases],
            steps=[c.steps for c in cases],
            value=[np.nan if c.value is None else c.value for c in cases],
            forwards=[self.forwards(model.config, c.steps) for c in cases],
        )
        return self.dataset(variables, samples, **labels)

    def _frames(self, model: Wan, progress: Progress) -> dict[Case, Float[np.ndarray, "P K"]]:
        """Return how far the clips of each number of frames are from those of the most, at the
        latent frames that they have in common in time, relative."""
        assert self.clips is not None
        steps, config, best = max(self.steps), model.config, None
        plan, distances, conditions = self.plan_of(model, Case("steps", steps)), {}, {}
        for n in sorted(set(self.frames), reverse=True):
            of_length = Samples.of_clips(model, self.clips, self.profile, frames=n)
            conditions[n] = of_length.conditions
        longest = jax.tree.map(lambda a: a[0], next(iter(conditions.values())))
        shape = (*longest.grid, config.dit.out_channels)
        noise = first_noise(config, self.seeds, shape)
        noise, _ = trajectory.draw(config.dit, longest, seed_keys(self.seeds), noise)
        for n, of_length in conditions.items():
            shared = np.linspace(0, shape[0] - 1, of_length.grid[0]).round().astype(int)
            start = np.tile(noise[None, :, shared], (len(of_length.context), 1, 1, 1, 1, 1))
            about = {"plan": plan, "what": f"{n} frames", "start": start}
            (end,) = self.sweep(model, progress)(of_length, readout=read_latents, **about)
            best = end if best is None else best
            distances[Case("steps", steps, frames=n)] = apart(end, best[:, :, shared])
        return distances

    def figures(self, data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
        if "distance" in data:
            figure = plots.paired(data["distance"], "distance of the end, relative")
            yield "distance", Picture(figure, CLIPS)
            return
        steps = of_kind(data, "steps", "forwards").sortby("forwards")
        about = {"xlabel": "forwards per video", "ylabel": "score", "log": True}
        figure = plots.lines(steps, "score", "forwards", hue="denoiser", **about)
        yield "steps", Picture(figure, STEPS)


STEPS = (
    "Score against what a video costs, from one step on, with the model's own spacing; the ideal "
    "denoiser runs under the same schedules from the same noise."
)
PAIRED = "The same puzzles and seeds."
CLIPS = (
    "How far a run ends from the one with most steps and the model's own spacing (frames: from the "
    "one with most frames, at the frames that they share in time), relative, from the same noise."
)


def gains(samples: Samples, ends: dict[Case, np.ndarray]) -> dict[str, Any]:
    """Return how good the videos [P, 2, K, …] of every case are, of the model and of the ideal
    denoiser; and paired differences from the longest run, and from the model's own spacing."""
    cases, judged = list(ends), [samples.judge(videos) for videos in ends.values()]
    scores, solved = (np.stack(values).swapaxes(1, 2) for values in zip(*judged, strict=True))
    longest = cases.index(Case("steps", max(c.steps for c in cases)))
    plain = np.array([c.kind == "steps" for c in cases])[:, None, None]
    as_many = [cases.index(Case("steps", c.steps)) for c in cases]
    fewer, spaced = (scores[:, 0] - scores[others, 0] for others in ([longest], as_many))
    fewer, spaced = np.where(plain, fewer, np.nan), np.where(plain, np.nan, spaced)
    fewer[longest] = np.nan
    every, paired = "case denoiser puzzle seed", "case puzzle seed"
    gain: dict[str, Any] = {"span": GAINS, "by": "together"}
    share, more = "Share of puzzles solved.", "score, more than with"
    return samples.levels({"score": "score", "solved": "solved"}) | {
        "score": measure(every, scores, "score", "Score of the end.", by="part"),
        "solved": measure(every, solved.astype(float), "solved", share, by="part"),
        "fewer": measure(paired, fewer, f"{more} {cases[longest]}", PAIRED, **gain),
        "spaced": measure(paired, spaced, f"{more} the model's own spacing", PAIRED, **gain),
    }


def around(steps: int, first: float, middle: float) -> Float[np.ndarray, " S"]:
    """Return noise levels from `first` down, half of the steps (one more if they are odd) above
    `middle`, evenly spaced on both sides; the 0 at the end is left out."""
    above = math.ceil(steps / 2)
    spans = (first, middle, above), (middle, 0.0, steps - above)
    return np.concatenate([np.linspace(*span, endpoint=False) for span in spans])


def apart(
    ends: Float[np.ndarray, "P K F h w C"], others: Float[np.ndarray, "P K F h w C"]
) -> Float[np.ndarray, "P K"]:
    """Return the root mean square distance, over the norm of the others."""
    axes = (-4, -3, -2, -1)
    off, size = (np.square(a, dtype=np.float64).sum(axes) for a in (ends - others, others))
    return np.sqrt(off / size)


def read_ends(
    model: Wan, plan: flow.Plan, trace: Trace, answers: Answers
) -> UInt8[Array, "2 K F H W 3"]:
    """Return how one puzzle's run in world 0 ends, and the ideal denoiser's from the same noise."""
    noise, latents, prior = trace.estimate_obs[0][:, 0], answers.latents, answers.log_prior
    ideal = jax.vmap(lambda x: ideal_run(plan.schedule, x, latents, prior).x0[-1])(noise)
    return pixels(model, jnp.stack([trace.latents[0], ideal]))
