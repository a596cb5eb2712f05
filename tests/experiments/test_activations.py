"""Large activations: a channel that rules is found, and what it hides shows without it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcos.experiments.activations import Activations, Sizes, compared, largest
from jcos.lab.results import rows as rows_of
from jcos.sampling.probe import Site

pytestmark = pytest.mark.slow  # the whole experiment, once for all tests

SMALL = Activations(tasks=("maze", "rotation"), puzzles=12, largest=2)


def test_a_channel_that_rules_makes_strangers_alike() -> None:
    """One large channel, a ramp over tokens, in noise that is each puzzle's own."""
    tokens = np.random.default_rng(0).normal(size=(2, 1, 2, 1, 200, 16)).astype(np.float32)
    tokens[..., 5] += 50 * np.linspace(0, 2, 200)
    strength = np.abs(tokens.mean(4)).mean((0, 1, 2))
    top = largest(strength, 1)
    assert np.flatnonzero(top).tolist() == [5]
    random = largest(np.where(top, -1, np.arange(16.0)), 1)
    kept = ~np.stack([np.zeros_like(top), top, random])
    found = compared(tokens, kept, np.array([1, 0]), "puzzle seed step layer")
    similar = found["cka"][1].mean((1, 2, 3, 4, 5))
    assert similar[[0, 2]].min() > 0.99
    assert similar[1] < 0.2
    energy = found["energy"][1].mean((1, 2, 3, 4))
    assert energy[0] > 10 * energy[1]
    alone = compared(tokens[:1], kept, np.array([0]), "puzzle seed step layer")
    assert np.isnan(alone["cka"][1]).all()


def test_the_largest_token_and_its_frame_are_named() -> None:
    tokens = jnp.ones((6, 4)).at[3].set(3)
    number = jnp.int32(0)
    site = Site(number, number, number, jnp.float32(1), jax.random.key(0))
    *_, share, frame = Sizes(3).on_block(site, tokens)[1]
    assert (float(share), int(frame)) == (pytest.approx(9 / 14), 1)


def test_dataset_table_and_figures_are_complete(data) -> None:
    dataset, programs = data
    assert programs == 1
    sizes = {"puzzle": 24, "seed": 1, "step": 3, "layer": 2}  # of four steps, 0 and 0.2 are one
    assert dataset["share"].sizes == sizes
    assert ((dataset["share"] > 2 / 32 / 4) & (dataset["share"] < 1)).all()
    assert dataset["energy"].sizes == dataset["probe"].sizes == {"channels": 3, **sizes}
    every, without, _ = dataset["energy"].transpose("channels", ...)
    assert (without < every).all()
    np.testing.assert_allclose(dataset["frames"].mean("frame"), 1, atol=1e-4)
    later = every * (5 - dataset["frames"].sel(frame=0)) / 4  # of five frames
    np.testing.assert_allclose(dataset["later_energy"], later, rtol=1e-4)
    assert ((dataset["token"] > 1 / 125) & (dataset["token"] < 0.1)).all()
    assert dataset["token_frame"].isin(range(5)).all()
    rows = {(r.task, r.measure, r.case) for r in rows_of(dataset)}
    assert ("maze", "CKA", "without the largest, another puzzle, step 0, layer 1") in rows
    assert [name for name, _ in SMALL.figures(dataset)] == ["energy"]
