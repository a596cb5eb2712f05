"""The pixel codec: exact both ways. The VAEs: equal to PyTorch stage by stage, streamed or whole,
tiled or not."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcos.config import PixelCodec
from jcos.model.vae import Vae, decode_pixels, encode_pixels
from jcos.variants import vae_2_1, vae_2_2
from tests.models import abstract_vae, original_codec, original_vae, relative

# ---- the pixel codec


@pytest.mark.slow
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_pixels_of_all_levels_come_back_each_from_its_cell(stride):
    """One pixel changes one cell of one frame, in the channels row, column, colour."""
    codec = PixelCodec(stride=stride)
    video = np.arange(3 * 8 * 12 * 3).astype(np.uint8).reshape(3, 8, 12, 3)
    latents = encode_pixels(codec, jnp.asarray(video))
    assert latents.shape == (3, 8 // stride, 12 // stride, codec.channels)
    back = decode_pixels(codec, latents)
    assert back.dtype == jnp.float32
    np.testing.assert_array_equal(np.round(back).astype(np.uint8), video)
    np.testing.assert_allclose(back, video, atol=1e-3)
    video[1, 5, 6, 2] ^= 255
    row, column = divmod(5, stride), divmod(6, stride)
    changed = encode_pixels(codec, jnp.asarray(video)) != latents
    channel = (row[1] * stride + column[1]) * 3 + 2
    assert np.argwhere(changed).tolist() == [[1, row[0], column[0], channel]]


def test_colours_are_normalised_and_not_clipped():
    codec = PixelCodec(stride=1, mean=0.5, std=0.25)
    latents = encode_pixels(codec, jnp.array([[[[0, 255, 51]]]], jnp.uint8))
    np.testing.assert_allclose(latents.ravel(), [-2.0, 2.0, -1.2], atol=1e-6)
    assert float(decode_pixels(codec, 5 * latents).max()) > 255


# ---- the VAEs

RELEASED = {"21": vae_2_1(), "22": vae_2_2()}
VERSIONS = list(RELEASED)


@partial(jax.jit, static_argnames="tiles")
def encode(vae: Vae, video, tiles=None):
    return vae.encode(video, tiles=tiles)


@partial(jax.jit, static_argnames="tiles")
def decode(vae: Vae, latents, tiles=None):
    """Not clamped."""
    return vae.decode(latents, tiles=tiles, clamp=False)


def last(a: np.ndarray) -> jax.Array:
    """torch's [C, F, H, W] with channels last."""
    return jnp.asarray(np.moveaxis(a, 0, -1))


def latents_of(version: str, frames: int, height: int, width: int) -> jax.Array:
    shape = (frames, height, width, RELEASED[version].channels)
    return jnp.asarray(np.random.default_rng(3).standard_normal(shape, np.float32))


def video_of(version: str, frames: int, height: int, width: int) -> jax.Array:
    """Noise in −1..1; sizes in latent cells, frames in frames."""
    stride = RELEASED[version].strides[1]
    shape = (frames, stride * height, stride * width, 3)
    return jnp.asarray(np.random.default_rng(4).uniform(-1, 1, shape), jnp.float32)


# ---- equal to PyTorch


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_streamed_latents_equal_the_original_vae(golden, version):
    arrays = golden(f"vae/wan{version}")
    vae, video = original_vae(version), last(arrays["enc.video"])
    assert relative(encode(vae, video), last(arrays["enc.mu_norm"])) <= 5e-6
    blank = video.at[1:].set(0)
    assert relative(encode(vae, blank), last(arrays["encz.mu_norm"])) <= 5e-6
    image = last(arrays["enc1.video"])
    assert relative(encode(vae, image), last(arrays["enc1.mu_norm"])) <= 5e-6
    fewer = encode(vae, video[:-2])  # trailing frames are dropped
    assert relative(fewer, last(arrays["encodd.mu_norm"])) <= 5e-6


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_streamed_video_equals_the_original_vae(golden, version):
    arrays = golden(f"vae/wan{version}")
    vae, latents = original_vae(version), last(arrays["dec.z"])
    video = decode(vae, latents)
    assert relative(video, last(arrays["dec.video_raw"])) <= 5e-6
    assert relative(jnp.clip(video, -1, 1), last(arrays["dec.video_clamped"])) <= 5e-6


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_every_stage_equals_the_original_vae(golden, version):
    arrays = golden(f"vae/wan{version}_trace")
    vae = original_vae(version)
    mean, std = (jnp.array(a)[None, None, None] for a in (vae.cfg.mean, vae.cfg.std))
    video = last(arrays["enc.video"])
    if version == "22":  # blocks of 2 × 2 pixels; of a colour's four, those of a column first
        f, h, w = video.shape[0], video.shape[1] // 2, video.shape[2] // 2
        video = video.reshape(f, h, 2, w, 2, 3).transpose(0, 1, 3, 5, 4, 2).reshape(f, h, w, 12)

    @jax.jit
    def run(layers, x):
        outputs = []
        for layer in layers:
            x, _ = layer(x, None)
            outputs.append(x)
        return outputs

    middle = [f"middle_{i}" for i in range(3)]
    encoder, decoder = vae.encoder.layers, vae.decoder.layers
    down, up = ([f"stage_{i:02}" for i in range(len(a) - 5)] for a in (encoder, decoder))
    latents = vae.conv2(last(arrays["dec.z"]) * std + mean)
    for half, names, outputs in (
        ("enc", ["conv1", *down, *middle, "net_out"], run(encoder, video)),
        ("dec", ["conv1", *middle, *up, "net_out"], run(decoder, latents)),
    ):
        golden_names = {name for name in arrays if name.startswith(f"trace.{half}.")}
        assert {f"trace.{half}.{name}" for name in names} == golden_names
        for name, ours in zip(names, outputs, strict=True):
            assert relative(ours, last(arrays[f"trace.{half}.{name}"])) <= 5e-6, (half, name)


