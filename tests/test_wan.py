"""Whole models: from picture and prompt to video, equal to the original's loops."""

import dataclasses
import inspect
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jcos import generation, loop, wan
from jcos.config import PixelCodec, Sampling, WanConfig
from jcos.media import image
from jcos.model.vae import Vae
from jcos.sampling import trajectory
from jcos.sampling.noise import seed_rows
from jcos.sampling.probes import Noise
from jcos.wan import Wan
from tests.conftest import GOLDEN, load_golden
from tests.models import original_vae, relative, release_config

DIT = release_config("i2v_high").dit
FOLDERS = {
    "i2v": ("Wan2.2-I2V-A14B", "21"),
    "ti2v": ("Wan2.2-TI2V-5B", "22"),
    "t2v": ("Wan2.1-T2V-1.3B", "21"),
}


@cache
def released(kind: str) -> Wan:
    """The original's tiny weights, in float32."""
    folder, version = FOLDERS[kind]
    model = wan.load(GOLDEN / "ckpt" / folder, profile="float32", text=False, vae=False)
    model.vae = original_vae(version)
    return model


def channels_last(a: np.ndarray) -> np.ndarray:
    return np.moveaxis(a, 0, -1)


SEEDS = {"i2v_unipc6": 1234, "ti2v_i2v_unipc4": 77}
"""Those whose noise the original's loops begin with."""


def play(model: Wan, name: str, condition, sampling: Sampling):
    """A loop by its seed alone where that is known, else from its noise; step by step, which is
    one program for all loops, but for DPM++: its steps are one program."""
    seeds, noise = (0,), channels_last(load_golden(f"loops/{name}")["noise"])[None]
    if name in SEEDS:
        seeds, noise = (SEEDS[name],), None
    on_step = None if name == "i2v_dpmpp5" else lambda _: None
    how = {"sampling": sampling, "noise": noise, "on_step": on_step}
    return generation.generate(model, condition, seeds, **how)


@jax.jit
def decoded(vae: Vae, latents: jax.Array) -> jax.Array:
    return vae.decode(latents)


def clean_estimates(golden: dict[str, np.ndarray], steps: int) -> np.ndarray:
    return np.stack([channels_last(golden[f"step_{i:02d}.x0_hat"]) for i in range(steps)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sampling", "boundary"),
    [
        ("i2v_unipc6", Sampling(6, 5.0, "unipc", "unipc"), 0.9),
        ("i2v_dpmpp5", Sampling(5, 3.0, "dpmpp", "dpmpp"), 0.9),
        ("i2v_euler6", Sampling(6, 5.0, "euler", "euler", (5.0, 5.0)), 0.875),
    ],
)
def test_image_to_video_equals_the_original_step_by_step(name, sampling, boundary):
    """Condition 1e-5, every clean estimate and the end 5e-6, decoded video 3e-5 of the largest."""
    model, golden = released("i2v"), load_golden(f"loops/{name}")
    picture = load_golden("loops/i2v_unipc6")["in.image_u8"]
    if "guide_scale_low_high" in golden:
        low, high = golden["guide_scale_low_high"].tolist()
        sampling = dataclasses.replace(sampling, guidance=(high, low))
    first = image.prepare(picture, image.rule_for(model.config), 80, 64)
    condition = model.condition(first, golden["in.context"], 9, negative=golden["in.context_null"])
    assert relative(condition.channels, channels_last(golden["in.y"])) <= 1e-5
    exact = condition.replace(channels=jnp.asarray(channels_last(golden["in.y"])))
    config = model.config
    model.config = dataclasses.replace(config, boundary=boundary)
    try:
        trace = play(model, name, exact, sampling)
    finally:
        model.config = config
    for found, want in zip(trace.x0[0], clean_estimates(golden, sampling.steps), strict=True):
        assert relative(found, want) <= 5e-6
    last = golden.get("final_latent", golden[f"step_{sampling.steps - 1:02d}.latent_out"])
    assert relative(trace.latents[0], channels_last(last)) <= 5e-6
    if "video" in golden:
        assert model.vae is not None
        video = decoded(model.vae, trace.latents[0])
        assert relative(video, channels_last(golden["video"])) <= 3e-5
        written = model.decode(trace.latents[0])
        assert written.shape == (9, 80, 48, 3)
        assert written.dtype == np.uint8
        exact = (np.asarray(video, np.float64) + 1) * 127.5
        assert ((written <= exact + 0.01) & (written >= exact - 1.01)).all()  # truncated


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps", "pictured"), [("ti2v_i2v_unipc4", 4, True), ("ti2v_t2v_unipc3", 3, False)]
)
def test_text_and_image_to_video_equals_the_original(name, steps, pictured):
    model, golden = released("ti2v"), load_golden(f"loops/{name}")
    sampling = Sampling(steps, 5.0, "unipc", "unipc", (5.0,))
    first = None
    if pictured:
        first = image.prepare(golden["in.image_u8"], image.rule_for(model.config), 64, 96)
    condition = model.condition(
        first, golden["in.context"], 5, negative=golden["in.context_null"], size=(64, 96)
    )
    if pictured:
        assert relative(condition.first, channels_last(golden["in.z_first"])) <= 1e-5
    trace = play(model, name, condition, sampling)
    given = int(pictured)  # the given frame's own estimate means nothing
    for found, want in zip(trace.x0[0], clean_estimates(golden, steps), strict=True):
        assert relative(found[given:], want[given:]) <= 5e-6
        if pictured:
            np.testing.assert_array_equal(found[:1], condition.first)
    if pictured:
        assert model.vae is not None
        early, alone = (decoded(model.vae, a)[0] for a in (trace.x0[0, 0], condition.first))
        assert relative(early, alone) <= 1e-5
    assert relative(trace.latents[0], channels_last(golden["final_latent"])) <= 5e-6
    if "video" in golden:
        assert model.vae is not None
        video = decoded(model.vae, trace.latents[0])
        assert relative(video, channels_last(golden["video"])) <= 3e-5


