"""What does noise destroy: one step in all frames, or one frame at all steps? (Paper, section 3.2.)

Two things would make late steps look decisive that are not. Unit noise at a late step is more than
the steps left can take out: so every run is also judged after a few clean-up steps, and compared
with noise at the step's own level. And a run that was wiped early may simply choose another right
answer: so agreement with the unperturbed choice stands beside the score. Noise at step 0 is a fresh
seed; its agreement is what chance gives. And the ideal denoiser (`ideal.py`), which always ends
with a right answer, meets the same noise: what it withstands and the model does not is no loss of
the answer.
"""

import dataclasses
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from jcos.config import WanConfig
from jcos.experiments.answers import Answers, answers_of, blend, chosen
from jcos.experiments.experiment import Experiment, Findings, Place, places
from jcos.experiments.noise_figures import figures
from jcos.experiments.noise_found import IDEAL, Case, Found
from jcos.experiments.puzzles import Progress, pixels, play, playing, score
from jcos.experiments.samples import Samples
from jcos.lab.tasks import TASKS, Puzzle, Task, Video
from jcos.sampling import flow, probes
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan


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

    def measure(self, model: Wan) -> Generator[Progress, None, Findings]:
        samples = self.samples(model)
        steps, frames = self.plan(model.config).steps, samples.latent[0]
        cases = self.cases(steps, frames)
        answers = answers_of(model, samples.puzzles) if samples.judged else None
        ends = yield from self._ends(model, samples, cases, answers)
        readings = readings_of(samples, cases, ends, answers)
        if answers is not None:
            ends = yield from self._ends(model, samples, cases, answers, ideal=True)
            of_ideal = readings_of(samples, cases, ends, answers)
            readings |= {f"{IDEAL}{name}": values for name, values in of_ideal.items()}
        found = Found(
            cases=cases,
            samples=samples,
            forwards=self.forwards(model.config),
            more_forwards=self.forwards(model.config, steps + self.cleanup),
            steps=steps,
            readings=readings,
        )
        yield Progress("drawing", 0, 1)
        return Findings(found.arrays(), list(found.rows()), dict(figures(found)))

    def _ends(
        self,
        model: Wan,
        samples: Samples,
        cases: Sequence[Case],
        answers: Answers | None,
        *,
        ideal: bool = False,
    ) -> Generator[Progress, None, "Ends"]:
        """How all runs end, of the model or of the ideal denoiser, leaves [cases, P, K, …]."""
        steps, frames = self.plan(model.config).steps, samples.latent[0]
        ends = yield from playing(
            model,
            samples.given,
            self.seeds,
            probes=[probe_of(case, steps, frames, self.cleanup) for case in cases],
            own=answers.ideal if ideal and answers is not None else None,
            plan=with_cleanup(self, model),
            look=look_at_ends,
            beside=(answers, np.full(len(samples), steps - 1, np.int32)),
            chunk=self.chunk,
            what="noise at every step and frame" + ", ideal denoiser" * ideal,
        )
        yield Progress("judging", 0, 1)
        return ends

    def cases(self, steps: int, frames: int) -> list[Case]:
        """All positions of noise; the first is none."""
        at_steps = places(self.steps, steps, "step")
        at_frames = places(self.frames, frames, "frame")
        found = [Case("none")]
        for own in (False, True):
            found += [Case("step", step=s, own=own) for s in at_steps]
            found += [Case("frame", frame=f, own=own) for f in at_frames]
        cells = places(self.map_steps, steps, "step")
        found += [Case("cell", step=s, frame=f) for s in cells for f in at_frames]
        for s in places(self.strength_steps, steps, "step"):
            found += [Case("strength", step=s, strength=r) for r in self.strengths]
        matched = matching_strength(steps, frames)
        return found + [Case("matched", frame=f, strength=matched) for f in at_frames]


def matching_strength(steps: int, frames: int) -> float:
    """Strength at which noise in one frame at all steps injects the energy of full noise in all
    frames at one step.

    Turning a latent of unit variance by strength r moves it by 2 (1 − √(1 − r²)) on average, so
    that S of these equal F full ones (2 each) at √(1 − r²) = 1 − F / S.
    """
    kept = max(0.0, 1.0 - frames / steps)
    return float(np.sqrt(1.0 - kept**2))


def probe_of(case: Case, steps: int, frames: int, cleanup: int) -> probes.Noise:
    """The noise of a case; and, in the first clean-up step, noise at its own level in all frames,
    which takes up the run again from its final estimate."""
    where = np.zeros((steps + cleanup, frames), np.float32)
    at = slice(None, steps) if case.step is None else case.step
    if case.kind != "none":
        where[at, slice(None) if case.frame is None else case.frame] = case.strength
    own = (where > 0) & case.own
    if cleanup:
        where[steps], own[steps] = 1.0, True
    return probes.Noise(jnp.asarray(where), jnp.asarray(own))


def with_cleanup(experiment: Noise, model: Wan) -> flow.Plan:
    """The run, and behind it once more its last `cleanup` steps, by Euler's solver, which needs no
    history."""
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


def look_at_ends(
    model: Wan, plan: flow.Plan, trace: Trace, beside: tuple[Answers | None, Int[Array, ""]]
) -> Ends:
    del plan
    answers, last = beside
    raw, clean = trace.x0[0][:, last], trace.latents[0]
    if answers is None:
        return Ends(raw, clean, None, None, None)
    on = blend(clean, answers).on
    return Ends(raw, clean, pixels(model, raw), pixels(model, clean), on)


def readings_of(
    samples: Samples, cases: Sequence[Case], ends: Ends, answers: Answers | None
) -> dict[str, np.ndarray]:
    """All measures, [cases, P, K]."""
    plain = ends.clean[:1]
    size = np.sqrt(np.mean(np.square(plain), (-4, -3, -2, -1)))
    moved = np.sqrt(np.mean(np.square(ends.clean - plain), (-4, -3, -2, -1))) / size
    found: dict[str, Any] = {"distance": moved}
    if answers is None or ends.raw_video is None or ends.clean_video is None or ends.on is None:
        return found
    for name, videos in (("", ends.raw_video), (" after clean-up", ends.clean_video)):
        scores, solved = (a.swapaxes(0, 1) for a in samples.judge(videos.swapaxes(0, 1)))
        found |= {f"score{name}": scores, f"solved{name}": solved}
    found["score of the other frames"] = np.array(
        [
            [
                [score_others(puzzle, video, case.frame) for video in seeds]
                for puzzle, seeds in zip(samples.puzzles, row, strict=True)
            ]
            if case.frame is not None and not case.own
            else found["score"][i]
            for i, (case, row) in enumerate(zip(cases, ends.raw_video, strict=True))
        ]
    )
    choice = np.stack([chosen(on, answers) for on in ends.on])
    good = found["solved after clean-up"]
    comparable = good & good[:1] & samples.several[None, :, None]
    found["agreement"] = np.where(comparable, choice == choice[:1], np.nan)
    return found


def score_others(puzzle: Puzzle, video: Video, frame: int) -> float:
    """Score of all frames but one, which holds nothing but the noise that was put in at the last
    step: it is taken from the right answer that suits the others best."""
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
    """Scores of the final videos; every position and the plain run are one compiled program, same
    noise seeds."""
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
