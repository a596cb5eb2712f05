"""The pixel codec: exact both ways. The VAEs: equal to PyTorch stage by stage, streamed or whole,
tiled or not."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcos.config import PixelCodec
from jcos.model.causal import averaged, duplicated
from jcos.model.vae import Tiles, Vae, decode_pixels, encode_pixels
from jcos.variants import vae_2_1, vae_2_2
from jcos.weights.checkpoint import CheckpointError, leaves
from jcos.weights.names import VAE
from tests.conftest import load_golden, parameter_count
from tests.models import abstract_vae, original_codec, original_vae, relative
from tests.translated import fill, translate

# ---- the pixel codec


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


# ---- the VAEs

RELEASED = {"21": vae_2_1(), "22": vae_2_2()}
VERSIONS = list(RELEASED)


@partial(jax.jit, static_argnames=("tiles", "whole"))
def encode(vae: Vae, video, tiles=None, whole=False):
    return vae.encode(video, tiles=tiles, whole=whole)


@partial(jax.jit, static_argnames=("tiles", "whole"))
def decode(vae: Vae, latents, tiles=None, whole=False):
    """Not clamped."""
    return vae.decode(latents, tiles=tiles, whole=whole, clamp=False)


def last(a: np.ndarray) -> jax.Array:
    """torch's [C, F, H, W] with channels last."""
    return jnp.asarray(np.moveaxis(a, 0, -1))


def latents_of(version: str, frames: int, height: int, width: int) -> jax.Array:
    shape = (frames, height, width, RELEASED[version].channels)
    return jax.random.normal(jax.random.key(3), shape)


def video_of(version: str, frames: int, height: int, width: int) -> jax.Array:
    """Noise in −1..1; sizes in latent cells, frames in frames."""
    stride = RELEASED[version].strides[1]
    shape = (frames, stride * height, stride * width, 3)
    return jax.random.uniform(jax.random.key(4), shape, minval=-1.0)


TWO_ORDERS = 1e-5
"""Between a video coded whole and streamed, of the largest value: the same sums in another order.

Each may be 5e-6 off the original's, so twice that lies between them. It is also what their
arithmetic gives: a sum of 27 × 20 products, in each of some 30 layers, errs by about
√(27 · 20 · 30) · 2⁻²⁴ = 7.6e-6 where rounding errors add like random ones.
"""


# ---- equal to PyTorch


@pytest.mark.parametrize("version", VERSIONS)
def test_streamed_latents_equal_the_original_vae(golden, version):
    arrays = golden(f"vae/wan{version}")
    vae, video = original_vae(version), last(arrays["enc.video"])
    assert relative(encode(vae, video), last(arrays["enc.mu_norm"])) <= 5e-6
    blank = video.at[1:].set(0)
    assert relative(encode(vae, blank), last(arrays["encz.mu_norm"])) <= 5e-6
    image = last(arrays["enc1.video"])
    assert relative(encode(vae, image), last(arrays["enc1.mu_norm"])) <= 5e-6


@pytest.mark.parametrize("version", VERSIONS)
def test_streamed_video_equals_the_original_vae(golden, version):
    arrays = golden(f"vae/wan{version}")
    vae, latents = original_vae(version), last(arrays["dec.z"])
    assert relative(decode(vae, latents), last(arrays["dec.video_raw"])) <= 5e-6


@pytest.mark.parametrize("version", VERSIONS)
def test_trailing_frames_are_dropped_and_whole_clips_equal_streamed_ones(golden, version):
    arrays = golden(f"vae/wan{version}")
    vae, video = original_vae(version), last(arrays["enc.video"])
    latents = encode(vae, video[:-2], whole=True)
    assert relative(latents, last(arrays["encodd.mu_norm"])) <= 5e-6
    assert relative(latents, encode(vae, video)[:-1]) <= TWO_ORDERS


@pytest.mark.parametrize("version", VERSIONS)
def test_whole_videos_equal_streamed_ones_and_are_clamped(golden, version):
    arrays = golden(f"vae/wan{version}")
    vae, latents = original_vae(version), last(arrays["dec.z"])
    video = jax.jit(lambda vae, z: vae.decode(z, whole=True))(vae, latents)
    assert relative(video, last(arrays["dec.video_clamped"])) <= 5e-6
    assert relative(video, jnp.clip(decode(vae, latents), -1, 1)) <= TWO_ORDERS
    assert float(jnp.abs(video).max()) == 1


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


