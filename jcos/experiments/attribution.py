"""Which heads and layers of which steps carry the answer, and does one gradient tell?

Attribution patching against exact patching, cell by cell. The estimate is of first order, so it is
checked, not believed; the runs with sharper attention show where it fails.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int
from scipy import stats

from jcos.config import WanConfig
from jcos.experiments import plots
from jcos.experiments.experiment import Experiment, Picture, Progress, check_spread
from jcos.experiments.parameters import NONEMPTY, AtLeastTwo, Positive
from jcos.experiments.samples import others_of
from jcos.experiments.swap import pair_conditions, pair_seed
from jcos.experiments.swap_pairs import Pair, pairs_of
from jcos.experiments.sweeps import remembered
from jcos.generation import generate
from jcos.lab.attribution import BY_HEAD, Cell, attribute, patch_effects
from jcos.lab.measures import UNBOUNDED
from jcos.lab.results import measure
from jcos.lab.tasks import get
from jcos.sampling.probe import Latents
from jcos.sampling.trajectory import Condition
from jcos.wan import Wan

PLACES = ("block", "heads", "cross", "mlp")
ESTIMATES = ("gradient through the run", "gradient of one step", "gradient of another pair's run")
EXACT = "exact patch"
HOWS = (EXACT, "run", "step")
LEAST = 1e-2
"""Cells whose exact effect is a smaller share of the pair's largest have no sign to speak of."""
WAY = "Along the line from the run's own end, 0, to the donor's, 1."
RANK = "Spearman correlation of estimated and exact effects over step × layer × head (or layer)."
SIGN = "Cells whose estimated effect has the exact one's sign, of those above 1 % of the largest."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attribution(Experiment):
    """For pairs of puzzles with the same picture and noise and another prompt: what patching every
    layer's tokens, heads of self- and cross-attention and hidden units at every step does to the
    run's end, exactly and by one backward pass.

    Controls: the gradient of one step's estimate, which later steps undo, and that of another pair
    of the same task. chunk: cells that are patched at a time, by default 24.
    sharper: factors of the queries of self-attention, with which heads are attributed again.
    """

    question = "Which heads and layers of which steps carry the answer, and does a gradient tell?"
    no_clips = "pairs are made of puzzles; for clips call jcos.attribute"

    tasks: tuple[str, ...] = ("rotation", "tictactoe")
    puzzles: AtLeastTwo = 64
    sharper: Annotated[tuple[Positive, ...], NONEMPTY] = (1.0, 2.0, 4.0)

    def check(self, config: WanConfig) -> None:
        super().check(config)
        check_spread(config, 1)
        if self.several:
            raise ValueError("several=true has no meaning here: pairs are made of all puzzles")
        for task in self.tasks:
            if not any(map(same_picture, pairs_of(task, 1, self.puzzle_seed))):
                raise ValueError(f"{task} has no pairs of the same picture, which are patched here")

    def measure(self, model: Wan, progress: Progress) -> xr.Dataset:
        drawn = [p for task in self.tasks for p in pairs_of(task, self.puzzles, self.puzzle_seed)]
        pairs = [pair for pair in drawn if same_picture(pair)]
        run = partial(self.effects, model, pair_conditions(model, pairs), progress)
        plain = run(1.0, PLACES, HOWS)
        sharp = [plain if f == 1 else run(f, ("heads",), HOWS[:2]) for f in self.sharper]
        labels: dict[str, Any] = {"task": ("pair", [pair.kind for pair in pairs])}
        steps, layers = plain["heads", "run"].shape[2:4]
        labels |= {"seed": list(self.seeds), "step": range(steps), "layer": range(layers)}
        labels |= {"place": list(PLACES), "estimate": list(ESTIMATES), "factor": list(self.sharper)}
        variables: dict[str, Any] = agreements(plain, others_of([p.kind for p in pairs]))
        sharp = [agreement(e["heads", "run"], e["heads", EXACT]) for e in sharp]
        for j, (name, title, about) in enumerate(KINDS):
            values = np.stack([s[j] for s in sharp])
            variables[f"sharp_{name}"] = measure(
                "factor pair seed", values, f"{title}, heads, queries scaled", **about
            )
        both = {EXACT: EXACT, ESTIMATES[0]: "run"}
        maps = [[plain[p, how].sum(-1) for p in PLACES] for how in both.values()]
        dims, name = "how place pair seed step layer", "effect of a patch"
        variables["effect"] = measure(dims, np.array(maps), name, WAY, span=UNBOUNDED)
        variables["forwards"] = ((), 2 * self.forwards(model.config))
        return xr.Dataset(variables, labels | {"how": list(both)})

    def effects(
        self,
        model: Wan,
        conditions: Condition,
        progress: Progress,
        factor: float,
        places: Sequence[str],
        hows: Sequence[str],
    ) -> dict[Any, Float[np.ndarray, "P K S L U"]]:
        """Return effects by place and by `HOWS`, queries times a factor."""
        what = "patching" if factor == 1 else f"patching, queries × {factor:g}"
        here, number, rows = sharpened(model, factor), len(conditions.context), []
        for i in range(number):
            progress(what, i, number)
            pair = jax.tree.map(lambda a, i=i: a[i], conditions)
            seeds = [pair_seed(model, seed, i) for seed in self.seeds]
            one = partial(self.pair, here, pair, seeds, places, hows)
            shape = dict.fromkeys(product(places, hows), 0)
            rows.append(remembered(f"patching-{factor}-{i}", shape, one))
        progress(what, number, number)
        return jax.tree.map(lambda *a: np.stack(a), *rows)

    def pair(
        self,
        model: Wan,
        pair: Condition,
        seeds: list[int],
        places: Sequence[str],
        hows: Sequence[str],
    ) -> dict[Any, Float[np.ndarray, "K S L U"]]:
        """Return the same of one pair; of the whole block's tokens, U = 1."""
        dit, sampling = model.config.dit, self.sampled(model.config)
        every = range(sampling.steps), range(dit.layers)
        units = {place: (range(dit.heads),) if place in BY_HEAD else () for place in places}
        cells = [Cell(p, *at) for p, heads in units.items() for at in product(*every, *heads)]
        run, donor = (jax.tree.map(lambda a, w=w: a[w], pair) for w in (0, 1))
        rows: dict[Any, list[Any]] = {}
        for seed in seeds:
            ends = [generate(model, c, [seed], sampling=sampling).latents[0] for c in (run, donor)]
            apart = ends[1] - ends[0]
            metric = Partial(along, ends[0], apart / jnp.maximum(jnp.sum(apart**2), 1e-12))
            how: dict[str, Any] = {"other": donor, "seeds": [seed], "sampling": sampling}
            at_once = self.chunk or 24
            exact = np.asarray(patch_effects(model, run, metric, cells, chunk=at_once, **how))[0]
            for place in places:
                here = exact[[cell.place == place for cell in cells]]
                here = here.reshape(sampling.steps, dit.layers, -1)
                rows.setdefault((place, EXACT), []).append(here)
            for through in hows[1:]:
                how["through"] = through
                estimates = attribute(model, run, metric, places, **how)
                for place, values in estimates.items():
                    one = np.asarray(values)[0]
                    one = one if place in BY_HEAD else one.sum(-1, keepdims=True)
                    rows.setdefault((place, through), []).append(one)
        return {key: np.stack(values) for key, values in rows.items()}

    def figures(self, data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
        for place in PLACES:
            one = data["effect"].sel(place=place)
            maps = {str(how): one.sel(how=how) for how in data["how"].values}
            figure = plots.heat(maps, "step", "layer", xlabel="denoising step")
            yield place, Picture(figure, f"{place}: mean over pairs, all heads together. {WAY}")
        curves = {"rank correlation": data["sharp_rank"], "signs": data["sharp_sign"]}
        x: dict[str, Any] = {"x": "factor", "ylabel": "agreement", "xlabel": "queries scaled by"}
        yield "saturated", Picture(plots.lines(xr.Dataset(curves), **x), f"{RANK} {SIGN}")


KINDS = (
    ("rank", "rank correlation with exact patches", {"span": (-1.0, 1.0), "comment": RANK}),
    ("sign", "signs of exact patches", {"comment": SIGN}),
)


def same_picture(pair: Pair) -> bool:
    """Return whether the two differ in their prompt alone."""
    first, second = (get(puzzle.task).first_frame(puzzle) for puzzle in pair.puzzles)
    return bool((first == second).all())


def along(start: Latents, direction: Latents, x: Latents) -> Array:
    """Return how far x is on the way from start, 0, to the donor's end, 1."""
    return jnp.sum((x - start) * direction)


def sharpened(model: Wan, factor: float) -> Wan:
    """Return the model with the queries of self-attention times a factor: the larger, the nearer is
    each softmax to a choice, where its gradient vanishes."""
    changed = jax.tree.map(lambda a: a, model)
    for expert in changed.experts:
        scale = expert.blocks.self_attn.norm_q.scale
        scale[...] = scale[...] * factor
    return changed


def agreement(
    estimate: Float[np.ndarray, "P K S L U"], exact: Float[np.ndarray, "P K S L U"]
) -> tuple[Float[np.ndarray, "P K"], Float[np.ndarray, "P K"]]:
    """Return rank correlation, and the share of like signs."""
    rank, sign = np.full((2, *exact.shape[:2]), np.nan)
    for i in np.ndindex(exact.shape[:2]):
        a, b = estimate[i].ravel(), exact[i].ravel()
        if min(np.ptp(a), np.ptp(b)) > 0:
            rank[i] = stats.spearmanr(a, b)[0]
            some = np.abs(b) > LEAST * np.abs(b).max()
            sign[i] = (np.sign(a) == np.sign(b))[some].mean()
    return rank, sign


def agreements(effects: dict[Any, Any], other: Int[np.ndarray, " P"]) -> dict[str, Any]:
    """Return how well `ESTIMATES` agree with exact patches, by place. other: the pair that each is
    compared with."""
    every = slice(None)
    whose = ("run", every), ("step", every), ("run", other)  # as `ESTIMATES`
    rows = [
        [agreement(effects[p, how][of], effects[p, EXACT]) for p in PLACES] for how, of in whose
    ]
    values = np.moveaxis(np.array(rows), 2, 0)  # [kind, estimate, place, P, K]
    return {
        name: measure("estimate place pair seed", values[j], title, **about)
        for j, (name, title, about) in enumerate(KINDS)
    }
