"""Does averaging over several seeds help? (Paper, section 6.)

After the first averaged block of a pass nothing differs between its seeds but x, so that all of
them get one velocity: a window of layers acts by its first, and averaging tokens is a way of
averaging velocities, of which averaging the velocities themselves is the linear one. Under one
velocity the seeds keep the whole difference of their noise, of which σ would be left otherwise: so
such a mean can only be taken early, and over all steps leaves nothing but noise. Averaging clean
estimates instead draws the latents together.
"""

import dataclasses
from collections.abc import Generator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jcos.config import PixelCodec, WanConfig
from jcos.experiments.answers import answers_of
from jcos.experiments.ensemble_figures import figures
from jcos.experiments.ensemble_found import AXES, Arm, Found, groups_of
from jcos.experiments.experiment import Experiment, Findings, Place, places, window
from jcos.experiments.puzzles import Progress, pixels, play, playing, score
from jcos.experiments.samples import Samples
from jcos.lab.ideal import IdealDenoiser
from jcos.lab.tasks import Puzzle, Task
from jcos.sampling import flow
from jcos.sampling.probes import Chain, EstimateEnsemble, SeedEnsemble, chain, choose
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ensemble(Experiment):
    """Paper, section 6: the tokens of three runs, averaged over their seeds in layers 20 to 29 of
    40 in the first step; then one run goes on, or all of them.

    Beyond the paper: windows that begin at every layer, kept up over more steps; two to eight
    members; the mean of clean estimates or of velocities instead. Every arm starts from the same
    noise and is compared, puzzle by puzzle and seed by seed, with plain runs: one, the best of as
    many (which needs a judge) and their majority (the run that is nearest to the others); and with
    one run that has as many steps as the ensemble has forwards; means of estimates and of
    velocities also of the ideal denoiser (`ideal.py`). Of clips, which have no judge, how far the
    ends move and how far they are apart.

    members: how many seeds are averaged; `seeds` are taken in groups of so many, and each member
    counts as the one that goes on. window: layers, as fractions of the depth. steps: in which.
    unconditional: whether that branch is averaged too. more_members: other sizes. layers, until:
    first layers of windows of the same width, all by default, and last steps of averaging from step
    0 on, which also the means of estimates and velocities are taken over; either empty for none.
    longer: whether the runs with more steps are made.
    """

    question = "Does averaging over several seeds help, at equal compute?"
    axes = AXES

    seeds: tuple[int, ...] = tuple(range(8))
    members: int = 3
    window: tuple[float, ...] = (0.5, 0.75)
    steps: tuple[Place, ...] = (0,)
    unconditional: bool = True
    more_members: tuple[int, ...] = (2, 4, 8)
    layers: tuple[Place, ...] | None = None
    until: tuple[Place, ...] = (0, 0.2, 0.5)
    longer: bool = True

    def check(self, config: WanConfig) -> None:
        super().check(config)
        for size in (self.members, *self.more_members):
            if not 2 <= size <= len(self.seeds):
                raise ValueError(
                    f"{size} members cannot be averaged: there are {len(self.seeds)} seeds, and "
                    "at least 2 of them make a mean"
                )
        steps, depth = self.plan(config).steps, config.dit.layers
        self._window(depth)
        places(self.layers, depth, "layer")
        places(self.until, steps, "step")
        if not places(self.steps, steps, "step"):
            raise ValueError("steps is empty; the paper averages in step 0")

    def measure(self, model: Wan) -> Generator[Progress, None, Findings]:
        samples, arms, own = self.samples(model), self.arms(model), self.plan(model.config)
        shown = yield from self._ends(model, samples, arms, self.seeds, own, "runs")
        longer = {}
        for steps in self.step_counts(model) if self.longer and samples.judged else ():
            sampling = dataclasses.replace(self.sampling, steps=steps).of(model.config)
            plan, what = flow.plan(sampling, model.config.boundary), f"runs of {steps} steps"
            ends = yield from self._ends(model, samples, [Arm()], self.seeds[:1], plan, what)
            longer[steps] = samples.judge(ends[0, :, 0])[1]
        ideal = yield from self._ideal(model, samples, arms)
        yield Progress("judging", 0, 1)
        found = Found(
            arms=arms,
            samples=samples,
            forwards=lambda steps: self.forwards(model.config, steps),
            steps=own.steps,
            shown=shown,
            longer=longer,
            ideal=ideal,
        )
        yield Progress("drawing", 0, 1)
        return Findings(found.arrays(), list(found.rows()), dict(figures(found)))

    def arms(self, model: Wan) -> list[Arm]:
        """Everything that is tried: no averaging first, then the paper's."""
        total, depth = self.plan(model.config).steps, model.config.dit.layers
        here = self._window(depth)
        steps = tuple(places(self.steps, total, "step"))
        spans = [tuple(range(last + 1)) for last in places(self.until, total, "step")]
        found = [Arm(), Arm("tokens", self.members, here, steps)]
        found += [Arm("tokens", size, here, steps) for size in self.more_members]
        for first in places(self.layers, depth, "layer"):
            layers = tuple(range(first, min(depth, first + len(here))))
            found += [Arm("tokens", self.members, layers, span) for span in spans]
        for span in dict.fromkeys([steps, *spans]) if spans else ():
            found += [Arm(kind, self.members, (), span) for kind in ("estimates", "velocities")]
            found.append(Arm("tokens", self.members, here, span))
        return list(dict.fromkeys(found))

    def _window(self, depth: int) -> tuple[int, ...]:
        if len(self.window) != 2:
            raise ValueError(f"window is {self.window}; it has a first and a last fraction")
        first, last = self.window
        return tuple(window(first, last, depth))

    def step_counts(self, model: Wan) -> tuple[int, int]:
        """Steps of one run that cost as much as the paper's ensemble: with one member going on,
        with all of them."""
        steps = self.plan(model.config).steps
        last = places(self.steps, steps, "step")[-1]
        return steps + (self.members - 1) * (last + 1), self.members * steps

    def _ideal(
        self, model: Wan, samples: Samples, arms: Sequence[Arm]
    ) -> Generator[Progress, None, dict[Arm, Bool[np.ndarray, "P K"]]]:
        """Whether the ideal denoiser solves the puzzles, of the arms that need no tokens."""
        if not samples.judged:
            return {}
        chosen, own = [a for a in arms if a.kind != "tokens"], answers_of(model, samples.puzzles)
        what, plan = "runs of the ideal denoiser", self.plan(model.config)
        ends = yield from self._ends(model, samples, chosen, self.seeds, plan, what, own.ideal)
        solved = samples.judge(ends.swapaxes(0, 1))[1]
        return {arm: solved[:, i] for i, arm in enumerate(chosen)}

    def _ends(
        self,
        model: Wan,
        samples: Samples,
        arms: Sequence[Arm],
        seeds: Sequence[int],
        plan: flow.Plan,
        what: str,
        own: IdealDenoiser | None = None,
    ) -> Generator[Progress, None, np.ndarray]:
        """How all runs end, [Q, P, K, …]: videos of puzzles, else latents. own: the denoiser of
        each puzzle, if it is not the model."""
        depth = model.config.dit.layers
        probes = [probe_of(a, plan.steps, depth, len(seeds), self.unconditional) for a in arms]
        return (
            yield from playing(
                model,
                samples.given,
                seeds,
                probes=probes,
                own=own,
                plan=plan,
                look=look_at_ends,
                chunk=self.chunk,
                what=what,
            )
        )


