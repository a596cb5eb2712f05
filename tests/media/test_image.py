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


def test_a_picture_of_its_own_size_stays_as_it_is():
    np.testing.assert_array_equal(image.torch_bicubic(PICTURE, 5, 7), image.SIGNED[PICTURE])
    assert image.SIGNED[0] == -1
    assert image.SIGNED[255] == 1


def test_stretching_for_diffusers_is_that_of_pillow():
    found = image.pillow_lanczos(PICTURE, 32, 48)
    pixels = Image.fromarray(PICTURE).resize((48, 32), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(found, 2 * (np.asarray(pixels, np.float32) / np.float32(255)) - 1)


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


@pytest.mark.parametrize(
    ("size", "asked", "multiple", "made"),
    [
        (image.diffsynth_size, (480, 832), 16, (480, 832)),
        (image.diffsynth_size, (481, 831), 16, (496, 832)),
        (image.diffsynth_size, (720, 1280), 32, (736, 1280)),
        (image.diffsynth_size, (1, 1), 16, (16, 16)),
        (image.diffusers_size, (481, 831), 16, (480, 816)),
        (image.diffusers_size, (720, 1280), 32, (704, 1280)),
    ],
)
def test_two_codes_round_what_is_asked_for(size, asked, multiple, made):
    assert size((300, 10), asked, multiple) == made


def test_equally_good_sizes_are_decided_as_in_the_original():
    """A square of 1000 pixels: 31 · 32 either way, and no candidate is better."""
    assert image.ti2v_5b_size((1000, 1000), (1000, 1000), 32) == (992, 992)
    # Height first: 928 high, 960 wide; width first the other way round, equally far from a square.
    assert image.ti2v_5b_size((1024, 1024), (704, 1280), 32) == (928, 960)


@pytest.mark.parametrize(
    ("config", "profile", "size", "resize", "multiple"),
    [
        (I2V, None, image.i2v_a14b_size, image.torch_bicubic, 16),
        (I2V, "official", image.i2v_a14b_size, image.torch_bicubic, 16),
        (I2V, "float32", image.i2v_a14b_size, image.torch_bicubic, 16),
        (I2V, "diffusers", image.diffusers_size, image.pillow_lanczos, 16),
        (I2V, "diffsynth", image.diffsynth_size, image.pillow_bicubic, 16),
        (TI2V, None, image.ti2v_5b_size, image.lanczos_crop, 32),
        (TI2V, "diffusers", image.diffusers_size, image.pillow_lanczos, 32),
        (TI2V, "diffsynth", image.diffsynth_size, image.pillow_bicubic, 32),
    ],
)
def test_models_have_the_rule_of_their_code(
    config, profile: Profile | None, size, resize, multiple
):
    assert image.rule_for(config, profile) == image.Rule(size, resize, multiple)


@pytest.mark.parametrize("config", [VARIANTS["wan2.2-t2v-a14b"](), VARIANTS["wan2.1-t2v-1.3b"]()])
def test_a_text_model_has_no_rule(config):
    with pytest.raises(ValueError, match="it takes none"):
        image.rule_for(config)


def test_the_small_model_takes_pictures_as_they_are():
    with pytest.raises(ValueError, match="jcos-tiny: it takes one of 20 × 20 pixels as it is"):
        image.rule_for(toy())


@pytest.mark.parametrize(
    ("config", "profile", "made"),
    [
        (I2V, None, (464, 832)),
        (I2V, "diffsynth", (480, 832)),
        (TI2V, None, (480, 832)),
        (TI2V, "diffusers", (480, 832)),
    ],
)
def test_a_prepared_frame_has_the_size_of_the_rule(config, profile: Profile | None, made):
    rule = image.rule_for(config, profile)
    picture = np.full((72, 128, 3), (255, 0, 51), np.uint8)
    frame = image.prepare(picture, rule, 480, 832)
    assert frame.shape == (*made, 3)
    assert frame.dtype == np.float32
    np.testing.assert_allclose(frame, np.broadcast_to((1, -1, -0.6), frame.shape), atol=1e-6)


@pytest.mark.parametrize("config", [I2V, TI2V])
@pytest.mark.parametrize("shape", [(2, 4000), (4000, 2)])
def test_a_picture_too_long_is_refused(config, shape):
    picture = np.zeros((*shape, 3), np.uint8)
    with pytest.raises(ValueError, match=r"a side would be under .* crop it or ask for more"):
        image.prepare(picture, image.rule_for(config), 480, 832)


def test_sizes_without_pixels_are_refused():
    rule = image.rule_for(I2V)
    with pytest.raises(ValueError, match="a frame of about 0 × 480"):
        image.prepare(PICTURE, rule, 480, 0)
    with pytest.raises(ValueError, match="a picture of 7 × 0 pixels"):
        image.prepare(PICTURE[:0], rule, 480, 832)
    down = image.rule_for(I2V, "diffusers")
    with pytest.raises(ValueError, match="a side would be under 16 pixels"):
        image.prepare(PICTURE, down, 15, 832)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp"])
def test_a_picture_file_is_read_as_it_was_written(tmp_path, suffix):
    path = tmp_path / f"picture.{suffix}"
    Image.fromarray(PICTURE).save(path, lossless=True)
    np.testing.assert_array_equal(image.read_picture(path), PICTURE)
    assert image.read_picture(str(path)).flags.writeable


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
    ]
    path = tmp_path / "picture.png"
    for picture, options, want in cases:
        picture.save(path, **options)
        found = image.read_picture(path)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, want)


