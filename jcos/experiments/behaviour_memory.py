"""Where the identity of a hidden object is held while nothing shows it: linear probes on the tokens
of the occluded frames.

The ideal denoiser's estimate of those frames is the same for every object, so whatever tells it
there is the model's own. A model that is given the first frame in every frame (`ImageMode`
"repeat") sees the object in its input at the tile where it stood; that tile is a place of its own
here, and no evidence of memory.
"""

from collections.abc import Generator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jcos.config import PixelCodec, WanConfig
from jcos.experiments.puzzles import Progress, conditions, held_out, one_world, playing
from jcos.experiments.ridge import ridge
from jcos.lab.measures import Estimate, estimate
from jcos.lab.tasks import TASKS, Puzzle
from jcos.lab.tasks.base import COLOURS, TILE
from jcos.lab.tasks.marks import turned
from jcos.lab.tasks.returns import HIDE, LANES, SHAPES
from jcos.sampling import flow
from jcos.sampling.probes import TokenFeatures
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan

RETURNS = TASKS["returns"]
HIDDEN = tuple(range(HIDE, RETURNS.frames - 1))
"""Frames in which the object is behind the block."""
PLACES = ("behind the block", "where it comes out", "all the rest", "where it started")
LABELS = {"colour": COLOURS, "shape": SHAPES}
SHUFFLES = 8
"""Controls per probe: the same fit to labels dealt out anew among the puzzles."""


class Memory(NamedTuple):
    """Share of right readings of each held-out puzzle, by label (`LABELS`: Y of them), beside the
    same probe fitted to shuffled labels.

    tokens: by seed, looked-at step, layer and place. estimate: of the model's x̂0. ideal: of the
    ideal denoiser's, which is the right answer at every step. steps: the looked-at ones.
    identities [P]: which identity each puzzle has. Arrays end in [2]: probe, control.
    """

    tokens: Float[np.ndarray, "P K s L places Y 2"]
    estimate: Float[np.ndarray, "P K s places Y 2"]
    ideal: Float[np.ndarray, "P places Y 2"]
    steps: Int[np.ndarray, " s"]
    identities: Int[np.ndarray, " P"]

    def estimate_of(self, values: Float[np.ndarray, "P *axes"]) -> Estimate:
        """The mean over identities, each the mean of its puzzles: puzzles of one identity are too
        much alike to count as many."""
        rows = values.reshape(len(values), -1).mean(1)
        counts = np.bincount(self.identities)
        return estimate(np.bincount(self.identities, rows) / counts)


def check_tiles(config: WanConfig) -> None:
    """ValueError where a token is not one tile of the puzzle in one frame."""
    codec, patch = config.codec, config.dit.patch
    if not isinstance(codec, PixelCodec) or patch != (
        1,
        TILE // codec.stride,
        TILE // codec.stride,
    ):
        raise ValueError(
            f"{config.name} has no token per tile and frame, which working memory is read "
            "from: set learned=0 to leave it out"
        )


