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


@pytest.mark.parametrize(("scale", "gap"), [(1, 0), (3, 4)])
def test_a_contact_sheet_is_the_arrays_with_transparent_gaps(scale, gap):
    rows = RNG.integers(0, 256, (2, 5, 4, 6, 3), dtype=np.uint8)
    sheet = formats.contact_sheet(rows, scale=scale, gap=gap)
    high, wide = 4 * scale + gap, 6 * scale + gap
    assert sheet.shape == (2 * high, 5 * wide, 4)
    cells = sheet.reshape(2, high, 5, wide, 4).swapaxes(1, 2)
    edge = gap // 2
    inner = cells[:, :, edge : edge + 4 * scale, edge : edge + 6 * scale]
    for dy in range(scale):
        for dx in range(scale):
            np.testing.assert_array_equal(inner[:, :, dy::scale, dx::scale, :3], rows)
    assert (sheet[..., 3] == 255).sum() == (inner[..., 3] == 255).sum() == inner[..., 3].size
    assert (sheet[sheet[..., 3] == 0] == 0).all()


@pytest.mark.parametrize("write", [formats.webp, formats.gif])
@pytest.mark.parametrize("video", [VIDEO, VIDEO[:1]], ids=["film", "one frame"])
def test_films_keep_pixels_and_times_and_loop_without_end(write, video):
    with Image.open(io.BytesIO(write(video))) as file:
        times = []
        for found, frame in zip(ImageSequence.Iterator(file), video, strict=True):
            np.testing.assert_array_equal(np.asarray(found.convert("RGB")), frame)
            times.append(found.info.get("duration"))
        if len(video) > 1:
            assert times == [350, 350, 350, 350, 1650]
            assert file.info["loop"] == 0


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
    [(9, 64, 96, 16), (1, 2, 2, 24), (30, 16, 18, 7), (5, 64, 62, 29.97)],
)
def test_an_mp4_keeps_frames_sizes_and_rate(tmp_path, frames, height, width, fps):
    path = tmp_path / "film.mp4"
    video = film(frames, height, width)
    formats.write_mp4(path, video, fps)
    found = formats.read_mp4(path)
    assert (found.shape, found.dtype) == (video.shape, np.uint8)
    with av.open(str(path)) as file:
        (stream,) = file.streams.video
        assert (stream.frames, stream.height, stream.width) == (frames, height, width)
        assert stream.average_rate == Fraction(str(fps))
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"


def test_an_mp4_keeps_pictures_in_order(tmp_path):
    """43 dB: a root mean square error of 1.8 of 255, most of it from colours at half resolution."""
    path, video = tmp_path / "film.mp4", film()
    formats.write_mp4(path, video)
    for frame, want, other in zip(
        formats.read_mp4(path), video, np.roll(video, 1, axis=0), strict=True
    ):
        assert psnr(frame, want) > 43
        assert psnr(frame, other) < 30
    size = path.stat().st_size
    formats.write_mp4(path, video, crf=40)
    assert path.stat().st_size < size
    assert psnr(formats.read_mp4(path), video) < 43


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


def test_the_same_video_makes_the_same_mp4(tmp_path):
    """Also where it lies otherwise in memory. Ten times: x264 left to itself differs at times."""
    path, turned = tmp_path / "film.mp4", film(height=96, width=64).swapaxes(1, 2)
    files = set()
    for video in (turned, np.ascontiguousarray(turned)) * 5:
        formats.write_mp4(path, video)
        files.add(path.read_bytes())
    assert len(files) == 1


@pytest.mark.parametrize(
    ("shape", "fps", "crf", "says"),
    [
        ((3, 21, 20, 3), 16, 10, "3 frames of 20 × 21 pixels make no .* even"),
        ((0, 20, 20, 3), 16, 10, "0 frames"),
        ((9, 64, 96, 3), 0, 10, "fps is 0 and crf 10; they are"),
        ((9, 64, 96, 3), float("nan"), 10, "fps is nan"),
        ((9, 64, 96, 3), 16, 52, "crf 52"),
    ],
)
def test_an_mp4_has_frames_with_even_sides_a_rate_and_a_quality(tmp_path, shape, fps, crf, says):
    with pytest.raises(ValueError, match=says):
        formats.write_mp4(tmp_path / "film.mp4", np.zeros(shape, np.uint8), fps, crf=crf)
    assert not list(tmp_path.iterdir())


def test_a_damaged_or_missing_mp4_is_refused(tmp_path):
    path = tmp_path / "film.mp4"
    formats.write_mp4(path, film())
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2], whole[:-200]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"film.mp4 (is no video that can be read|has \d+ of)"):
            formats.read_mp4(path)
    with pytest.raises(ValueError, match=r"the video .*gone.mp4 is missing"):
        formats.read_mp4(tmp_path / "gone.mp4")
    with pytest.raises(ValueError, match="is no video that can be read"):
        formats.read_mp4(tmp_path)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 48000
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    with pytest.raises(ValueError, match=r"has 0 of 0 frames"):
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
