"""Configurations: sizes of the released models to the unit, round trips, refusals."""

import dataclasses
import json
from typing import Any, get_args

import jax
import numpy as np
import pytest
from flax import nnx

from jcos.config import FLOAT32, OFFICIAL, DiTConfig, Sampling, UMT5Config, from_json, to_json
from jcos.model.dit import DiT
from jcos.model.vae import Vae
from jcos.sampling.flow import plan
from jcos.variants import VARIANTS, Profile, toy, vae_2_1, vae_2_2, with_profile
from jcos.weights.checkpoint import abstract_model, leaves
from tests.conftest import parameter_count

# What the released files hold: parameters of one expert, experts, tensors of one expert.
RELEASED = {
    "wan2.2-t2v-a14b": (14_288_491_584, 2, 1095),
    "wan2.2-i2v-a14b": (14_288_901_184, 2, 1095),
    "wan2.2-ti2v-5b": (4_999_787_712, 1, 825),
    "wan2.1-t2v-1.3b": (1_418_996_800, 1, 825),
    "wan2.1-t2v-14b": (14_288_491_584, 1, 1095),
    "wan2.1-i2v-14b": (16_394_878_784, 1, 1303),
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
    assert (config.experts, config.dit.head_dim) == (experts, 128)
    assert config.text == UMT5Config()  # counted in test_text
    assert config.codec == (vae_2_2() if "5b" in name else vae_2_1())


@pytest.mark.parametrize(("codec", "count"), [(vae_2_1(), 126_892_531), (vae_2_2(), 704_688_668)])
def test_parameter_counts_of_the_vaes_equal_the_releases(codec, count):
    assert parameter_count(abstract_model(Vae, codec)) == count


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


@pytest.mark.parametrize("guidance", [5, np.float32(5), (5,), np.array([5])])
@pytest.mark.parametrize("name", ["wan2.2-i2v-a14b", "wan2.2-ti2v-5b"])
def test_one_scale_serves_all_experts(name, guidance):
    config = VARIANTS[name]()
    timesteps: Any = np.array([1000, 500])
    sampling = Sampling(guidance=guidance, sigmas=timesteps)
    assert sampling.sigmas == (1.0, 0.5)
    want = (5.0,) * config.experts
    assert config.sampling_with(guidance=guidance).guidance == want
    assert dataclasses.replace(config, sampling=sampling).sampling.guidance == want
    np.testing.assert_array_equal(plan(sampling, config.boundary).guidance, want)
    with pytest.raises(ValueError, match="guidance has 3 scales; this model has"):
        plan(Sampling(guidance=(1, 2, 3)), config.boundary)


@pytest.mark.parametrize(
    ("name", "steps", "shift", "guidance", "boundary", "image"),
    [
        ("wan2.2-t2v-a14b", 40, 12.0, (4.0, 3.0), 0.875, "none"),
        ("wan2.2-i2v-a14b", 40, 5.0, (3.5, 3.5), 0.9, "concat"),
        ("wan2.2-ti2v-5b", 50, 5.0, (5.0,), None, "pin"),
        ("wan2.1-t2v-1.3b", 50, 5.0, (5.0,), None, "none"),
        ("wan2.1-t2v-14b", 50, 5.0, (5.0,), None, "none"),
        ("wan2.1-i2v-14b", 40, 5.0, (5.0,), None, "concat"),
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


@pytest.mark.parametrize("name", VARIANTS)
def test_json_and_back_is_the_same_and_still_hashable(name):
    config = VARIANTS[name]()
    profiles = [with_profile(config, profile) for profile in get_args(Profile)]
    for one in (config, toy(("left", "right")), *profiles):
        back = from_json(json.loads(json.dumps(to_json(one))))
        assert back == one
        assert hash(back) == hash(one)


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
    # Official numerics differ from float32 in the matrix products alone.
    assert dataclasses.replace(OFFICIAL, linear="float32", text="float32") == FLOAT32


def read(**changes):
    """The toy model's JSON, with other fields."""
    return from_json({**to_json(toy()), **changes})


def small(**changes):
    return dataclasses.replace(SMALL, **changes)


DIT = to_json(toy())["dit"]
REFUSED = [
    (lambda: small(heads=3), "^DiTConfig: dim 8 is not a multiple of heads 3$"),
    (lambda: small(dim=6), "^head size 3 and freq_dim 256 must be even$"),
    (lambda: SMALL.tokens(5, 11, 14), "^latent height is 11, no positive multiple of 2$"),
    (lambda: SMALL.tokens(0, 10, 14), "^latent frames is 0, no positive multiple of 1$"),
    (lambda: dataclasses.replace(toy(), boundary=900.0), "between 0 and 1"),
    (
        lambda: dataclasses.replace(toy(), boundary=0.9, sampling=Sampling(guidance=(5, 4, 3))),
        "3 scales; this model has 2 expert",
    ),
    (lambda: read(dit={**DIT, "colour": "red"}), "colour"),
    (lambda: from_json({k: v for k, v in to_json(toy()).items() if k != "dit"}), "dit"),
]


@pytest.mark.parametrize(("call", "says"), REFUSED)
def test_impossible_configurations_are_refused(call, says):
    with pytest.raises((ValueError, TypeError), match=says):
        call()
