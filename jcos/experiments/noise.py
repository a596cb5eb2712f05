"""What does noise destroy: one step in all frames, or one frame at all steps? (Paper, section 3.2.)

Unit noise at a late step is more than the steps left can remove: so every run is also judged after
a few clean-up steps, and compared with noise at the step's own level. A run that was wiped early
may choose another right answer: so agreement with the unperturbed choice is measured too. Noise at
step 0 is a fresh seed; its agreement is chance. What the ideal denoiser (`lab.ideal`) withstands
under the same noise and the model does not is specific to the model.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int, UInt8

from jcos.config import WanConfig
from jcos.experiments import plots
from jcos.experiments.answers import Answers, answers_of, blend, chosen
from jcos.experiments.experiment import Experiment, Picture, Progress, case_labels, places
from jcos.experiments.parameters import AtFrames, AtSteps, Rule
from jcos.experiments.samples import Samples
from jcos.experiments.sweeps import pixels
from jcos.lab.measures import GAINS, POSITIVE, SCORES, UNBOUNDED
from jcos.lab.results import IDEAL, MODEL, described, measure, of_kind
from jcos.lab.tasks import TASKS, Puzzle, Video
from jcos.sampling import flow, probes
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan

NONE, STEP, FRAME = "no noise", "step", "frame"
STEP_LEVEL, FRAME_LEVEL = "step, own level", "frame, own level"
CELL, STRENGTH, MATCHED = "cell", "strength", "frame, same energy"
MEASURES = {
    "distance": ("distance", "From the end of the unperturbed run, over its root mean square."),
    "score": ("score", "Score as the run ends."),
    "solved": ("solved", "Share of runs that end solved."),
    "score_clean": ("score after clean-up", "Score after a few more steps."),
    "solved_clean": ("solved after clean-up", "Solved after a few more steps."),
    "score_others": ("score of the other frames", "The noised frame is taken from an answer."),
    "agreement": ("agreement", "Same right answer as the unperturbed run, where both solve."),
}
"""Titles and meanings."""
AS_IT_ENDS = ("score", "solved", "score_others")
"""Measures without clean-up."""
CONTRASTS = {"full strength": FRAME, "same energy": MATCHED}
"""Kinds of noise at a frame that are compared with noise at a step."""
CURVES = {
    "replaced": (MODEL, STEP, ""),
    "as it ends": (MODEL, STEP, "score"),
    "own level": (MODEL, STEP_LEVEL, ""),
    IDEAL: (IDEAL, STEP, ""),
}
"""Denoiser, kind and measure of each curve; by default the score after clean-up."""
AT_STEP = (
    "Noise at one step in all frames. Replaced: x ← N(0, I). Own level: x̂0 is kept and its noise "
    "drawn anew at the step's level. Clean-up: judged after a few more steps, which remove mere "
    "pixel noise. The ideal denoiser: replaced, after clean-up."
)

Strength = Annotated[float, Rule(lambda r: 0 < r <= 1, "above 0 and at most 1")]


class Case(NamedTuple):
    """Where noise is put: at a step or at all (None), in a frame or in all, how strongly. Of kinds
    with their own level x̂0 is kept, and its noise drawn anew."""

    kind: str
    step: int | None = None
    frame: int | None = None
    strength: float = 1.0

    @property
    def keeps_estimate(self) -> bool:
        return self.kind in (STEP_LEVEL, FRAME_LEVEL)

    def __str__(self) -> str:
        if self.kind == NONE:
            return NONE
        step = "all steps" if self.step is None else f"step {self.step}"
        frame = "all frames" if self.frame is None else f"frame {self.frame}"
        strength = "" if self.strength == 1 else f", strength {self.strength:.2f}"
        level = ", at its own level" if self.keeps_estimate else ""
        matched = ", energy of one step" if self.kind == MATCHED else ""
        return f"{step}, {frame}{strength}{level}{matched}"


def labels_of(cases: Sequence[Case]) -> dict[str, Any]:
    """Return the coordinates of a dimension `case`; nan is all steps, or all frames."""
    steps, frames, strengths = np.array([case[1:] for case in cases], np.float64).T
    kinds = [case.kind for case in cases]
    return case_labels(cases, kind=kinds, at_step=steps, at_frame=frames, strength=strengths)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise(Experiment):
    """Paper, section 3.2: noise at a step (x of all frames ← N(0, I)) against noise at a frame (at
    every step), each position a run of its own.

    Beyond the paper: both at the step's own noise level (x̂0 kept, noise drawn anew); single cells
    of step × frame; strengths between nothing and all; noise at a frame weakened to inject the same
    energy as noise at a step; the ideal denoiser. Of clips only the distance is measured.

    steps, frames: where noise goes, all by default. map_steps: steps of the map. strengths,
    strength_steps: of the strength sweep. cleanup: steps that every run is prolonged by, from its
    final estimate noised to the level of the last so many steps; 0 for none.
    """

    question = "What does noise destroy: one step in all frames, or one frame at all steps?"

    steps: AtSteps | None = None
    frames: AtFrames | None = None
    map_steps: AtSteps = (0.0, 0.2, 0.4, 0.6, 0.8)
    strengths: tuple[Strength, ...] = (0.5, 0.75, 0.9)
    strength_steps: AtSteps = (0.2, 0.5, 0.8)
    cleanup: int = 6

    def check(self, config: WanConfig) -> None:
        super().check(config)
        plan = self.plan(config)
        most = plan.steps - (plan.high_steps or 0)
        if not 0 <= self.cleanup <= most:
            raise ValueError(
                f"cleanup is {self.cleanup}; it takes 0 to {most} steps here, the last of the run, "
                "by the low-noise expert where there are two"
            )

    def measure(self, model: Wan, progress: Progress) -> xr.Dataset:
        samples = self.samples(model)
        steps, frames = self.plan(model.config).steps, samples.latent[0]
        cases = self.cases(steps, frames)
        answers = answers_of(model, samples.puzzles) if samples.judged else None
        denoisers = {MODEL: None} if answers is None else {MODEL: None, IDEAL: answers.ideal}
        measured = []
        for name, denoiser in denoisers.items():
            ends: Ends = self.sweep(model, progress)(
                samples.conditions,
                probes=[probe_of(case, steps, frames, self.cleanup) for case in cases],
                item_probe=denoiser,
                plan=with_cleanup(self, model),
                readout=read_ends,
                aux=(answers, np.full(len(samples), steps - 1, np.int32)),
                what=f"noise at every step and frame, {name}",
            )
            progress("judging", 0, 1)
            measured.append(values_of(samples, cases, ends, answers))
        baselines = {n: n.split("_")[0] for n in MEASURES if n.startswith(("score", "solved"))}
        variables: dict[str, Any] = samples.levels(baselines) | {
            "forwards": ((), self.forwards(model.config), {}),
            "more_forwards": ((), self.forwards(model.config, steps + self.cleanup), {}),
        }
        for name in measured[0]:
            variables[name] = measure(
                f"case denoiser {samples.runs} seed",
                np.stack([values[name] for values in measured], 1),
                *MEASURES[name],
                span=POSITIVE if name == "distance" else SCORES,
                forwards="forwards" if name in AS_IT_ENDS else "more_forwards",
            )
        labels = {"denoiser": list(denoisers)} | labels_of(cases)
        data = self.dataset(variables, samples, **labels)
        return data.assign(contrasts(data))

    def cases(self, steps: int, frames: int) -> list[Case]:
        """Return all positions of noise; the first is none."""
        at_steps = places(self.steps, steps, "step")
        at_frames = places(self.frames, frames, "frame")
        cases = [Case(NONE)]
        for step, frame in ((STEP, FRAME), (STEP_LEVEL, FRAME_LEVEL)):
            cases += [Case(step, step=s) for s in at_steps]
            cases += [Case(frame, frame=f) for f in at_frames]
        cells = places(self.map_steps, steps, "step")
        cases += [Case(CELL, step=s, frame=f) for s in cells for f in at_frames]
        for s in places(self.strength_steps, steps, "step"):
            cases += [Case(STRENGTH, step=s, strength=r) for r in self.strengths]
        if frames > steps:  # at full strength, a frame still gets less than a step
            return cases
        matched = matching_strength(steps, frames)
        return cases + [Case(MATCHED, frame=f, strength=matched) for f in at_frames]

    def figures(self, data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
        if STEP not in data["kind"]:
            return
        main, shown = "score_clean" if "score_clean" in data else "distance", {}
        for label, (denoiser, kind, name) in CURVES.items():
            if denoiser in data["denoiser"] and (name or main) in data:
                values = data[name or main].sel(denoiser=denoiser, drop=True)
                shown[label] = of_kind(values, kind, "at_step")
        plain = data[main].sel(denoiser=MODEL, case=NONE).reset_coords(drop=True)
        shown[NONE] = plain.expand_dims(at_step=shown["replaced"]["at_step"])
        words: dict[str, Any] = {"xlabel": "step with noise", "ylabel": main.partition("_")[0]}
        yield "step", Picture(plots.lines(xr.Dataset(shown), x="at_step", **words), AT_STEP)


def contrasts(data: xr.Dataset) -> dict[str, xr.DataArray]:
    """Return the score of the other frames (or the distance) with noise at a frame less the same
    with noise at a step: run by run, each averaged over its positions."""
    there = set(data["kind"].values)
    if not {STEP, FRAME} <= there:
        return {}
    name, span = ("score_others", GAINS) if "score_others" in data else ("distance", UNBOUNDED)
    values, about = data[name].astype(np.float64), data[name].attrs
    contrasts = {words: kind for words, kind in CONTRASTS.items() if kind in there}
    kinds = STEP, *contrasts.values()
    step, *frames = (of_kind(values, k).mean("case", keep_attrs=False) for k in kinds)
    less = xr.concat(frames, xr.Variable("contrast", list(contrasts))) - step
    title = f"{about['long_name']}, at a frame less at a step"
    less.attrs = described(title, about["comment"], span=span, forwards=about["forwards"])
    return {f"{name}_less": less}


def matching_strength(steps: int, frames: int) -> float:
    """Return the strength at which noise in one frame at all steps injects the energy of full noise
    in all frames at one step, of at most as many frames as steps.

    Turning a latent of unit variance by strength r moves it by 2 (1 − √(1 − r²)) on average, so
    that S of these equal F full ones (2 each) at √(1 − r²) = 1 − F / S.
    """
    left = 1.0 - frames / steps
    return float(np.sqrt(1.0 - left**2))


def probe_of(case: Case, steps: int, frames: int, cleanup: int) -> probes.Noise:
    """Return the noise of a case; and, in the first clean-up step, noise at its own level in all
    frames, which takes up the run again from its final estimate."""
    where = np.zeros((steps + cleanup, frames), np.float32)
    at = slice(None, steps) if case.step is None else case.step
    if case.kind != NONE:
        where[at, slice(None) if case.frame is None else case.frame] = case.strength
    level = (where > 0) & case.keeps_estimate
    if cleanup:
        where[steps], level[steps] = 1.0, True
    return probes.Noise(jnp.asarray(where), jnp.asarray(level))


def with_cleanup(experiment: Noise, model: Wan) -> flow.Plan:
    """Return the run with its last `cleanup` steps once more behind it, by Euler's solver, which
    needs no history."""
    plan = experiment.plan(model.config)
    sampling = experiment.sampled(model.config)
    sampling = dataclasses.replace(sampling, solver="euler", eta=None)
    first, again, at = plan.schedule, flow.schedule(sampling), plan.steps - experiment.cleanup
    more = first.table.shape[1] - again.table.shape[1]  # 1 where the solver is stochastic
    joined = flow.Schedule(
        np.concatenate([first.sigmas[:-1], again.sigmas[at:]]),
        np.concatenate([first.timesteps, again.timesteps[at:]]),
        np.concatenate([first.table, np.pad(again.table[at:], ((0, 0), (0, more)))]),
    )
    return plan.replace(schedule=joined)


class Ends(NamedTuple):
    """How a run ended, by seed. latents: after clean-up. Of puzzles only: videos, as the run was
    and after clean-up; on, how much of the latter is each right answer."""

    latents: Float[Any, "*K F h w C"]
    videos: UInt8[Any, "*axes K F H W 3"] | None
    on: Float[Any, "*K A"] | None


def read_ends(
    model: Wan, plan: flow.Plan, trace: Trace, aux: tuple[Answers | None, Int[Array, ""]]
) -> Ends:
    """Return how a run of one world ended. aux: the answers, and the last step before clean-up."""
    answers, last = aux
    raw, clean = trace.x0[0][:, last], trace.latents[0]
    if answers is None:
        return Ends(clean, None, None)
    return Ends(clean, pixels(model, jnp.stack([raw, clean])), blend(clean, answers).on)


def values_of(
    samples: Samples, cases: Sequence[Case], ends: Ends, answers: Answers | None
) -> dict[str, np.ndarray]:
    """Return all measures, [cases, P, K]; nan where a run cannot tell."""
    plain = ends.latents[:1]
    square = [np.square(x).mean((-4, -3, -2, -1)) for x in (ends.latents - plain, plain)]
    values = {"distance": np.sqrt(square[0]) / np.sqrt(square[1])}
    if answers is None or ends.videos is None or ends.on is None:
        return values
    judged = samples.judge(ends.videos.swapaxes(0, 1))
    (raw, clean), (solved, good) = (a.transpose(2, 1, 0, 3) for a in judged)
    others = raw.copy()
    for i, case in enumerate(cases):
        if case.frame is not None and not case.keeps_estimate:
            for j, puzzle in enumerate(samples.puzzles):
                videos = ends.videos[i, j, 0]
                others[i, j] = [score_others(puzzle, video, case.frame) for video in videos]
    choice = np.stack([chosen(on, answers) for on in ends.on])
    comparable = good & good[:1] & samples.several[None, :, None]
    return values | {
        "score": raw,
        "solved": solved,
        "score_clean": clean,
        "solved_clean": good,
        "score_others": others,
        "agreement": np.where(comparable, choice == choice[:1], np.nan),
    }


def score_others(puzzle: Puzzle, video: Video, frame: int) -> float:
    """Return the score of all frames but one, which holds nothing but the noise of the last step:
    it is taken from the right answer that suits the others best."""
    task = TASKS[puzzle.task]
    answers = task.routes(puzzle)
    mended = np.repeat(video[None], len(answers), 0)
    mended[:, frame] = answers[:, frame]
    return max(task.score(puzzle, one).score for one in mended)