# ---- laws


@pytest.mark.slow
def test_memory_is_flat_in_the_number_of_frames():
    """Compiled for 9 and for 33 frames, beside what comes out; and programs are no longer."""
    vae = abstract_vae(original_codec("22"))

    def program(half, *shape: int):
        return half.lower(vae, jax.ShapeDtypeStruct(shape, jnp.float32))

    def memory(lowered) -> int:
        analysis = lowered.compile().memory_analysis()
        return analysis.temp_size_in_bytes - analysis.output_size_in_bytes

    short, long = program(decode, 3, 4, 3, 48), program(decode, 9, 4, 3, 48)
    assert memory(long) <= 1.01 * memory(short)
    for a, b in ((short, long), (program(encode, 9, 64, 48, 3), program(encode, 33, 64, 48, 3))):
        assert len(b.as_text()) <= 1.001 * len(a.as_text())


def test_precision_does_not_depend_on_the_default():
    """Even where products are rounded by default, those of a VAE are not."""
    vae, video = original_vae("22"), video_of("22", 1, 1, 1)
    with jax.default_matmul_precision("bfloat16"):
        program = str(jax.make_jaxpr(lambda v, x: v.decode(v.encode(x)))(vae, video))
    assert "HIGHEST" in program
    assert "BF16" not in program
    assert "precision=None" not in program


# ---- tiles


def by_hand(code, x, cells: tuple[int, int], tiles: tuple[int, int], into: int, out: int):
    """Tiles coded and blended one by one, with weights by each pixel's distance from the border."""
    total, weights = 0.0, 0.0
    (high, wide), ramps = tiles, [size // 2 * out for size in tiles]
    ys, xs = (
        sorted({*range(0, n - size, size - size // 2), n - size})
        for n, size in zip(cells, tiles, strict=True)
    )
    for y, x0 in itertools.product(ys, xs):
        area = x[:, y * into : (y + high) * into, x0 * into : (x0 + wide) * into]
        tile = np.asarray(code(area), np.float64)
        weight = np.ones(tile.shape[1:3])
        for i, j in np.ndindex(*weight.shape):
            near = [
                (i + 1) / ramps[0] if y > 0 else 1.0,
                (high * out - i) / ramps[0] if y + high < cells[0] else 1.0,
                (j + 1) / ramps[1] if x0 > 0 else 1.0,
                (wide * out - j) / ramps[1] if x0 + wide < cells[1] else 1.0,
            ]
            weight[i, j] = min(*near, 1.0)
        around = ((y, cells[0] - y - high), (x0, cells[1] - x0 - wide))
        margins = [(0, 0), *[(a * out, b * out) for a, b in around], (0, 0)]
        total = total + np.pad(tile * weight[None, :, :, None], margins)
        weights = weights + np.pad(weight[None, :, :, None], margins)
    return total / weights


@pytest.mark.slow
def test_blended_tiles_equal_a_loop_over_them():
    """Tiles that do not divide the frame; the last of a row and column is moved back."""
    vae, cells, tiles = original_vae("21"), (5, 4), (2, 3)
    video, latents = video_of("21", 1, *cells), latents_of("21", 2, *cells)
    expected = by_hand(partial(encode, vae), video, cells, tiles, 8, 1)
    assert relative(encode(vae, video, tiles), expected) <= 5e-6
    small = video[:, : 8 * tiles[0], : 8 * tiles[1]]
    assert relative(encode(vae, small, (30, 52)), encode(vae, small)) <= 5e-6  # one covers it all
    expected = by_hand(partial(decode, vae), latents, cells, tiles, 1, 8)
    assert relative(decode(vae, latents, tiles), expected) <= 5e-6


# ---- errors


def test_sizes_that_do_not_divide_are_refused():
    for name, shape in {"height": (1, 36, 32, 3), "width": (1, 32, 40, 3)}.items():
        with pytest.raises(ValueError, match=f"the {name} is .* needs a multiple of 16$"):
            original_vae("22").encode(jnp.zeros(shape))
    for shape in ((1, 2, 2, 1), (0, 2, 2, 48)):
        with pytest.raises(ValueError, match=r"cells \[…, 48\], not \([01], 2, 2, "):
            original_vae("22").decode(jnp.zeros(shape))
