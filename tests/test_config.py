"""Configurations: sizes of the released models to the unit, round trips, refusals."""

import dataclasses
import json
from typing import get_args

import jax
import pytest
from flax import nnx

from jcos.config import (
    FLOAT32,
    OFFICIAL,
    DiTConfig,
    PixelCodec,
    Sampling,
    WanConfig,
    Words,
    from_json,
    to_json,
)
from jcos.model.dit import DiT
from jcos.sampling.flow import plan
from jcos.variants import VARIANTS, Profile, toy, with_profile
from jcos.wan import Wan
from jcos.weights.checkpoint import leaves
from tests.conftest import parameter_count

# What the released files hold: parameters of one expert, experts, tensors of one expert.
RELEASED = {
    "wan2.2-t2v-a14b": (14_288_491_584, 2, 1095),
    "wan2.2-i2v-a14b": (14_288_901_184, 2, 1095),
    "wan2.2-ti2v-5b": (4_999_787_712, 1, 825),
    "wan2.1-t2v-1.3b": (1_418_996_800, 1, 825),
    "wan2.1-t2v-14b": (14_288_491_584, 1, 1095),
    "wan2.1-i2v-14b-480p": (16_394_878_784, 1, 1303),
    "wan2.1-i2v-14b-720p": (16_394_878_784, 1, 1303),
}
SMALL = DiTConfig(dim=8, ffn_dim=8, heads=2, layers=1, in_channels=4, out_channels=4)


@pytest.mark.parametrize("name", RELEASED)
def test_parameter_counts_equal_the_releases_to_the_unit(name):
    count, experts, tensors = RELEASED[name]
    config = VARIANTS[name]()
    dit = jax.eval_shape(lambda: DiT(config.dit, rngs=nnx.Rngs(0)))
    assert parameter_count(dit) == count
    blocks = [leaf for path, leaf in leaves(dit).items() if path.startswith("blocks.")]
    assert all(leaf.shape[0] == config.dit.layers for leaf in blocks)
    assert len(leaves(dit)) - len(blocks) + config.dit.layers * len(blocks) == tensors
    assert config.experts == experts
    whole = jax.eval_shape(lambda: Wan(config, rngs=nnx.Rngs(0)))
    assert parameter_count(whole.experts) == experts * count
    assert parameter_count(whole.text) == 5_680_910_336
    assert parameter_count(whole.vae) == (704_688_668 if "5b" in name else 126_892_531)


def test_another_number_of_steps_takes_the_place_of_explicit_sigmas():
    config = VARIANTS["wan2.2-i2v-a14b"]()
    distilled = dataclasses.replace(
        config, sampling=config.sampling_with(sigmas=(1000, 750, 500, 250))
    )
    assert distilled.sampling.steps == 4
    changed = distilled.sampling_with(steps=7)
    assert (changed.steps, changed.sigmas) == (7, None)
    assert distilled.sampling_with(grid="euler").sigmas is None
    for more in ({"steps": 7}, {"grid": "euler"}):
        with pytest.raises(ValueError, match="sigmas"):
            config.sampling_with(sigmas=(1.0, 0.5), **more)


def test_every_released_model_is_listed():
    assert VARIANTS.keys() == {*RELEASED, "jcos-tiny"}
    assert all(make().name == name for name, make in VARIANTS.items())


@pytest.mark.parametrize(
    ("name", "steps", "shift", "guidance", "boundary", "image"),
    [
        ("wan2.2-t2v-a14b", 40, 12.0, (4.0, 3.0), 0.875, "none"),
        ("wan2.2-i2v-a14b", 40, 5.0, (3.5, 3.5), 0.9, "concat"),
        ("wan2.2-ti2v-5b", 50, 5.0, (5.0,), None, "pin"),
        ("wan2.1-t2v-1.3b", 50, 5.0, (5.0,), None, "none"),
        ("wan2.1-t2v-14b", 50, 5.0, (5.0,), None, "none"),
        ("wan2.1-i2v-14b-480p", 40, 3.0, (5.0,), None, "concat"),
        ("wan2.1-i2v-14b-720p", 40, 5.0, (5.0,), None, "concat"),
        ("jcos-tiny", 50, 3.0, None, None, "repeat"),
    ],
)
def test_sampling_defaults_are_their_authors(name, steps, shift, guidance, boundary, image):
    config = VARIANTS[name]()
    sampling = config.sampling
    assert (sampling.steps, sampling.shift, sampling.guidance) == (steps, shift, guidance)
    assert (config.boundary, config.image) == (boundary, image)
    assert sampling.guidance is None or len(sampling.guidance) == config.experts
    assert sampling.solver == sampling.grid == ("euler" if name == "jcos-tiny" else "unipc")


def test_heads_of_the_released_models_are_128_wide():
    assert {VARIANTS[name]().dit.head_dim for name in RELEASED} == {128}


@pytest.mark.parametrize("name", VARIANTS)
def test_json_and_back_is_the_same_and_still_hashable(name):
    config = VARIANTS[name]()
    back = from_json(json.loads(json.dumps(to_json(config))))
    assert back == config
    assert hash(back) == hash(config)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("profile", get_args(Profile))
