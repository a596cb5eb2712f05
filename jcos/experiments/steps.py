"""When does the answer appear, and which answers does an estimate blend before? (Paper, section
3.1.)

Early estimates hold several answers at once, middle steps prune them, late ones polish. Any good
denoiser must do so; the ideal one (`ideal.py`), asked at the very same noisy latents, says how
much.
"""

import dataclasses
from collections.abc import Generator

import jax
import numpy as np

from jcos.config import WanConfig
from jcos.experiments.answers import answers_of
from jcos.experiments.clips_watched import distance_figure, distance_rows, first_film
from jcos.experiments.experiment import Experiment, Findings, Picture, looked_at
from jcos.experiments.puzzles import Progress, playing
from jcos.experiments.samples import Samples
from jcos.experiments.steps_figures import figures
from jcos.experiments.steps_found import Found
from jcos.experiments.watching import Seen, look_at_answers, look_at_distance
from jcos.sampling.probes import States
from jcos.wan import Wan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps(Experiment):
    """Paper, section 3.1: the clean estimate at every step, of every puzzle.

    Measured at each step: solved or not (hence the step of commitment, from which on it is solved);
    the blend of right answers in the estimate, beside the one in the ideal denoiser's at the same
    x_s and beside the ideal denoiser's own trajectory from the same noise; for puzzles with one
    right answer the mass on wrong ones (sizes, angles: superposition); how well the uncertainty of
    early estimates predicts failure (area under the ROC curve).
    Of clips: the distance of every estimate from the last.

    wrong: how many wrong answers a puzzle with a single right one is compared with.
    """

    question = "When does the answer appear, and what do early estimates blend?"

    tasks: tuple[str, ...] = ("maze", "tictactoe", "pattern", "rotation", "returns", "bounce")
    wrong: int = 6

    def check(self, config: WanConfig) -> None:
        super().check(config)
        if self.wrong < 0:
            raise ValueError(f"wrong is {self.wrong}; it counts answers")

    def measure(self, model: Wan) -> Generator[Progress, None, Findings]:
        samples = self.samples(model)
        if not samples.judged:
            return (yield from self._clips(model, samples))
        answers = answers_of(model, samples.puzzles, wrong=self.wrong)
        seen: Seen = yield from playing(
            model,
            samples.given,
            self.seeds,
            probes=[States()],
            plan=self.plan(model.config),
            look=look_at_answers,
            beside=answers,
            chunk=self.chunk,
            what="watching every step",
        )
        seen = jax.tree.map(lambda a: a[0], seen)
        yield Progress("judging every step", 0, 1)
        scores, solved = samples.judge(seen.video)
        _, ideal_solved = samples.judge(seen.ideal_video)
        found = Found(
            lambda steps: self.forwards(model.config, steps),
            samples,
            answers,
            seen,
            scores,
            solved,
            ideal_solved,
        )
        yield Progress("drawing", 0, 1)
        return Findings(found.arrays(), list(found.rows()), dict(figures(found)))

    def _clips(self, model: Wan, samples: Samples) -> Generator[Progress, None, Findings]:
        plan = self.plan(model.config)
        shown = np.array(looked_at(plan.steps), np.int32)
        steps = np.tile(shown, (len(samples), 1))
        distance, change, x0 = yield from playing(
            model,
            samples.given,
            self.seeds,
            plan=plan,
            look=look_at_distance,
            beside=steps,
            chunk=self.chunk,
            what="watching every step",
        )
        distances = {
            "distance to the end": distance[0],
            "distance to the step before": change[0],
        }
        rows = distance_rows(distances, shown.tolist(), lambda n: self.forwards(model.config, n))
        figure = distance_figure(distances)
        yield Progress("decoding", 0, 1)
        pictures = {
            "distance": Picture(figure, "Distance of estimates, over the norm of the last."),
            "film": first_film(model, x0[0, 0, 0], shown.tolist()),
        }
        arrays = {"distance": distance[0], "change": change[0], "x0": x0[0], "shown": shown}
        return Findings(arrays, rows, pictures)