@pytest.mark.parametrize("version", VERSIONS)
def test_means_and_log_variances_equal_the_original_vae(golden, version):
    """What `encode` makes of the moments it leaves out: conv1 of the features, found backwards."""
    arrays, tensors = golden(f"vae/wan{version}"), golden(f"weights/vae{version}")
    vae, cfg = original_vae(version), RELEASED[version]
    moments = np.moveaxis(arrays["enc.moments_raw"], 0, -1).astype(np.float64)
    weight = tensors["conv1.weight"][:, :, 0, 0, 0].astype(np.float64)
    features = (moments - tensors["conv1.bias"]) @ np.linalg.inv(weight).T
    assert relative(vae.conv1(jnp.asarray(features, jnp.float32)), moments) <= 5e-6
    normalised = (moments[..., : cfg.channels] - cfg.mean) / cfg.std
    assert relative(normalised, last(arrays["enc.mu_norm"])) <= 5e-6


@pytest.mark.parametrize(("version", "count"), [("21", 126_892_531), ("22", 704_688_668)])
def test_released_sizes_have_the_released_number_of_parameters(version, count):
    assert parameter_count(abstract_vae(RELEASED[version])) == count


@pytest.mark.parametrize(("version", "count"), [("21", 194), ("22", 196)])
def test_every_tensor_has_its_place(version, count):
    given = load_golden(f"weights/vae{version}")
    assert len(given) == count
    placed = translate(given, VAE)
    assert placed.keys() == leaves(abstract_vae(original_codec(version))).keys()
    before, after = (np.concatenate([a.ravel() for a in d.values()]) for d in (given, placed))
    np.testing.assert_array_equal(np.sort(before), np.sort(after))
    group = "downsamples.1.downsamples.2" if version == "22" else "downsamples.5"
    np.testing.assert_array_equal(
        placed[f"encoder.{group}.time_conv.kernel"][2, 0, 0],
        given[f"encoder.{group}.time_conv.weight"][:, :, 2, 0, 0].T,
    )
    np.testing.assert_array_equal(
        placed["decoder.middle.2.norm2.gamma"],
        given["decoder.middle.2.residual.3.gamma"][:, 0, 0, 0],
    )


def test_the_weights_of_one_vae_do_not_fit_the_other():
    with pytest.raises(CheckpointError, match=r"weights do not fit the model: "):
        fill(abstract_vae(original_codec("22")), load_golden("weights/vae21"), VAE)


# ---- laws


@pytest.mark.slow
@pytest.mark.parametrize("half", ["encode", "decode"])
def test_memory_is_flat_in_the_number_of_frames(half):
    """Compiled for 9 and for 33 frames, beside what comes out; and the program is no longer."""
    vae = abstract_vae(original_codec("22"))

    def program(frames: int):
        shape = (frames, 64, 48, 3) if half == "encode" else (1 + frames // 4, 4, 3, 48)
        given = jax.ShapeDtypeStruct(shape, jnp.float32)
        return (encode if half == "encode" else decode).lower(vae, given)

    def memory(lowered) -> int:
        analysis = lowered.compile().memory_analysis()
        return analysis.temp_size_in_bytes - analysis.output_size_in_bytes

    short, long = program(9), program(33)
    assert memory(long) <= 1.01 * memory(short)
    assert len(long.as_text()) <= 1.001 * len(short.as_text())


def test_latents_depend_on_no_later_frame(golden):
    arrays = golden("vae/wan21")
    video = last(arrays["enc.video"])
    changed = video.at[9:].set(-video[9:])
    ours, theirs = (encode(original_vae("21"), v) for v in (video, changed))
    np.testing.assert_array_equal(ours[:3], theirs[:3])
    assert relative(ours[3], theirs[3]) > 1e-2


def test_one_compile_serves_all_videos_of_a_size(monkeypatch):
    vae, video = original_vae("21"), video_of("21", 1, 2, 2)
    encode(vae, video)

    def traced(*_, **__):
        raise AssertionError("compiled again")

    monkeypatch.setattr(Vae, "encode", traced)
    for i in range(2, 4):
        encode(jax.tree.map(lambda a, i=i: a * i, vae), video / i)


@pytest.mark.slow
def test_vmap_over_videos_equals_single_calls(golden):
    vae, latents = original_vae("21"), last(golden("vae/wan21")["dec.z"])
    both = jax.jit(jax.vmap(lambda vae, z: vae.decode(z, clamp=False), in_axes=(None, 0)))(
        vae, jnp.stack([latents, latents[::-1]])
    )
    assert relative(both[0], decode(vae, latents)) <= 5e-6
    assert relative(both[1], decode(vae, latents[::-1])) <= 5e-6


@pytest.mark.slow
def test_gradients_reach_every_weight_and_every_pixel():
    vae, video = original_vae("22"), video_of("22", 5, 1, 1)

    @jax.jit
    def gradient(vae: Vae, video):
        def loss(vae: Vae, video):
            # Whole, which is the same function (above) and a much smaller program to compile.
            latents = vae.encode(video, whole=True)
            return jnp.square(vae.decode(latents, whole=True, clamp=False) - video).mean()

        return jax.grad(loss, argnums=(0, 1))(vae, video)

    weights, pixels = gradient(vae, video)
    assert np.isfinite(pixels).all()
    assert (np.abs(pixels).max((1, 2)) > 0).all()
    for name, value in leaves(weights).items():
        assert np.isfinite(value).all(), name
        assert np.abs(value).max() > 0, name


def test_precision_does_not_depend_on_the_default():
    """Even where products are rounded by default, those of a VAE are not."""
    vae, video = original_vae("22"), video_of("22", 1, 1, 1)
    with jax.default_matmul_precision("bfloat16"):
        program = str(jax.make_jaxpr(lambda v, x: v.decode(v.encode(x)))(vae, video))
    assert "HIGHEST" in program
    assert "BF16" not in program
    assert "precision=None" not in program


def test_averages_and_copies_undo_each_other():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 6))
    copies = duplicated(x, 3, (2, 2))
    assert copies.shape == (4, 6, 8, 3)
    np.testing.assert_allclose(averaged(copies, 6, (2, 2)), x, atol=1e-6)
    alone = averaged(copies[:1], 6, (2, 2))
    np.testing.assert_allclose(
        alone, averaged(jnp.concatenate([0 * copies[:1], copies[:1]]), 6, (2, 2)), atol=1e-7
    )


