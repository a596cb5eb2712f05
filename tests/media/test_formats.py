"""Pictures and films keep every pixel of the arrays."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from jcos.media import formats

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
    big = formats.upscale(VIDEO, 3)
    assert big.shape == (5, 12, 18, 3)
    for dy in range(3):
        for dx in range(3):
            np.testing.assert_array_equal(big[:, dy::3, dx::3], VIDEO)
    with pytest.raises(ValueError, match="at least 1"):
        formats.upscale(VIDEO, 0)


@pytest.mark.parametrize(("side", "target", "factor"), [(20, 84, 4), (28, 84, 3), (480, 84, 1)])
def test_a_whole_factor_comes_near_the_target(side, target, factor):
    assert formats.factor_for(side, target) == factor


@pytest.mark.parametrize(("scale", "gap"), [(1, 0), (1, 2), (3, 4)])
def test_a_contact_sheet_is_the_arrays_with_transparent_gaps(scale, gap):
    rows = RNG.integers(0, 256, (2, 5, 4, 6, 3), dtype=np.uint8)
    sheet = formats.contact_sheet(rows, scale=scale, gap=gap)
    high, wide = 4 * scale + gap, 6 * scale + gap
    assert sheet.shape == (2 * high, 5 * wide, 4)
    cells = sheet.reshape(2, high, 5, wide, 4).swapaxes(1, 2)
    edge = gap // 2
    inner = cells[:, :, edge : edge + 4 * scale, edge : edge + 6 * scale]
    np.testing.assert_array_equal(inner[..., :3], formats.upscale(rows, scale))
    assert (inner[..., 3] == 255).all()
    assert (sheet[..., 3] == 255).sum() == inner[..., 3].size
    assert (sheet[sheet[..., 3] == 0] == 0).all()


@pytest.mark.parametrize("gap", [-2, 3])
def test_a_gap_is_an_even_number(gap):
    with pytest.raises(ValueError, match="even number"):
        formats.contact_sheet(VIDEO[None], gap=gap)


def test_a_film_strip_has_the_frames_side_by_side():
    np.testing.assert_array_equal(formats.film_strip(VIDEO), np.concatenate(list(VIDEO), axis=1))


@pytest.mark.parametrize("channels", [3, 4])
def test_png_loses_nothing(channels):
    picture = RNG.integers(0, 256, (7, 5, channels), dtype=np.uint8)
    with Image.open(io.BytesIO(formats.png(picture))) as file:
        np.testing.assert_array_equal(np.asarray(file), picture)


@pytest.mark.parametrize("write", [formats.webp, formats.gif])
def test_films_keep_pixels_and_times_and_loop_without_end(write):
    data = write(VIDEO)
    frames = opened(data)
    assert [ms for _, ms in frames] == [350, 350, 350, 350, 1650]
    for (found, _), frame in zip(frames, VIDEO, strict=True):
        np.testing.assert_array_equal(found, frame)
    with Image.open(io.BytesIO(data)) as file:
        assert file.info["loop"] == 0
    ((found, _),) = opened(write(VIDEO[:1]))
    np.testing.assert_array_equal(found, VIDEO[0])


def test_a_gif_of_many_colours_comes_near():
    levels = np.arange(5 * 32 * 32, dtype=np.uint16).reshape(5, 32, 32)
    video = np.stack([levels % 256, levels // 20, np.full_like(levels, 90)], -1).astype(np.uint8)
    assert len(np.unique(video.reshape(-1, 3), axis=0)) > 256
    frames = opened(formats.gif(video))
    assert len(frames) == 5
    for (found, _), frame in zip(frames, video, strict=True):
        assert np.abs(found.astype(int) - frame).mean() < 8


def film(frames: int = 9, height: int = 64, width: int = 96) -> np.ndarray:
    """Soft colours that move, all of them in 0..255."""
    t, y, x = np.mgrid[:frames, :height, :width]
    waves = [np.sin((x + 3 * t) / 20), np.cos((y - 2 * t) / 15), np.sin((x + y + t) / 25)]
    return np.round((np.stack(waves, axis=-1) + 1) * 127.5).astype(np.uint8)


def psnr(found: np.ndarray, want: np.ndarray) -> float:
    """Peak signal to noise, in decibels."""
    return float(10 * np.log10(255**2 / np.mean((found.astype(float) - want) ** 2)))


@pytest.mark.parametrize(
    ("frames", "height", "width", "fps"),
    [(9, 64, 96, 16), (1, 2, 2, 24), (30, 16, 18, 7), (5, 64, 62, 29.97), (4, 32, 32, 0.5)],
)
def test_an_mp4_keeps_frames_sizes_and_rate(tmp_path, frames, height, width, fps):
    path = tmp_path / "film.mp4"
    video = film(frames, height, width)
    formats.write_mp4(path, video, fps)
    found = formats.read_mp4(path)
    assert found.shape == video.shape
    assert found.dtype == np.uint8
    with av.open(str(path)) as file:
        (stream,) = file.streams.video
        rate = Fraction(str(fps))
        assert (stream.frames, stream.height, stream.width) == (frames, height, width)
        assert stream.average_rate == rate
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.duration is not None
        assert stream.time_base is not None
        assert stream.duration * stream.time_base == frames / rate


def test_an_mp4_keeps_pictures_in_order(tmp_path):
    """43 dB: a root mean square error of 1.8 of 255, most of it from colours at half resolution."""
    path, video = tmp_path / "film.mp4", film()
    formats.write_mp4(path, video)
    found = formats.read_mp4(path)
    for frame, want, other in zip(found, video, np.roll(video, 1, axis=0), strict=True):
        assert psnr(frame, want) > 43
        assert psnr(frame, other) < 30


def test_an_mp4_keeps_colours(tmp_path):
    """Flat ones within 1 of 255, black and white exactly; with the wrong matrix or range they are
    tens away."""
    path = tmp_path / "film.mp4"
    colours = [(0, 0, 0), (255, 255, 255), (200, 30, 60), (255, 0, 0), (20, 230, 20), (9, 9, 250)]
    video = np.tile(np.array(colours, np.uint8)[:, None, None], (1, 32, 32, 1))
    formats.write_mp4(path, video)
    found = formats.read_mp4(path).astype(int)
    assert np.abs(found - video).max() <= 1
    np.testing.assert_array_equal(found[:2], video[:2])
    with av.open(str(path)) as file:
        frame = next(file.decode(video=0))
        assert (frame.colorspace, frame.color_range) == (5, 1)  # BT.601, 16 to 235


def test_a_higher_crf_makes_a_smaller_and_worse_mp4(tmp_path):
    path, video = tmp_path / "film.mp4", film()
    sizes, errors = [], []
    for crf in (1, 10, 25, 40):
        formats.write_mp4(path, video, crf=crf)
        sizes.append(path.stat().st_size)
        errors.append(-psnr(formats.read_mp4(path), video))
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)


def test_the_same_video_makes_the_same_mp4(tmp_path):
    """Also where it lies otherwise in memory. Ten times: x264 left to itself differs at times."""
    path, turned = tmp_path / "film.mp4", film(height=96, width=64).swapaxes(1, 2)
    files = set()
    for video in (turned, np.ascontiguousarray(turned)) * 5:
        formats.write_mp4(path, video)
        files.add(path.read_bytes())
    assert len(files) == 1


SHAPES = [(3, 21, 20, 3), (3, 20, 21, 3), (0, 20, 20, 3), (3, 0, 20, 3)]
RATES = [(0, 10), (-1, 10), (float("nan"), 10), (float("inf"), 10), (16, 0), (16, 52)]


@pytest.mark.parametrize(
    ("shape", "fps", "crf", "says"),
    [
        *((a, 16, 10, f"{a[0]} frames of {a[2]} × {a[1]} pixels make no .* even") for a in SHAPES),
        *(((9, 64, 96, 3), fps, q, f"fps is {fps} and crf {q}; they are") for fps, q in RATES),
    ],
)
def test_an_mp4_has_frames_with_even_sides_a_rate_and_a_quality(tmp_path, shape, fps, crf, says):
    with pytest.raises(ValueError, match=says):
        formats.write_mp4(tmp_path / "film.mp4", np.zeros(shape, np.uint8), fps, crf=crf)
    assert not list(tmp_path.iterdir())


def test_an_mp4_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "film.mp4"
    formats.write_mp4(path, film())
    before = path.read_bytes()

    def killed(*args: object, **kwargs: object):
        raise KeyboardInterrupt

    monkeypatch.setattr(av.VideoFrame, "from_ndarray", killed, raising=True)
    with pytest.raises(KeyboardInterrupt):
        formats.write_mp4(path, film(3))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["film.mp4"]


def test_a_damaged_or_missing_mp4_is_refused(tmp_path):
    path = tmp_path / "film.mp4"
    formats.write_mp4(path, film())
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[:40], whole[: len(whole) // 2], whole[:-200]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"film.mp4 (is no video that can be read|has \d+ of)"):
            formats.read_mp4(path)
    with pytest.raises(ValueError, match=r"the video .*gone.mp4 is missing"):
        formats.read_mp4(tmp_path / "gone.mp4")
    with pytest.raises(ValueError, match="is no video that can be read"):
        formats.read_mp4(tmp_path)


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 48000
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    with pytest.raises(ValueError, match=r"sound.mp4 has 0 of 0 frames"):
        formats.read_mp4(path)


def test_videos_of_other_codecs_and_odd_sizes_are_read(tmp_path):
    path, video = tmp_path / "film.mkv", film(height=63, width=95)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("ffv1", rate=10)  # without loss
        stream.height, stream.width, stream.pix_fmt = 63, 95, "bgr0"
        for picture in video:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            file.mux(stream.encode(frame.reformat(format="bgr0")))
        file.mux(stream.encode(None))
    np.testing.assert_array_equal(formats.read_mp4(path), video)
