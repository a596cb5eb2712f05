"""Working memory, self-correction, perception before action: how much of each, in numbers. (Paper,
section 4, which shows examples.)

Any good denoiser corrects itself where early estimates blend several answers, and settles first
what all answers share. So the ideal denoiser (`ideal.py`) is put beside every number; what it has
too is no behaviour of the model's own. It never shows a wrong answer, and its estimate of the
frames in which an object is hidden tells nothing of the object.
"""

import dataclasses
from collections.abc import Generator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jcos.config import WanConfig
from jcos.experiments.answers import answers_of
from jcos.experiments.behaviour_figures import figures
from jcos.experiments.behaviour_found import AXES, Found, courses
from jcos.experiments.behaviour_memory import check_tiles, remembering
from jcos.experiments.clips_watched import distance_figure, distance_rows, first_film
from jcos.experiments.experiment import Experiment, Findings, Picture, looked_at, row
from jcos.experiments.puzzles import Progress, playing
from jcos.experiments.samples import Samples
from jcos.experiments.watching import Seen, look_at_answers
from jcos.lab.measures import POSITIVE, UNBOUNDED, commitment_step
from jcos.sampling import flow
from jcos.sampling.probes import States
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan

SETTLED = 0.1
"""A part of a clip has settled when it is this near to its end, relative to the end's norm."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Behaviour(Experiment):
    """Paper, section 4, of every puzzle and seed.

    Self-correction: wrong at a step and right at the end, how many and when; and its converse.
    Apart from what is merely undecided: estimates that show one wrong answer clearly.
    Perception before action: the step from which on the scene is right (all of the first frame
    that no answer changes) against the step from which on the answer is, judged alone, whatever the
    scene; beside them the judge's own gates about the scene, number of objects included. A model
    that is given the first frame in every frame, as the small one is, has most of the scene for
    nothing.
    Working memory, of the task `returns`: a ridge regression on the tokens of the frames in which
    the object is hidden tells its colour and shape, by step, layer and place; fitted and read on
    puzzles that share no identity, beside the same fit to shuffled labels.
    Of clips only perception before action, as distances: when the parts of the video that stay as
    they are in the first frame settle, and when those that change.

    wrong: how many wrong answers a puzzle with a single right one is compared with. learned,
    remembered: puzzles of the train split that memory's probes are fitted on, and held-out ones
    that they read; learned = 0 leaves memory out. penalty: of the regression.
    """

    question = "Does the model remember, correct itself, and see before it acts?"
    axes = AXES

    tasks: tuple[str, ...] = ("maze", "tictactoe", "pattern", "rotation", "returns", "bounce")
    wrong: int = 6
    learned: int = 256
    remembered: int = 128
    penalty: float = 0.1

    def check(self, config: WanConfig) -> None:
        super().check(config)
        if self.wrong < 0:
            raise ValueError(f"wrong is {self.wrong}; it counts answers")
        if self.clips is not None:
            return
        if self.learned < 0 or self.remembered < 1:
            raise ValueError(
                f"learned is {self.learned} and remembered {self.remembered}; puzzles are counted, "
                "and at least one is read (learned=0 leaves memory out)"
            )
        if not self.penalty > 0:
            raise ValueError(f"penalty is {self.penalty}; it must be positive")
        if self.learned:
            check_tiles(config)

    def measure(self, model: Wan) -> Generator[Progress, None, Findings]:
        samples, plan = self.samples(model), self.plan(model.config)
        if not samples.judged:
            return (yield from self._clips(model, samples))
        answers = answers_of(model, samples.puzzles, wrong=self.wrong)
        seen: Seen = yield from playing(
            model,
            samples.given,
            self.seeds,
            probes=[States()],
            plan=plan,
            look=look_at_answers,
            beside=answers,
            chunk=self.chunk,
            what="watching every step",
        )
        yield Progress("judging every step", 0, 1)
        seen = jax.tree.map(lambda a: a[0], seen)
        own, ideal = courses(samples, answers, seen)
        memory = None
        if self.learned:
            memory = yield from remembering(
                model,
                plan,
                self.learned,
                self.remembered,
                steps=looked_at(plan.steps, 5),
                seeds=self.seeds,
                seed=self.puzzle_seed,
                penalty=self.penalty,
                chunk=self.chunk,
            )
        found = Found(lambda steps: self.forwards(model.config, steps), samples, own, ideal, memory)
        yield Progress("drawing", 0, 1)
        return Findings(found.arrays(), list(found.rows()), dict(figures(found, seen.video)))

    def _clips(self, model: Wan, samples: Samples) -> Generator[Progress, None, Findings]:
        plan = self.plan(model.config)
        shown = np.array(looked_at(plan.steps), np.int32)
        found = yield from playing(
            model,
            samples.given,
            self.seeds,
            plan=plan,
            look=look_at_parts,
            beside=np.tile(shown, (len(samples), 1)),
            chunk=self.chunk,
            what="watching every step",
        )
        still, moving, x0 = (a[0] for a in found)
        parts = {"what stays": still, "what changes": moving}
        steps = {name: commitment_step(values <= SETTLED) for name, values in parts.items()}
        whole = self.forwards(model.config)
        distances = {f"distance to the end, {name}": v for name, v in parts.items()}
        rows = distance_rows(distances, shown.tolist(), lambda n: self.forwards(model.config, n))
        rows += [
            row("clips", "step of settling", name, at.astype(float), whole, span=POSITIVE)
            for name, at in steps.items()
        ]
        later = (steps["what changes"] - steps["what stays"]).astype(float)
        about = "what changes less what stays"
        rows.append(row("clips", "step of settling", about, later, whole, span=UNBOUNDED))
        figure = distance_figure(parts, (SETTLED, "settled"))
        yield Progress("decoding", 0, 1)
        pictures = {
            "settling": Picture(
                figure,
                "Distance of estimates from the last, over the norm of the last: of the half of "
                "the latent cells that differs least from the first frame in the end, and of the "
                "tenth that differs most.",
            ),
            "film": first_film(model, x0[0, 0], shown.tolist()),
        }
        arrays = {"still": still, "moving": moving, "x0": x0, "shown": shown}
        return Findings(arrays, rows, pictures)


def look_at_parts(
    model: Wan, plan: flow.Plan, trace: Trace, steps: Int[Array, " shown"]
) -> tuple[Float[Array, "K S"], Float[Array, "K S"], Float[Array, "K shown F h w C"]]:
    """Distance of each estimate to the last, over the norm of the last, in the half of the cells
    that ends nearest to the first frame and in the tenth that ends farthest from it; and some of
    the estimates. Frame 0 is left out."""
    del model, plan
    x0 = trace.x0[0]
    end = x0[:, -1]
    motion = jnp.square(end[:, 1:] - end[:, :1]).sum(-1)
    low, high = jnp.quantile(motion.reshape(len(x0), -1), jnp.array([0.5, 0.9]), axis=1)

    def distance(part: Array) -> Array:
        """part [K, F − 1, h, w]: the cells that count."""
        off = jnp.square(x0[:, :, 1:] - x0[:, -1:, 1:]).sum(-1) * part[:, None]
        size = jnp.square(end[:, 1:]).sum(-1) * part
        return jnp.sqrt(off.sum((2, 3, 4)) / size.sum((1, 2, 3))[:, None])

    shape = (-1, 1, 1, 1)
    return (
        distance(motion <= low.reshape(shape)),
        distance(motion >= high.reshape(shape)),
        x0[:, steps],
    )
