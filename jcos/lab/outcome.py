"""What comes of a search: the chosen video, who came from whom, and what it cost."""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from jcos.lab.methods import DRAWN, Method
from jcos.model.vae import Tiles
from jcos.wan import Wan

TREE = "tree.npz"
"""Last frames: `estimates_P_R` [K, H, W, 3] of video P's particles in row R of the method;
`chosen` [P, H, W, 3] of the chosen videos and, for puzzles, `right` of a right answer."""


class Generation(NamedTuple):
    """What happened after a step. seeds, scores, alive [W, K]: of the particles before it;
    log_weights: with these scores, by which a row that draws draws. parents [W, k]: who went on, by
    position; places that fill up a row are −1. x0: their clean estimates, where they are recorded.
    """

    step: int
    judge: str
    seeds: Int[np.ndarray, "W K"]
    scores: Float[np.ndarray, "W K"]
    alive: Bool[np.ndarray, "W K"]
    log_weights: Float[np.ndarray, "W K"]
    parents: Int[np.ndarray, "W k"]
    x0: Float[np.ndarray, "W K F h w C"] | None = None


class Cost(NamedTuple):
    """forwards: passes through the transformer, two a step with guidance. decodes: of estimates.
    judged: calls of a judge, one a particle. All of each video [W]. seconds: of all together."""

    forwards: Int[np.ndarray, " W"]
    decodes: Int[np.ndarray, " W"]
    judged: Int[np.ndarray, " W"]
    seconds: float


class Result(NamedTuple):
    """latents: the chosen video, [W, F, h, w, C], without W where there was one condition; seed:
    whose it is [W]. tree: who came from whom. particles [W, K, F, h, w, C], weights [W, K]: all
    that were alive at the end (those that were not weigh 0). log_norm [W]: log of the estimated
    mean of exp(scale × score), where particles were drawn by weight (not of softmax). clips: the
    chosen latents of the clips before, where clips were chained, and how many latent frames they
    share (`video`)."""

    latents: Float[Any, "*W F h w C"]
    seed: Int[np.ndarray, " W"]
    tree: tuple[Generation, ...]
    cost: Cost
    particles: Float[Any, "W K F h w C"]
    weights: Float[np.ndarray, "W K"]
    log_norm: Float[np.ndarray, " W"]
    clips: tuple[Float[Any, "*W F h w C"], ...] = ()
    shared: tuple[int, ...] = ()


def as_json(generation: Generation) -> dict[str, Any]:
    """Return a generation as JSON, without its estimates."""
    fields = {k: v for k, v in generation._asdict().items() if k != "x0"}
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in fields.items()}


def entries(
    result: Result, method: Method, which: Sequence[int] = (0,), **more: Any
) -> dict[str, Any]:
    """Return what a manifest says of some of the videos of a search. more: arrays of each."""
    tree = [
        {k: [v[i] for i in which] if isinstance(v, list) else v for k, v in as_json(made).items()}
        | {"drawn": row.select in DRAWN, "rule": row.rule}
        for made, row in zip(result.tree, method.rows, strict=True)
    ]
    each = [*which]
    about = {"seed": result.seed[each], "forwards": result.cost.forwards[each], **more}
    return {k: np.asarray(v).tolist() for k, v in about.items()} | {"tree": tree}


def pictures(
    estimates: Sequence[Sequence[UInt8[np.ndarray, "_ _ _ 3"]]],
    **ends: UInt8[np.ndarray, "_ _ _ 3"],
) -> bytes:
    """Return the file `TREE`. estimates: by video and row. ends: `chosen` and `right`."""
    named: dict[str, Any] = {
        f"estimates_{i}_{j}": a for i, rows in enumerate(estimates) for j, a in enumerate(rows)
    }
    out = io.BytesIO()
    np.savez_compressed(out, **ends, **named)
    return out.getvalue()


def video(
    model: Wan, result: Result, tiles: Tiles | None = None
) -> UInt8[np.ndarray, "*W frames H W 3"]:
    """Return the chosen video, decoded: of chained clips one after the other."""
    return joined(model, [*result.clips, result.latents], result.shared, tiles)


def joined(
    model: Wan, clips: Sequence[Any], shared: Sequence[int], tiles: Tiles | None = None
) -> UInt8[np.ndarray, "*W frames H W 3"]:
    """Return clips one after the other, decoded. shared: latent frames of each that the next one
    begins with."""
    parts = [model.decode(clips[0], tiles)]
    for clip, frames in zip(clips[1:], shared, strict=True):
        again = 1 + (frames - 1) * model.codec.strides[0]
        parts.append(model.decode(clip, tiles)[..., again:, :, :, :])
    return np.concatenate(parts, -4)
