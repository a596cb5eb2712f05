"""Does a direction act? It is added to the tokens of a route that a run does not take."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, UInt8

from jcos.experiments.experiment import Progress
from jcos.experiments.heads import read_videos
from jcos.experiments.linear_probes import marked
from jcos.experiments.sweeps import conditions_of, one_world, sweep
from jcos.lab.measures import GAINS
from jcos.lab.results import Variable, measure
from jcos.lab.tasks import TASKS, Puzzle
from jcos.sampling import flow
from jcos.sampling.inside import Steer
from jcos.sampling.trajectory import tree_stack
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


class Steering(NamedTuple):
    """Variables of a dataset, and coordinates."""

    variables: dict[str, Variable]
    labels: dict[str, Any]


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
    about: dict[str, Any] = {"when": steps, "steps": plan.steps}

    def run(pushes: Float[np.ndarray, "Q D"], where: np.ndarray, what: str) -> np.ndarray:
        """Return the videos of every direction [D] on every puzzle, [directions, P, F, H, W, 3]."""
        rows = itertools.product(pushes, where)
        each = [Steer.at(model.config, d, [layer], tokens=w, **about) for d, w in rows]
        videos = sweep(
            model,
            one_world(
                jax.tree.map(lambda a: np.tile(a, (len(pushes), *[1] * (a.ndim - 1))), conditions)
            ),
            [seed],
            item_probe=tree_stack(each),
            plan=plan,
            readout=read_videos,
            chunk=chunk,
            alike=True,
            what=what,
            progress=progress,
        )
        return videos[0, :, 0, 0].reshape(len(pushes), len(puzzles), *videos.shape[4:])

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
    happened = {
        "flipped": np.array([(to == other) & good for to, good in ended]),
        "changed": np.array([(to != taken) | ~good for to, good in ended]),
    }
    sizes = [len(strengths) * len(several) for several in directions.values()]
    variables, by = {}, {"by": "steered"}
    for name, (title, comment) in MEASURES.items():
        parts = np.split(happened[name], np.cumsum(sizes)[:-1])
        mean = [part.reshape(len(strengths), -1, len(puzzles)).mean(1) for part in parts]
        every = np.where(comparable, np.stack(mean), np.nan)
        variables[name] = measure("added strength pair", every, title, comment, **by)
        less, more = every[:1] - every[1:], f"{title}, more than by"
        variables[f"{name}_more"] = measure(
            "control strength pair", less, more, comment, span=GAINS, **by
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
