"""The marks that tasks leave on a canvas: painted, turned, read back and graded.

A distance between colours is the mean absolute difference per channel, 0..255.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Real, Shaped, UInt8

from jcos.lab.tasks.base import PALETTE, Frame, Video

SYMBOLS = {name: i for i, name in enumerate(PALETTE)}
UNKNOWN = -1
"""Symbol of what is none of the colours that were looked for."""

OPAQUE = 36.0
"""Distance up to which a pixel is of a colour; an object half mixed with floor is farther away."""
TINTED = 48.0
"""Distance beyond which a pixel is of another colour. Noise of σ = 20 takes one in 10,000 there."""

Number = float | np.number


def canvas(height: int, width: int, colour: str = "floor") -> Frame:
    """A frame of one colour."""
    return np.full((height, width, 3), PALETTE[colour], np.uint8)


def stencil(*rows: str) -> Bool[np.ndarray, "H W"]:
    """A mask from its picture, `#` where it is set."""
    return np.array([[cell == "#" for cell in row] for row in rows])


def window(top: int, left: int, side: int) -> tuple[slice, slice]:
    """Index of a square of pixels."""
    return slice(top, top + side), slice(left, left + side)


def paint(frame: Frame, top: int, left: int, mask: Bool[np.ndarray, "S S"], colour: str) -> None:
    """Colours the mask's pixels in place, its upper left corner at (top, left)."""
    frame[window(top, left, len(mask))][mask] = PALETTE[colour]


def turned(video: Video, turn: int) -> Video:
    """The video under one of the square's symmetries: transposed if 4, then mirrored (1, 2)."""
    if turn & 4:
        video = video.swapaxes(1, 2)
    if turn & 1:
        video = video[:, :, ::-1]
    if turn & 2:
        video = video[:, ::-1]
    return np.ascontiguousarray(video)


def turned_back(video: Video, turn: int) -> Video:
    """The inverse of `turned`."""
    video = turned(video, turn & 3)
    return video.swapaxes(1, 2) if turn & 4 else video


def symmetries(square: Shaped[np.ndarray, "N N"]) -> list[Shaped[np.ndarray, "N N"]]:
    """The eight mirrored and turned copies."""
    return [m[::i, ::j] for m in (square, square.T) for i in (1, -1) for j in (1, -1)]


def tiles(
    pixels: Shaped[np.ndarray, "F H W ..."], side: int
) -> Shaped[np.ndarray, "F R C S S ..."]:
    """Each frame cut into squares of this side: rows R and columns C of them."""
    frames, height, width, *rest = pixels.shape
    cut = pixels.reshape(frames, height // side, side, width // side, side, *rest)
    return cut.swapaxes(2, 3)


def apart(
    pixels: Real[np.ndarray, "*shape 3"], other: str | UInt8[np.ndarray, "*picture 3"]
) -> Float[np.ndarray, "*shape"]:
    """Distance of each pixel from a palette colour, or from another picture."""
    want = PALETTE[other] if isinstance(other, str) else other
    red, green, blue = np.moveaxis(np.abs(pixels - np.asarray(want, np.float32)), -1, 0)
    return (red + green + blue) / 3


def decode(
    pixels: Real[np.ndarray, "*shape 3"], among: Sequence[str] = tuple(PALETTE)
) -> Int[np.ndarray, "*shape"]:
    """Symbol of the nearest of these colours, `UNKNOWN` where none is within `OPAQUE`."""
    distance = np.stack([apart(pixels, colour) for colour in among])
    nearest = np.array([SYMBOLS[colour] for colour in among])[distance.argmin(0)]
    return np.where(distance.min(0) <= OPAQUE, nearest, UNKNOWN)


def pure(pixels: UInt8[np.ndarray, "N 3"], colour: str) -> float:
    """1 if the mean of the pixels is the colour, 0 half-way to another one (28 away at least)."""
    return ramp(apart(pixels.mean(0, keepdims=True), colour)[0], 28, 20) if len(pixels) else 0.0


def iou(a: Bool[np.ndarray, "... H W"], b: Bool[np.ndarray, "... H W"]) -> Float[np.ndarray, "..."]:
    """Area that two masks share over the area that either covers; 1 if both are empty."""
    both, either = (np.asarray(mask.sum((-2, -1))) for mask in (a & b, a | b))
    return np.where(either == 0, 1.0, both / np.maximum(either, 1))


def ramp(value: Number, zero: Number, one: Number) -> float:
    """Linear from 0 at `zero` to 1 at `one` (which may be the smaller), flat beyond."""
    return min(max(0.0, float((value - zero) / (one - zero))), 1.0)
