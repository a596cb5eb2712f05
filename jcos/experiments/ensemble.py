"""Does averaging over several seeds help? (Paper, section 6.)

After the first averaged block of a pass, its seeds differ in x alone, so all of them get one
velocity. A window of layers therefore acts by its first layer, and averaging tokens is one way of
averaging velocities; the mean of the velocities themselves is the linear one. Under one velocity
the seeds keep the whole difference of their noise. Such a mean can only be taken early: over all
steps it leaves nothing but noise. The mean of clean estimates draws the latents together instead.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int, Shaped

from jcos.config import PixelCodec, WanConfig
from jcos.experiments import plots
from jcos.experiments.answers import answers_of
from jcos.experiments.experiment import Experiment, Picture, Progress, case_labels, places, window
from jcos.experiments.parameters import NONEMPTY, AtLayers, AtSteps
from jcos.experiments.samples import Samples
from jcos.experiments.sweeps import read_latents, read_videos
from jcos.lab.measures import GAINS, POSITIVE, SCORES, Span
from jcos.lab.results import DENOISERS, MODEL, measure
from jcos.sampling import flow
from jcos.sampling.probes import Chain, EstimateEnsemble, SeedEnsemble, chain, choose
from jcos.wan import Wan

KINDS = ("tokens", "estimates", "velocities")


class Case(NamedTuple):
    """What is averaged (one of `KINDS`, or nothing), over how many seeds, after which layers, in
    which steps; and what counts: each member as the one that goes on ("one"), the one nearest to
    the others ("majority") or the best ("best"). Of runs without a mean, members says how many are
    compared, or in how many steps one is made ("longer")."""

    what: str = "nothing"
    members: int = 1
    layers: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()
    how: str = "one"

    def __str__(self) -> str:
        if self.what != PLAIN.what:
            mean = f"mean {self.what} of {self.members}"
            return ", ".join(filter(None, (mean, self.where, HOW[self.how])))
        if self.how == "longer":
            return f"one run of {self.members} steps"
        return "one run" if self.how == "one" else f"{self.members} runs, {self.how}"

    @property
    def where(self) -> str:
        places = _range("layer", self.layers), _range("step", self.steps)
        return ", ".join(filter(None, places))

    @property
    def run(self) -> "Case":
        """The runs that it is read off: with the mean, or without any."""
        return PLAIN if self.what == PLAIN.what else self._replace(how="one")


def _range(what: str, numbers: tuple[int, ...]) -> str:
    if len(numbers) < 2:
        return f"{what} {numbers[0]}" if numbers else ""
    first, last = numbers[0], numbers[-1]
    if last - first + 1 == len(numbers):
        return f"{what}s {first} to {last}"
    return f"{what}s {' '.join(map(str, numbers))}"


PLAIN = Case()
HOW = {"one": "one goes on", "majority": "majority of all", "best": "best of all"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ensemble(Experiment):
    """Paper, section 6: the tokens of three runs, averaged over their seeds in layers 20 to 29 of
    40 in the first step; then one run goes on, or all of them.

    Beyond the paper: windows that begin at every layer, over more steps; two to eight members; the
    mean of clean estimates or of velocities, also of the ideal denoiser. Every mean starts from the
    same noise as plain runs and is compared, puzzle by puzzle and seed by seed, with one of them,
    with the best of as many (which needs a judge), with their majority (the run nearest to the
    others), and with one run that has as many steps as the ensemble has forwards. Of clips, which
    have no judge: how far the ends move.

    members: how many seeds are averaged; `seeds` are taken in groups of so many, and each member
    counts as the one that goes on. window: layers, as fractions of the depth. steps: in which.
    more_members: other sizes. layers, until: first layers of windows of the same width, all by
    default, and last steps of averaging from step 0 on, which also the means of estimates and
    velocities are taken over; either empty for none.
    """

    question = "Does averaging over several seeds help, at equal compute?"

    seeds: tuple[int, ...] = tuple(range(8))
    members: int = 3
    window: tuple[float, ...] = (0.5, 0.75)
    steps: Annotated[AtSteps, NONEMPTY] = (0,)
    more_members: tuple[int, ...] = (2, 4, 8)
    layers: AtLayers | None = None
    until: AtSteps = (0, 0.2, 0.5)

    def check(self, config: WanConfig) -> None:
        super().check(config)
        for size in (self.members, *self.more_members):
            if not 2 <= size <= len(self.seeds):
                raise ValueError(
                    f"{size} members cannot be averaged: there are {len(self.seeds)} seeds, and "
                    "at least 2 of them make a mean"
                )
        self._window(config.dit.layers)

    def means(self, config: WanConfig) -> list[Case]:
        """Return everything that is tried: no averaging first, then the paper's."""
        total, depth = self.plan(config).steps, config.dit.layers
        here = self._window(depth)
        steps = tuple(places(self.steps, total, "step"))
        spans = [tuple(range(last + 1)) for last in places(self.until, total, "step")]
        means = [PLAIN, Case("tokens", self.members, here, steps)]
        means += [Case("tokens", size, here, steps) for size in self.more_members]
        for first in places(self.layers, depth, "layer"):
            layers = tuple(range(first, min(depth, first + len(here))))
            means += [Case("tokens", self.members, layers, span) for span in spans]
        for span in dict.fromkeys([steps, *spans]) if spans else ():
            means += [Case(kind, self.members, (), span) for kind in KINDS[1:]]
            means.append(Case("tokens", self.members, here, span))
        return list(dict.fromkeys(means))

    def _window(self, depth: int) -> tuple[int, ...]:
        if len(self.window) != 2:
            raise ValueError(f"window is {self.window}; it has a first and a last fraction")
        first, last = self.window
        return tuple(window(first, last, depth))

    def step_counts(self, config: WanConfig) -> tuple[int, int]:
        """Return the steps of one run that costs as much as the paper's ensemble: with one member
        going on, with all of them."""
        steps = self.plan(config).steps
        last = places(self.steps, steps, "step")[-1]
        return steps + (self.members - 1) * (last + 1), self.members * steps

    def measure(self, model: Wan, progress: Progress) -> xr.Dataset:
        config, samples, plan = model.config, self.samples(model), self.plan(model.config)
        pixel = isinstance(config.codec, PixelCodec)
        means = self.means(config)

        def ends(means: Sequence[Case], plan: flow.Plan, seeds: int, **more: Any) -> np.ndarray:
            """Return how runs end [means, P, K, …]: videos of puzzles, else latents."""
            sizes = plan.steps, config.dit.layers, seeds
            more |= {"probes": [probe_of(mean, *sizes) for mean in means]}
            more |= {"seeds": self.seeds[:seeds], "plan": plan}
            more |= {"readout": read_videos if pixel else read_latents}
            return self.sweep(model, progress)(samples.conditions, **more)

        every = len(self.seeds)
        videos, longer, ideal = ends(means, plan, every, what="runs"), {}, {}
        if samples.judged:
            for steps in self.step_counts(config):
                (end,) = ends([PLAIN], self.plan(config, steps), 1, what=f"runs of {steps} steps")
                longer[steps] = samples.judge(end[:, 0])[1]
            free = [mean for mean in means if mean.what != "tokens"]
            knowing, what = answers_of(model, samples.puzzles).ideal, "runs of the ideal denoiser"
            end = ends(free, plan, every, item_probe=knowing, what=what)
            ideal = {mean: samples.judge(one)[1] for mean, one in zip(free, end, strict=True)}
        progress("judging", 0, 1)
        costs = [self.forwards(config, n) for n in range(1 + max([plan.steps, *longer]))]
        data = dataset(means, samples, videos, longer, ideal, costs, plan.steps)
        return data.assign_coords(seed=list(self.seeds))

    def figures(self, data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
        judged = "solved" in data
        data = data.sel(denoiser=MODEL, drop=True) if judged else data
        data = data.isel(case=np.flatnonzero(data["compared"]))
        where = data["compared"].attrs["comment"]
        costs = zip(data["case"].values, data["forwards"].values, strict=True)
        names = [f"{case} ({n})".replace(f", {where}", "") for case, n in costs]
        data = data.assign_coords(case=names)
        main = "solved" if judged else "distance"
        figure = plots.paired(data[main], str(data[main].attrs["long_name"]), zero=False)
        yield "compared", Picture(figure, COMPARED.format(where))


COMPARED = (
    "Tokens averaged in {}: share of puzzles solved, or of clips the distance from the plain end; "
    "in brackets forward passes. Best needs a judge; majority is the run nearest to the others. "
    "Runs with more steps are of the first seed only."
)


# ---- what is run


def groups_of(seeds: int, members: int) -> Int[np.ndarray, " K"]:
    """Return which group each seed belongs to: groups of so many in their order; a seed that is
    left over is alone."""
    number = np.arange(seeds)
    whole = seeds // members * members
    return np.where(number < whole, number // members, number).astype(np.int32)


def probe_of(mean: Case, steps: int, layers: int, seeds: int) -> Chain:
    """Return both kinds of mean, of which one or none is on: so all means are one program."""
    at, tokens = choose(steps, mean.steps, "step"), mean.what == "tokens"
    groups = jnp.asarray(groups_of(seeds, mean.members))
    return chain(
        SeedEnsemble(
            jnp.asarray(np.outer(at & tokens, choose(layers, mean.layers, "layer"))),
            jnp.array([True, True]),
            groups,
        ),
        EstimateEnsemble(
            jnp.asarray(at & (mean.what in ("estimates", "velocities"))),
            jnp.array(mean.what == "velocities"),
            groups,
        ),
    )


# ---- what is measured


def dataset(
    means: Sequence[Case],
    samples: Samples,
    ends: Shaped[np.ndarray, "Q P K *video"],
    longer: Mapping[int, Bool[np.ndarray, " P"]],
    ideal: Mapping[Case, Bool[np.ndarray, "P K"]],
    costs: Sequence[int],
    steps: int,
) -> xr.Dataset:
    """Return what follows from how runs end: videos of puzzles, or latents of clips.

    means: none first, then the paper's. longer: whether single runs of so many steps solve the
    puzzles, from the first seed's noise. ideal: whether the ideal denoiser does, with each mean
    that needs no tokens. costs: passes of runs of 0, 1, … steps. What is measured of a group of
    seeds stands at the first of them.
    """
    paper, shape = means[1], ends.shape[1:3]
    hows = tuple(HOW) if samples.judged else ("one",)
    sizes = sorted({mean.members for mean in means[1:]})
    cases = [PLAIN, *(PLAIN._replace(members=k, how=how) for k in sizes for how in hows[1:])]
    cases += [mean._replace(how=how) for mean in means[1:] for how in hows]
    cases += [PLAIN._replace(members=count, how="longer") for count in longer]
    number = {mean: q for q, mean in enumerate(means)}
    size = np.maximum(_rms(ends[0]), 1e-12)
    nearest = {
        (c.run, c.members): _nearest(ends[number[c.run]], c.members)
        for c in cases
        if c.how == "majority"
    }
    averaged = np.array([c.run != PLAIN for c in cases])
    one = np.array([c.how == "one" for c in cases])
    single = averaged & one

    def every(values: Shaped[np.ndarray, "Q P K"]) -> Float[np.ndarray, "case P K"]:
        rows = [(values[number[c.run]], c.how, c.members) for c in cases]
        chosen = [nearest.get((c.run, c.members)) for c in cases]
        return np.stack([counted(*row, i) for row, i in zip(rows, chosen, strict=True)])

    def gained(values: Shaped[np.ndarray, "Q P K"]) -> Float[np.ndarray, "case P K"]:
        """Return `every` less one plain run: the same seed, or the mean of as many."""
        hows = ["one" if c.run != PLAIN else "none" if c == PLAIN else "mean" for c in cases]
        rows = [counted(values[0], how, c.members) for how, c in zip(hows, cases, strict=True)]
        return every(values) - np.stack(rows)

    moved = every(np.stack([_rms(end - ends[0].astype(np.float32)) for end in ends]) / size)
    measures: list[tuple[str, np.ndarray, np.ndarray, str, str, Span]] = [
        ("distance", moved, single, "distance from the plain end", FAR, POSITIVE),
    ]
    if samples.judged:
        solved = np.stack([samples.judge(end)[1] for end in ends])
        free = np.stack([ideal.get(mean, np.full(shape, np.nan)) for mean in means])
        of_model, more, some = every(solved), gained(solved), np.ones(len(cases), bool)
        for i, values in enumerate(longer.values(), len(cases) - len(longer)):
            of_model[i, :, 0] = values
        both, both_some = np.stack([of_model, every(free)], 1), np.stack([some, one], 1)
        gains, gains_of = (
            np.stack([more, gained(free)], 1),
            np.stack([single | ~averaged, single], 1),
        )
        lost = np.maximum(-more, 0)
        measures += [
            ("solved", both, both_some, "solved", "Share of puzzles solved.", SCORES),
            ("gain", gains, gains_of, "solved, more than one run", MORE, GAINS),
            ("only_with", np.maximum(more, 0), single, "solved only with averaging", MORE, SCORES),
            ("only_without", lost, single, "solved only without", MORE, SCORES),
        ]
        for (count, end), how in zip(longer.items(), ("one", "majority"), strict=False):
            alike = (paper.members, how)
            among = [c.run in (paper, PLAIN) and (c.members, c.how) == alike for c in cases]
            equal, title = of_model - end[:, None], f"solved, more than one run of {count} steps"
            equal[:, :, 1:] = np.nan
            measures.append((f"gain_{count}", equal, np.array(among), title, EQUAL, GAINS))
    variables = samples.levels({"solved": "solved"})
    for name, values, counts, title, comment, span in measures:
        dims = f"case {'denoiser ' * (values.ndim > 3)}{samples.runs} seed"
        values = np.where(counts[..., None, None], values, np.nan)
        variables[name] = measure(dims, values, title, comment, span=span)

    def cost(case: Case) -> int:
        """Passes of the run that goes on and of the others while they are needed, or of all."""
        if case.how == "longer":
            return costs[case.members]
        if case.how != "one":
            return case.members * costs[steps]
        last = case.steps[-1] + 1 if case.steps else 0
        return costs[steps] + (case.members - 1) * costs[last]

    columns: dict[str, Any] = {
        "kind": [str(c._replace(layers=(), steps=())) for c in cases],
        "at_layer": [(c.layers or (np.nan,))[0] for c in cases],
        "at_step": [(c.steps or (np.nan,))[-1] for c in cases],
        "forwards": [cost(c) for c in cases],
    }
    alike = [c.run == PLAIN or (c.what, c.where) == (paper.what, paper.where) for c in cases]
    compared = {"compared": ("case", alike, {"comment": paper.where})}
    about = case_labels(cases, **columns) | compared
    denoiser = {"denoiser": list(DENOISERS)} if samples.judged else {}
    return xr.Dataset(variables, samples.coordinates() | denoiser | about)


FAR = "Root mean square over that of the plain ends."
MORE = "The same puzzles and seeds, with averaging less without; of plain runs less one of them."
EQUAL = "Less one run with as many forwards, from the first seed's noise."


def counted(
    values: Shaped[np.ndarray, "P K"],
    how: str,
    members: int,
    nearest: Int[np.ndarray, "P G"] | None = None,
) -> Float[np.ndarray, "P K"]:
    """Return what counts of each group of seeds (`Case`), at its first seed, of "one" at every
    seed; nan elsewhere. nearest: the member that is nearest to the others of its group."""
    placed = np.full(values.shape, np.nan)
    groups = values.shape[1] // members
    grouped = values[:, : groups * members].reshape(len(values), groups, members).astype(float)
    first = placed[:, : groups * members : members]  # a view
    if how == "one":
        placed[:, : groups * members] = values[:, : groups * members]
    elif how in ("best", "mean"):
        first[:] = grouped.max(-1) if how == "best" else grouped.mean(-1)
    elif how == "majority" and nearest is not None:
        first[:] = np.take_along_axis(grouped, nearest[..., None], -1)[..., 0]
    return placed


def _nearest(ends: Shaped[np.ndarray, "P K *video"], members: int) -> Int[np.ndarray, "P G"]:
    """Return the member of each group whose end is nearest to the others', the first of equals."""
    groups = ends.shape[1] // members
    grouped = ends[:, : groups * members].astype(np.float32)
    grouped = grouped.reshape(len(ends), groups, members, *ends.shape[2:])
    distances = [_rms(grouped - grouped[:, :, i : i + 1]) for i in range(members)]
    return np.stack(distances, -1).sum(-1).argmin(-1)


def _rms(ends: Any) -> Float[np.ndarray, "*axes"]:
    return np.sqrt(np.mean(np.square(ends, dtype=np.float32), axis=(-4, -3, -2, -1)))
