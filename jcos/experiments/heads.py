"""Which heads carry the route, the agent, the walls; and does one layer decide, seen by heads?

An effect that only zero has, and not the mean over tokens, is of the strange value. Heads that are
chosen for their effect look larger than they are: the chosen set is knocked out on other puzzles
than it was chosen on.

That one layer decides (paper, section 5.2) was seen by swapping whole tokens. Here a run is given
what the heads of one layer, or one head, return in a run with another prompt, at every step.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import xarray as xr

from jcos.config import PixelCodec, WanConfig
from jcos.experiments import plots
from jcos.experiments.experiment import Experiment, Picture, Progress, case_labels, places
from jcos.experiments.parameters import AtLayers, Count
from jcos.experiments.samples import Samples
from jcos.experiments.swap import FLIP, pair_conditions, pair_seed, solved
from jcos.experiments.swap_pairs import pairs_of
from jcos.experiments.sweeps import pixels
from jcos.lab.measures import GAINS, POSITIVE
from jcos.lab.results import measure, of_kind
from jcos.lab.tasks import TASKS
from jcos.sampling import flow
from jcos.sampling.inside import KnockOut
from jcos.sampling.probes import InWorlds, Probe, chain
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan

NONE, ALL = "no knock-out", "all steps"
GATES = {
    "walls": ("scene", "walls intact", "1 less changed patches, worst frame."),
    "agent": ("agent", "one agent", "Share of frames with exactly one agent."),
    "route": ("path", "unbroken route", "Every frame's trail leads through doors to the agent."),
}
"""Parts of a maze's verdict."""
MEASURES = {
    "solved": ("solved", "Share of runs that end solved."),
    "progress": ("progress", "Progress of the trail to the goal, whatever else is wrong."),
} | {name: words for name, (_, *words) in GATES.items()}
PLACES = {"cross": "cross-attention", "heads": "self-attention"}
"""Where heads are exchanged."""
SETS = ("no heads", "chosen heads", "random heads of the same layers")
"""What is knocked out on puzzles that nothing was chosen on."""
LOST = "Without the head, less with it; the same puzzle and seed."
BESIDE = "The loss, more than the mean of the other heads of its layer."
BOTH_RIGHT = "Of pairs whose two plain runs are right."


class Case(NamedTuple):
    """Heads [(layer, head)] that are knocked out, by "zero" or "mean", in some steps."""

    heads: tuple[tuple[int, int], ...] = ()
    by: str = "mean"
    window: str = ALL
    steps: tuple[int, ...] = ()

    @property
    def kind(self) -> str:
        if not self.heads:
            return NONE
        return f"{'head' if len(self.heads) == 1 else 'layer'}, {self.by}, {self.window}"

    def __str__(self) -> str:
        if not self.heads:
            return NONE
        (layer, head), several = self.heads[0], len(self.heads) > 1
        what = f"layer {layer}, {'all heads' if several else f'head {head}'}"
        return f"{what}, {self.by}" + (f", {self.window}" if self.window != ALL else "")