@pytest.mark.slow
def test_several_frames_are_given_beside_the_noise() -> None:
    """Mask as the original builds it for one frame, here for n; grey frames behind the clip."""
    model, rng = released("i2v"), np.random.default_rng(0)
    clip = rng.integers(0, 256, (5, 64, 48, 3), np.uint8)
    rows = load_golden("loops/i2v_unipc6")["in.context"]
    condition = model.condition(clip, rows, 9, negative=rows)
    mask = np.ones((1, 9, 8, 6))
    mask[:, 5:] = 0
    mask = np.concatenate([np.repeat(mask[:, :1], 4, 1), mask[:, 1:]], 1)
    mask = mask.reshape(3, 4, 8, 6).transpose(0, 2, 3, 1)  # F, h, w, 4
    assert condition.channels is not None
    np.testing.assert_array_equal(condition.channels[..., :4], mask)
    grey = np.concatenate([clip / np.float32(127.5) - 1, np.zeros((4, 64, 48, 3), np.float32)])
    assert relative(condition.channels[..., 4:], model.encode(grey)) <= 1e-6
    one = model.condition(clip[0], rows, 9, negative=rows).channels
    same = model.condition(clip[:1], rows, 9, negative=rows).channels
    np.testing.assert_array_equal(one, same)
    # Latents are given as the frames that they decode to.
    latents = model.encode(clip)
    again = model.continued(condition, latents).channels
    want = model.condition(model.decode(latents), rows, 9, negative=rows).channels
    np.testing.assert_array_equal(again, want)


@pytest.mark.slow
def test_several_frames_are_kept_in_place() -> None:
    """TI2V: the clip's latents, at timestep 0, in every estimate; chained, the last ones."""
    model, rng = released("ti2v"), np.random.default_rng(0)
    clip = rng.integers(0, 256, (5, 64, 64, 3), np.uint8)
    rows = load_golden("loops/ti2v_t2v_unipc3")["in.context"]
    condition = model.condition(clip, rows, 9, negative=rows)
    assert condition.first is not None
    assert relative(condition.first, model.encode(clip)) <= 1e-6
    sampling = dataclasses.replace(model.config.sampling, steps=2)
    trace = generation.generate(model, condition, [0], sampling=sampling)
    for x0 in trace.x0[0]:
        np.testing.assert_array_equal(x0[:2], condition.first)
    after = model.chained(condition, trace.latents[0], 2)
    video = model.decode(trace.latents[0])
    assert relative(after.first, model.encode(video[-5:])) <= 1e-6


def conditioned(kind: str, first, frames: int, size=None):
    """A condition of a picture, or of a clip, of this shape."""
    model = released(kind)
    rows = np.zeros((3, model.config.dit.text_dim), np.float32)
    pixels = first and np.zeros((*first, 3), np.uint8)
    return model.condition(pixels, rows, frames, negative=rows, size=size)


