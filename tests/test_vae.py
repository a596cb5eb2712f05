"""The pixel codec: exact both ways."""

import jax.numpy as jnp
import numpy as np
import pytest

from jcos.config import PixelCodec
from jcos.vae import decode_pixels, encode_pixels


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_every_video_comes_back_exactly(stride):
    codec = PixelCodec(stride=stride)
    video = np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3), np.uint8)
    video[0, 0, :2] = 0
    video[0, 0, 2:4] = 255
    latents = encode_pixels(codec, jnp.asarray(video))
    assert latents.shape == (3, 8 // stride, 12 // stride, codec.channels)
    back = decode_pixels(codec, latents)
    assert back.dtype == jnp.float32
    np.testing.assert_array_equal(np.round(back).astype(np.uint8), video)
    np.testing.assert_allclose(back, video, atol=1e-3)


def test_every_level_comes_back():
    codec = PixelCodec()
    video = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), (1, 16, 16, 3))
    back = decode_pixels(codec, encode_pixels(codec, jnp.asarray(video)))
    np.testing.assert_array_equal(np.round(back), video)


def test_a_cell_holds_its_own_pixels_and_nothing_else():
    """One pixel changed changes one cell of one frame, in the channels row, column, colour."""
    codec = PixelCodec(stride=2)
    video = np.full((2, 4, 6, 3), 100, np.uint8)
    spot = video.copy()
    spot[1, 2 + 1, 4 + 0, 2] = 200  # cell (1, 2): row 1, column 0, blue
    before, after = (np.asarray(encode_pixels(codec, jnp.asarray(v))) for v in (video, spot))
    assert np.argwhere(before != after).tolist() == [[1, 1, 2, (1 * 2 + 0) * 3 + 2]]


def test_colours_are_normalised():
    codec = PixelCodec(stride=1, mean=0.5, std=0.25)
    latents = encode_pixels(codec, jnp.array([[[[0, 255, 51]]]], jnp.uint8))
    np.testing.assert_allclose(latents.ravel(), [-2.0, 2.0, -1.2], atol=1e-6)


def test_decoding_does_not_clip():
    codec = PixelCodec(stride=1)
    rgb = decode_pixels(codec, jnp.full((1, 1, 1, 3), 10.0))
    assert float(rgb.min()) > 255
