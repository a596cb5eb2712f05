"""Where the identity of a hidden object is held while nothing shows it: linear probes on the tokens
of the occluded frames.

The ideal denoiser's estimate of those frames is the same for every object, so whatever tells it
there is the model's doing. A model whose input is the first frame in every frame (`ImageMode`
"repeat") has the object in its input at the tile where it stood; that tile is a separate place
here, and no evidence of memory.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int

from jcos.config import PixelCodec, WanConfig
from jcos.experiments import plots
from jcos.experiments.experiment import Picture, Progress
from jcos.experiments.linear_probes import by_identity, identities_of
from jcos.experiments.sweeps import conditions_of, held_out, one_world
from jcos.lab import results
from jcos.lab.measures import ridge
from jcos.lab.results import measure
from jcos.lab.tasks import TASKS, Puzzle
from jcos.lab.tasks.base import COLOURS, TILE
from jcos.lab.tasks.marks import turned
from jcos.lab.tasks.returns import HIDE, LANES, SHAPES
from jcos.sampling import flow
from jcos.sampling.inside import Capture
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan

if TYPE_CHECKING:
    from jcos.experiments.behaviour import Behaviour

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
    codec = config.codec
    side = TILE // codec.stride if isinstance(codec, PixelCodec) else 0
    if config.dit.patch != (1, side, side):
        raise ValueError(
            f"{config.name} has no token per tile and frame, which working memory is read "
            "from: set learned=0 to leave it out"
        )


def remembering(
    experiment: "Behaviour", model: Wan, steps: Sequence[int], progress: Progress
) -> xr.Dataset:
    """Fit probes on `learned` puzzles of the train split, and read `remembered` held-out ones: they
    share no identity.

    Return the share of right readings at these steps, by label (`LABELS`): of every layer's tokens,
    of the model's x̂0, and of the ideal denoiser's, which is the right answer at every step. The
    dimension `sample` holds identities.
    """
    learned, seed = experiment.learned, experiment.puzzle_seed
    held = held_out(RETURNS, experiment.remembered, seed)
    puzzles = [RETURNS.sample((seed, i), "train") for i in range(learned)] + held
    weights = np.stack([places_of(p) for p in puzzles])
    size, depth = weights.shape[-1], model.config.dit.layers
    hidden = jnp.arange(HIDDEN[0] * size, (HIDDEN[-1] + 1) * size)
    tokens, estimate = experiment.sweep(model, progress)(
        one_world(conditions_of(model, puzzles)),
        probes=[Capture("block", tuple(range(depth)), hidden)],
        readout=read_places,
        aux=(weights, np.tile(np.array(steps, np.int32), (len(puzzles), 1))),
        what="watching what is hidden",
    )
    progress("fitting linear probes", 0, 1)
    right = np.stack([model.encode(RETURNS.routes(p)[0]) for p in puzzles])
    ideal = jax.vmap(lambda x0, w: w @ _hidden_tiles(model, x0))(right, weights)
    labels = np.array([labels_of(p) for p in puzzles])
    of_tokens, of_estimate, of_ideal = (
        readings(np.asarray(values), labels, learned, experiment.penalty)
        for values in (tokens[0], estimate[0], np.asarray(ideal)[:, None])
    )
    # [sample, seed, place, step, source, Y, 2]
    read = np.moveaxis(np.concatenate([of_tokens, of_estimate[:, :, :, None]], 3), 4, 2)
    dims, variables = "sample seed place step source labels", {}
    for y, label in enumerate(LABELS):
        name, title = f"read_{label}", f"{label} of the hidden object read off"
        variables[name] = measure(dims, read[..., y, :], title, MEMORY, by="read_of")
        variables[f"ideal_{name}"] = measure(
            "sample place ideal_source", of_ideal[:, 0, :, y, :1], title, MEMORY, by="read_of"
        )
    coordinates = {
        "step": list(steps),
        "place": list(PLACES),
        "source": [*(f"layer {layer}" for layer in range(depth)), X0],
        "labels": list(results.LABELS),
        "ideal_source": [f"{X0} of the {results.IDEAL}"],
    }
    data = by_identity(xr.Dataset(variables, coordinates), "sample", identities_of(held))
    chance = {f"chance_read_{label}": ((), 1 / len(values)) for label, values in LABELS.items()}
    return data.assign(chance).assign_coords(read_of=("sample", [RETURNS.name] * len(data.sample)))


def memory_figures(data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
    """Return curves of what is read by layer, a panel for each label."""
    panels = []
    for label in LABELS if "read_of" in data.coords else ():
        read = data[f"read_{label}"].mean("step", keep_attrs=True)
        true, shuffled = (read.sel(labels=labels, drop=True) for labels in results.LABELS)
        control = shuffled.mean("place", keep_attrs=True)
        control = control.expand_dims(place=[results.SHUFFLED_LABELS])
        panel = xr.concat([true, control], "place")
        panels.append(panel.assign_coords(label=("sample", [label] * panel.sizes["sample"])))
    if panels:
        read = xr.concat(panels, "sample").assign_attrs(panels[0].attrs | {"grouped_by": "label"})
        curves = xr.Dataset({"read": read})
        figure = plots.lines(curves, "read", "source", hue="place", xlabel="after", ylabel="read")
        yield "memory-depth", Picture(figure, f"{MEMORY} {DEPTH}")


MEMORY = (
    "Share of held-out puzzles in which a linear probe on the tokens of the hidden frames reads "
    "the hidden object's colour or shape. The tile where it started shows it in the input of "
    "models whose input is the first frame in every frame."
)
DEPTH = (
    "Mean over the steps of the table; x̂0: read off the estimate of the hidden frames. Shuffled "
    "labels: the same probes fitted to those."
)


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
    """Return the means over places and hidden frames of the tokens after every block, and of the
    estimate in patches."""
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
    every = features.reshape(-1, *features.shape[2:])  # puzzle by puzzle
    fit, rest = np.split(every, [learned * features.shape[1]])
    rng = np.random.default_rng(0)
    deals = [np.arange(learned), *(rng.permutation(learned) for _ in range(SHUFFLES))]
    read = []
    for y, names in enumerate(LABELS.values()):
        targets = np.eye(len(names))[labels[:learned, y][np.stack(deals, 1)]]
        targets = np.repeat(targets.reshape(learned, -1), features.shape[1], 0)
        scores = ridge(fit, targets, penalty)(rest)
        scores = scores.reshape(-1, *features.shape[1:-1], len(deals), len(names))
        true = labels[learned:, y].reshape(-1, *[1] * (scores.ndim - 2))
        right = (scores.argmax(-1) == true).astype(np.float64)
        read.append(np.stack([right[..., 0], right[..., 1:].mean(-1)], -1))
    return np.stack(read, -2)