# ---- tiles


@pytest.mark.slow
def test_one_tile_that_covers_everything_changes_nothing():
    vae, video = original_vae("21"), video_of("21", 1, 2, 2)
    assert relative(encode(vae, video, Tiles()), encode(vae, video)) <= 5e-6
    vae, latents = original_vae("22"), latents_of("22", 1, 2, 2)
    assert relative(decode(vae, latents, Tiles()), decode(vae, latents)) <= 5e-6


def by_hand(code, x, cells: tuple[int, int], tiles: Tiles, into: int, out: int):
    """Tiles coded and blended one by one, with weights by each pixel's distance from the border."""
    total, weights = 0.0, 0.0
    (high, wide), ramps = tiles.size, [o * out for o in tiles.overlap]
    ys, xs = (
        sorted({*range(0, n - size, size - overlap), n - size})
        for n, size, overlap in zip(cells, tiles.size, tiles.overlap, strict=True)
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
    vae, cells, tiles = original_vae("21"), (5, 4), Tiles((2, 3), (1, 1))
    video, latents = video_of("21", 1, *cells), latents_of("21", 2, *cells)
    expected = by_hand(partial(encode, vae), video, cells, tiles, 8, 1)
    assert relative(encode(vae, video, tiles), expected) <= 5e-6
    expected = by_hand(partial(decode, vae), latents, cells, tiles, 1, 8)
    assert relative(decode(vae, latents, tiles), expected) <= 5e-6


@pytest.mark.slow
def test_seams_are_small():
    """Across the borders of tiles, what tiling changed is about as smooth as elsewhere; without
    an overlap it is not."""
    vae, latents = original_vae("21"), latents_of("21", 1, 8, 8)
    whole = decode(vae, latents)

    def jumps(tiles: Tiles, borders: list[int]) -> tuple[float, float]:
        change = np.asarray(decode(vae, latents, tiles) - whole)
        steps = np.abs(np.diff(change, axis=1)).mean((0, 2, 3))
        there = [8 * b - 1 for b in borders]
        return steps[there].mean(), np.delete(steps, there).mean()

    blended, elsewhere = jumps(Tiles((4, 8), (2, 4)), [2, 4, 6])
    cut, _ = jumps(Tiles((4, 8), (0, 0)), [4])
    assert blended <= 2 * elsewhere
    assert cut >= 3 * blended


@pytest.mark.parametrize(
    ("size", "overlap"), [((0, 4), (0, 0)), ((4, 4), (4, 0)), ((4, 4), (0, -1))]
)
def test_impossible_tiles_are_refused(size, overlap):
    with pytest.raises(ValueError, match=r"an overlap is at least 0 and less than the size$"):
        Tiles(size, overlap)


# ---- errors


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((0, 32, 32, 3), r"1 or more frames .* not \(0, 32, 32, 3\)$"),
        ((1, 32, 32, 4), r"1 or more frames .* not \(1, 32, 32, 4\)$"),
        ((1, 36, 32, 3), r"^the height is 36 pixels; a VAE needs a multiple of 16$"),
        ((1, 32, 40, 3), r"^the width is 40 pixels; a VAE needs a multiple of 16$"),
        ((1, 32, 0, 3), r"^the width is 0 pixels; a VAE needs a multiple of 16$"),
    ],
)
def test_videos_that_cannot_be_encoded_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        original_vae("22").encode(jnp.zeros(shape))


@pytest.mark.parametrize("shape", [(0, 2, 2, 16), (1, 2, 0, 16), (1, 2, 2, 48)])
def test_latents_that_cannot_be_decoded_are_refused(shape):
    message = r"a VAE decodes 1 or more cells \[…, 16\], not"
    with pytest.raises(ValueError, match=message):
        original_vae("21").decode(jnp.zeros(shape))
