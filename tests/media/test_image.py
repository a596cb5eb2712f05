"""First frames are what the original and the paper's tools make of the same picture."""

import dataclasses
import io
import json
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from jcos.media import image
from jcos.variants import VARIANTS, Profile, toy
from tests.conftest import GOLDEN

SIZES = json.loads((GOLDEN / "image" / "sizes.json").read_text())
I2V, TI2V = (VARIANTS[f"wan2.2-{name}"]() for name in ("i2v-a14b", "ti2v-5b"))
PICTURE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def channels_last(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, 0, -1)


def size_in(key: str) -> tuple[int, int]:
    """`0.torch_bicubic_32x64` is 32 high and 64 wide."""
    height, width = key.removesuffix("_u8").rsplit("_", 1)[1].split("x")
    return int(height), int(width)


@pytest.mark.parametrize(
    ("kind", "resize", "made", "off"),
    [
        ("torch_bicubic", image.torch_bicubic, channels_last, 1e-5),
        ("pil_bicubic", image.pillow_bicubic, channels_last, 0),
        ("lanczos_crop", image.lanczos_crop, image.SIGNED.__getitem__, 0),
    ],
)
def test_pictures_become_what_the_reference_codes_make_of_them(golden, kind, resize, made, off):
    arrays = golden("image/preprocess")
    cases = [key for key in arrays if kind in key]
    assert len(cases) >= 2
    for key in cases:
        found = resize(arrays[f"{key[0]}.image_u8"], *size_in(key))
        assert found.dtype == np.float32
        assert np.abs(found - made(arrays[key])).max() <= off
        assert (np.abs(found).max() > 1) == (kind == "torch_bicubic")  # overshoot is kept


def test_stretching_is_that_of_torch_at_real_sizes(golden):
    """Exact positions would be 1e-4 off in lines of this length; torch's are rounded."""
    arrays = golden("image/torch_bicubic_lines")
    cases = [key.removeprefix("picture_") for key in arrays if key.startswith("picture_")]
    assert len(cases) == 5
    for case in cases:
        line, want = arrays[f"picture_{case}"], arrays[f"stretched_{case}"]
        colours = np.repeat(line[:, None, None], 3, axis=2)
        rows = image.torch_bicubic(colours, len(want), 1)
        columns = image.torch_bicubic(colours.swapaxes(0, 1), 1, len(want))
        for c in range(3):
            assert np.abs(rows[:, 0, c] - want).max() <= 5e-6
            assert np.abs(columns[0, :, c] - want).max() <= 5e-6


@pytest.mark.parametrize(
    ("kind", "size", "multiple"),
    [("a14b", image.i2v_a14b_size, 16), ("ti2v", image.ti2v_5b_size, 32)],
)
def test_sizes_are_the_originals(kind, size, multiple):
    assert len(SIZES[kind]) >= 9
    for case in SIZES[kind]:
        width, height = case["image_wh"]
        found = size((height, width), (case["max_area"], 1), multiple)
        assert found == (case["h"], case["w"])


def test_equally_good_sizes_are_decided_as_in_the_original():
    """A square of 1000 pixels: 31 · 32 either way, and no candidate is better."""
    assert image.ti2v_5b_size((1000, 1000), (1000, 1000), 32) == (992, 992)
    # Height first: 928 high, 960 wide; width first the other way round, equally far from a square.
    assert image.ti2v_5b_size((1024, 1024), (704, 1280), 32) == (928, 960)


@pytest.mark.parametrize(
    ("config", "profile", "asked", "made"),
    [
        (I2V, None, (480, 832), (464, 832)),
        (I2V, "float32", (480, 832), (464, 832)),
        (I2V, "diffsynth", (480, 832), (480, 832)),
        (I2V, "diffsynth", (481, 831), (496, 832)),
        (I2V, "diffsynth", (1, 1), (16, 16)),
        (I2V, "diffusers", (481, 831), (480, 816)),
        (TI2V, None, (480, 832), (480, 832)),
        (TI2V, "diffsynth", (720, 1280), (736, 1280)),
        (TI2V, "diffusers", (720, 1280), (704, 1280)),
    ],
)
def test_a_prepared_frame_has_the_size_of_its_code(config, profile: Profile | None, asked, made):
    picture = np.full((72, 128, 3), (255, 0, 51), np.uint8)
    frame = image.prepare(picture, image.rule_for(config, profile), *asked)
    assert frame.shape == (*made, 3)
    assert frame.dtype == np.float32
    np.testing.assert_allclose(frame, np.broadcast_to((1, -1, -0.6), frame.shape), atol=1e-6)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (VARIANTS["wan2.1-t2v-1.3b"](), "it takes none"),
        (toy(), "jcos-tiny: it takes one of 20 × 20 pixels as it is"),
    ],
)
def test_models_without_a_rule(config, reason):
    with pytest.raises(ValueError, match=reason):
        image.rule_for(config)


def test_the_small_model_takes_a_picture_of_its_size_as_it_is():
    picture = np.zeros((20, 20, 3), np.uint8)
    assert image.first_frame(picture, toy(), None, 20, 20) == (picture, None)
    with pytest.raises(ValueError, match="20 × 20"):
        image.first_frame(picture[1:], toy(), None, 20, 20)