# What a viewer shows of pixels whose EXIF has this orientation.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", [*UPRIGHT, 0, 9])
@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA"])
def test_the_cameras_orientation_is_applied_as_by_diffusers_alone(orientation, mode, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.png"
    pixels = np.broadcast_to(PICTURE[..., :1], PICTURE.shape) if mode == "P" else PICTURE
    picture = Image.fromarray(pixels[..., 0], "L") if mode == "P" else Image.fromarray(pixels)
    picture.convert(mode).save(path, exif=exif)
    want = UPRIGHT.get(orientation, UPRIGHT[1])(pixels)
    np.testing.assert_array_equal(image.read_picture(path, "diffusers"), want)
    for profile in (None, "official", "float32", "diffsynth"):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            np.testing.assert_array_equal(image.read_picture(path, profile), pixels)
        assert [w.category for w in said] == [UserWarning] * (orientation in range(2, 9))


def test_exif_that_cannot_be_read_turns_nothing(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(PICTURE).save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff")
    for profile in (None, "diffusers"):
        np.testing.assert_array_equal(image.read_picture(path, profile), PICTURE)


def test_of_a_film_the_first_picture_is_read(tmp_path):
    path = tmp_path / "film.webp"
    first, second = Image.fromarray(PICTURE), Image.fromarray(255 - PICTURE)
    first.save(path, save_all=True, append_images=[second], lossless=True)
    np.testing.assert_array_equal(image.read_picture(path), PICTURE)


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


NO_PICTURE = [b"", b"hello", b"P6 0 0 255\n", b"\x89PNG\r\n\x1a\n", b"<svg/>", png_of_zeros(9, 9)]
CUT = [noisy_png()[:length] for length in (10, 40, 4000, -40)]
BOMBS = [png_of_zeros(side, side) for side in (10_001, 20_000, 2**31 - 1)]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        *((content, "is no picture that can be read") for content in NO_PICTURE + CUT),
        *((content, "has more than 100,000,000 pixels; make it smaller") for content in BOMBS),
    ],
)
def test_what_is_no_picture_is_refused_and_a_bomb_before_it_is_unpacked(tmp_path, content, says):
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"picture.png {says}"):
        image.read_picture(path)


def test_a_picture_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"the picture .*gone.png is missing"):
        image.read_picture(tmp_path / "gone.png")
    with pytest.raises(ValueError, match="is no picture that can be read"):
        image.read_picture(tmp_path)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_a_picture_of_more_bits_would_come_out_white(tmp_path, kind):
    path = tmp_path / "deep.tiff"
    Image.fromarray(np.ones((4, 4), kind)).save(path)
    with pytest.raises(ValueError, match="more than 8 bits per colour; save it with 8"):
        image.read_picture(path)


ROUNDED = [(80, 81, 81), (82, 81, 85), (83, 81, 85), (84, 85, 85), (2, 1, 5), (3, 1, 5), (4, 5, 5)]


@pytest.mark.parametrize(
    ("frames", "diffusers", "diffsynth"), [*((n, n, n) for n in (1, 5, 77, 81, 121)), *ROUNDED]
)
def test_codes_round_the_number_of_frames_or_refuse_it(frames, diffusers, diffsynth):
    assert image.round_frames(frames, "diffusers") == diffusers
    assert image.round_frames(frames, "diffsynth") == diffsynth
    low, high = (frames - 1) // 4 * 4 + 1, (frames + 2) // 4 * 4 + 1
    for call in (
        image.check_frames,
        image.round_frames,
        lambda n: image.round_frames(n, "float32"),
    ):
        if low == high:
            assert call(frames) in (None, frames)
            continue
        message = rf"^{frames} frames are asked for, a video has 4 n \+ 1; ask for {low} or {high}$"
        with pytest.raises(ValueError, match=message):
            call(frames)


def test_no_code_makes_a_video_without_frames():
    message = r" frames are asked for, a video has 4 n \+ 1; ask for 1 or 5$"
    for profile in ("official", "diffusers", "diffsynth"):
        for frames in (0, -9):
            with pytest.raises(ValueError, match=message):
                image.round_frames(frames, profile)


def test_a_codec_that_folds_no_time_makes_any_number_of_frames():
    for frames in range(1, 9):
        image.check_frames(frames, 1)
    with pytest.raises(ValueError, match="0 frames are asked for"):
        image.check_frames(0, 1)


def test_the_multiple_follows_the_models_patch():
    config = I2V
    config = dataclasses.replace(config, dit=dataclasses.replace(config.dit, patch=(1, 4, 4)))
    assert image.rule_for(config).multiple == 32
