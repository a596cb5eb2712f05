"""Pictures and short videos as bytes: sheets of steps x frames, PNG, WebP, GIF; and MP4 files.

Everything takes uint8 RGB, channels last, as the tasks draw it and the codec decodes it. Nothing is
resampled: a pixel of the array becomes a square of equal pixels.
"""

import io
import math
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from einops import rearrange
from jaxtyping import UInt8
from PIL import Image

from jcos.files import any_path, beside, fetched

FRAME_MS = 350
"""How long a frame of a short clip is shown; slow enough to follow an agent through a maze."""
HOLD_MS = 1300
"""How much longer the last frame stays, before the clip starts again."""

X0_FILM = "seed-{seed}-x0-step-{step}.mp4"
"""The film of a clean estimate, as `jcos generate` names it."""


def upscale(
    pictures: UInt8[np.ndarray, "*lead H W C"], factor: int
) -> UInt8[np.ndarray, "*lead {factor}*H {factor}*W C"]:
    """Return pictures in which every pixel has become a square of equal ones."""
    return pictures.repeat(factor, axis=-3).repeat(factor, axis=-2)


def factor_for(side: int, target: int) -> int:
    """Return the whole factor, at least 1, that brings a side in pixels nearest to `target`."""
    return max(1, round(target / side))


def contact_sheet(
    rows: UInt8[np.ndarray, "S F H W 3"], *, scale: int = 1, gap: int = 2
) -> UInt8[np.ndarray, "{rows.shape[0]}*({scale}*H+{gap}) {rows.shape[1]}*({scale}*W+{gap}) 4"]:
    """Return all frames of S videos as one RGBA picture: a row for each video, a column for each
    frame.

    Pictures are upscaled by `scale` and centred in equal cells, `gap` pixels (an even number)
    larger; the gaps are transparent.
    """
    big, edge = upscale(rows, scale), gap // 2
    opaque = np.concatenate([big, np.full_like(big[..., :1], 255)], axis=-1)
    cells = np.pad(opaque, [(0, 0), (0, 0), (edge, edge), (edge, edge), (0, 0)])
    return rearrange(cells, "s f h w c -> (s h) (f w) c")


def film_strip(video: UInt8[np.ndarray, "F H W C"]) -> UInt8[np.ndarray, "H F*W C"]:
    """Return all frames side by side without gaps: what a style sheet can play as a film."""
    return rearrange(video, "f h w c -> h (f w) c")


def png(picture: UInt8[np.ndarray, "H W C"]) -> bytes:
    """Return a picture [H, W, 3 or 4] as PNG, without loss."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", optimize=True)
    return file.getvalue()


def webp(video: UInt8[np.ndarray, "F H W 3"]) -> bytes:
    """Return a video as lossless, looping WebP."""
    return _animated(video, "WEBP", FRAME_MS, lossless=True, method=6)


def gif(video: UInt8[np.ndarray, "F H W 3"], *, frame_ms: int = FRAME_MS) -> bytes:
    """Return a video as GIF that loops: what every slide program plays.

    A frame of more than 256 colours is rounded to 256. Times are rounded to 10 ms, as the format
    has it.
    """
    return _animated(video, "GIF", frame_ms, disposal=1)


def _animated(
    video: UInt8[np.ndarray, "F H W 3"], kind: str, frame_ms: int, **options: Any
) -> bytes:
    file, frames = io.BytesIO(), [Image.fromarray(frame) for frame in video]
    durations = [frame_ms] * (len(frames) - 1) + [frame_ms + HOLD_MS]
    animation = {"append_images": frames[1:], "duration": durations, "loop": 0}
    frames[0].save(file, kind, save_all=True, **animation, **options)
    return file.getvalue()


def write_mp4(
    path: Path | str,
    video: UInt8[np.ndarray, "F H W 3"],
    fps: float | Fraction = 16,
    *,
    crf: int = 10,
) -> None:
    """Return a video as an MP4 file (H.264, colours at half the resolution), which everything
    plays.

    crf: from 1, hardly any loss, to 51; the original writes with 10, VBVR's tools with 25.
    The same video makes the same file each time. It is written beside its final name and renamed.
    Raises ValueError where a side is odd (which the format does not have), there is no frame, fps
    or crf is out of range, or the encoder does not take them.
    """
    frames, height, width = video.shape[:3]
    if min(video.shape) < 1 or height % 2 or width % 2:
        raise ValueError(
            f"{frames} frames of {width} × {height} pixels make no MP4: crop it to even sides"
        )
    if not (0 < fps < math.inf and 1 <= crf <= 51):
        raise ValueError(f"fps is {fps} and crf {crf}; they are positive, and from 1 to 51")
    try:
        with beside(any_path(path)) as part:
            _encode(part, video, Fraction(fps).limit_denominator(1001), crf)
    except av.FFmpegError as error:
        size = f"{width} × {height} pixels, fps {fps}, crf {crf}"
        raise ValueError(f"{path} cannot be encoded ({size}): {error.strerror}") from None


def check_mp4(height: int, width: int, fps: float | Fraction = 16, *, crf: int = 10) -> None:
    """Raise ValueError where frames of this size make no MP4: one is tried."""
    with tempfile.TemporaryDirectory() as folder:
        frame = np.zeros((1, height, width, 3), np.uint8)
        write_mp4(Path(folder) / "frame.mp4", frame, fps, crf=crf)


def read_mp4(path: Path | str) -> UInt8[np.ndarray, "F H W 3"]:
    """Return all frames of a video file, of whatever format and codec FFmpeg knows.

    Raises ValueError where the file is missing, damaged, or no video.
    """
    promised = 0
    frames = []
    try:
        with fetched(any_path(path)) as there, av.open(str(there)) as file:
            for stream in file.streams.video[:1]:
                promised = stream.frames  # 0 where the format does not say
                for frame in file.decode(stream):
                    rgb = frame.reformat(format="rgb24", interpolation=_EXACT)
                    frames.append(rgb.to_ndarray().astype(np.uint8, copy=False))
    except FileNotFoundError:
        raise ValueError(f"the video {path} is missing") from None
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"{path} is no video that can be read: {error.strerror}") from None
    if not frames or len(frames) < promised:
        raise ValueError(f"{path} has {len(frames)} of {promised} frames: it is damaged, or cut")
    return np.stack(frames)


# Rounds colours right, and equally on every machine.
_EXACT = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.BITEXACT
)
# The file says BT.601, which is also what readers that do not look (OpenCV) assume.
_COLOURS = dict(dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.MPEG)


def _encode(path: Path, video: UInt8[np.ndarray, "F H W 3"], fps: Fraction, crf: int) -> None:
    # faststart: the index comes first, so that a browser begins before it has the whole file.
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as file:
        # cpu-independent: without it some of x264's decisions differ from one machine, and even
        # from one run, to the next.
        options = {"crf": str(crf), "x264-params": "cpu-independent=1"}
        stream = file.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        codec = stream.codec_context
        codec.thread_count = 4  # what comes out depends on it, so it is not left to the machine
        codec.colorspace = Colorspace.ITU601
        codec.color_range = ColorRange.MPEG
        codec.color_primaries = ColorPrimaries.SMPTE170M
        codec.color_trc = ColorTrc.SMPTE170M
        for picture in video:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            yuv = frame.reformat(format="yuv420p", interpolation=_EXACT, **_COLOURS)
            file.mux(stream.encode(yuv))
        file.mux(stream.encode(None))
