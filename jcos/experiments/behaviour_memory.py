"""Where the identity of a hidden object is held while nothing shows it: linear probes on the tokens
of the occluded frames.

The ideal denoiser's estimate of those frames is the same for every object, so whatever tells it
there is the model's doing. A model whose input is the first frame in every frame (`ImageMode`
"repeat") has the object in its input at the tile where it stood; that tile is a separate place
here, and no evidence of memory.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int

from jcos.config import PixelCodec, WanConfig
from jcos.experiments import plots
from jcos.experiments.experiment import Picture, Progress
from jcos.experiments.linear_probes import ridge
from jcos.experiments.sweeps import conditions_of, held_out, one_world, sweep
from jcos.lab import results
from jcos.lab.results import measure
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
X0 = "x̂0"
SHUFFLES = 8
"""Controls per probe: the same fit to labels dealt out anew among the puzzles."""


def check_tiles(config: WanConfig) -> None:
    """Raise ValueError where a token is not one tile of the puzzle in one frame."""
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
    progress: Progress,
) -> xr.Dataset:
    """Fit probes on `learned` puzzles of the train split, and read `remembered` held-out ones: they
    share no identity.

    Return the share of right readings at these steps, by label (`LABELS`): of every layer's tokens,
    of the model's x̂0, and of the ideal denoiser's, which is the right answer at every step. The
    dimension `sample` holds identities.
    """
    fitted = [RETURNS.sample((seed, i), "train") for i in range(learned)]
    puzzles = fitted + held_out(RETURNS, remembered, seed)
    weights = np.stack([places_of(p) for p in puzzles])
    size, depth = (RETURNS.height // TILE) * (RETURNS.width // TILE), model.config.dit.layers
    probe = TokenFeatures(
        tuple(range(depth)), jnp.arange(HIDDEN[0] * size, (HIDDEN[-1] + 1) * size)
    )
    tokens, estimate = sweep(
        model,
        one_world(conditions_of(model, puzzles)),
        seeds,
        probes=[probe],
        plan=plan,
        readout=read_places,
        aux=(weights, np.tile(np.array(steps, np.int32), (len(puzzles), 1))),
        chunk=chunk,
        what="watching what is hidden",
        progress=progress,
    )
    progress("fitting linear probes", 0, 1)
    answers = np.stack([model.encode(RETURNS.routes(p)[0]) for p in puzzles])
    ideal = jax.vmap(lambda x0, w: w @ _hidden_tiles(model, x0))(answers, weights)
    labels = np.array([labels_of(p) for p in puzzles])
    _, same = np.unique([repr(p.identity) for p in puzzles[learned:]], return_inverse=True)
    of_tokens, of_estimate, of_ideal = (
        by_identity(readings(np.asarray(values), labels, learned, penalty), same)
        for values in (tokens[0], estimate[0], np.asarray(ideal)[:, None])
    )
    # [sample, seed, step, source, place, Y, 2]; other steps are not known
    listed = np.concatenate([of_tokens, of_estimate[:, :, :, None]], 3)
    read = np.full((*listed.shape[:2], plan.steps, *listed.shape[3:]), np.nan)
    read[:, :, list(steps)] = listed
    read = np.moveaxis(read, 4, 2)
    variables: dict[str, results.Variable] = {}
    for y, (label, values) in enumerate(LABELS.items()):
        title = f"{label} of the hidden object read off"
        variables |= {
            f"read_{label}": measure(
                "sample seed place step source labels", read[..., y, :], title, MEMORY, by="read_of"
            ),
            f"chance_read_{label}": ((), 1 / len(values), {}),
            f"ideal_read_{label}": measure(
                "sample place ideal_source", of_ideal[:, 0, :, y, :1], title, MEMORY, by="read_of"
            ),
        }
    coordinates = {
        "place": list(PLACES),
        "source": [*(f"layer {layer}" for layer in range(depth)), X0],
        "labels": list(results.LABELS),
        "ideal_source": [f"{X0} of the {results.IDEAL}"],
        "read_of": ("sample", [RETURNS.name] * len(read)),
    }
    return xr.Dataset(variables, coordinates)


def memory_figures(data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
    """Return maps of what is read by step and layer, and curves by layer."""
    arrays = {label: data[f"read_{label}"] for label in LABELS if f"read_{label}" in data}
    for label, array in arrays.items():
        known = array.sel(labels=results.TRUE_LABELS, drop=True).dropna("step", how="all")
        about = {"xlabel": "denoising step", "ylabel": "after"}
        maps = {place: known.sel(place=place) for place in PLACES}
        figure = plots.heat(maps, "step", "source", limits=(0, 1), **about)
        yield f"memory-{label}", Picture(figure, MEMORY)
    if arrays:
        both = []
        for label, array in arrays.items():
            mean = array.mean("step", keep_attrs=True)
            shuffled = mean.sel(labels=results.SHUFFLED_LABELS, drop=True).mean(
                "place", keep_attrs=True
            )
            places = mean.sel(labels=results.TRUE_LABELS, drop=True)
            shuffled = shuffled.expand_dims(place=[results.SHUFFLED_LABELS])
            lines = xr.concat([places, shuffled], "place")
            both.append(lines.assign_coords(label=("sample", [label] * lines.sizes["sample"])))
        curves = xr.Dataset({"read": xr.concat(both, "sample").assign_attrs(both[0].attrs)})
        about: dict[str, Any] = {"hue": "place", "by": "label", "labels": [""]}
        figure = plots.lines(curves, "read", "source", xlabel="after", ylabel="read", **about)
        yield "memory-depth", Picture(figure, DEPTH)


MEMORY = (
    "Share of held-out puzzles in which a linear probe on the tokens of the hidden frames reads "
    "the hidden object's colour or shape. The tile where it started shows it in the input of "
    "models whose input is the first frame in every frame."
)
DEPTH = (
    "The same by layer, the mean over the steps of the table; x̂0: read off the estimate of the "
    "hidden frames. Shuffled labels: the same probes fitted to those."
)


def by_identity(
    values: Float[np.ndarray, "P *axes"], same: Int[np.ndarray, " P"]
) -> Float[np.ndarray, "I *axes"]:
    """Return the mean over the puzzles of each identity: they are too much alike to count as many.
    same: the number of each puzzle's identity."""
    return np.stack([values[same == i].mean(0) for i in range(same.max() + 1)])


