"""Pictures and films keep every pixel of the arrays."""

import base64
import io

import numpy as np
import pytest
from PIL import Image, ImageSequence

from jcos import media

RNG = np.random.default_rng(0)
VIDEO = RNG.integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)


def opened(data: bytes) -> list[tuple[np.ndarray, int]]:
    """Frames of a picture file as RGB, with their milliseconds."""
    with Image.open(io.BytesIO(data)) as file:
        return [
            (np.asarray(frame.convert("RGB")), frame.info.get("duration", 0))
            for frame in ImageSequence.Iterator(file)
        ]


def test_a_pixel_becomes_a_square():
    big = media.upscale(VIDEO, 3)
    assert big.shape == (5, 12, 18, 3)
    for dy in range(3):
        for dx in range(3):
            np.testing.assert_array_equal(big[:, dy::3, dx::3], VIDEO)
    with pytest.raises(ValueError, match="at least 1"):
        media.upscale(VIDEO, 0)


@pytest.mark.parametrize(("side", "target", "factor"), [(20, 84, 4), (28, 84, 3), (480, 84, 1)])
def test_a_whole_factor_comes_near_the_target(side, target, factor):
    assert media.factor_for(side, target) == factor


@pytest.mark.parametrize(("scale", "gap"), [(1, 0), (1, 2), (3, 4)])
def test_a_contact_sheet_is_the_arrays_with_transparent_gaps(scale, gap):
    rows = RNG.integers(0, 256, (2, 5, 4, 6, 3), dtype=np.uint8)
    sheet = media.contact_sheet(rows, scale=scale, gap=gap)
    high, wide = 4 * scale + gap, 6 * scale + gap
    assert sheet.shape == (2 * high, 5 * wide, 4)
    cells = sheet.reshape(2, high, 5, wide, 4).swapaxes(1, 2)
    edge = gap // 2
    inner = cells[:, :, edge : edge + 4 * scale, edge : edge + 6 * scale]
    np.testing.assert_array_equal(inner[..., :3], media.upscale(rows, scale))
    assert (inner[..., 3] == 255).all()
    assert (sheet[..., 3] == 255).sum() == inner[..., 3].size
    assert (sheet[sheet[..., 3] == 0] == 0).all()


@pytest.mark.parametrize("gap", [-2, 3])
def test_a_gap_is_an_even_number(gap):
    with pytest.raises(ValueError, match="even number"):
        media.contact_sheet(VIDEO[None], gap=gap)


def test_a_film_strip_has_the_frames_side_by_side():
    np.testing.assert_array_equal(media.film_strip(VIDEO), np.concatenate(list(VIDEO), axis=1))


@pytest.mark.parametrize("channels", [3, 4])
def test_png_loses_nothing(channels):
    picture = RNG.integers(0, 256, (7, 5, channels), dtype=np.uint8)
    with Image.open(io.BytesIO(media.png(picture))) as file:
        np.testing.assert_array_equal(np.asarray(file), picture)


@pytest.mark.parametrize("write", [media.webp, media.gif])
def test_films_keep_pixels_and_times(write):
    frames = opened(write(VIDEO, frame_ms=200, hold_ms=1000))
    assert [ms for _, ms in frames] == [200, 200, 200, 200, 1200]
    for (found, _), frame in zip(frames, VIDEO, strict=True):
        np.testing.assert_array_equal(found, frame)


@pytest.mark.parametrize("write", [media.webp, media.gif])
def test_films_loop_without_end(write):
    with Image.open(io.BytesIO(write(VIDEO))) as file:
        assert file.info["loop"] == 0


@pytest.mark.parametrize("write", [media.webp, media.gif])
def test_a_film_of_one_frame_is_a_picture(write):
    ((found, _),) = opened(write(VIDEO[:1]))
    np.testing.assert_array_equal(found, VIDEO[0])


def test_a_gif_of_many_colours_comes_near():
    levels = np.arange(5 * 32 * 32, dtype=np.uint16).reshape(5, 32, 32)
    video = np.stack([levels % 256, levels // 20, np.full_like(levels, 90)], -1).astype(np.uint8)
    assert len(np.unique(video.reshape(-1, 3), axis=0)) > 256
    frames = opened(media.gif(video))
    assert len(frames) == 5
    for (found, _), frame in zip(frames, video, strict=True):
        assert np.abs(found.astype(int) - frame).mean() < 8


def test_data_uris_name_their_type():
    for data, mime in (
        (media.png(VIDEO[0]), "png"),
        (media.gif(VIDEO), "gif"),
        (media.webp(VIDEO), "webp"),
    ):
        head, _, body = media.data_uri(data).partition(",")
        assert head == f"data:image/{mime};base64"
        assert base64.b64decode(body) == data
    with pytest.raises(ValueError, match="no PNG"):
        media.data_uri(b"hello")