class Exchange(NamedTuple):
    """Heads [(layer, head)], of one of `PLACES`, that return what they do in another run; whose
    they are in words."""

    place: str = "cross"
    whose: str = ""
    heads: tuple[tuple[int, int], ...] = ()

    @property
    def kind(self) -> str:
        if not self.heads:
            return "none"
        several = ", all" if self.whose == "all layers" else ""
        return PLACES[self.place] + (", one head" if "head" in self.whose else several)

    def __str__(self) -> str:
        return f"{PLACES[self.place]} of {self.whose}" if self.heads else "nothing exchanged"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heads(Experiment):
    """Knock-outs of single heads of self-attention by layer × head × window of steps, and of whole
    layers, by zero and by the mean over tokens; the control of a head is the mean of the other
    heads of its layer. A chosen set of heads against random ones of the same layers; exchange of
    heads between runs that differ in their prompt.

    layers: whose heads, all by default. windows: parts that the steps are cut into. members: heads
    of the chosen set, those that cost most progress on every second puzzle. controls: random sets.
    pair_tasks, pairs: what the exchange is run on (`swap_pairs.PARTNERS`). Of clips only the
    distance is measured.
    """

    question = "Which heads carry the route, the agent, the walls?"

    puzzles: Count = 24
    layers: AtLayers | None = None
    windows: Count = 3
    members: Count = 3
    controls: Count = 8
    pair_tasks: tuple[str, ...] = ("rotation",)
    pairs: Count = 16

    def check(self, config: WanConfig) -> None:
        super().check(config)
        layers = places(self.layers, config.dit.layers, "layer")
        steps, heads = self.plan(config).steps, len(layers) * config.dit.heads
        for name, most in (("windows", steps), ("members", heads)):
            if getattr(self, name) > most:
                raise ValueError(f"{name} is {getattr(self, name)}; it is at most {most} here")
        for task in self.pair_tasks if self.clips is None else ():
            pairs_of(task, 1, self.puzzle_seed)
        if self.clips is None and self.puzzles < 2:
            raise ValueError("puzzles: 1; heads are chosen on one half and tried on the other")

    def measure(self, model: Wan, progress: Progress) -> xr.Dataset:
        samples, config = self.samples(model), model.config
        cases = self.cases(config)
        values = self._ends(model, samples, cases, progress, "knocking out heads")
        runs, lost = f"case {samples.runs} seed", {}
        words = "distance", "From the end of the plain run, over its root mean square."
        variables: dict[str, Any] = {
            "forwards": ((), self.forwards(config), {}),
            "distance": measure(runs, values.pop("distance"), *words, span=POSITIVE),
        }
        for name, array in values.items():
            title, comment = MEASURES[name]
            lost[name] = array[:1] - array
            more = lost[name] - others(cases, lost[name])
            beside = f"{title}, lost, more than by the layer's other heads"
            variables |= {
                name: measure(runs, array, title, comment),
                f"{name}_lost": measure(runs, lost[name], f"{title}, lost", LOST, span=GAINS),
                f"{name}_beside": measure(runs, more, beside, BESIDE, span=GAINS),
            }
        data = self.dataset(variables, samples, **labels_of(cases))
        if samples.judged:
            data = data.assign(samples.levels({"solved": "solved"}))
            data = data.merge(self._sets(model, samples, cases, lost["progress"], progress))
            data = data.merge(self._exchange(model, progress))
        return data

    def cases(self, config: WanConfig) -> list[Case]:
        """Return all knock-outs of heads and whole layers; the first is none."""
        layers, steps = places(self.layers, config.dit.layers, "layer"), self.plan(config).steps
        heads = list(itertools.product(layers, range(config.dit.heads)))
        every, cases = tuple(range(steps)), [Case()]
        for by in ("zero", "mean"):
            cases += [Case((one,), by, ALL, every) for one in heads]
            cases += [Case(tuple(h for h in heads if h[0] == k), by, ALL, every) for k in layers]
        parts = np.array_split(np.arange(steps), self.windows) if self.windows > 1 else []
        for part in parts:
            at = tuple(part.tolist())
            cases += [Case((one,), "mean", f"steps {at[0]}–{at[-1]}", at) for one in heads]
        return cases

    def _ends(
        self, model: Wan, samples: Samples, cases: Sequence[Case], progress: Progress, what: str
    ) -> dict[str, np.ndarray]:
        """Return all measures of the ends of runs, [cases, P, K]."""
        steps = self.plan(model.config).steps
        latents, videos = self.sweep(model, progress)(
            samples.conditions,
            probes=[probe_of(model.config, case, steps) for case in cases],
            readout=read_ends,
            what=what,
        )
        plain = latents[:1]
        square = [np.square(x).mean((-4, -3, -2, -1)) for x in (latents - plain, plain)]
        values = {"distance": np.sqrt(square[0] / square[1])}
        return values | judged(samples, videos) if samples.judged else values

    def _sets(
        self,
        model: Wan,
        samples: Samples,
        cases: Sequence[Case],
        lost: np.ndarray,
        progress: Progress,
    ) -> xr.Dataset:
        """Return what the heads cost that cost most progress on every second puzzle, on the other
        ones; beside random heads of the same layers."""
        single = [i for i, case in enumerate(cases) if case.kind == f"head, mean, {ALL}"]
        order = sorted(single, key=lambda i: -lost[i, ::2].mean())[: self.members]
        chosen = tuple(sorted(cases[i].heads[0] for i in order))
        rng, count = np.random.default_rng(self.puzzle_seed), model.config.dit.heads
        sets = [(), chosen, *(like(chosen, count, rng) for _ in range(self.controls))]
        every = tuple(range(self.plan(model.config).steps))
        tried = [Case(heads, "mean", ALL, every) for heads in sets]
        values = self._ends(model, samples, tried, progress, "knocking out sets of heads")
        variables: dict[str, Any] = {}
        for name, (title, comment) in MEASURES.items():
            array = values[name].astype(float)
            array[:, ::2] = np.nan  # those were chosen on
            rows = np.stack([array[0], array[1], array[2:].mean(0)])
            less, words = rows[1] - rows[2], f"{title}, chosen less random heads"
            variables[f"set_{name}"] = measure("heads puzzle seed", rows, title, comment)
            variables[f"set_{name}_less"] = measure("puzzle seed", less, words, comment, span=GAINS)
        variables["chosen_heads"] = ((), ", ".join(f"layer {k} head {h}" for k, h in chosen), {})
        return xr.Dataset(variables, {"heads": list(SETS)})

    def _exchange(self, model: Wan, progress: Progress) -> xr.Dataset:
        """Return how often a run ends with the answer of a run with another prompt, if it is given
        what that run's heads return at every step: of cross-attention and of self-attention."""
        config, steps = model.config, self.plan(model.config).steps
        each = (pairs_of(task, self.pairs, self.puzzle_seed) for task in self.pair_tasks)
        pairs = list(itertools.chain(*each))
        if not pairs:
            return xr.Dataset()
        cases = exchanges(places(self.layers, config.dit.layers, "layer"), config.dit.heads)
        videos = self.sweep(model, progress)(
            pair_conditions(model, pairs),
            seeds=[pair_seed(model, seed, 0) for seed in self.seeds],
            probes=[taken(config, case, steps) for case in cases],
            readout=read_videos,
            what="heads of a run with another prompt",
        )
        kept, other = solved(pairs, videos)
        both, variables = kept[:1].all(2, keepdims=True), {}
        for name, right, title in (
            ("flipped", other, FLIP),
            ("kept", kept, "receiver's answer kept"),
        ):
            values = np.where(both, right, np.nan)[:, :, 0]
            variables[name] = measure(
                "exchange pair seed", values, title, BOTH_RIGHT, by="pair_kind"
            )
        coordinates = {
            "exchange": list(map(str, cases)),
            "exchange_kind": ("exchange", [case.kind for case in cases]),
            "exchange_layer": ("exchange", [c.heads[0][0] if c.heads else -1 for c in cases]),
            "pair_kind": ("pair", [pair.kind for pair in pairs]),
        }
        return xr.Dataset(variables, coordinates)

    def figures(self, data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
        names = {n: MEASURES[n][0] for n in MEASURES if f"{n}_lost" in data}
        shown = {f"{n}_lost": title for n, title in names.items()} or {"distance": "distance"}
        kind = f"head, mean, {ALL}"
        maps = {title: of_kind(data[n], kind, "at_layer", "at_head") for n, title in shown.items()}
        figure = plots.heat(maps, "at_head", "at_layer", xlabel="head", ylabel="layer")
        yield "heads", Picture(figure, "Lost without a head, set to the mean over tokens.")
        if "flipped" not in data:
            return
        curves = {}
        for kind in PLACES.values():
            rows = np.flatnonzero(data["exchange_kind"].values == kind)
            curves[kind] = data["flipped"].isel(exchange=rows).swap_dims(exchange="exchange_layer")
            curves[kind] = curves[kind].drop_vars(["exchange", "exchange_kind"])
        curves = xr.Dataset(curves)
        figure = plots.lines(curves, x="exchange_layer", xlabel="layer", ylabel=FLIP)
        yield "exchange", Picture(figure, "All heads of a layer return what they do in the donor.")


def probe_of(config: WanConfig, case: Case, steps: int) -> Probe:
    """Return the knock-out of a case; all of them are one program."""
    chosen: dict[str, Any] = {"zero": (), "mean": ()} | {case.by: case.heads}
    when: dict[str, Any] = {"at_steps": case.steps, "steps": steps}
    return chain(*(KnockOut.at(config, "heads", chosen[by], by=by, **when) for by in chosen))


def taken(config: WanConfig, case: Exchange, steps: int) -> Probe:
    """Return an exchange in which world 0 is given what heads return in world 1."""
    chosen: dict[str, Any] = {"cross": (), "heads": ()} | {case.place: case.heads}
    each = (KnockOut.at(config, *pair, steps=steps, by="world") for pair in chosen.items())
    return InWorlds(chain(*each), jnp.array([True, False]))


def exchanges(layers: Sequence[int], heads: int) -> list[Exchange]:
    """Return what is exchanged: nothing; all heads of each layer, and of all; single heads."""
    rows = {f"layer {k}": tuple((k, h) for h in range(heads)) for k in layers}
    single = list(itertools.chain(*rows.values()))
    if len(layers) > 1:  # of a single layer both are the same
        rows["all layers"] = tuple(single)
    whole = [Exchange(place, *row) for place in PLACES for row in rows.items()]
    alone = [Exchange("cross", f"layer {k}, head {h}", ((k, h),)) for k, h in single]
    return [Exchange(), *whole, *alone]


def like(
    chosen: Sequence[tuple[int, int]], heads: int, rng: np.random.Generator
) -> tuple[tuple[int, int], ...]:
    """Return as many random heads in the same layers: others, where a layer has so many."""
    drawn = []
    for layer in sorted({k for k, _ in chosen}):
        mine = [h for k, h in chosen if k == layer]
        rest = [h for h in range(heads) if h not in mine]
        pool = rest if len(rest) >= len(mine) else range(heads)
        drawn += [(layer, int(h)) for h in rng.choice(pool, len(mine), replace=False)]
    return tuple(drawn)


def others(cases: Sequence[Case], lost: np.ndarray) -> np.ndarray:
    """Return, for each single head, the mean loss by the other heads of its layer in the same kind
    of case; nan where there are none."""
    mean = np.full_like(lost, np.nan, dtype=float)
    kinds = [(case.kind, case.heads[0][0]) if len(case.heads) == 1 else None for case in cases]
    for i, kind in enumerate(kinds):
        same = [j for j, other in enumerate(kinds) if kind and other == kind and j != i]
        mean[i] = lost[same].mean(0) if same else np.nan
    return mean


def judged(samples: Samples, videos: np.ndarray) -> dict[str, np.ndarray]:
    """Return the measures of videos [cases, P, K, …]; nan for parts that a task does not have."""
    values = {name: np.full(videos.shape[:3], np.nan) for name in MEASURES}
    for i, p, k in np.ndindex(*videos.shape[:3]):
        puzzle = samples.puzzles[p]
        score = TASKS[puzzle.task].score(puzzle, videos[i, p, k])
        values["solved"][i, p, k], values["progress"][i, p, k] = score.solved, score.answer
        for name, (gate, *_) in GATES.items():
            values[name][i, p, k] = score.gates.get(gate, np.nan)
    return values


def labels_of(cases: Sequence[Case]) -> dict[str, Any]:
    """Return the coordinates of the dimension `case`."""
    return case_labels(
        cases,
        kind=[case.kind for case in cases],
        window=[case.window for case in cases],
        at_layer=[case.heads[0][0] if case.heads else np.nan for case in cases],
        at_head=[case.heads[0][1] if len(case.heads) == 1 else np.nan for case in cases],
    )


def read_ends(model: Wan, plan: flow.Plan, trace: Trace, aux: Any) -> tuple[Any, Any]:
    """Return the final latents of a run of one world, and its video where that needs no VAE."""
    latents = trace.latents[0]
    small = isinstance(model.codec, PixelCodec)
    return latents, read_videos(model, plan, trace, aux)[0] if small else None


def read_videos(model: Wan, plan: flow.Plan, trace: Trace, aux: Any) -> Any:
    """Return the final videos of all worlds."""
    return pixels(model, trace.latents)
