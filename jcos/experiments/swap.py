"""Which layer decides the answer? Tokens of a donor run in place of the receiver's. (Paper, section
5.2.)

One swap in the first step can be undone by all the steps that follow, which read the receiver's
prompt again. So each swap is judged twice: by the clean estimate of the last step with a swap (at
once), and by the end of the run; and swaps are also kept up over more and more steps.

After the first layer a run knows its picture and its noise by its tokens alone, but reads its
prompt anew in each. So where two runs differ in the picture only, all tokens are the whole run,
whatever the layer, and only parts of them can tell layers apart.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Float, Shaped, UInt8

from jcos.config import WanConfig
from jcos.experiments import plots
from jcos.experiments.answers import Answers, blend
from jcos.experiments.clips import read_clips
from jcos.experiments.experiment import Experiment, Picture, Place, Progress, places
from jcos.experiments.samples import Baseline, Samples
from jcos.experiments.swap_pairs import Pair, candidates, object_tokens, pairs_of
from jcos.experiments.sweeps import conditions_of, judge, pixels, sweep
from jcos.lab.measures import GAINS, SCORES, UNBOUNDED, Span
from jcos.lab.results import IDEAL, Variable, groups_of, measure, of_kind
from jcos.sampling import flow, probes
from jcos.sampling.trajectory import Condition, Trace
from jcos.wan import Wan

ONE_WAY, BOTH = (True, False), (True, True)
"""Which of the two worlds, the receiver's and the donor's, get the other's tokens."""
VELOCITY = "velocity"
"""What is swapped of the ideal denoiser, which has no tokens."""
TOKENS = {"all": "", "object": ", object only", "rest": ", all but the object", VELOCITY: ""}
SINGLE, KEPT_UP = "in one step", "from step 0 on"
"""Kinds of cases."""
JUDGED = ("receiver_solved", "donor_solved", "flipped", "kept")
"""Measures that random answers and the first frame held have too."""