def without_codec() -> Wan:
    config = WanConfig("bare", released("i2v").config.dit, None, None, Sampling())
    return jax.eval_shape(lambda: Wan(config, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: conditioned("i2v", None, 9, (80, 48)), "of a first frame; none is given"),
        (lambda: conditioned("i2v", (80, 48), 8), "8 frames"),
        (lambda: conditioned("i2v", (80, 47), 9), "width is 47 pixels; .* a multiple of 16"),
        (lambda: conditioned("i2v", (80, 48), 9, (48, 80)), "the first frame has size"),
        (lambda: conditioned("i2v", (3, 64, 48), 9), "1 to 5, 1 more than a multiple of 4"),
        (lambda: conditioned("i2v", (9, 64, 48), 9), "9 frames are given of 9"),
        (lambda: conditioned("ti2v", None, 5), "the size of the video must be given"),
        (lambda: conditioned("ti2v", None, 5, (48, 96)), "height is 48 .* a multiple of 32"),
        (lambda: conditioned("t2v", (32, 32), 5), "of a text alone; it takes no first frame"),
        (lambda: released("i2v").embed("a cat"), "without a text encoder; give embedded prompts"),
        (
            lambda: released("i2v").embed(np.zeros((DIT.text_len + 1, DIT.text_dim), np.float32)),
            rf"{DIT.text_len} rows of {DIT.text_dim}; .*\({DIT.text_len + 1}, {DIT.text_dim}",
        ),
        (lambda: without_codec().decode(jnp.zeros((1, 2, 2, 16))), "comes without a codec"),
    ],
)
def test_what_makes_no_video_is_refused(call, says):
    with pytest.raises(ValueError, match=says) as error:
        call()
    assert len(str(error.value)) <= 600


def test_a_picture_of_floats_out_of_range_is_refused(small_model):
    colours = np.full((20, 20, 3), 200.0, np.float32)
    for call in (small_model.condition, lambda picture, *_: small_model.encode(picture[None])):
        with pytest.raises(ValueError, match=r"in −1\.\.1; this one reaches 200"):
            call(colours, "", 5)


def test_rows_of_seeds_are_arrays_or_lists():
    for rows in (np.array([[0, 1], [2, 3]]), [range(2), (2, 3)]):
        assert seed_rows(rows) == [[0, 1], [2, 3]]
    assert seed_rows(jnp.arange(2)) == [[0, 1]]
    assert seed_rows(np.int64(3)) == seed_rows(np.array(3)) == [[3]]


@pytest.mark.slow
def test_noise_has_the_latents_shape_and_any_bits(small_model):
    condition = small_model.condition(np.zeros((20, 20, 3), np.uint8), "", 5)
    noise = np.ones((1, 5, 10, 10, 12), jnp.bfloat16)
    found, want = (
        generation.generate(small_model, condition, noise=n, sampling=Sampling(steps=1)).latents
        for n in (noise, noise.astype(np.float32))
    )
    np.testing.assert_array_equal(found, want)
    for wrong in (noise[:, :, :-1], np.concatenate([noise, noise])):
        for call in (generation.generate, loop.steps):
            with pytest.raises(ValueError, match=r"1 seed\(s\) of this video need \(1, 5, 10, "):
                call(small_model, condition, noise=wrong)


def test_seeds_may_stand_in_a_sweep():
    """Numbers of Python's, also where all else is traced."""
    model = released("ti2v")
    rows = np.zeros((4, model.config.dit.text_dim), np.float32)
    condition = model.condition(None, rows, 5, negative=rows, size=(64, 96))
    masks = jnp.zeros((2, 2, 2))

    def latents(mask):
        sampling, probe = Sampling(2), Noise(mask)
        return generation.generate(model, condition, (1, 2), probe=probe, sampling=sampling).latents

    swept = jax.eval_shape(lambda masks: trajectory.sweep(latents, masks), masks)
    assert swept.shape == (2, 2, 2, 4, 6, 48)
    with pytest.raises(ValueError, match="noise is 'numpy'"):
        generation.generate(model, condition, noise="numpy")


@pytest.mark.slow
def test_bfloat16_latents_are_rounded_after_every_step():
    model = released("ti2v")
    numerics = dataclasses.replace(model.config.numerics, latents="bfloat16")
    model = jax.tree.map(lambda a: a, model)
    for expert in model.experts:
        expert.numerics = numerics
    name = "ti2v_t2v_unipc3"
    rows = load_golden(f"loops/{name}")["in.context"]
    condition = model.condition(None, rows, 5, negative=rows, size=(64, 96))
    trace = play(model, name, condition, Sampling(3, 5.0, "euler", "euler", (5.0,)))
    latents = np.asarray(trace.latents)
    assert (latents == latents.astype(jnp.bfloat16).astype(np.float32)).all()


def test_the_pixel_codec_pictures_come_back(small_model):
    assert isinstance(small_model.codec, PixelCodec)
    video = np.random.default_rng(0).integers(0, 256, (5, 20, 20, 3), np.uint8)
    np.testing.assert_array_equal(small_model.decode(small_model.encode(video)), video)
    signed = video.astype(np.float32) / 127.5 - 1
    np.testing.assert_array_equal(small_model.decode(small_model.encode(signed)), video)
    of_floats, of_levels = (small_model.condition(v[0], "", 5) for v in (signed, video))
    np.testing.assert_allclose(of_floats.channels, of_levels.channels, atol=1e-5)
    with pytest.raises(ValueError, match="this is int64"):
        inspect.unwrap(Wan.condition)(small_model, video[0].astype(np.int64), "", 5)
