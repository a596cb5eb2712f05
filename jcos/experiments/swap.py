"""Which layer decides the answer? (Paper, section 5.2.)

One swap in the first step can be undone by all the steps that follow, which read the receiver's
prompt again. So each swap is judged by the clean estimate of the last step with a swap (at once)
and by the end of the run, and swaps are kept up over more and more steps. Where two runs differ in
the picture only, all tokens are the whole run, whatever the layer: only parts of them tell layers
apart.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Float, Shaped, UInt8

from jcos.config import WanConfig
from jcos.experiments import plots
from jcos.experiments.answers import Answers, blend
from jcos.experiments.clips import read_clips
from jcos.experiments.experiment import Experiment, Picture, Progress, case_labels, places, silent
from jcos.experiments.parameters import NONEMPTY, AtLayers, AtSteps
from jcos.experiments.samples import baselines
from jcos.experiments.swap_pairs import Pair, candidates, object_tokens, pairs_of
from jcos.experiments.sweeps import conditions_of, judge, pixels
from jcos.lab.measures import SCORES, UNBOUNDED
from jcos.lab.results import IDEAL, Variable, measure, of_kind
from jcos.sampling import flow, inside, probes
from jcos.sampling.trajectory import Condition, Trace
from jcos.wan import Wan

VELOCITY = "velocity"
"""What is swapped of the ideal denoiser, which has no tokens."""
TOKENS = {"all": "", "object": ", object only", VELOCITY: f", {IDEAL}"}
SINGLE, KEPT_UP = "in one step", "from step 0 on"
"""Kinds of cases."""
JUDGED = ("flipped", "kept")
"""Measures that random answers and the first frame held have too."""


class Case(NamedTuple):
    """After which layer tokens are swapped, from step `first` to `last` (before it: not at all),
    and which: all, or those of the object; or, without a layer, the `VELOCITY`."""

    layer: int | None = None
    first: int = 0
    last: int = -1
    tokens: str = "all"

    @property
    def both(self) -> bool:
        """Whether it is run in both directions at once, which only single steps can be."""
        return self.last <= self.first

    @property
    def kind(self) -> str:
        """What cases have in common that differ in layer and last step."""
        when = "no swap" if self.last < self.first else SINGLE if self.both else KEPT_UP
        return when + TOKENS[self.tokens]

    def __str__(self) -> str:
        if self.last < self.first:
            return self.kind
        steps = f"step {self.first}" if self.both else f"steps {self.first} to {self.last}"
        where = VELOCITY if self.layer is None else f"layer {self.layer}"
        return f"{where}, {steps}{TOKENS[self.tokens]}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Swap(Experiment):
    """Paper, section 5.2: after layer k of the first step, a run goes on with the tokens of a donor
    run; all other layers compute as they are.

    Receiver and donor are puzzles that differ in one thing (`swap_pairs.PARTNERS`) and share their
    noise. Beyond the paper: every layer × several steps, in both directions (in a single step the
    two runs exchange their tokens, which is a swap each way); swaps kept up from the first step to
    a later one, the donor running undisturbed; those over the whole run also with the object's
    tokens alone, which are those that the two answers differ in.
    A flip is counted where both plain runs are right; an answer counts in either picture. The ideal
    denoiser has no layers, but a velocity, which is what all tokens after the last layer are: it
    goes on with the donor's in the same steps. Of clips, of which two after each other make a pair,
    only the way from the receiver's plain end to the donor's is measured.

    layers: where, all by default. steps: of single swaps, the paper's is 0. until: last steps of
    swaps that are kept up from step 0 on; the last of them is also run with the object's tokens.
    """

    question = "Which layer decides the answer?"

    tasks: tuple[str, ...] = ("rotation", "tictactoe", "returns", "pattern")
    layers: Annotated[AtLayers, NONEMPTY] | None = None
    steps: AtSteps = (0, 0.25, 0.5, 0.75)
    until: AtSteps = (0.25, 0.5, 1.0)

    def check(self, config: WanConfig) -> None:
        super().check(config)
        if self.clips is not None:
            n = len(read_clips(self.clips).clips)
            if n % 2:
                raise ValueError(
                    f"{self.clips} lists {n} clips; two after each other make a pair, the receiver "
                    "and the donor: give an even number"
                )
        elif self.several:
            raise ValueError("several=true has no meaning here: pairs are made of all puzzles")
        else:
            for task in self.tasks:
                pairs_of(task, 1, self.puzzle_seed)

    def measure(self, model: Wan, progress: Progress) -> xr.Dataset:
        pairs: list[Pair] = []
        if self.clips is None:
            for task in self.tasks:
                pairs += pairs_of(task, self.puzzles, self.puzzle_seed)
            conditions, answers = pair_conditions(model, pairs), candidates(model, pairs)
            tokens = object_tokens(model, answers)
        else:
            rows, answers = self.samples(model).conditions, None
            conditions = jax.tree.map(lambda a: a.reshape(-1, 2, *a.shape[2:]), rows)
            count = int(np.prod(model.config.dit.tokens(*conditions.grid)))
            tokens = np.ones((len(conditions.context), count), bool)
        cases = self.cases(model, judged=bool(pairs))
        ends = self._ends(model, conditions, answers, cases, tokens, progress)
        data = end_measures(cases, pairs, ends)
        variables: dict[str, Any] = {}
        if pairs:
            swapped = [Case(None, c.first, c.last, VELOCITY) for c in cases]
            swapped = list(dict.fromkeys(swapped))
            ends = self._ends(model, conditions, answers, swapped, tokens, progress)
            cases, both = [*cases, *swapped], [data, end_measures(swapped, pairs, ends)]
            data = xr.concat(both, "case", data_vars="all", coords="minimal", compat="override")
            variables = levels(pairs)
        plain, upto = self.forwards(model.config), [c.last + 1 for c in cases]
        cost = [plain + self.forwards(model.config, steps) for steps in upto]
        cost = [0 if c.tokens == VELOCITY else n for c, n in zip(cases, cost, strict=True)]
        variables["forwards"] = ("case", cost)
        return data.assign(variables).assign_coords(seed=list(self.seeds))

    def cases(self, model: Wan, *, judged: bool) -> list[Case]:
        """All swaps; the first is none. Object tokens are known of puzzles only."""
        steps = self.plan(model.config).steps
        layers = places(self.layers, model.config.dit.layers, "layer")
        cases = [Case()]
        cases += [Case(k, s, s) for s in places(self.steps, steps, "step") for k in layers]
        kept_up = places(self.until, steps, "step")
        cases += [Case(k, 0, last) for last in kept_up for k in layers]
        if judged and kept_up:
            cases += [Case(k, 0, kept_up[-1], "object") for k in layers]
        return list(dict.fromkeys(cases))

    def _ends(
        self,
        model: Wan,
        conditions: Condition,
        answers: Answers | None,
        cases: list[Case],
        tokens: Bool[np.ndarray, "P N"],
        progress: Progress,
    ) -> "Ends":
        """Run pair by pair, since each has other object tokens; return leaves [Q, P, W, K, …]."""
        ends, steps, layers = [], self.plan(model.config).steps, model.config.dit.layers
        ideal = cases[0].tokens == VELOCITY
        what = "swapping velocities of the ideal denoiser" if ideal else "swapping tokens"
        for i, mask in enumerate(tokens):
            progress(what, i, len(tokens))
            condition, known = jax.tree.map(lambda a, i=i: a[i : i + 1], (conditions, answers))
            run = self.sweep(model, silent)(
                condition,
                seeds=[pair_seed(model, seed, i) for seed in self.seeds],
                probes=[probe_of(case, steps, layers, mask) for case in cases],
                item_probe=known.ideal if ideal else None,
                readout=read_ends,
                aux=known,
                what=what,
            )
            ends.append(run)
        progress(what, len(tokens), len(tokens))
        return jax.tree.map(lambda *a: np.concatenate(a, 1), *ends)

    def figures(self, data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
        judged = "flipped" in data
        until = of_kind(data, KEPT_UP)["at_step"].values
        last = int(until.max()) if len(until) else 0
        names, curves = ("flipped", "kept") if judged else ("way",), {}
        for kind, step, when in ((SINGLE, 0, "first step"), (KEPT_UP, last, f"up to step {last}")):
            cases = of_kind(data.isel(case=data["at_step"].values == step), kind, "at_layer")
            if cases.sizes["at_layer"]:
                curves |= {f"{name}, {when}": cases[name] for name in names}
        if curves:
            ylabel = "share of pairs" if judged else WAY
            figure = plots.lines(xr.Dataset(curves), x="at_layer", xlabel="layer", ylabel=ylabel)
            yield "layer", Picture(figure, f"{LAYER} {FLIPPED if judged else ALONG}")


WAY = "way to the donor's end"
FLIP = "flipped to the donor's answer"
AT_ONCE = "share of the donor's answer at once"
LAYER = (
    "Where swapped tokens turn the run: a swap in the first step alone, and one kept up from there "
    "on."
)
FLIPPED = (
    "Flipped: the run ends with the donor's answer; kept: with the receiver's; of the pairs whose "
    "two plain runs are both right. Where the prompts are the same, all tokens are the whole run, "
    "whatever the layer."
)
ALONG = "0 is where the receiver's plain run ends, 1 where the donor's does."
SHARE = "Of the clean estimate, after the last step of the swap."


# ---- what is run


def pair_seed(model: Wan, seed: int, pair: int) -> int:
    """Return another seed for each pair: pairs of puzzles do not share their noise. Of Wan's models
    a seed is what it is everywhere (`loop.first_noise`)."""
    if model.config.noise == "torch":
        return seed
    return int(np.random.SeedSequence((seed, pair)).generate_state(1)[0])


def pair_conditions(model: Wan, pairs: Sequence[Pair]) -> Condition:
    """Return conditions [P, W = 2, …]: the receiver in world 0, the donor in world 1."""
    worlds = [conditions_of(model, [pair.puzzles[w] for pair in pairs]) for w in (0, 1)]
    return jax.tree.map(lambda *a: jnp.stack(a, 1), *worlds)


def probe_of(
    case: Case, steps: int, layers: int, object_here: Bool[np.ndarray, " N"]
) -> "inside.Swap | VelocitySwap":
    """Return the probe of a case. In a single step both worlds, the receiver's and the donor's, get
    the other's; over several the donor stays as it is."""
    at, receivers = range(case.first, case.last + 1), (True, case.both)
    if case.tokens == VELOCITY:
        mask = np.outer(receivers, probes.choose(steps, at, "step"))
        return VelocitySwap(jnp.asarray(mask))
    tokens = object_here if case.tokens == "object" else np.ones_like(object_here)
    chosen = () if case.layer is None else (case.layer,)
    return inside.Swap.at_layers(steps, layers, tokens, chosen, at_steps=at, receivers=receivers)