def test_every_profile_is_a_configuration(name, profile):
    config = with_profile(VARIANTS[name](), profile)
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


def test_profiles_are_what_their_codes_run():
    i2v = VARIANTS["wan2.2-i2v-a14b"]()
    assert with_profile(i2v, "official") == i2v
    paper = with_profile(i2v, "diffsynth")
    sampling = paper.sampling
    assert (sampling.solver, sampling.steps, sampling.shift) == ("euler", 50, 5.0)
    assert (sampling.guidance, paper.boundary) == ((5.0, 5.0), 0.875)
    # Of its 50 steps, 21 are above the boundary; 18 would be above the original's 0.9.
    assert plan(sampling, paper.boundary).high_steps == 21
    assert plan(sampling, 0.9).high_steps == 18
    assert with_profile(i2v, "diffusers").negative == ""


def test_json_keeps_the_vocabulary():
    config = toy(("left", "right"))
    assert from_json(json.loads(json.dumps(to_json(config)))).text == config.text


def test_json_with_an_unknown_or_a_missing_field_is_refused():
    data = to_json(toy())
    with pytest.raises(TypeError, match="colour"):
        from_json({**data, "colour": "red"})
    with pytest.raises(TypeError, match="colour"):
        from_json({**data, "dit": {**data["dit"], "colour": "red"}})
    with pytest.raises(TypeError, match="dit"):
        from_json({key: value for key, value in data.items() if key != "dit"})


def test_json_with_an_impossible_value_is_refused():
    data = to_json(toy())
    with pytest.raises(ValueError, match="layers is 0"):
        from_json({**data, "dit": {**data["dit"], "layers": 0}})


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(DiTConfig)[:9]])
@pytest.mark.parametrize("value", [0, -2])
def test_a_size_below_one_is_refused(field, value):
    message = rf"^DiTConfig\.{field} is {value}; it must be positive$"
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **{field: value})


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match=r"^DiTConfig: dim 8 is not a multiple of heads 3$"):
        dataclasses.replace(SMALL, heads=3)


@pytest.mark.parametrize(
    ("change", "head", "freq"), [({"dim": 6}, 3, 256), ({"freq_dim": 7}, 4, 7)]
)
def test_odd_widths_cannot_be_rotated(change, head, freq):
    message = rf"^head size {head} and freq_dim {freq} must be even$"
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


def test_tokens_count_patches():
    assert SMALL.tokens(5, 10, 14) == (5, 5, 7)
    assert dataclasses.replace(SMALL, patch=(2, 1, 3)).tokens(4, 5, 6) == (2, 5, 2)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((5, 11, 14), "latent height is 11, no positive multiple of 2"),
        ((5, 10, 13), "latent width is 13, no positive multiple of 2"),
        ((0, 10, 14), "latent frames is 0, no positive multiple of 1"),
        ((5, -2, 14), "latent height is -2, no positive multiple of 2"),
    ],
)
def test_a_latent_that_patches_do_not_cover_is_refused(size, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        SMALL.tokens(*size)


def test_the_toy_model_is_small_and_consistent():
    config = toy(("left", "right"))
    assert config.codec is not None
    assert config.text == Words(("left", "right"), config.dit.text_dim)
    assert config.codec.channels == config.dit.out_channels == 12
    assert config.dit.in_channels == 12 + 4 + 12  # latent, mask, first frame
    assert config.experts == 1
    model = jax.eval_shape(lambda: Wan(config, rngs=nnx.Rngs(0)))
    assert 1e6 < parameter_count(model) < 3e6


def test_configurations_cannot_be_changed_in_place():
    for config in (toy(), SMALL, Sampling(), PixelCodec(), FLOAT32):
        field = dataclasses.fields(config)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field, 1)


def test_two_experts_are_two_trees_of_weights():
    config = WanConfig("pair", SMALL, None, None, Sampling(), boundary=0.9)
    model = jax.eval_shape(lambda: Wan(config, rngs=nnx.Rngs(0)))
    first, second = (
        {path.split(".", 2)[2] for path in leaves(model) if path.startswith(f"experts.{i}.")}
        for i in range(2)
    )
    assert first == second != set()
    assert parameter_count(model) == 2 * parameter_count(model.experts[0])


def test_official_numerics_differ_from_float32_in_the_matrix_products_alone():
    assert dataclasses.replace(OFFICIAL, linear="float32", text="float32") == FLOAT32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dataclasses.replace(SMALL, patch=(1, 0, 2)), "must be positive"),
        (lambda: dataclasses.replace(SMALL, eps=-1.0), "must be positive"),
        (lambda: PixelCodec(stride=0), "must be positive"),
        (lambda: dataclasses.replace(toy(), boundary=900.0), "between 0 and 1"),
        (
            lambda: dataclasses.replace(toy(), boundary=0.9, sampling=Sampling(guidance=(5.0,))),
            "1 scales; jcos-tiny has 2 expert",
        ),
    ],
)
def test_impossible_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
