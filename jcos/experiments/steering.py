"""Does a direction act? It is added to the tokens of a route that a run does not take."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from jcos.experiments.experiment import Progress
from jcos.experiments.linear_probes import marked
from jcos.experiments.sweeps import conditions_of, one_world, pixels, sweep
from jcos.lab.measures import GAINS
from jcos.lab.results import Variable, measure
from jcos.lab.tasks import TASKS, Puzzle
from jcos.sampling import flow
from jcos.sampling.probe import Change, Probe, Site, Tokens
from jcos.sampling.trajectory import Trace, tree_stack
from jcos.wan import Wan

FLIPPED = (
    "The run solves the maze by the other route, to whose tokens the direction was added; of mazes "
    "that the run without it solves. Random directions have the same norm; means over several."
)
CHANGED = "The run no longer ends with the route that it takes without the direction."
MEASURES = {
    "flipped": ("takes the route it is pushed to", FLIPPED),
    "changed": ("route changed", CHANGED),
}


class Push(Probe):
    """Add a direction [D] to chosen tokens [N] after a block at chosen steps, mask [S, L]."""

    direction: Float[Array, "*sweep D"]
    mask: Bool[Array, "*sweep S L"]
    tokens: Bool[Array, "*sweep N"]

    def changes(self, world: int = 0) -> list[Change]:
        del world
        return Change.at("a direction added", "layer", self.mask)

    def on_block(self, site: Site, tokens: Tokens) -> tuple[Tokens, tuple[()]]:
        here = self.tokens & self.mask[site.step, site.layer]
        return tokens + (here[:, None] * self.direction[None]).astype(tokens.dtype), ()


class Steering(NamedTuple):
    """Variables of a dataset, and coordinates."""

    variables: dict[str, Variable]
    labels: dict[str, Any]


def read_video(model: Wan, plan: flow.Plan, trace: Trace, aux: Any) -> UInt8[Array, "*K F H W 3"]:
    """Return the final video of a run in world 0."""
    del plan, aux
    return pixels(model, trace.latents[0])


def steer(
    model: Wan,
    puzzles: Sequence[Puzzle],
    seed: int,
    directions: Mapping[str, Float[np.ndarray, "_ D"]],
    strengths: Sequence[float],
    *,
    layer: int,
    steps: Sequence[int],
    plan: flow.Plan,
    chunk: int | None,
    progress: Progress,
) -> Steering:
    """Return how often a run goes over to another right answer, whose tokens get a direction.

    puzzles: with several right answers. directions: by name, several of which a mean is taken; all
    of the norm of strength 1. The first is compared with the others, puzzle by puzzle.
    """
    dit = model.config.dit
    tokens = int(np.prod(dit.tokens(*(conditions := conditions_of(model, puzzles)).grid)))
    mask = np.zeros((plan.steps, dit.layers), bool)
    mask[list(steps), layer] = True

    def run(pushes: Float[np.ndarray, "Q D"], where: np.ndarray, what: str) -> np.ndarray:
        """Return the videos of every direction [D] on every puzzle, [directions, P, F, H, W, 3]."""
        each = [
            Push(jnp.asarray(d), jnp.asarray(mask), jnp.asarray(w)) for d in pushes for w in where
        ]
        videos = sweep(
            model,
            one_world(
                jax.tree.map(lambda a: np.tile(a, (len(pushes), *[1] * (a.ndim - 1))), conditions)
            ),
            [seed],
            item_probe=tree_stack(each),
            plan=plan,
            readout=read_video,
            chunk=chunk,
            alike=True,
            what=what,
            progress=progress,
        )
        return videos[0, :, 0].reshape(len(pushes), len(puzzles), *videos.shape[3:])

    none = np.zeros((1, dit.dim), np.float32)
    (plain,) = run(none, np.zeros((len(puzzles), tokens), bool), "runs without a direction")
    taken, solved = endings(puzzles, plain)
    side = dit.patch[1] * model.codec.strides[1]
    other = np.array([(t + 1) % len(p.answers) for p, t in zip(puzzles, taken, strict=True)])
    where = np.array(
        [
            _tokens_of(puzzle, to, taking, side)
            for puzzle, to, taking in zip(puzzles, other.tolist(), taken.tolist(), strict=True)
        ]
    )
    comparable = solved & where.any(1)
    pushes = [s * d for several in directions.values() for s in strengths for d in several]
    videos = run(np.array(pushes, np.float32), where, "runs with a direction added")
    ended = [endings(puzzles, some) for some in videos]
    flips = np.array([(to == other) & good for to, good in ended])
    changes = np.array([(to != taken) | ~good for to, good in ended])
    variables, first = {}, 0
    values: dict[str, list[np.ndarray]] = {name: [] for name in MEASURES}
    for several in directions.values():
        last = first + len(strengths) * len(several)
        for name, events in zip(MEASURES, (flips, changes), strict=True):
            mean = events[first:last].reshape(len(strengths), len(several), -1).mean(1)
            values[name].append(np.where(comparable, mean, np.nan))
        first = last
    for name, (title, comment) in MEASURES.items():
        every = np.stack(values[name])
        about = {"by": "steered"}
        variables[name] = measure("added strength pair", every, title, comment, **about)
        less = every[:1] - every[1:]
        variables[f"{name}_more"] = measure(
            "control strength pair", less, f"{title}, more than by", comment, span=GAINS, **about
        )
    labels = {"added": list(directions), "control": list(directions)[1:]}
    labels |= {"strength": list(strengths), "steered": ("pair", [p.task for p in puzzles])}
    return Steering(variables, labels)


def endings(
    puzzles: Sequence[Puzzle], videos: UInt8[np.ndarray, "P F H W 3"]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the right answer that each video is nearest to, and whether it solves the puzzle."""
    nearest, solved = [], []
    for puzzle, video in zip(puzzles, videos, strict=True):
        routes = TASKS[puzzle.task].routes(puzzle).astype(np.float32)
        nearest.append(int(np.abs(routes - video).mean((1, 2, 3, 4)).argmin()))
        solved.append(TASKS[puzzle.task].score(puzzle, video).solved)
    return np.array(nearest), np.array(solved)


def _tokens_of(puzzle: Puzzle, other: int, taken: int, side: int) -> Bool[np.ndarray, " N"]:
    """Return the tokens that one answer changes and another does not; none of the first frame."""
    task = TASKS[puzzle.task]
    routes = marked(task.routes(puzzle), task.first_frame(puzzle), side)
    later = routes[other] & ~routes[taken]
    return np.concatenate([np.zeros_like(later[:1]), later]).reshape(-1)