def remembering(
    model: Wan,
    plan: flow.Plan,
    learned: int,
    remembered: int,
    *,
    steps: Sequence[int],
    seeds: Sequence[int],
    seed: int,
    penalty: float,
    chunk: int | None,
) -> Generator[Progress, None, Memory]:
    """Fits probes on `learned` puzzles of the train split, and reads `remembered` held-out ones:
    they share no identity."""
    fitted = [RETURNS.sample((seed, i), "train") for i in range(learned)]
    puzzles = fitted + held_out(RETURNS, remembered, seed)
    weights = np.stack([places_of(p) for p in puzzles])
    size = (RETURNS.height // TILE) * (RETURNS.width // TILE)
    probe = TokenFeatures(
        tuple(range(model.config.dit.layers)), jnp.arange(HIDDEN[0] * size, (HIDDEN[-1] + 1) * size)
    )
    tokens, estimate = yield from playing(
        model,
        one_world(conditions(model, puzzles)),
        seeds,
        probes=[probe],
        plan=plan,
        look=look_at_places,
        beside=(weights, np.tile(np.array(steps, np.int32), (len(puzzles), 1))),
        chunk=chunk,
        what="watching what is hidden",
    )
    yield Progress("fitting linear probes", 0, 1)
    answers = np.stack([model.encode(RETURNS.routes(p)[0]) for p in puzzles])
    ideal = jax.vmap(lambda x0, w: w @ _hidden_tiles(model, x0))(answers, weights)
    labels = np.array([labels_of(p) for p in puzzles])
    _, identities = np.unique([repr(p.identity) for p in puzzles[learned:]], return_inverse=True)
    read = [
        readings(np.asarray(values), labels, learned, penalty)
        for values in (tokens[0], estimate[0], np.asarray(ideal)[:, None])
    ]
    return Memory(read[0], read[1], read[2][:, 0], np.array(steps), identities)


def labels_of(puzzle: Puzzle) -> list[int]:
    """The object's colour and shape, as numbers."""
    thing = puzzle.scene.thing
    return [COLOURS.index(thing.colour), SHAPES.index(thing.shape)]


def places_of(puzzle: Puzzle) -> Float[np.ndarray, "places N"]:
    """Weights of a frame's tokens, row by row, that give the mean over each of `PLACES`; the tile
    of the other object belongs to none."""
    scene, mode = puzzle.scene, puzzle.answers[0].mode
    masks = np.zeros((len(PLACES), LANES, LANES, 3), np.uint8)
    masks[0, scene.lane, HIDE : HIDE + scene.width] = 1
    masks[1, scene.lane, HIDE - 1 if mode == "back" else HIDE + scene.width] = 1
    masks[3, scene.lane, 0] = 1
    masks[2] = 1 - masks.max(0)
    masks[2, *scene.other_at] = 0
    flat = turned(masks, scene.turn)[..., 0].reshape(len(PLACES), -1).astype(np.float32)
    return flat / flat.sum(1, keepdims=True)


def look_at_places(
    model: Wan,
    plan: flow.Plan,
    trace: Trace,
    beside: tuple[Float[Array, "places N"], Int[Array, " s"]],
) -> tuple[Float[Array, "K s L places D"], Float[Array, "K s places P"]]:
    """Means over the places of the tokens after every block, and of the estimate in patches, both
    over the hidden frames."""
    del plan
    weights, steps = beside
    tokens = trace.block_obs[0][:, steps].astype(jnp.float32)
    tokens = tokens.reshape(*tokens.shape[:3], len(HIDDEN), weights.shape[1], -1).mean(3)
    tiles = jax.vmap(jax.vmap(lambda x0: _hidden_tiles(model, x0)))(trace.x0[0][:, steps])
    return jnp.einsum("pn,kslnd->kslpd", weights, tokens), jnp.einsum(
        "pn,ksnd->kspd", weights, tiles
    )


def _hidden_tiles(model: Wan, x0: Float[Array | np.ndarray, "F h w C"]) -> Float[Array, "N P"]:
    """The patches of the hidden frames, their mean over frames."""
    patches = model.experts[0].patchify(jnp.asarray(x0))
    return patches.reshape(len(x0), -1, patches.shape[-1])[np.array(HIDDEN)].mean(0)


def readings(
    features: Float[np.ndarray, "n K *axes D"],
    labels: Int[np.ndarray, "n Y"],
    learned: int,
    penalty: float,
) -> Float[np.ndarray, "m K *axes Y 2"]:
    """Fits on the first `learned` puzzles (each seed a sample of its own), reads the others: 1
    where a label is read rightly, and the share of rightly read ones by probes of shuffled
    labels."""
    seeds = features.shape[1]
    fit, rest = features[:learned], features[learned:]
    order = np.random.default_rng(0)
    deals = [np.arange(learned), *(order.permutation(learned) for _ in range(SHUFFLES))]
    found = []
    for y, names in enumerate(LABELS.values()):
        targets = np.eye(len(names))[labels[:learned, y][np.stack(deals, 1)]]
        scores = ridge(
            fit.reshape(-1, *fit.shape[2:]),
            np.repeat(targets.reshape(learned, -1), seeds, 0),
            rest.reshape(-1, *rest.shape[2:]),
            penalty,
        )
        scores = scores.reshape(*rest.shape[:-1], len(deals), len(names))
        true = labels[learned:, y].reshape(-1, *[1] * (scores.ndim - 2))
        right = (scores.argmax(-1) == true).astype(np.float64)
        found.append(np.stack([right[..., 0], right[..., 1:].mean(-1)], -1))
    return np.stack(found, -2)
