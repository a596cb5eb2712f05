"""Models that several files of tests share, and how far two results are apart.

Sizes of the original's tiny models are read from the golden files.
"""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcos.config import (
    FLOAT32,
    DiTConfig,
    Numerics,
    PixelCodec,
    Sampling,
    UMT5Config,
    VaeConfig,
    WanConfig,
    Words,
)
from jcos.model.dit import DiT
from jcos.model.text import UMT5
from jcos.model.vae import Vae
from jcos.sampling.probe import Probe, Site
from jcos.wan import Wan
from jcos.weights import names
from jcos.weights.checkpoint import abstract_model, leaves, with_leaves
from jcos.weights.released import open_released
from tests.conftest import GOLDEN, RELEASES, load_golden, load_release
from tests.translated import fill

# ---- a random model of the package's kind

STEPS, LAYERS, FRAMES, TOKENS = 4, 3, 3, 12
DIT = DiTConfig(
    dim=32,
    ffn_dim=48,
    heads=2,
    layers=LAYERS,
    in_channels=28,
    out_channels=12,
    text_dim=8,
    text_len=4,
    freq_dim=16,
)
CONFIG = WanConfig(
    "test",
    DIT,
    PixelCodec(),
    Words(("left", "right"), 8),
    Sampling(steps=STEPS, shift=3.0),
    image="concat",
)
DIVIDED = dataclasses.replace(
    CONFIG,
    dit=dataclasses.replace(DIT, ffn_dim=64, heads=8, layers=2),
    sampling=Sampling(steps=2, shift=3.0, guidance=(2.0,)),
)
"""Heads and widths that eight devices divide; 12 tokens, which they do not."""


def randomised(config: WanConfig, seed: int = 0) -> Wan:
    """A model in which no weight is zero: a head of zeros would hide what happens before it."""
    model, rng, weights = abstract_model(Wan, config), np.random.default_rng(seed), {}
    for name, leaf in leaves(model).items():
        noise = rng.standard_normal(leaf.shape, np.float32)
        weights[name] = (
            1 + 0.2 * noise if name.endswith("scale") else (1 if "table" in name else 0.3) * noise
        )
    return jax.device_put(with_leaves(model, weights))


def frame(seed: int) -> np.ndarray:
    """A first frame for it."""
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)


def at(step: int, sigma: float, last: jax.Array | None = None) -> Site:
    """A step of seed 0, outside the blocks."""
    key = jax.random.fold_in(jax.random.key(0), step)
    return Site(jnp.int32(step), jnp.int32(-1), jnp.int32(0), jnp.float32(sigma), key, last)


def kind(act: Callable[[Site, Any], Any], *sites: str) -> Probe:
    """A probe that defines the methods of these places: act(site, z)."""
    return type("Mine", (Probe,), {f"on_{s}": lambda self, site, z: act(site, z) for s in sites})()


# ---- the original's tiny models


def release_config(weights: str) -> WanConfig:
    """Of the release that has these weights (`conftest.RELEASES`)."""
    return open_released(GOLDEN / "ckpt" / RELEASES[weights].partition("/")[0]).config


@cache
def original_dit(weights: str, numerics: Numerics = FLOAT32) -> DiT:
    cfg = release_config(weights).dit
    abstract = abstract_model(DiT, cfg, numerics=numerics)
    return jax.device_put(fill(abstract, load_release(weights), names.DIT))


def original_codec(version: str) -> VaeConfig:
    """Of the VAE `21` or `22`."""
    codec = release_config({"21": "i2v_high", "22": "ti2v"}[version]).codec
    assert isinstance(codec, VaeConfig)
    return codec


def abstract_vae(config: VaeConfig) -> Vae:
    return abstract_model(Vae, config)


@cache
def original_vae(version: str) -> Vae:
    tensors = load_golden(f"weights/vae{version}")
    return jax.device_put(fill(abstract_vae(original_codec(version)), tensors, names.VAE))


def original_text_config() -> UMT5Config:
    config = release_config("i2v_high").text
    assert isinstance(config, UMT5Config)
    return config


def filled_text(cfg: UMT5Config, tensors: dict[str, np.ndarray], dtype: str = "float32") -> UMT5:
    """An encoder with these tensors, by the original's names."""
    abstract = abstract_model(UMT5, cfg, dtype=dtype)
    return jax.device_put(fill(abstract, tensors, names.UMT5))


@cache
def original_text(dtype: str = "float32") -> UMT5:
    return filled_text(original_text_config(), load_golden("weights/umt5"), dtype)


# ---- errors


def relative(found, want) -> float:
    """The largest error, relative to the largest value."""
    found, want = np.asarray(found, np.float64), np.asarray(want, np.float64)
    assert found.shape == want.shape
    return float(np.abs(found - want).max() / np.abs(want).max())


def rms(a) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(a, np.float64)))))


def close(found, want, tolerance: float = 2e-5) -> None:
    """Assert that no error is larger than this, relative to the largest value."""
    found, want = np.asarray(found), np.asarray(want)
    np.testing.assert_allclose(found, want, rtol=0, atol=tolerance * float(np.abs(want).max()))
