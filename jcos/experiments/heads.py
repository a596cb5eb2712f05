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
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

from jcos.config import WanConfig
from jcos.experiments import plots
from jcos.experiments.experiment import Experiment, Picture, Progress, places
from jcos.experiments.parameters import NONEMPTY, AtLayers, Count
from jcos.experiments.samples import Samples
from jcos.experiments.swap import FLIP, pair_conditions, pair_seed, solved
from jcos.experiments.swap_pairs import pairs_of
from jcos.experiments.sweeps import pixels, read_latents
from jcos.lab.measures import GAINS, POSITIVE, rms
from jcos.lab.results import measure
from jcos.lab.tasks import TASKS
from jcos.sampling import flow
from jcos.sampling.inside import KnockOut
from jcos.sampling.probes import InWorlds, Probe, chain
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan

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
DISTANCE = "From the end of the plain run, over its root mean square."
BOTH_RIGHT = "Of pairs whose two plain runs are right."
Cells = Sequence[tuple[int, int]]
"""Heads: layer and number."""


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
    layers: Annotated[AtLayers, NONEMPTY] | None = None
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
        layers = places(self.layers, config.dit.layers, "layer")
        count, ways = config.dit.heads, self.ways(config)
        shape, dims = (len(layers), count + 1, len(ways)), f"layer head how {samples.runs} seed"
        # All heads of a layer are knocked out at all steps only, by the first two ways.
        cells = [cell for cell in np.ndindex(shape) if cell[1] < count or cell[2] < 2]
        probes = [self.knock_out(config, ())]
        for layer, head, way in cells:
            heads = range(count) if head == count else [head]
            how = list(ways.values())[way]
            probes.append(self.knock_out(config, [(layers[layer], h) for h in heads], *how))
        ends = self._ends(model, samples, probes, progress, "knocking out heads")
        variables: dict[str, Any] = {"forwards": ((), self.forwards(config), {})}
        labels = {"layer": layers, "how": list(ways)}
        labels["head"] = [*(f"head {h}" for h in range(count)), "all heads"]
        for name, values in ends.items():
            array = np.full(shape + values.shape[1:], np.nan)
            array[tuple(np.transpose(cells))] = values[1:]
            if name == "distance":
                variables[name] = measure(dims, array, name, DISTANCE, span=POSITIVE)
                return self.dataset(variables, samples, **labels)
            title, comment = MEASURES[name]
            lost = values[0] - array
            single = lost[:, :count]
            beside = np.full_like(lost, np.nan)
            beside[:, :count] = single - (single.sum(1, keepdims=True) - single) / (count - 1)
            more = f"{title}, lost, more than by the layer's other heads"
            variables |= {
                name: measure("puzzle seed", values[0], title, f"With all heads. {comment}"),
                f"{name}_lost": measure(dims, lost, f"{title}, lost", LOST, span=GAINS),
                f"{name}_beside": measure(dims, beside, more, BESIDE, span=GAINS),
            }
        data = self.dataset(variables | samples.levels({"solved": "solved"}), samples, **labels)
        lost = data["progress_lost"].sel(how="mean").values
        data = data.merge(self._sets(model, samples, lost, progress))
        return data.merge(self._exchange(model, progress))

    def ways(self, config: WanConfig) -> dict[str, tuple[str, Sequence[int]]]:
        """Return how heads are knocked out, and at which steps: always, then in each window."""
        every = range(self.plan(config).steps)
        ways: dict[str, tuple[str, Sequence[int]]] = {by: (by, every) for by in ("zero", "mean")}
        parts = np.array_split(every, self.windows) if self.windows > 1 else []
        return ways | {f"mean, steps {a[0]}–{a[-1]}": ("mean", a.tolist()) for a in parts}

    def knock_out(
        self, config: WanConfig, heads: Cells, by: str = "mean", at: Sequence[int] = ()
    ) -> Probe:
        """Return the knock-out of heads at some steps; all of them are one program."""
        chosen: dict[str, Any] = {"zero": (), "mean": ()} | {by: heads}
        when: dict[str, Any] = {"at_steps": at, "steps": self.plan(config).steps}
        return chain(*(KnockOut.at(config, "heads", chosen[by], by=by, **when) for by in chosen))

    def _ends(
        self, model: Wan, samples: Samples, probes: Sequence[Probe], progress: Progress, what: str
    ) -> dict[str, np.ndarray]:
        """Return all measures of the ends of runs, [probes, P, K]; the first run is plain."""
        readout = read_videos if samples.judged else read_latents
        ends = self.sweep(model, progress)(
            samples.conditions, probes=probes, readout=readout, what=what
        )
        if samples.judged:
            return judged(samples, ends[:, :, 0])
        return {"distance": np.asarray(rms(ends - ends[:1]) / rms(ends[:1]))}

    def _sets(
        self, model: Wan, samples: Samples, lost: np.ndarray, progress: Progress
    ) -> xr.Dataset:
        """Return what the heads cost that cost most progress on every second puzzle, on the other
        ones; beside random heads of the same layers."""
        config, count = model.config, model.config.dit.heads
        layers = places(self.layers, config.dit.layers, "layer")
        cells = np.ndindex(len(layers), count)
        most = sorted(cells, key=lambda cell: -lost[cell][::2].mean())[: self.members]
        chosen = sorted((layers[k], h) for k, h in most)
        rng, every = np.random.default_rng(self.puzzle_seed), range(self.plan(config).steps)
        sets = [(), chosen, *(like(chosen, count, rng) for _ in range(self.controls))]
        tried = [self.knock_out(config, heads, at=every) for heads in sets]
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
            probes=[taken(config, *case, steps) for case in cases.values()],
            readout=read_videos,
            what="heads of a run with another prompt",
        )
        kept, other = solved(pairs, videos)
        both = kept[:1].all(2, keepdims=True)
        flips = np.where(both, other, np.nan)[:, :, 0]
        flipped = measure("exchange pair seed", flips, FLIP, BOTH_RIGHT, by="pair_kind")
        labels = {"exchange": list(cases), "pair_kind": ("pair", [pair.kind for pair in pairs])}
        return xr.Dataset({"flipped": flipped}, labels)

    def figures(self, data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
        single = data.isel(head=slice(-1)).sel(how="mean")
        shown = {f"{name}_lost": title for name, (title, _) in MEASURES.items()}
        shown = {"distance": "distance"} if "distance" in data else shown
        maps = {title: single[name] for name, title in shown.items()}
        figure = plots.heat(maps, "head", "layer")
        yield "heads", Picture(figure, "Lost without a head, set to the mean over tokens.")
        if "flipped" not in data:
            return
        curves = xr.Dataset()
        for place in PLACES.values():
            rows = [f"{place} of layer {k}" for k in data["layer"].values]
            of_layers = data["flipped"].sel(exchange=rows).rename(exchange="layer")
            curves[place] = of_layers.assign_coords(layer=data["layer"])
        figure = plots.lines(curves, x="layer", ylabel=FLIP)
        yield "exchange", Picture(figure, "All heads of a layer return what they do in the donor.")


def taken(config: WanConfig, place: str, heads: Cells, steps: int) -> Probe:
    """Return an exchange in which world 0 is given what heads return in world 1."""
    chosen: dict[str, Any] = {"cross": (), "heads": ()} | {place: heads}
    each = (KnockOut.at(config, *pair, steps=steps, by="world") for pair in chosen.items())
    return InWorlds(chain(*each), jnp.array([True, False]))


def exchanges(layers: Sequence[int], heads: int) -> dict[str, tuple[str, Cells]]:
    """Return in which of `PLACES` heads are exchanged, and which: none; all of each layer, and of
    all; single ones."""
    whole = {f"layer {k}": [(k, h) for h in range(heads)] for k in layers}
    single = list(itertools.chain(*whole.values()))
    if len(layers) > 1:
        whole["all layers"] = single
    cases: dict[str, tuple[str, Cells]] = {"nothing exchanged": ("cross", [])}
    for place, words in PLACES.items():
        cases |= {f"{words} of {whose}": (place, some) for whose, some in whole.items()}
    alone = {f"{PLACES['cross']} of layer {k}, head {h}": ("cross", [(k, h)]) for k, h in single}
    return cases | alone


def like(chosen: Cells, heads: int, rng: np.random.Generator) -> Cells:
    """Return as many random heads in the same layers: others, where a layer has so many."""
    drawn = []
    for layer in sorted({k for k, _ in chosen}):
        mine = [h for k, h in chosen if k == layer]
        rest = [h for h in range(heads) if h not in mine]
        pool = rest if len(rest) >= len(mine) else range(heads)
        drawn += [(layer, int(h)) for h in rng.choice(pool, len(mine), replace=False)]
    return drawn


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


def read_videos(model: Wan, plan: flow.Plan, trace: Trace, aux: Any) -> Any:
    """Return the final videos of all worlds."""
    return pixels(model, trace.latents)
