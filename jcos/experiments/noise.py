"""What does noise destroy: one step in all frames, or one frame at all steps? (Paper, section 3.2.)

Two things would make late steps look decisive that are not. Unit noise at a late step is more than
the steps left can remove: so every run is also judged after a few clean-up steps, and compared with
noise at the step's own level. And a run that was wiped early may choose another right answer: so
agreement with the unperturbed choice is measured too. Noise at step 0 is a fresh seed; its
agreement is chance. The ideal denoiser (`lab.ideal`), which always ends with a right answer, meets
the same noise: what it withstands and the model does not is specific to the model.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int, UInt8

from jcos.config import WanConfig
from jcos.experiments import plots
from jcos.experiments.answers import Answers, answers_of, blend, chosen
from jcos.experiments.experiment import Experiment, Picture, Place, Progress, places
from jcos.experiments.samples import Samples
from jcos.experiments.sweeps import pixels, play, score, sweep
from jcos.lab.measures import GAINS, POSITIVE, SCORES, UNBOUNDED
from jcos.lab.results import IDEAL, MODEL, Variable, measure, of_kind, with_levels
from jcos.lab.tasks import TASKS, Puzzle, Task, Video
from jcos.sampling import flow, probes
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan

NONE, STEP, FRAME = "no noise", "step", "frame"
STEP_LEVEL, FRAME_LEVEL = "step, own level", "frame, own level"
CELL, STRENGTH, MATCHED = "cell", "strength", "frame, same energy"


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
    labels = {"kind": [case.kind for case in cases], "at_step": steps, "at_frame": frames}
    labels |= {"strength": strengths}
    return {"case": list(map(str, cases))} | {name: ("case", v) for name, v in labels.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise(Experiment):
    """Paper, section 3.2: noise at a step (x of all frames ← N(0, I)) against noise at a frame (at
    every step), each position a run of its own.

    Beyond the paper: both at the step's own noise level (x̂0 kept, noise drawn anew); single cells
    of step × frame; strengths between nothing and all; noise at a frame weakened to inject the same
    energy as noise at a step. Measured: score and solved, as the run ends and after clean-up;
    agreement with the choice of the unperturbed run; distance from where that ends; all of it of
    the ideal denoiser under the same noise too. Of clips only the distance.

    steps, frames: where noise goes, all by default. map_steps: steps of the map. strengths,
    strength_steps: of the strength sweep. cleanup: steps that every run is prolonged by, from its
    final estimate noised to the level of the last so many steps; 0 for none.
    """

    question = "What does noise destroy: one step in all frames, or one frame at all steps?"

    steps: tuple[Place, ...] | None = None
    frames: tuple[Place, ...] | None = None
    map_steps: tuple[Place, ...] = (0.0, 0.2, 0.4, 0.6, 0.8)
    strengths: tuple[float, ...] = (0.5, 0.75, 0.9)
    strength_steps: tuple[Place, ...] = (0.2, 0.5, 0.8)
    cleanup: int = 6

    def check(self, config: WanConfig) -> None:
        super().check(config)
        plan = self.plan(config)
        for chosen_steps in (self.steps, self.map_steps, self.strength_steps):
            places(chosen_steps, plan.steps, "step")
        places(self.frames, self.latent_frames(config), "frame")
        if not all(0 < r <= 1 for r in self.strengths):
            raise ValueError(f"strengths are {self.strengths}; each is above 0 and at most 1")
        high = plan.high_steps or 0
        if not 0 <= self.cleanup <= plan.steps - high:
            raise ValueError(
                f"cleanup is {self.cleanup}; it takes 0 to {plan.steps - high} steps here, the "
                "last of the run, by the low-noise expert where there are two"
            )

    def measure(self, model: Wan, progress: Progress) -> xr.Dataset:
        samples = self.samples(model)
        steps, frames = self.plan(model.config).steps, samples.latent[0]
        cases = self.cases(steps, frames)
        answers = answers_of(model, samples.puzzles) if samples.judged else None
        denoisers = {MODEL: None} if answers is None else {MODEL: None, IDEAL: answers.ideal}
        measured = []
        for name, denoiser in denoisers.items():
            ends: Ends = sweep(
                model,
                samples.conditions,
                self.seeds,
                probes=[probe_of(case, steps, frames, self.cleanup) for case in cases],
                item_probe=denoiser,
                plan=with_cleanup(self, model),
                readout=read_ends,
                aux=(answers, np.full(len(samples), steps - 1, np.int32)),
                chunk=self.chunk,
                what=f"noise at every step and frame, {name}",
                progress=progress,
            )
            progress("judging", 0, 1)
            measured.append(values_of(samples, cases, ends, answers))
        values = {name: np.stack([m[name] for m in measured], 1) for name in measured[0]}
        variables, each = samples.levels(BASELINES), f"denoiser {samples.runs} seed"
        for name, array in values.items():
            one = variable(f"case {each}", array, name)
            variables[name] = with_levels(one, name, variables)
        kinds = np.array([case.kind for case in cases])
        scores = ("score", "score_clean", "score_others") if samples.judged else ("distance",)
        if {STEP, FRAME} <= set(kinds):
            for name in scores:
                step, *frame = (
                    values[name][kinds == k].mean(0, dtype=np.float64)
                    for k in (STEP, FRAME, MATCHED)
                )
                less = variable(f"contrast {each}", np.stack(frame) - step, name, LESS)
                variables[f"{name}_less"] = less
        variables |= {
            "forwards": ((), self.forwards(model.config), {}),
            "more_forwards": ((), self.forwards(model.config, steps + self.cleanup), {}),
        }
        labels = {"denoiser": list(denoisers), "seed": list(self.seeds)}
        labels |= {"contrast": list(CONTRASTS)} if {STEP, FRAME} <= set(kinds) else {}
        return xr.Dataset(variables, labels | labels_of(cases) | samples.coordinates())

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
        matched = matching_strength(steps, frames)
        return cases + [Case(MATCHED, frame=f, strength=matched) for f in at_frames]

    def figures(self, data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
        kinds, model = set(data["kind"].values), data.sel(denoiser=MODEL, drop=True)
        main = "score_clean" if "score_clean" in data else "distance"
        y = dict[str, Any](ylabel="distance" if main == "distance" else "score")
        for kind, raw, caption in ((STEP, "score", AT_STEP), (FRAME, "score_others", IN_FRAME)):
            if kind in kinds:
                shown = _curves(data, kind, main, raw)
                figure = plots.lines(shown, x=f"at_{kind}", xlabel=f"{kind} with noise", **y)
                yield kind, Picture(figure, caption)
        if CELL in kinds:
            cells = of_kind(model, CELL, "at_step", "at_frame")[main]
            figure = plots.heat(cells, "at_frame", "at_step", xlabel="frame", ylabel="step")
            yield "map", Picture(figure, MAP)
        if STRENGTH in kinds:
            shown = of_kind(model, STRENGTH, "at_step", "strength").rename(at_step="step")
            figure = plots.lines(shown, main, "strength", hue="step", **y)
            yield "strength", Picture(figure, WEAKER)
        if {STEP, FRAME} <= kinds:
            together = model[main].groupby("kind").mean("case", keep_attrs=True)
            together = together.sel(kind=[NONE, STEP, STEP_LEVEL, FRAME, MATCHED])
            yield "compared", Picture(plots.paired(together, y["ylabel"], zero=False), COMPARED)
        if STEP in kinds and "agreement" in data and data["agreement"][1:].notnull().any():
            shown = _curves(data, STEP, "agreement")
            figure = plots.lines(shown, x="at_step", xlabel="step with noise", ylabel="agreement")
            yield "agreement", Picture(figure, AGREEMENT)


MEASURES = {
    "distance": ("distance", "From the end of the unperturbed run, over its root mean square."),
    "score": ("score", "Score as the run ends."),
    "solved": ("solved", "Share of runs that end solved."),
    "score_clean": ("score after clean-up", "Score after a few more steps."),
    "solved_clean": ("solved after clean-up", "Solved after a few more steps."),
    "score_others": (
        "score of the other frames",
        "The noised frame, which ends as noise, is taken from the right answer that suits best.",
    ),
    "agreement": (
        "agreement",
        "Same right answer as the unperturbed run, of puzzles with several that both solve.",
    ),
}
"""Titles and meanings."""
BASELINES = {
    "score": "score",
    "solved": "solved",
    "score_clean": "score",
    "solved_clean": "solved",
    "score_others": "score",
}
LESS, CONTRASTS = "at a frame less at a step", ("full strength", "same energy")
"""Run by run, each averaged over its positions."""


def variable(dims: str, values: np.ndarray, name: str, change: str = "") -> Variable:
    """Return one of `MEASURES` as a variable. change: of what it is a paired difference."""
    (title, comment), distance = MEASURES[name], name == "distance"
    if change:
        title, comment, span = f"{title}, {change}", "", UNBOUNDED if distance else GAINS
    else:
        span = POSITIVE if distance else SCORES
    as_it_ends = name in ("score", "solved", "score_others")
    cost = "forwards" if as_it_ends else "more_forwards"
    return measure(dims, values, title, comment, span=span, forwards=cost)


def matching_strength(steps: int, frames: int) -> float:
    """Return the strength at which noise in one frame at all steps injects the energy of full noise
    in all frames at one step.

    Turning a latent of unit variance by strength r moves it by 2 (1 − √(1 − r²)) on average, so
    that S of these equal F full ones (2 each) at √(1 − r²) = 1 − F / S.
    """
    kept = max(0.0, 1.0 - frames / steps)
    return float(np.sqrt(1.0 - kept**2))


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
    plan, more = experiment.plan(model.config), experiment.cleanup
    if not more:
        return plan
    sampling = dataclasses.replace(experiment.sampling.of(model.config), solver="euler")
    first, again = plan.schedule, flow.schedule(sampling)
    joined = flow.Schedule(
        np.concatenate([first.sigmas[:-1], again.sigmas[-more - 1 :]]),
        np.concatenate([first.timesteps, again.timesteps[-more:]]),
        np.concatenate([first.table, again.table[-more:]]),
    )
    return plan.replace(schedule=joined)


class Ends(NamedTuple):
    """How a run ended, by seed: as it was, and after clean-up. on: the blend of right answers of
    the latter. Videos and on of puzzles only."""

    raw: Float[Any, "*K F h w C"]
    clean: Float[Any, "*K F h w C"]
    raw_video: UInt8[Any, "*K F H W 3"] | None
    clean_video: UInt8[Any, "*K F H W 3"] | None
    on: Float[Any, "*K A"] | None


def read_ends(
    model: Wan, plan: flow.Plan, trace: Trace, aux: tuple[Answers | None, Int[Array, ""]]
) -> Ends:
    """Return how a run of one world ended. aux: the answers, and the last step before clean-up."""
    del plan
    answers, last = aux
    raw, clean = trace.x0[0][:, last], trace.latents[0]
    if answers is None:
        return Ends(raw, clean, None, None, None)
    on = blend(clean, answers).on
    return Ends(raw, clean, pixels(model, raw), pixels(model, clean), on)


def values_of(
    samples: Samples, cases: Sequence[Case], ends: Ends, answers: Answers | None
) -> dict[str, np.ndarray]:
    """Return all measures, [cases, P, K]; nan where a run cannot tell."""
    plain = ends.clean[:1]
    size = np.sqrt(np.mean(np.square(plain), (-4, -3, -2, -1)))
    moved = np.sqrt(np.mean(np.square(ends.clean - plain), (-4, -3, -2, -1))) / size
    values: dict[str, Any] = {"distance": moved}
    if answers is None or ends.raw_video is None or ends.clean_video is None or ends.on is None:
        return values
    for name, videos in (("", ends.raw_video), ("_clean", ends.clean_video)):
        scores, solved = (a.swapaxes(0, 1) for a in samples.judge(videos.swapaxes(0, 1)))
        values |= {f"score{name}": scores, f"solved{name}": solved}
    values["score_others"] = np.array(
        [
            [
                [score_others(puzzle, video, case.frame) for video in seeds]
                for puzzle, seeds in zip(samples.puzzles, row, strict=True)
            ]
            if case.frame is not None and not case.keeps_estimate
            else values["score"][i]
            for i, (case, row) in enumerate(zip(cases, ends.raw_video, strict=True))
        ]
    )
    choice = np.stack([chosen(on, answers) for on in ends.on])
    good = values["solved_clean"]
    comparable = good & good[:1] & samples.several[None, :, None]
    values["agreement"] = np.where(comparable, choice == choice[:1], np.nan)
    return values


def score_others(puzzle: Puzzle, video: Video, frame: int) -> float:
    """Return the score of all frames but one, which holds nothing but the noise of the last step:
    it is taken from the right answer that suits the others best."""
    task, best = TASKS[puzzle.task], 0.0
    for answer in task.routes(puzzle):
        mended = video.copy()
        mended[frame] = answer[frame]
        best = max(best, task.score(puzzle, mended).score)
    return best


class NoiseScores(NamedTuple):
    """Scores per puzzle: without noise [P], with noise at each chosen step [P, s], in each frame
    [P, f]; in the last case of the other frames."""

    plain: Float[np.ndarray, " P"]
    at_step: Float[np.ndarray, "P s"]
    at_frame: Float[np.ndarray, "P f"]


def noise_scores(
    model: Wan, task: Task, puzzles: Sequence[Puzzle], at_steps: Sequence[int]
) -> NoiseScores:
    """Return scores of the final videos; every position and the plain run are one compiled program
    with the same seeds."""
    steps, frames = model.config.sampling.steps, task.frames
    noised = [
        probes.Noise.at_steps(steps, frames, ()),
        *(probes.Noise.at_steps(steps, frames, [s]) for s in at_steps),
        *(probes.Noise.at_frames(steps, frames, [f]) for f in range(frames)),
    ]
    latents = play(model, task, puzzles, probes=noised).latents[:, :, 0].swapaxes(0, 1)
    at_step = 1 + len(at_steps)
    scores, _ = score(model, task, puzzles, latents[:, :at_step])
    frames_scored = [
        [score_others(puzzle, video, frame) for frame, video in enumerate(videos)]
        for puzzle, videos in zip(puzzles, model.decode(latents[:, at_step:]), strict=True)
    ]
    return NoiseScores(scores[:, 0], scores[:, 1:], np.array(frames_scored))


AT_STEP = (
    "Noise at one step in all frames. Replaced: x ← N(0, I). Own level: x̂0 is kept and its noise "
    "drawn anew at the step's level. Clean-up: judged after a few more steps, which remove mere "
    "pixel noise. The ideal denoiser: replaced, after clean-up."
)
IN_FRAME = (
    "Noise in one frame at every step. The other frames: the noised one, which ends as noise, is "
    "taken from the right answer that suits the others best. Same energy: weakened until all steps "
    "together inject as much as one step in all frames."
)
MAP = "Noise in a single frame at a single step, judged after clean-up."
WEAKER = "Noise of lesser strength at one step: x ← √(1 − r²) x + r ε."
COMPARED = "All positions together: noise at a step, at a frame, and at a frame with equal energy."
AGREEMENT = (
    "How often the perturbed run takes the same right answer as the unperturbed one, of puzzles "
    "with several that both solve. Noise at step 0 is a fresh seed."
)


def _curves(data: xr.Dataset, kind: str, main: str, raw: str = "") -> xr.Dataset:
    """Return the curves of noise at every step, or in every frame. raw: the measure without
    clean-up, where there is one."""
    model, along = data.sel(denoiser=MODEL, drop=True), f"at_{kind}"
    shown = {"replaced": of_kind(model, kind, along)[main]}
    if raw in model:
        label = "as it ends" if kind == STEP else "the other frames"
        shown[label] = of_kind(model, kind, along)[raw]
    shown["own level"] = of_kind(model, f"{kind}, own level", along)[main]
    if kind == FRAME:
        shown["same energy as a step"] = of_kind(model, MATCHED, along)[main]
    if IDEAL in data["denoiser"]:
        shown[IDEAL] = of_kind(data.sel(denoiser=IDEAL, drop=True), kind, along)[main]
    plain = of_kind(model, NONE, along)[main].isel({along: 0}, drop=True)
    shown[NONE] = plain.expand_dims({along: shown["replaced"][along]})
    return xr.Dataset(shown)