@pytest.mark.parametrize(
    ("config", "profile", "shape", "asked", "reason"),
    [
        (I2V, None, (2, 4000), (480, 832), "a side would be under 16 pixels; crop it or ask for"),
        (TI2V, None, (4000, 2), (480, 832), "a side would be under 32 pixels"),
        (I2V, None, (5, 7), (480, 0), "a frame of about 0 × 480"),
        (I2V, None, (0, 7), (480, 832), "a picture of 7 × 0 pixels"),
        (I2V, "diffusers", (5, 7), (15, 832), "a side would be under 16 pixels"),
    ],
)
def test_frames_with_a_side_without_pixels(config, profile: Profile | None, shape, asked, reason):
    picture = np.zeros((*shape, 3), np.uint8)
    with pytest.raises(ValueError, match=reason):
        image.prepare(picture, image.rule_for(config, profile), *asked)


def test_every_kind_of_picture_becomes_rgb(tmp_path):
    grey = PICTURE[:, :, 0]
    alpha = np.concatenate([PICTURE, PICTURE[:, :, :1]], axis=2)
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    three = np.stack([grey] * 3, axis=2)
    cases: list[tuple[Image.Image, dict, np.ndarray]] = [
        (Image.fromarray(grey), {}, three),
        (Image.fromarray(np.stack([grey, grey[::-1]], axis=2), "LA"), {}, three),
        (Image.fromarray(alpha), {}, PICTURE),  # what a transparent pixel hides comes out
        (palette, {}, np.array([[[10, 20, 30], [40, 50, 60]]])),
        (palette, {"transparency": bytes([0, 128])}, np.array([[[10, 20, 30], [40, 50, 60]]])),
        (Image.fromarray(grey > 99), {}, np.where(three > 99, 255, 0)),
        (Image.fromarray(PICTURE), {"format": "TIFF"}, PICTURE),
        (  # of a film the first picture
            Image.fromarray(PICTURE),
            {
                "format": "WEBP",
                "lossless": True,
                "save_all": True,
                "append_images": [Image.fromarray(255 - PICTURE)],
            },
            PICTURE,
        ),
    ]
    path = tmp_path / "picture.png"
    for picture, options, want in cases:
        picture.save(path, **options)
        found = image.read_picture(path)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("orientation", [1, 6, 9])
def test_the_cameras_orientation_is_applied_as_by_diffusers_alone(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.png"
    Image.fromarray(PICTURE).save(path, exif=exif)
    want = np.rot90(PICTURE, -1) if orientation == 6 else PICTURE
    np.testing.assert_array_equal(image.read_picture(path, "diffusers"), want)
    for profile in (None, "diffsynth"):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            np.testing.assert_array_equal(image.read_picture(path, profile), PICTURE)
        assert [w.category for w in said] == [UserWarning] * (orientation == 6)


def test_exif_that_cannot_be_read_turns_nothing(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(PICTURE).save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff")
    for profile in (None, "diffusers"):
        np.testing.assert_array_equal(image.read_picture(path, profile), PICTURE)


def png_of_zeros(width: int, height: int) -> bytes:
    """A tiny file that claims to be a picture of that size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def noisy_png() -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (50, 50, 3), np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is no picture that can be read"),
        (b"P6 0 0 255\n", "is no picture that can be read"),
        (b"\x89PNG\r\n\x1a\n", "is no picture that can be read"),
        (b"<svg/>", "is no picture that can be read"),
        (png_of_zeros(9, 9), "is no picture that can be read"),
        (noisy_png()[:40], "is no picture that can be read"),
        (noisy_png()[:-40], "is no picture that can be read"),
        (png_of_zeros(10_001, 10_001), "has more than 100,000,000 pixels; make it smaller"),
        (png_of_zeros(2**31 - 1, 2**31 - 1), "has more than 100,000,000 pixels"),
        (None, "is missing"),
    ],
)
def test_what_is_no_picture_is_refused_and_a_bomb_before_it_is_unpacked(tmp_path, content, says):
    path = tmp_path / "picture.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"picture.png {says}"):
        image.read_picture(path)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_a_picture_of_more_bits_would_come_out_white(tmp_path, kind):
    path = tmp_path / "deep.tiff"
    Image.fromarray(np.ones((4, 4), kind)).save(path)
    with pytest.raises(ValueError, match="more than 8 bits per colour; save it with 8"):
        image.read_picture(path)


@pytest.mark.parametrize(
    ("frames", "diffusers", "diffsynth"),
    [(1, 1, 1), (81, 81, 81), (80, 81, 81), (82, 81, 85), (2, 1, 5), (4, 5, 5), (0, 0, 0)],
)
def test_codes_round_the_number_of_frames_or_refuse_it(frames, diffusers, diffsynth):
    if frames:
        assert image.round_frames(frames, "diffusers") == diffusers
        assert image.round_frames(frames, "diffsynth") == diffsynth
    low = max(1, (frames - 1) // 4 * 4 + 1)
    if low == frames:
        assert image.round_frames(frames, "float32") == frames
        return
    message = rf"^{frames} frames are asked for, a video has 4 n \+ 1; ask for {low} or {low + 4}$"
    profiles: tuple[Profile, ...] = ("official", "diffusers", "diffsynth")
    for profile in profiles[: 1 if frames else 3]:
        with pytest.raises(ValueError, match=message):
            image.round_frames(frames, profile)
    image.check_frames(3, stride=1)  # a codec that folds no time


def test_the_multiple_follows_the_models_patch():
    dit = dataclasses.replace(I2V.dit, patch=(1, 4, 4))
    assert image.rule_for(dataclasses.replace(I2V, dit=dit)).multiple == 32
