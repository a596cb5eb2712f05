"""What comes of a search: the chosen video, who came from whom, and what it cost."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from jcos.model.vae import Tiles
from jcos.wan import Wan


class Generation(NamedTuple):
    """What happened after a step. seeds, scores, alive, log_weights [W, K]: of the particles before
    it. parents [W, k]: who went on, by position; places that fill up a row are −1. x0: their clean
    estimates, where they are recorded."""

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
    mean of exp(scale × score), where particles were drawn by weight. clips: the chosen latents of
    the clips before, where clips were chained, and how many latent frames they share (`video`)."""

    latents: Float[Any, "*W F h w C"]
    seed: Int[np.ndarray, " W"]
    tree: tuple[Generation, ...]
    cost: Cost
    particles: Float[Any, "W K F h w C"]
    weights: Float[np.ndarray, "W K"]
    log_norm: Float[np.ndarray, " W"]
    clips: tuple[Float[Any, "*W F h w C"], ...] = ()
    shared: tuple[int, ...] = ()


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