def probe_of(arm: Arm, steps: int, layers: int, seeds: int, unconditional: bool) -> Chain:
    """Both kinds of mean, of which an arm uses one or none: so all arms are one program."""
    at, tokens = choose(steps, arm.steps, "step"), arm.kind == "tokens"
    groups = jnp.asarray(groups_of(seeds, arm.members))
    return chain(
        SeedEnsemble(
            jnp.asarray(np.outer(at & tokens, choose(layers, arm.layers, "layer"))),
            jnp.array([True, unconditional]),
            groups,
        ),
        EstimateEnsemble(
            jnp.asarray(at & (arm.kind in ("estimates", "velocities"))),
            jnp.array(arm.kind == "velocities"),
            groups,
        ),
    )


def look_at_ends(
    model: Wan, plan: flow.Plan, trace: Trace, beside: Any
) -> Float[Array, "K F h w C"] | Array:
    """Of world 0."""
    del plan, beside
    pixel = isinstance(model.config.codec, PixelCodec)
    return pixels(model, trace.latents[0]) if pixel else trace.latents[0]


def ensemble_solved(
    model: Wan,
    task: Task,
    puzzles: Sequence[Puzzle],
    seeds: Sequence[int],
    probes: Sequence[SeedEnsemble],
) -> Bool[np.ndarray, "P Q K"]:
    """Whether each puzzle is solved with each probe by each seed; in an ensemble every seed goes on
    by itself."""
    latents = play(model, task, puzzles, seeds, probes=probes).latents
    _, solved = score(model, task, puzzles, latents.swapaxes(0, 1))
    return solved
