"""What do steps buy, and where are they best spent? (Of the paper's limits: distilled models with
four steps struggle; readers suggest to spend steps where the answer forms.)

A schedule is data: its noise levels, the timesteps of the model, the solver's table. All schedules
of one length are one compiled program, whatever their shift or spacing; where two experts share
the run, all of one length that divide it alike.

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
from jcos.experiments.experiment import Experiment, Picture, Progress, case_labels
from jcos.experiments.parameters import NONEMPTY, AtLeastTwo, Count, Positive, Rule
from jcos.experiments.samples import Samples
from jcos.experiments.sweeps import pixels, read_latents
from jcos.lab.ideal import ideal_run
from jcos.lab.measures import GAINS, POSITIVE, rms
from jcos.lab.results import DENOISERS, measure, of_kind
from jcos.sampling import flow
from jcos.sampling.probes import States
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan

Level = Annotated[float, Rule(lambda m: 0 < m < 0.999, "above 0 and below 0.999")]
"""A noise level below that at which schedules begin."""


class Case(NamedTuple):
    """A schedule. kind: "steps" for the model's spacing, "shift" for another shift (value),
    "middle" for half of the steps above the noise level `value`."""

    kind: str
    steps: int
    value: float | None = None

    def __str__(self) -> str:
        words = {"steps": "", "shift": ", shift {:g}", "middle": ", half above σ {:g}"}
        spacing = words[self.kind].format(self.value)
        return f"{self.steps} step{'s' * (self.steps > 1)}{spacing}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget(Experiment):
    """Score against forwards, paired by puzzle and seed, under many schedules.

    steps: how many, with the model's spacing. lengths: at which of them spacing is tried: shifts,
    and half of the steps above each of the noise levels `middles`, evenly spaced on both sides.
    Of clips: how far each run ends from the one with most steps; what comes out is nowhere judged.
    """

    question = "What do steps buy, and where are they best spent?"

    tasks: tuple[str, ...] = ("maze", "tictactoe", "pattern", "rotation", "returns", "bounce")
    steps: Annotated[tuple[Count, ...], NONEMPTY] = (1, 2, 4, 8, 16, 50)
    lengths: tuple[AtLeastTwo, ...] = (4, 8)
    shifts: tuple[Positive, ...] = (1.0, 2.0, 3.0, 5.0, 8.0)
    middles: tuple[Level, ...] = (0.25, 0.5, 0.75, 0.9, 0.95)

    def check(self, config: WanConfig) -> None:
        super().check(config)
        if self.sampling.steps is not None:
            raise ValueError(
                f"sampling.steps is {self.sampling.steps}; this experiment takes steps=1,2,4 …"
            )
        if self.sampling.sigmas is not None:
            raise ValueError("leave out sampling.sigmas: this experiment tries many schedules")

    def cases(self) -> list[Case]:
        """Return all schedules; each length has the model's spacing among them."""
        cases = [Case("steps", n) for n in sorted({*self.steps, *self.lengths})]
        for n in sorted(set(self.lengths)):
            cases += [Case("shift", n, float(k)) for k in sorted(set(self.shifts))]
            cases += [Case("middle", n, m) for m in sorted(set(self.middles))]
        return cases

    def plan_of(self, model: Wan, case: Case) -> flow.Plan:
        """Return the run of a case."""
        sampling = dataclasses.replace(self.sampled(model.config), steps=case.steps, sigmas=None)
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
        samples, ends, cases = self.samples(model), {}, self.cases()
        read: dict[str, Any] = {"readout": read_latents}
        if samples.judged:
            read = {"readout": read_ends, "probes": [States()]}
            read["aux"] = answers_of(model, samples.puzzles)
        for case in cases:
            about = {"plan": self.plan_of(model, case), "what": str(case)}
            ends[case] = self.sweep(model, progress)(samples.conditions, **about, **read)[0]
        labels = case_labels(
            cases,
            kind=[c.kind for c in cases],
            steps=[c.steps for c in cases],
            value=[np.nan if c.value is None else c.value for c in cases],
            forwards=[self.forwards(model.config, c.steps) for c in cases],
        )
        if not samples.judged:
            best = ends[Case("steps", max(c.steps for c in cases))]
            off = np.stack([rms(end - best) / rms(best) for end in ends.values()])
            distance = measure("case clip seed", off, "distance of the end", CLIPS, span=POSITIVE)
            return self.dataset({"distance": distance}, samples, **labels)
        progress("judging", 0, 1)
        together = self.tasks[0] if len(samples.groups) == 1 else "all tasks"
        labels["together"] = ("puzzle", [together] * len(samples))
        return self.dataset(gains(samples, ends), samples, denoiser=list(DENOISERS), **labels)

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
    "How far a run ends from the one with most steps and the model's own spacing, relative, from "
    "the same noise."
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


def read_ends(
    model: Wan, plan: flow.Plan, trace: Trace, answers: Answers
) -> UInt8[Array, "2 K F H W 3"]:
    """Return how one puzzle's run in world 0 ends, and the ideal denoiser's from the same noise."""
    noise, latents, prior = trace.estimate_obs[0][:, 0], answers.latents, answers.log_prior
    ideal = jax.vmap(lambda x: ideal_run(plan.schedule, x, latents, prior).x0[-1])(noise)
    return pixels(model, jnp.stack([trace.latents[0], ideal]))
