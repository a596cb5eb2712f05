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
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, UInt8

from jcos.config import WanConfig
from jcos.experiments import plots
from jcos.experiments.answers import Answers, answers_of
from jcos.experiments.clips import condition_of, latent_frames, read_clips
from jcos.experiments.experiment import Experiment, Picture, Progress
from jcos.experiments.samples import Samples
from jcos.experiments.sweeps import one_world, pixels, sweep
from jcos.lab.ideal import ideal_run
from jcos.lab.measures import GAINS, POSITIVE
from jcos.lab.results import DENOISERS, measure, of_kind
from jcos.loop import first_noise, seed_keys
from jcos.sampling import flow, trajectory
from jcos.sampling.probes import States
from jcos.sampling.trajectory import Condition, Trace
from jcos.wan import Wan


class Case(NamedTuple):
    """A schedule. kind: "steps" for the model's spacing, "shift" for another shift (value),
    "middle" for half of the steps above the noise level `value`, "seed" for another seed. frames:
    of the video, where they differ from the clips'."""

    kind: str
    steps: int
    value: float | None = None
    frames: int | None = None

    def __str__(self) -> str:
        if self.kind == "seed":
            return "another seed"
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
    Of clips: how far each run ends from the one with most steps, or frames, and how far two seeds
    are apart; what comes out is nowhere judged.
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
        samples, cases = self.samples(model), self.cases()
        if not samples.judged:
            return self._clips(model, samples, progress)
        answers, each = answers_of(model, samples.puzzles), []
        for case in cases:
            ends = self.sweep(model, progress)(
                samples.conditions,
                probes=[States()],
                plan=self.plan_of(model, case),
                readout=read_ends,
                aux=answers,
                what=str(case),
            )
            each.append(samples.judge(ends[0]))
        progress("judging", 0, 1)
        scores, solved = (
            np.stack(values).swapaxes(1, 2).astype(float) for values in zip(*each, strict=True)
        )
        longest = cases.index(Case("steps", max(c.steps for c in cases)))
        plain = np.array([c.kind == "steps" for c in cases])[:, None, None]
        as_many = [cases.index(Case("steps", c.steps)) for c in cases]
        fewer, spaced = (scores[:, 0] - scores[others, 0] for others in ([longest], as_many))
        fewer, spaced = np.where(plain, fewer, np.nan), np.where(plain, np.nan, spaced)
        fewer[longest] = np.nan
        dims, gains = "case denoiser puzzle seed", {"span": GAINS, "by": "together"}
        variables = samples.levels({"score": "score", "solved": "solved"})
        for name, values, comment in (
            ("score", scores, "Score of the end."),
            ("solved", solved, "Share of puzzles solved."),
        ):
            variables[name] = measure(dims, values, name, comment, by="part")
        for name, values, other in (
            ("fewer", fewer, str(cases[longest])),
            ("spaced", spaced, "the model's own spacing"),
        ):
            title = f"score, more than with {other}"
            variables[name] = measure("case puzzle seed", values, title, PAIRED, **gains)
        together = self.tasks[0] if len(samples.groups) == 1 else "all tasks"
        about = {"denoiser": list(DENOISERS), "together": ("puzzle", [together] * len(samples))}
        return self._dataset(model, samples, cases, variables).assign_coords(about)

    def _dataset(
        self, model: Wan, samples: Samples, cases: list[Case], variables: dict[str, Any]
    ) -> xr.Dataset:
        """Return the variables with what is known of every case."""
        about = {
            "case": list(map(str, cases)),
            "kind": ("case", [c.kind for c in cases]),
            "steps": ("case", [c.steps for c in cases]),
            "value": ("case", [np.nan if c.value is None else c.value for c in cases]),
            "forwards": ("case", [self.forwards(model.config, c.steps) for c in cases]),
        }
        return xr.Dataset(variables, samples.coordinates() | about | {"seed": list(self.seeds)})

    def _clips(self, model: Wan, samples: Samples, progress: Progress) -> xr.Dataset:
        def ends(plan: flow.Plan, what: str, conditions: Condition, **more: Any) -> np.ndarray:
            more |= {"plan": plan, "what": what, "chunk": self.chunk, "progress": progress}
            return sweep(model, conditions, self.seeds, readout=read_latents, **more)[0]

        cases = self.cases()
        latents = [ends(self.plan_of(model, c), str(c), samples.conditions) for c in cases]
        best = latents[cases.index(Case("steps", max(c.steps for c in cases)))]
        distances = [apart(end, best) for end in latents]
        shown = [i for i, c in enumerate(cases) if c.kind == "steps"]
        film = model.decode(jnp.asarray(np.stack([latents[i][0, 0] for i in shown])))
        film_of = [str(cases[i]) for i in shown]
        if self.frames:
            of_frames = self._frames(model, ends)
            cases += of_frames
            distances += of_frames.values()
        if len(self.seeds) > 1:
            cases.append(Case("seed", max(c.steps for c in cases)))
            distances.append(apart(best, np.roll(best, 1, axis=1)))
        title, film_dims = "distance of the end", ("film_of", "film_frame", "row", "column", "rgb")
        values = np.stack(distances)
        variables: dict[str, Any] = {
            "distance": measure("case clip seed", values, title, CLIPS, span=POSITIVE),
            "film": (film_dims, film),
            "film_of": ("film_of", film_of),
        }
        return self._dataset(model, samples, cases, variables)

    def _frames(
        self, model: Wan, ends: Callable[..., np.ndarray]
    ) -> dict[Case, Float[np.ndarray, "P K"]]:
        """Return how far the clips of each number of frames are from those of the most, at the
        latent frames that they have in common in time, relative."""
        steps, config, best = max(self.steps), model.config, None
        plan, distances = self.plan_of(model, Case("steps", steps)), {}
        conditions = {n: self._conditions(model, n) for n in sorted(set(self.frames), reverse=True)}
        longest = jax.tree.map(lambda a: a[0], next(iter(conditions.values())))
        shape = (*longest.grid, config.dit.out_channels)
        noise = first_noise(config, self.seeds, shape)
        noise, _ = trajectory.draw(config.dit, longest, seed_keys(self.seeds), noise)
        for n, of_length in conditions.items():
            shared = np.linspace(0, shape[0] - 1, of_length.grid[0]).round().astype(int)
            start = np.tile(noise[None, :, shared], (len(of_length.context), 1, 1, 1, 1, 1))
            latents = ends(plan, f"{n} frames", of_length, start=start)
            best = latents if best is None else best
            distances[Case("steps", steps, frames=n)] = apart(latents, best[:, :, shared])
        return distances

    def _conditions(self, model: Wan, frames: int) -> Condition:
        assert self.clips is not None
        clips = read_clips(self.clips)._replace(frames=frames)
        rows = [condition_of(model, clips, clip, self.profile) for clip in clips.clips]
        return one_world(trajectory.tree_stack(rows))

    def figures(self, data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
        if "distance" in data:
            figure = plots.paired(data["distance"], "distance of the end, relative")
            yield "distance", Picture(figure, CLIPS)
            film = plots.film_grid(data["film"].values, list(data["film_of"].values))
            yield "film", Picture(film, FILM)
            return
        steps = of_kind(data, "steps", "forwards").sortby("forwards")
        about = {"xlabel": "forwards per video", "ylabel": "score", "log": True}
        figure = plots.lines(steps, "score", "forwards", hue="denoiser", **about)
        yield "steps", Picture(figure, STEPS)
        spaced = data["spaced"].isel(case=data["kind"].values != "steps")
        if spaced.size:
            yield "compared", Picture(plots.paired(spaced, "score, paired difference"), COMPARED)


STEPS = (
    "Score against what a video costs, from one step on, with the model's own spacing; the ideal "
    "denoiser runs under the same schedules from the same noise."
)
COMPARED = (
    "Score above that of the model's own spacing with as many steps, paired by puzzle and seed, "
    "over all tasks. A larger shift, and a higher level above which half of the steps lie, spend "
    "more of them early."
)
PAIRED = "The same puzzles and seeds."
CLIPS = (
    "How far a run ends from the one with most steps and the model's own spacing (frames: from the "
    "one with most frames, at the frames that they share in time), relative, from the same noise."
)
FILM = "The first clip and seed; rows are numbers of steps, columns are frames."


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


def read_latents(
    model: Wan, plan: flow.Plan, trace: Trace, aux: tuple[()]
) -> Float[Array, "K F h w C"]:
    """Return how the runs of world 0 end."""
    del model, plan, aux
    return trace.latents[0]
