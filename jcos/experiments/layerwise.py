"""What do tokens carry, layer by layer? (Paper, section 5.1.)

The paper looks at maps of token energy and finds background first, then objects, then what is
decided. Here that is measured: linear probes read off each token whether it is foreground, and
whether its patch will change in the answer that this run ends with.
"""

import dataclasses
from collections.abc import Generator
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from jcos.config import WanConfig
from jcos.experiments.answers import Answers, answers_of
from jcos.experiments.experiment import Experiment, Findings, Place, places
from jcos.experiments.layerwise_decoded import decode, halves, labels_of
from jcos.experiments.layerwise_figures import figures
from jcos.experiments.layerwise_found import AXES, Found, Part, Spread
from jcos.experiments.puzzles import Progress, pixels, playing
from jcos.experiments.samples import Samples
from jcos.lab.ideal import ideal
from jcos.sampling import flow, probes
from jcos.sampling.probes import Site, States, TokenEnergy, TokenFeatures, Tokens
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan

ITERATIONS = 8
"""Of the subspace iteration, after which the first components stand still to the eye."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layers(Experiment):
    """Paper, section 5.1: of the tokens after every block (conditional branch) the energy (L2 norm)
    by layer, frame and step, maps of it, maps of their first three principal components, and how
    the variance is spread over channels.

    Beyond the paper, of puzzles: how well energy, and linear probes, tell foreground from plain
    floor, and tokens whose patch will change in the run's own answer from those that will not, in
    each frame but the given first one (area under the ROC curve within the frame, so ½ is chance);
    and the latter among contested tokens, which some right answers change and others do not: so is
    the choice among answers told. Beside it the same probes on x_s and on x̂0 (patches, and how far
    they are from the first frame's), and probes fitted to the labels of other puzzles, which know
    where answers usually are and nothing of this one; and, without a probe, what the ideal denoiser
    (`ideal.py`) makes of x_s, which is all that x_s can tell. Probes are fitted on one half of the
    puzzles and read on the other, and the other way round; puzzles of one identity are never in
    both. A half of fewer than 5 puzzles is too few, and probes are left out.

    looked: steps of maps and probes. shown: layers of maps (the paper's 0, 10, 20, 30, 39 of 40).
    penalty: of the probes' squared weights, per sample, on features of unit variance.
    """

    question = "What do tokens carry, layer by layer?"
    axes = AXES

    tasks: tuple[str, ...] = ("maze", "tictactoe", "pattern", "rotation", "returns")
    looked: tuple[Place, ...] = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)
    shown: tuple[Place, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    penalty: float = 1e-3

    def check(self, config: WanConfig) -> None:
        super().check(config)
        for name, chosen, size in (
            ("step", self.looked, self.plan(config).steps),
            ("layer", self.shown, config.dit.layers),
        ):
            if not places(chosen, size, name):
                raise ValueError(f"no {name} is chosen to look at; name at least one")
        if not self.penalty > 0:
            raise ValueError(f"penalty is {self.penalty}; it is above 0")
        frames, height, width = config.dit.patch
        if self.clips is None and (frames != 1 or height != width):
            raise ValueError(
                f"{config.name} has tokens of {frames} × {height} × {width}; probes read "
                "square ones of a single frame"
            )

    def measure(self, model: Wan) -> Generator[Progress, None, Findings]:
        samples = self.samples(model)
        looked = places(self.looked, self.plan(model.config).steps, "step")
        shown = places(self.shown, model.config.dit.layers, "layer")
        answers = answers_of(model, samples.puzzles) if samples.judged else None
        parts = {}
        # Task by task: features of all of them need not be held at once.
        for task, p in samples.groups.items():
            seen: Seen = yield from playing(
                model,
                jax.tree.map(lambda a, p=p: a[p], samples.given),
                self.seeds,
                probes=[self._probe(model, samples, shown)],
                plan=self.plan(model.config),
                look=look_at_puzzles if samples.judged else look_at_tokens,
                beside=(
                    np.tile(np.array(looked, np.int32), (len(p), 1)),
                    jax.tree.map(lambda a, p=p: a[p], answers),
                ),
                chunk=self.chunk,
                what=f"watching tokens of {task}",
            )
            seen = jax.tree.map(lambda a: a[0], seen)
            yield Progress(f"fitting linear probes, {task}", 0, 1)
            parts[task] = self._part(model, samples, p, seen)
        found = Found(
            parts=parts,
            looked=looked,
            shown=shown,
            grid=model.config.dit.tokens(*samples.latent),
            forwards=lambda steps: self.forwards(model.config, steps),
        )
        yield Progress("drawing", 0, 1)
        return Findings(found.arrays(), list(found.rows()), dict(figures(found)))

    def _probe(self, model: Wan, samples: Samples, shown: list[int]) -> probes.Probe:
        watched = (TokenEnergy(), Components(tuple(shown)))
        if not samples.judged:
            return probes.chain(*watched)
        frames, height, width = model.config.dit.tokens(*samples.latent)
        later = jnp.arange(height * width, frames * height * width)
        every = tuple(range(model.config.dit.layers))
        return probes.chain(*watched, TokenFeatures(every, later), States())

    def _part(self, model: Wan, samples: Samples, p: np.ndarray, seen: "Seen") -> Part:
        plain = Part(seen.energy_by_frame, seen.energy, seen.components, seen.spread)
        if seen.features is None or seen.video is None:
            return plain
        puzzles = [samples.puzzles[i] for i in p]
        side = model.config.dit.patch[1] * model.codec.strides[1]
        labels = labels_of(puzzles, seen.video, side)
        half, identities = halves(puzzles)
        return plain._replace(
            video=seen.video[0, 0],
            ideal=seen.ideal,
            identities=identities,
            labels=labels,
            decoded=decode(seen.features, labels, half, self.penalty),
        )


class Components(probes.Probe):
    """Observes the first three principal components of the tokens after the chosen blocks, [steps,
    chosen layers, N, 3], and the `Spread` after all of them."""

    layers: tuple[int, ...] = flax.struct.field(pytree_node=False)

    def on_block(self, site: Site, tokens: Tokens) -> tuple[Tokens, tuple[Array, Spread]]:
        del site
        centred = tokens.astype(jnp.float32)
        centred = centred - centred.mean(0, keepdims=True)
        variance = jnp.mean(jnp.square(centred), 0)
        scores = principal(centred)
        even = jnp.square(variance.sum()) / jnp.sum(jnp.square(variance)) / len(variance)
        three = jnp.mean(jnp.square(scores), 0).sum() / variance.sum()
        return tokens, (scores, Spread(even, three))

    def slots(self) -> tuple[Array, None]:
        return jnp.asarray(self.layers, jnp.int32), None


def principal(centred: Float[Array, "N D"]) -> Float[Array, "N 3"]:
    """First three principal components of centred rows, by subspace iteration: the D × D covariance
    of a large model is never built."""
    start = jax.random.normal(jax.random.key(0), (centred.shape[1], 3))

    def turn(_: Int[Array, ""], basis: Float[Array, "D 3"]) -> Float[Array, "D 3"]:
        return jnp.linalg.qr(centred.T @ (centred @ basis))[0]

    return centred @ jax.lax.fori_loop(0, ITERATIONS, turn, start)


class Seen(NamedTuple):
    """What is kept of a run, by seed: S steps, of which s are looked at; L layers, of which l are
    shown; n tokens in all frames but the first.

    features: of the layers, then of x_s and x̂0 in patches, with their distance from the first
    frame's (in x̂0); with the final video, of puzzles only.
    """

    energy_by_frame: Float[Any, "*K S L F"]
    energy: Float[Any, "*K s L N"]
    components: Float[Any, "*K s l N 3"]
    spread: Spread
    features: tuple[Float[Any, "*K s L n D"], Float[Any, "*K s 2 n P"]] | None = None
    ideal: Float[Any, "*K s n"] | None = None
    video: UInt8[Any, "*K F H W 3"] | None = None


Beside = tuple[Int[Array, " s"], Answers | None]
"""The steps that are looked at, and the answers of a puzzle."""


def look_at_tokens(model: Wan, plan: flow.Plan, trace: Trace, beside: Beside) -> Seen:
    """`Seen` of a run in world 0."""
    del plan
    looked, _ = beside
    energy, (components, spread), *_ = jax.tree.map(lambda a: a[0], trace.block_obs)
    frames = model.config.dit.tokens(*trace.latents.shape[2:5])[0]
    by_frame = energy.reshape(*energy.shape[:-1], frames, -1).mean(-1)
    return Seen(by_frame, energy[:, looked], components[:, looked], spread)


def look_at_puzzles(model: Wan, plan: flow.Plan, trace: Trace, beside: Beside) -> Seen:
    """`look_at_tokens`, and what probes are fitted on."""
    looked, answers = beside
    assert answers is not None
    features = trace.block_obs[2][0][:, looked].astype(jnp.float32)
    states = trace.estimate_obs[-1][0][:, looked]
    sigmas = jnp.asarray(plan.schedule.sigmas)[looked]
    over_steps = jax.vmap(partial(ideal, log_prior=answers.log_prior), (0, 0, None))
    own = jax.vmap(over_steps, (0, None, None))(states, sigmas, jnp.asarray(answers.latents)).x0
    patches = jax.vmap(jax.vmap(jax.vmap(model.experts[0].patchify)))(
        jnp.stack([states, trace.x0[0][:, looked], own], axis=2)
    )
    count = features.shape[-2]
    later, first = patches[..., -count:, :], patches[:, :, 1:, : patches.shape[-2] - count, :]
    first = jnp.tile(first, (1, 1, 1, count // first.shape[-2], 1))
    # What x_s and x̂0 tell: their patches, and their distance from the first frame's in x̂0.
    change = jnp.abs(later[:, :, :2] - first[:, :, :1])
    seen = look_at_tokens(model, plan, trace, beside)
    return seen._replace(
        features=(features, jnp.concatenate([later[:, :, :2], change], -1)),
        ideal=jnp.abs(later[:, :, 2] - first[:, :, 1]).sum(-1),
        video=pixels(model, trace.latents[0]),
    )