def labels_of(puzzle: Puzzle) -> list[int]:
    """Return the object's colour and shape, as numbers."""
    thing = puzzle.scene.thing
    return [COLOURS.index(thing.colour), SHAPES.index(thing.shape)]


def places_of(puzzle: Puzzle) -> Float[np.ndarray, "places N"]:
    """Return weights of a frame's tokens, row by row, that give the mean over each of `PLACES`; the
    tile of the other object belongs to none."""
    scene, mode = puzzle.scene, puzzle.answers[0].mode
    masks = np.zeros((len(PLACES), LANES, LANES, 3), np.uint8)
    masks[0, scene.lane, HIDE : HIDE + scene.width] = 1
    masks[1, scene.lane, HIDE - 1 if mode == "back" else HIDE + scene.width] = 1
    masks[3, scene.lane, 0] = 1
    masks[2] = 1 - masks.max(0)
    masks[2, *scene.other_at] = 0
    flat = turned(masks, scene.turn)[..., 0].reshape(len(PLACES), -1).astype(np.float32)
    return flat / flat.sum(1, keepdims=True)


def read_places(
    model: Wan,
    plan: flow.Plan,
    trace: Trace,
    aux: tuple[Float[Array, "places N"], Int[Array, " s"]],
) -> tuple[Float[Array, "K s L places D"], Float[Array, "K s places P"]]:
    """Return the means over the places of the tokens after every block, and of the estimate in
    patches, both over the hidden frames."""
    del plan
    weights, steps = aux
    tokens = trace.block_obs[0][:, steps].astype(jnp.float32)
    tokens = tokens.reshape(*tokens.shape[:3], len(HIDDEN), weights.shape[1], -1).mean(3)
    tiles = jax.vmap(jax.vmap(lambda x0: _hidden_tiles(model, x0)))(trace.x0[0][:, steps])
    return jnp.einsum("pn,kslnd->kslpd", weights, tokens), jnp.einsum(
        "pn,ksnd->kspd", weights, tiles
    )


def _hidden_tiles(model: Wan, x0: Float[Array | np.ndarray, "F h w C"]) -> Float[Array, "N P"]:
    """Return the patches of the hidden frames, their mean over frames."""
    patches = model.experts[0].patchify(jnp.asarray(x0))
    return patches.reshape(len(x0), -1, patches.shape[-1])[np.array(HIDDEN)].mean(0)


def readings(
    features: Float[np.ndarray, "n K *axes D"],
    labels: Int[np.ndarray, "n Y"],
    learned: int,
    penalty: float,
) -> Float[np.ndarray, "m K *axes Y 2"]:
    """Fit on the first `learned` puzzles (each seed is a sample) and read the others: 1
    where a label is read rightly, and the share of rightly read ones by probes of shuffled
    labels."""
    seeds = features.shape[1]
    fit, rest = features[:learned], features[learned:]
    order = np.random.default_rng(0)
    deals = [np.arange(learned), *(order.permutation(learned) for _ in range(SHUFFLES))]
    read = []
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
        read.append(np.stack([right[..., 0], right[..., 1:].mean(-1)], -1))
    return np.stack(read, -2)
