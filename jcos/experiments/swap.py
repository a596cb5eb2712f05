"""Which layer decides the answer? Tokens of a donor run in place of the own ones. (Paper, section
5.2.)

One swap in the first step can be undone by all the steps that follow, which see the own prompt
again. So each swap is judged twice: by the clean estimate of the last step with a swap (at once),
and by the end of the run; and swaps are also kept up over more and more steps.

After the first layer a run knows its picture and its noise by its tokens alone, but reads its
prompt anew in each. So where two runs differ in the picture only, all tokens are the whole run,
whatever the layer, and only parts of them can tell layers apart.
"""

import dataclasses
from collections.abc import Generator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from jcos.config import WanConfig
from jcos.experiments.answers import Answers, blend
from jcos.experiments.clips import read_clips
from jcos.experiments.experiment import Experiment, Findings, Place, places
from jcos.experiments.puzzles import Progress, conditions, finish, pixels, playing
from jcos.experiments.swap_figures import figures
from jcos.experiments.swap_found import AXES, VELOCITY, Case, Ends, Found
from jcos.experiments.swap_pairs import Pair, candidates, object_tokens, pairs_of
from jcos.sampling import flow, probes
from jcos.sampling.trajectory import Condition, Trace
from jcos.wan import Wan

OWN_FROM_DONOR, BOTH = (True, False), (True, True)
"""Which of the two worlds, the own run and the donor's, get the other's tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Swap(Experiment):
    """Paper, section 5.2: after layer k of the first step, a run goes on with the tokens of a donor
    run; all other layers compute as they are.

    Own run and donor are puzzles that differ in one thing (`swap_pairs.PARTNERS`) and share their
    noise. Beyond the paper: every layer × several steps, in both directions (in a single step the
    two runs exchange their tokens, which is a swap each way); swaps kept up from the first step to
    a later one, the donor running undisturbed; those over the whole run also with the object's
    tokens alone, which are those that the two answers differ in, and with all others alone.
    Measured: whether the run ends with its own answer, the donor's (in either picture) or neither;
    the share of both in the estimate at once; how far along the way from the own plain end to the
    donor's it ends. A flip is counted where both plain runs are right. The ideal denoiser
    (`ideal.py`) has no layers, but a velocity, which is what all tokens after the last layer are:
    it goes on with the donor's in the same steps. Of clips, of which two after each other make a
    pair, only the way.

    layers: where, all by default. steps: of single swaps, the paper's is 0. until: last steps of
    swaps that are kept up from step 0 on; the last of them is also run with the object's tokens.
    """

    question = "Which layer decides the answer?"
    axes = AXES

    tasks: tuple[str, ...] = ("rotation", "tictactoe", "returns", "pattern")
    layers: tuple[Place, ...] | None = None
    steps: tuple[Place, ...] = (0, 0.25, 0.5, 0.75)
    until: tuple[Place, ...] = (0.25, 0.5, 1.0)

    def check(self, config: WanConfig) -> None:
        super().check(config)
        steps = self.plan(config).steps
        places(self.layers, config.dit.layers, "layer")
        for chosen in (self.steps, self.until):
            places(chosen, steps, "step")
        if self.clips is not None:
            n = len(read_clips(self.clips).clips)
            if n % 2:
                raise ValueError(
                    f"{self.clips} lists {n} clips; two after each other make a pair, the own run "
                    "and the donor: give an even number"
                )
        elif self.several:
            raise ValueError("several=true has no meaning here: pairs are made of all puzzles")
        else:
            for task in self.tasks:
                pairs_of(task, 1, self.puzzle_seed)

    def measure(self, model: Wan) -> Generator[Progress, None, Findings]:
        pairs: list[Pair] = []
        if self.clips is None:
            for task in self.tasks:
                pairs += pairs_of(task, self.puzzles, self.puzzle_seed)
            given, answers = side_by_side(model, pairs), candidates(model, pairs)
            tokens = object_tokens(model, answers)
        else:
            given, answers = two_by_two(self.samples(model).given), None
            tokens = np.ones((len(given.context), token_count(model, given)), bool)
        cases = self.cases(model, judged=bool(pairs))
        ends = yield from self._played(model, given, answers, cases, tokens)
        found = Found(
            cases=cases,
            pairs=pairs,
            given=given,
            forwards=lambda steps: self.forwards(model.config, steps),
            steps=self.plan(model.config).steps,
            object_here=tokens,
            ends=ends,
        )
        if answers is not None:
            swapped = dict.fromkeys(Case(None, c.first, c.last, VELOCITY) for c in cases[1:])
            cases = [Case(), *swapped]
            ends = yield from self._played(model, given, answers, cases, tokens, ideal=True)
            found.ideal = dataclasses.replace(found, cases=cases, ends=ends)
        yield Progress("drawing", 0, 1)
        return Findings(found.arrays(), list(found.rows()), dict(figures(found, model)))

    def cases(self, model: Wan, *, judged: bool) -> list[Case]:
        """All swaps; the first is none. Object tokens are known of puzzles only."""
        steps = self.plan(model.config).steps
        layers = places(self.layers, model.config.dit.layers, "layer")
        found = [Case()]
        found += [Case(k, s, s) for s in places(self.steps, steps, "step") for k in layers]
        kept_up = places(self.until, steps, "step")
        found += [Case(k, 0, last) for last in kept_up for k in layers]
        if judged and kept_up:
            for tokens in ("object", "rest"):
                found += [Case(k, 0, kept_up[-1], tokens) for k in layers]
        return list(dict.fromkeys(found))

    def _played(
        self,
        model: Wan,
        given: Condition,
        answers: Answers | None,
        cases: list[Case],
        tokens: Bool[np.ndarray, "P N"],
        *,
        ideal: bool = False,
    ) -> Generator[Progress, None, Ends]:
        """Pair by pair, since each has its own object tokens; leaves [Q, P, W, K, …]. ideal: by the
        ideal denoiser."""
        kept, (steps, layers) = [], (self.plan(model.config).steps, model.config.dit.layers)
        what = "swapping velocities of the ideal denoiser" if ideal else "swapping tokens"
        for i, mask in enumerate(tokens):
            yield Progress(what, i, len(tokens))
            one = jax.tree.map(lambda a, i=i: a[i : i + 1], (given, answers))
            run = playing(
                model,
                one[0],
                [own_seed(model, seed, i) for seed in self.seeds],
                probes=[
                    velocity_swap(case, steps) if ideal else probe_of(case, steps, layers, mask)
                    for case in cases
                ],
                own=one[1].ideal if ideal and answers is not None else None,
                plan=self.plan(model.config),
                look=look_at_ends,
                beside=one[1],
                chunk=self.chunk,
                what=f"{what}, pair {i}",
            )
            kept.append(finish(run))
        yield Progress(what, len(tokens), len(tokens))
        return jax.tree.map(lambda *a: np.concatenate(a, 1), *kept)


def own_seed(model: Wan, seed: int, pair: int) -> int:
    """A seed of the pair's own: pairs of puzzles do not share their noise. Of Wan's models a seed
    is what it is everywhere (`loop.first_noise`)."""
    if model.config.noise == "torch":
        return seed
    return int(np.random.SeedSequence((seed, pair)).generate_state(1)[0])


def side_by_side(model: Wan, pairs: list[Pair]) -> Condition:
    """Conditions [P, W = 2, …]: the own run in world 0, the donor in world 1."""
    worlds = [conditions(model, [pair.puzzles[w] for pair in pairs]) for w in (0, 1)]
    return jax.tree.map(lambda *a: jnp.stack(a, 1), *worlds)


def two_by_two(given: Condition) -> Condition:
    """Conditions [P, W = 1, …] of clips as pairs [P / 2, W = 2, …]."""
    return jax.tree.map(lambda a: a.reshape(-1, 2, *a.shape[2:]), given)


def token_count(model: Wan, given: Condition) -> int:
    return int(np.prod(model.config.dit.tokens(*given.grid)))


def probe_of(
    case: Case, steps: int, layers: int, object_here: Bool[np.ndarray, " N"]
) -> probes.Swap:
    """In a single step both worlds receive; over several the donor stays as it is."""
    where = {"all": np.ones_like(object_here), "object": object_here, "rest": ~object_here}
    swap = probes.Swap.at_layers(
        steps,
        layers,
        len(object_here),
        () if case.layer is None else (case.layer,),
        at_steps=range(case.first, case.last + 1),
        receivers=BOTH if case.both else OWN_FROM_DONOR,
    )
    return swap.replace(tokens=jnp.asarray(where[case.tokens]))


class VelocitySwap(probes.Probe):
    """Gives a world the velocity of the other one in place of its own: x̂0 ← x − σ v of the other.

    mask [worlds, steps]: which world receives, and when. It does what a swap of all tokens after
    the last layer does, to any denoiser.
    """

    mask: Bool[Array, "*sweep 2 S"]

    def made_for(self) -> probes.Sizes:
        return tuple(zip(("worlds", "steps"), self.mask.shape, strict=True))

    def on_estimate(
        self, site: probes.Site, x: probes.Latents, x0: probes.Latents
    ) -> tuple[probes.Latents, tuple[()]]:
        other = jax.lax.ppermute(x0 - x, "world", [(0, 1), (1, 0)])
        here = self.mask[jax.lax.axis_index("world"), site.step]
        return jnp.where(here, x + other, x0), ()


def velocity_swap(case: Case, steps: int) -> VelocitySwap:
    """As `probe_of`."""
    at = range(case.first, case.last + 1) if case.tokens == VELOCITY else ()
    receivers = BOTH if case.both else OWN_FROM_DONOR
    return VelocitySwap(jnp.asarray(np.outer(receivers, probes.choose(steps, at, "step"))))


def look_at_ends(model: Wan, plan: flow.Plan, trace: Trace, answers: Answers | None) -> Ends:
    del plan
    if answers is None:
        return Ends(trace.latents, None, None)
    on = jax.vmap(lambda x0, known: blend(x0, known).on)(trace.x0, answers)
    own, other = (
        jnp.where(mask[:, None, None], on, 0).sum(-1)
        for mask in (jnp.asarray(answers.right), jnp.asarray(answers.wrong))
    )
    return Ends(pixels(model, trace.latents), own, other)
