"""Latents as pictures without decoding them: by a linear map that is fitted to a codec."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from jcos.wan import Wan


class Preview(NamedTuple):
    """Colours as a linear function of latents: weights [C, 3], bias [3], in levels of 256."""

    weights: Float[np.ndarray, "C 3"]
    bias: Float[np.ndarray, " 3"]

    def __call__(self, latents: Float[Any, "*axes C"]) -> UInt8[np.ndarray, "*axes 3"]:
        """Return a picture of one pixel for every latent cell."""
        colours = np.asarray(latents, np.float32) @ self.weights + self.bias
        return np.clip(np.round(colours), 0, 255).astype(np.uint8)


def fit_preview(
    model: Wan, *, frames: int = 5, size: int = 128, videos: int = 4, seed: int = 0
) -> Preview:
    """Return the linear map from latents to colours that fits a model's codec best, in least
    squares over still videos of coloured patches (also of a VAE: 2.1 has 16 channels, 2.2 has 48).

    size: height and width in pixels, frames: of each video; both as the codec has them.
    """
    rng = np.random.default_rng(seed)
    _, high, wide = model.codec.strides
    height, width, rows, targets = size // high, size // wide, [], []
    for _ in range(videos):
        colours = rng.integers(0, 256, (-(-height // 2), -(-width // 2), 3))
        colours = colours.repeat(2, 0).repeat(2, 1)[:height, :width]
        picture = colours.repeat(high, 0).repeat(wide, 1).astype(np.uint8)
        latents = np.asarray(model.encode(np.repeat(picture[None], frames, 0)), np.float64)
        rows.append(latents.reshape(-1, latents.shape[-1]))
        targets.append(np.broadcast_to(colours, (*latents.shape[:3], 3)).reshape(-1, 3))
    x, y = np.concatenate(rows), np.concatenate(targets).astype(np.float64)
    design = np.concatenate([x, np.ones((len(x), 1))], 1)
    fitted = np.linalg.lstsq(design, y, rcond=None)[0]
    return Preview(fitted[:-1].astype(np.float32), fitted[-1].astype(np.float32))