class Case(NamedTuple):
    """After which layer tokens are swapped (None: not at all), from step `first` to `last`, and
    which: all, those of the object, or the rest; or, without a layer, the `VELOCITY`."""

    layer: int | None = None
    first: int = 0
    last: int = 0
    tokens: str = "all"

    @property
    def swaps(self) -> bool:
        return self.layer is not None or self.tokens == VELOCITY

    @property
    def both(self) -> bool:
        """Whether it is run in both directions at once, which only single steps can be."""
        return self.first == self.last

    @property
    def kind(self) -> str:
        """What cases have in common that differ in layer and last step."""
        if not self.swaps:
            return "no swap"
        return f"{SINGLE if self.both else KEPT_UP}{TOKENS[self.tokens]}"

    def __str__(self) -> str:
        steps = f"step {self.first}" if self.both else f"steps {self.first} to {self.last}"
        if self.layer is None:
            return f"{VELOCITY}, {steps}" if self.swaps else "no swap"
        return f"layer {self.layer}, {steps}{TOKENS[self.tokens]}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Swap(Experiment):
    """Paper, section 5.2: after layer k of the first step, a run goes on with the tokens of a donor
    run; all other layers compute as they are.

    Receiver and donor are puzzles that differ in one thing (`swap_pairs.PARTNERS`) and share their
    noise. Beyond the paper: every layer × several steps, in both directions (in a single step the
    two runs exchange their tokens, which is a swap each way); swaps kept up from the first step to
    a later one, the donor running undisturbed; those over the whole run also with the object's
    tokens alone, which are those that the two answers differ in, and with all others alone.
    Measured: whether the run ends with the receiver's answer, the donor's (in either picture) or
    neither; the share of both in the estimate at once; how far along the way from the receiver's
    plain end to the donor's it ends. A flip is counted where both plain runs are right. The ideal
    denoiser (`ideal.py`) has no layers, but a velocity, which is what all tokens after the last
    layer are: it goes on with the donor's in the same steps. Of clips, of which two after each
    other make a pair, only the way.

    layers: where, all by default. steps: of single swaps, the paper's is 0. until: last steps of
    swaps that are kept up from step 0 on; the last of them is also run with the object's tokens.
    """

    question = "Which layer decides the answer?"

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
            conditions, answers = two_by_two(self.samples(model).conditions), None
            tokens = np.ones((len(conditions.context), token_count(model, conditions)), bool)
        cases = self.cases(model, judged=bool(pairs))
        ends = self._ends(model, conditions, answers, cases, tokens, progress)
        data = end_measures(cases, pairs, ends)
        film = film_of(model, cases, pairs, ends, data)
        if answers is not None:
            swapped = dict.fromkeys(Case(None, c.first, c.last, VELOCITY) for c in cases[1:])
            plain_and = [Case(), *swapped]
            ends = self._ends(model, conditions, answers, plain_and, tokens, progress, ideal=True)
            of_ideal = end_measures(plain_and, pairs, ends, f", {IDEAL}")
            data = xr.concat(
                [data, of_ideal], "case", data_vars="all", coords="minimal", compat="override"
            )
        total = self.forwards(model.config)
        cost = [total + c.swaps * self.forwards(model.config, c.last + 1) for c in cases]
        cost += [0] * (data.sizes["case"] - len(cases))
        variables = levels(conditions, pairs) | film | {"forwards": (("case",), cost, {})}
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
            for tokens in ("object", "rest"):
                cases += [Case(k, 0, kept_up[-1], tokens) for k in layers]
        return list(dict.fromkeys(cases))

    def _ends(
        self,
        model: Wan,
        conditions: Condition,
        answers: Answers | None,
        cases: list[Case],
        tokens: Bool[np.ndarray, "P N"],
        progress: Progress,
        *,
        ideal: bool = False,
    ) -> "Ends":
        """Run pair by pair, since each has other object tokens; return leaves [Q, P, W, K, …].
        ideal: by the ideal denoiser."""
        ends, (steps, layers) = [], (self.plan(model.config).steps, model.config.dit.layers)
        what = "swapping velocities of the ideal denoiser" if ideal else "swapping tokens"
        for i, mask in enumerate(tokens):
            progress(what, i, len(tokens))
            condition, known = jax.tree.map(lambda a, i=i: a[i : i + 1], (conditions, answers))
            run = sweep(
                model,
                condition,
                [pair_seed(model, seed, i) for seed in self.seeds],
                probes=[
                    velocity_swap(case, steps) if ideal else probe_of(case, steps, layers, mask)
                    for case in cases
                ],
                item_probe=known.ideal if ideal else None,
                plan=self.plan(model.config),
                readout=read_ends,
                aux=known,
                chunk=self.chunk,
                what=what,
            )
            ends.append(run)
        progress(what, len(tokens), len(tokens))
        return jax.tree.map(lambda *a: np.concatenate(a, 1), *ends)

    def figures(self, data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
        judged = "flipped" in data
        main, words = ("flipped", FLIPPED) if judged else ("way", ALONG)
        single, until = (
            sorted({int(s) for s in of_kind(data, kind)["at_step"].values})
            for kind in (SINGLE, KEPT_UP)
        )
        last = until[-1] if until else 0
        curves: dict[str, xr.DataArray] = {}
        names = {"flipped": "flipped", "kept": "kept"} if judged else {"way": "way"}
        for name, label in names.items():
            if 0 in single:
                curves[f"{label}, first step"] = _by_layer(data[name], SINGLE, 0)
            if until:
                curves[f"{label}, up to step {last}"] = _by_layer(data[name], KEPT_UP, last)
        if curves:
            figure = _curves(curves, "share of pairs" if judged else WAY)
            yield "layer", Picture(figure, f"{LAYER} {words}")
        if judged and 0 in single:
            shares = {"donor's answer": "at_once", "receiver's answer": "receiver_at_once"}
            curves = {label: _by_layer(data[name], SINGLE, 0) for label, name in shares.items()}
            yield "at-once", Picture(_curves(curves, "share of x̂0"), ONCE)
        x = {"x": "at_layer", "y": "at_step", "limits": (0.0, 1.0), "xlabel": "layer"}
        if len(single) > 1:
            grid = of_kind(data["at_once" if judged else "way"], SINGLE, "at_step", "at_layer")
            caption = MAP if judged else f"Swaps in single steps. {ALONG}"
            yield "map", Picture(plots.heat(grid, ylabel="step", **x), caption)
        if len(until) > 1:
            grid = of_kind(data[main], KEPT_UP, "at_step", "at_layer")
            yield "until", Picture(plots.heat(grid, ylabel="up to step", **x), f"{UNTIL} {words}")
        if judged and until:
            parts = {"all tokens": "all", "object only": "object", "all but the object": "rest"}
            curves = {
                label: _by_layer(data["flipped"], f"{KEPT_UP}{TOKENS[tokens]}", last)
                for label, tokens in parts.items()
            }
            caption = PARTS.format(last, words)
            yield "tokens", Picture(_curves(curves, "flipped"), caption)
        for kind in data["film_of"].values if "film" in data else ():
            one = data.sel(film_of=kind)
            caption = FILM.format(kind, int(one["film_pair"]), one["film_tokens"].item(), last)
            name = f"film-{kind}".replace(", ", "-").replace(" ", "-")
            film = plots.film_grid(one["film"].values, one["film_case"].values.tolist())
            yield name, Picture(film, caption)


WAY = "way to the donor's end"
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
ONCE = (
    "Share of both answers in the clean estimate of the first step, in which the swap is made. A "
    "swap after the last layer hands over all."
)
MAP = (
    "Swaps in single steps, in both directions: how much of the estimate of that step is the "
    "donor's answer, drawn in the receiver's picture."
)
UNTIL = "Swaps kept up from the first step to the one at the side."
PARTS = (
    "Swaps kept up to step {}: of all tokens, of those that the two answers differ in, and of all "
    "others. {}"
)
FILM = "{}: pair {}, ends of runs; layers are those after which {} are swapped up to step {}."


def _by_layer(array: xr.DataArray, kind: str, step: int) -> xr.DataArray:
    return of_kind(array, kind, "at_step", "at_layer").sel(at_step=step, drop=True)


def _curves(curves: dict[str, xr.DataArray], ylabel: str) -> plots.Figure:
    return plots.lines(xr.Dataset(curves), x="at_layer", xlabel="layer", ylabel=ylabel)


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


def two_by_two(conditions: Condition) -> Condition:
    """Return conditions [P, W = 1, …] of clips as pairs [P / 2, W = 2, …]."""
    return jax.tree.map(lambda a: a.reshape(-1, 2, *a.shape[2:]), conditions)


def token_count(model: Wan, conditions: Condition) -> int:
    return int(np.prod(model.config.dit.tokens(*conditions.grid)))


def probe_of(
    case: Case, steps: int, layers: int, object_here: Bool[np.ndarray, " N"]
) -> probes.Swap:
    """Return the probe of a case. In a single step both worlds receive; over several the donor
    stays as it is."""
    where = {"all": np.ones_like(object_here), "object": object_here, "rest": ~object_here}
    swap = probes.Swap.at_layers(
        steps,
        layers,
        len(object_here),
        () if case.layer is None else (case.layer,),
        at_steps=range(case.first, case.last + 1),
        receivers=BOTH if case.both else ONE_WAY,
    )
    return swap.replace(tokens=jnp.asarray(where[case.tokens]))


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


def velocity_swap(case: Case, steps: int) -> VelocitySwap:
    """Return the probe of a case of the ideal denoiser, as `probe_of`."""
    at = range(case.first, case.last + 1) if case.tokens == VELOCITY else ()
    receivers = BOTH if case.both else ONE_WAY
    return VelocitySwap(jnp.asarray(np.outer(receivers, probes.choose(steps, at, "step"))))


class Ends(NamedTuple):
    """How two runs ended, by world and seed.

    video: of puzzles, else latents. receiver, donor: shares of each world's answers and of the
    other's in every estimate, of puzzles.
    """

    video: UInt8[Any, "*worlds K F H W 3"] | Float[Any, "*worlds K F h w C"]
    receiver: Float[Any, "*worlds K S"] | None
    donor: Float[Any, "*worlds K S"] | None


def read_ends(model: Wan, plan: flow.Plan, trace: Trace, answers: Answers | None) -> Ends:
    del plan
    if answers is None:
        return Ends(trace.latents, None, None)
    on = jax.vmap(lambda x0, known: blend(x0, known).on)(trace.x0, answers)
    receiver, donor = (
        jnp.where(mask[:, None, None], on, 0).sum(-1)
        for mask in (jnp.asarray(answers.right), jnp.asarray(answers.wrong))
    )
    return Ends(pixels(model, trace.latents), receiver, donor)


# ---- what is measured


def end_measures(
    cases: Sequence[Case], pairs: Sequence[Pair], ends: Ends, suffix: str = ""
) -> xr.Dataset:
    """Return what follows from the ends of all cases, the first of which is none, of P pairs × 2
    directions × K seeds.

    Missing are runs that cannot tell, and the donor's side where it receives nothing. suffix: of
    all labels of cases.
    """
    values: dict[str, tuple[str, Span, Any]] = {"way": (WAY, UNBOUNDED, ways(ends.video))}
    if pairs:
        assert ends.receiver is not None
        assert ends.donor is not None
        kept, taken = (solved(pairs, ends.video, receiver=side) for side in (True, False))
        both_right = kept[:1].all(2, keepdims=True)
        at = [case.last for case in cases]
        receiver, donor = (
            np.stack([shares[q, ..., s] for q, s in enumerate(at)])
            for shares in (ends.receiver, ends.donor)
        )
        plain = np.stack([ends.donor[0, ..., s] for s in at])
        more = {
            "receiver_more": ("receiver's answer solved, more than without", kept),
            "donor_more": ("donor's answer solved, more than without", taken),
        }
        values |= {
            "receiver_solved": ("receiver's answer solved", SCORES, kept),
            "donor_solved": ("donor's answer solved", SCORES, taken),
            "neither": ("neither solved", SCORES, ~kept & ~taken),
            "flipped": (
                "flipped to the donor's answer",
                SCORES,
                np.where(both_right, taken, np.nan),
            ),
            "kept": ("receiver's answer kept", SCORES, np.where(both_right, kept, np.nan)),
            "at_once": (AT_ONCE, SCORES, donor),
            "receiver_at_once": ("share of the receiver's answer at once", SCORES, receiver),
            "at_once_more": (f"{AT_ONCE}, more than without", GAINS, donor - plain),
            "in_the_end": ("share of the donor's answer in the end", SCORES, ends.donor[..., -1]),
        }
        for key, (name, yes) in more.items():
            values[key] = name, GAINS, yes.astype(float) - yes[:1]
    one_way = [i for i, case in enumerate(cases) if not case.both]
    variables: dict[str, Variable] = {}
    for key, (name, span, array) in values.items():
        array = np.array(array, np.float64)
        array[one_way, :, 1] = np.nan
        variables[key] = measure("case pair direction seed", array, name, span=span)
    if ends.donor is not None:
        variables["donor_share"] = measure(
            "case pair direction seed step",
            ends.donor,
            "share of the donor's answer at each step",
            tabled=False,
        )
    along = ("case",)
    labels = {
        "case": [f"{case}{suffix}" for case in cases],
        "kind": (along, [f"{case.kind}{suffix}" for case in cases]),
        "at_step": (along, [case.last for case in cases]),
        "at_layer": (along, [np.nan if c.layer is None else c.layer for c in cases]),
        "task": (("pair",), [p.kind for p in pairs] or ["clips"] * ends.video.shape[1]),
        "direction": ["donor to receiver", "receiver to donor"],
    }
    return xr.Dataset(variables, labels)


def solved(
    pairs: Sequence[Pair], videos: UInt8[np.ndarray, "Q P 2 K F H W 3"], *, receiver: bool
) -> Bool[np.ndarray, "Q P 2 K"]:
    """Return whether runs end with the answer of their receiver, or else of their donor, in either
    picture."""
    right = np.zeros(videos.shape[:4], bool)
    for i, pair in enumerate(pairs):
        for w in (0, 1):
            side = w if receiver else 1 - w
            either = [pair.puzzles[side], pair.crossed[1 - side]]
            for puzzle in either[: 1 if either[0] == either[1] else 2]:
                right[:, i, w] |= judge([puzzle], videos[None, :, i, w])[1][0]
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


def levels(conditions: Condition, pairs: Sequence[Pair]) -> dict[str, Variable]:
    """Return the baselines of what is solved, mean over both puzzles of a pair: the donor's answers
    have the same."""
    variables: dict[str, Variable] = {}
    baselines = []
    for kind in dict.fromkeys(pair.kind for pair in pairs):
        puzzles = tuple(p for pair in pairs if pair.kind == kind for p in pair.puzzles)
        samples = Samples(conditions, tuple(p.task for p in puzzles), puzzles)
        baselines.append(samples.baselines()["solved"])
    for level in Baseline._fields if baselines else ():
        values = np.concatenate([getattr(one, level) for one in baselines]).reshape(-1, 2).mean(1)
        for name in JUDGED:
            variables[f"{level}_{name}"] = (("pair",), values, {})
    return variables


def film_of(
    model: Wan, cases: Sequence[Case], pairs: Sequence[Pair], ends: Ends, data: xr.Dataset
) -> dict[str, Variable]:
    """Return the ends of one pair of each kind, with and without the longest swaps.

    The pair is the first whose plain runs are both right, if any. Where its prompts are the same,
    the tokens are the object's: all of them would not tell layers apart.
    """
    last = max((case.last for case in cases if not case.both), default=0)
    if not last:
        return {}
    videos, chosen, words = [], [], []
    for rows in groups_of(data["way"]).values():
        known = data["flipped" if pairs else "way"].values[0, rows]
        pair = int(rows[np.argmax(np.isfinite(known).all((1, 2)))])
        same = bool(pairs) and len({puzzle.prompt for puzzle in pairs[pair].puzzles}) == 1
        tokens = "object" if same else "all"
        here = [
            i for i, c in enumerate(cases) if c.layer is not None and c[1:] == (0, last, tokens)
        ]
        one = np.concatenate([ends.video[0, pair, :, 0], ends.video[here, pair, 0, 0]])
        videos.append(one if pairs else model.decode(jnp.asarray(one)))
        chosen.append(pair)
        words.append("the object's tokens" if same else "all tokens")
    layers = dict.fromkeys(case.layer for case in cases if case.layer is not None)
    names = ["receiver", "donor", *(f"layer {layer}" for layer in layers)]
    dims = ("film_of", "film_case", "film_frame", "row", "column", "rgb")
    return {
        "film": (dims, np.stack(videos), {}),
        "film_of": (("film_of",), list(groups_of(data["way"])), {}),
        "film_case": (("film_case",), names, {}),
        "film_pair": (("film_of",), chosen, {}),
        "film_tokens": (("film_of",), words, {}),
    }
