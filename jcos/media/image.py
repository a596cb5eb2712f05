"""The first frame of a video, made of a picture as the reference codes make it, and what sizes and
numbers of frames they allow.

Sizes are (height, width) in pixels. The four codes differ in the size they choose, in how the
picture is brought to it, and in nothing else; a `Rule` holds both.
"""

import math
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int, UInt8
from PIL import ExifTags, Image, ImageOps

from jcos.config import ImageMode, PixelCodec, VaeConfig, WanConfig
from jcos.files import any_path, fetched
from jcos.variants import Profile

DAMAGE = (OSError, ValueError, SyntaxError, EOFError, RuntimeError, TypeError, LookupError)
DAMAGE += (struct.error,)
"""What Pillow's decoders stumble over in damaged files."""
LARGEST = 100_000_000
"""Pixels of the largest picture that is opened."""

Size = tuple[int, int]
Picture = UInt8[np.ndarray, "H W 3"]
Frame = Float32[np.ndarray, "h w 3"]

_BYTES = np.arange(256, dtype=np.float32)
SIGNED = (_BYTES / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
"""What becomes of a byte in the original and in diffusers, to the last bit."""
SIGNED_DIFFSYNTH = _BYTES * np.float32(2 / 255) - 1


class Rule(NamedTuple):
    """How a first frame is made of a picture.

    size: of the frame, from those of the picture and of the video asked for and from `multiple`.
    resize: the picture in that size, in −1..1 or a little beyond.
    multiple: pixels under a token, which divide both sides of the frame.
    """

    size: Callable[[Size, Size, int], Size]
    resize: Callable[[Picture, int, int], Frame]
    multiple: int


def read_picture(path: Path | str, profile: Profile | None = None) -> Picture:
    """Return a picture file as RGB, as the loader of a reference code reads it.

    Transparency is dropped without blending. The orientation that a camera notes beside the pixels
    (EXIF) is applied in the profile `diffusers` alone, as its load_image does; the others leave the
    picture as it lies in the file, with a UserWarning that says so.
    Raises ValueError where the file is missing, no picture, damaged, of more than `LARGEST` pixels,
    or of more than 8 bits per colour (which would come out white).
    """
    path = any_path(path)
    picture, turned = None, False
    try:
        # Pillow warns of large pictures and of transparent palettes; both are dealt with here.
        quiet = warnings.catch_warnings(action="ignore")
        with quiet, fetched(path) as there, Image.open(there) as file:
            if file.width * file.height > LARGEST:
                raise Image.DecompressionBombError
            if not file.mode.startswith(("I", "F")):
                turned = _turned(file)
                apply = turned and profile == "diffusers"
                upright = ImageOps.exif_transpose(file) if apply else file
                picture = np.array(upright.convert("RGB"))
    except FileNotFoundError:
        raise ValueError(f"the picture {path} is missing") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{path} has more than {LARGEST:,} pixels; make it smaller") from None
    except DAMAGE as error:
        raise ValueError(f"{path} is no picture that can be read: {error}") from None
    if picture is None:
        raise ValueError(f"{path} has more than 8 bits per colour; save it with 8")
    if turned and profile != "diffusers":
        warnings.warn(
            f"the camera's note in {path} that the picture is turned or mirrored (EXIF) is not "
            "applied, as in the reference code; only the profile diffusers does",
            stacklevel=2,
        )
    return picture


def _turned(file: Image.Image) -> bool:
    """Return whether EXIF says so; what cannot be read says nothing."""
    try:
        return file.getexif().get(ExifTags.Base.Orientation) in range(2, 9)
    except (OSError, ValueError, SyntaxError, EOFError, KeyError, TypeError, struct.error):
        return False


def rule_for(config: WanConfig, profile: Profile | None = None) -> Rule:
    """Return the rule of a model in a reference code; by default the original's.

    Raises ValueError for models that take no picture, or take it as it is (the small model).
    """
    if not isinstance(config.codec, VaeConfig) or config.image not in _OF_MODEL:
        taken = f"one of {config.clip.width} × {config.clip.height} pixels as it is"
        taken = "none" if config.image == "none" else taken
        raise ValueError(f"no rule prepares a picture for {config.name}: it takes {taken}")
    size, resize = _OF_PROFILE.get(profile or "official", _OF_MODEL[config.image])
    return Rule(size, resize, config.codec.strides[1] * config.dit.patch[1])


def first_frame(
    picture: Picture, config: WanConfig, profile: Profile | None, height: int, width: int
) -> tuple[Frame | Picture, Float32[np.ndarray, "side side 3"] | None]:
    """Return the first frame for a video of about this size, and what the model's image encoder
    sees of the picture, None where it has no such encoder. The small model takes a picture of its
    size as it is."""
    if isinstance(config.codec, PixelCodec) and picture.shape[:2] == (height, width):
        return picture, None
    frame, vision = prepare(picture, rule_for(config, profile), height, width), config.vision
    return frame, vision and for_encoder(picture, frame, vision.size, profile)


def prepare(picture: Picture, rule: Rule, height: int, width: int) -> Frame:
    """Return the first frame for a video of about this size (`frame_size`)."""
    return rule.resize(picture, *frame_size(picture, rule, height, width))


def frame_size(picture: Picture, rule: Rule, height: int, width: int) -> Size:
    """Return the size of the first frame for a video that is asked for in a size.

    Raises ValueError where the frame would have a side without pixels.
    """
    size, shape = (0, 0), (picture.shape[0], picture.shape[1])
    if min(height, width, *shape) > 0:
        size = rule.size(shape, (height, width), rule.multiple)
    if min(size) < 1:
        raise ValueError(
            f"a picture of {shape[1]} × {shape[0]} pixels cannot become a frame of about {width} × "
            f"{height}: a side would be under {rule.multiple} pixels; crop it or ask for more"
        )
    return size


def i2v_a14b_size(picture: Size, target: Size, multiple: int = 16) -> Size:
    """Return the picture's shape with the area asked for, sides rounded down to multiples.

    Source: wan/image2video.py. 0 where a side is too short.
    """
    area, aspect = target[0] * target[1], picture[0] / picture[1]
    sides = math.sqrt(area * aspect), math.sqrt(area / aspect)
    return _down(sides[0], multiple), _down(sides[1], multiple)


def ti2v_5b_size(picture: Size, target: Size, multiple: int = 32) -> Size:
    """Return that of two sizes within the area asked for whose shape is nearer to the picture's,
    one with the width rounded down first, one with the height.

    Source: best_output_size in wan/utils/utils.py. 0 where a side is too short.
    """
    area, ratio = target[0] * target[1], picture[1] / picture[0]
    ideal = (area * ratio) ** 0.5
    width, height = _down(ideal, multiple), _down(area / ideal, multiple)
    if not (width and height):
        return height, width
    candidates = (height, _down(area / height, multiple)), (_down(area / width, multiple), width)

    def misfit(size: Size) -> float:
        shape = size[1] / size[0]
        return max(ratio / shape, shape / ratio)

    return min(candidates, key=misfit)  # the first, where both fit equally well


def diffsynth_size(picture: Size, target: Size, multiple: int = 16) -> Size:
    """Return the target, rounded up to multiples; the picture's shape does not count."""
    return -(-target[0] // multiple) * multiple, -(-target[1] // multiple) * multiple


def diffusers_size(picture: Size, target: Size, multiple: int = 16) -> Size:
    """Return the target, rounded down to multiples; the picture's shape does not count."""
    return _down(target[0], multiple), _down(target[1], multiple)


def _down(side: float, multiple: int) -> int:
    return int(side // multiple) * multiple


def torch_bicubic(picture: Picture, height: int, width: int) -> Frame:
    """Return the picture in −1..1, stretched as PyTorch stretches tensors on a CPU.

    Cubic interpolation with a = −0.75 between pixel centres, borders repeated, no antialiasing;
    colours may go beyond −1..1. Source: torch.nn.functional.interpolate(mode="bicubic").
    """
    return stretched(SIGNED[picture], height, width)


def stretched(colours: Float32[np.ndarray, "H W 3"], height: int, width: int) -> Frame:
    """Return colours stretched like `torch_bicubic`."""
    rows, by_row = _taps(colours.shape[0], height)
    columns, by_column = _taps(colours.shape[1], width)
    tall = np.einsum("hk,hkWc->hWc", by_row, colours[rows])
    return np.einsum("wk,hwkc->hwc", by_column, tall[:, columns])


def for_encoder(
    picture: Picture, frame: Frame, side: int, profile: Profile | None = None
) -> Float32[np.ndarray, "side side 3"]:
    """Return the picture in −1..1 as an image encoder sees it, a square of `side` pixels.

    The original stretches the picture like a first frame, diffsynth the first frame itself
    (`frame`); diffusers scales the shorter side (Pillow's BICUBIC) and cuts out the middle.
    """
    if profile == "diffsynth":
        return stretched(frame, side, side)
    if profile not in ("diffusers", "vbvr-pro"):
        return torch_bicubic(picture, side, side)
    height, width = (int(side * n / min(picture.shape[:2])) for n in picture.shape[:2])
    scaled = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    return SIGNED[np.asarray(scaled.crop((left, top, left + side, top + side)))]


def _taps(length: int, target: int) -> tuple[Int[np.ndarray, "T 4"], Float32[np.ndarray, "T 4"]]:
    """Return the four pixels, of `length`, that each of `target` is made of, and their weights.

    Positions are rounded to float32 once, as PyTorch's fused multiply-add does: exact ones make
    colours that differ by 2e-4 at 1280 pixels, and by more in larger pictures.
    """
    scale = np.float64(np.float32(length) / np.float32(target))
    position = (scale * (np.arange(target) + 0.5) - 0.5).astype(np.float32)
    before = np.floor(position)
    around = before[:, None] + np.arange(-1, 3)
    distance = np.abs(position[:, None].astype(np.float64) - around)
    a = -0.75
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    weights = np.where(distance <= 1, near, far).astype(np.float32)
    return np.clip(around.astype(int), 0, length - 1), weights


def lanczos_crop(picture: Picture, height: int, width: int) -> Frame:
    """Return the picture scaled to cover the frame (Pillow's LANCZOS), its middle cut out.

    Source: wan/textimage2video.py.
    """
    scale = max(width / picture.shape[1], height / picture.shape[0])
    covering = round(picture.shape[1] * scale), round(picture.shape[0] * scale)
    scaled = Image.fromarray(picture).resize(covering, Image.Resampling.LANCZOS)
    left, top = (covering[0] - width) // 2, (covering[1] - height) // 2
    return SIGNED[np.asarray(scaled.crop((left, top, left + width, top + height)))]


def pillow_bicubic(picture: Picture, height: int, width: int) -> Frame:
    """Return the picture stretched by Pillow, whose BICUBIC has a = −0.5 and antialiases. Source:
    diffsynth/pipelines/wan_video.py, which the paper's tools run."""
    image = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
    return SIGNED_DIFFSYNTH[np.asarray(image)]


def pillow_lanczos(picture: Picture, height: int, width: int) -> Frame:
    """Return the picture stretched by Pillow. Source: VaeImageProcessor of diffusers."""
    image = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
    return SIGNED[np.asarray(image)]


_OF_MODEL: dict[ImageMode, tuple] = {
    "concat": (i2v_a14b_size, torch_bicubic),
    "pin": (ti2v_5b_size, lanczos_crop),
}
_OF_PROFILE: dict[Profile, tuple] = {
    "diffusers": (diffusers_size, pillow_lanczos),
    "diffsynth": (diffsynth_size, pillow_bicubic),
    "vbvr-pro": (diffusers_size, pillow_lanczos),
}
"""Size and resizing of the original, which differ by model, and of the other codes."""


def check_frames(frames: int, stride: int = 4) -> None:
    """Raise ValueError unless a VAE that folds `stride` frames into one makes so many."""
    if frames < 1 or (frames - 1) % stride:
        below = max(1, (frames - 1) // stride * stride + 1)
        raise ValueError(
            f"{frames} frames are asked for, a video has {stride} n + 1; "
            f"ask for {below} or {below + stride}"
        )


def round_frames(frames: int, profile: Profile = "official", stride: int = 4) -> int:
    """Return the number of frames that a reference code makes of the one asked for.

    diffsynth rounds up to 4 n + 1. diffusers takes ⌊frames / 4⌋ · 4 + 1, which is up for 80 and
    down for 82. The others have no rule: ValueError as `check_frames`, and where frames is less
    than 1.
    """
    if frames < 1 or profile not in ("diffusers", "diffsynth"):
        check_frames(frames, stride)
    up = stride - 1 if profile == "diffsynth" else 0
    return frames if (frames - 1) % stride == 0 else (frames + up) // stride * stride + 1