class VelocitySwap(probes.Probe):
    """Replace the velocity of a world by the other one's: x̂0 ← x − σ v of the other.

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


class Ends(NamedTuple):
    """How two runs ended, by world and seed.

    video: of puzzles, else latents. donor: share of the other world's answers in every estimate, of
    puzzles.
    """

    video: UInt8[Any, "*worlds K F H W 3"] | Float[Any, "*worlds K F h w C"]
    donor: Float[Any, "*worlds K S"] | None


def read_ends(model: Wan, plan: flow.Plan, trace: Trace, answers: Answers | None) -> Ends:
    if answers is None:
        return Ends(trace.latents, None)
    on = jax.vmap(lambda x0, known: blend(x0, known).on)(trace.x0, answers)
    donor = jnp.where(jnp.asarray(answers.wrong)[:, None, None], on, 0).sum(-1)
    return Ends(pixels(model, trace.latents), donor)


# ---- what is measured


def end_measures(cases: Sequence[Case], pairs: Sequence[Pair], ends: Ends) -> xr.Dataset:
    """Return what follows from the ends of all cases, the first of which is none, of P pairs × 2
    directions × K seeds. Missing are runs that cannot tell, and the donor's side where it receives
    nothing."""
    runs, at = "case pair direction seed", [max(case.last, 0) for case in cases]
    values: dict[str, tuple[str, str, Any]] = {"way": (WAY, ALONG, ways(ends.video))}
    variables: dict[str, Variable] = {}
    if pairs:
        assert ends.donor is not None
        kept, taken = solved(pairs, ends.video)
        both_right = kept[:1].all(2, keepdims=True)
        step = np.array(at).reshape(-1, 1, 1, 1, 1)
        values |= {
            "flipped": (FLIP, FLIPPED, np.where(both_right, taken, np.nan)),
            "kept": ("receiver's answer kept", FLIPPED, np.where(both_right, kept, np.nan)),
            "at_once": (AT_ONCE, SHARE, np.take_along_axis(ends.donor, step, -1)[..., 0]),
        }
    one_way = [not case.both for case in cases]
    for key, (name, about, array) in values.items():
        array = np.array(array, np.float64)
        array[one_way, :, 1] = np.nan
        variables[key] = measure(
            runs, array, name, about, span=UNBOUNDED if key == "way" else SCORES
        )
    layers = [np.nan if case.layer is None else case.layer for case in cases]
    kinds = [case.kind for case in cases]
    labels = case_labels(cases, kind=kinds, at_step=at, at_layer=layers) | {
        "task": ("pair", [p.kind for p in pairs] or ["clips"] * ends.video.shape[1]),
        "direction": ["donor to receiver", "receiver to donor"],
    }
    return xr.Dataset(variables, labels)


def solved(
    pairs: Sequence[Pair], videos: UInt8[np.ndarray, "Q P 2 K F H W 3"]
) -> Bool[np.ndarray, "2 Q P 2 K"]:
    """Return whether runs end with the answer of their receiver, and of their donor, in either
    picture."""
    right = np.zeros((2, *videos.shape[:4]), bool)
    for (i, pair), world, side in itertools.product(enumerate(pairs), (0, 1), (0, 1)):
        for puzzle in (pair.puzzles[side], pair.crossed[1 - side]):
            right[side ^ world, :, i, world] |= judge([puzzle], videos[None, :, i, world])[1][0]
    return right


def ways(ends: Shaped[np.ndarray, "Q P W K *video"]) -> Float[np.ndarray, "Q P W K"]:
    """Return how far each end lies along the way from the receiver's plain end (0) to the donor's
    (1), the plain ones being case 0; nan where those are alike."""
    plain = ends[0].astype(np.float64)
    axes = tuple(range(3, plain.ndim))
    apart = plain[:, ::-1] - plain
    size, least = np.sum(apart**2, axes), 1e-6 * np.sum(plain**2, axes)
    size = np.where(size > least, size, np.nan)
    return np.stack([np.sum((case - plain) * apart, axes) / size for case in ends])


def levels(pairs: Sequence[Pair]) -> dict[str, Variable]:
    """Return the baselines of what is solved, mean over both puzzles of a pair: the donor's answers
    have the same."""
    each = []
    for kind in dict.fromkeys(pair.kind for pair in pairs):
        puzzles = [p for pair in pairs if pair.kind == kind for p in pair.puzzles]
        each.append([level.solved for level in baselines(puzzles, np.random.default_rng(0))])
    means = np.concatenate(each, -1).reshape(2, -1, 2).mean(-1)
    return {
        f"{level}_{name}": (("pair",), values, {})
        for level, values in zip(("chance", "still"), means, strict=True)
        for name in JUDGED
    }
