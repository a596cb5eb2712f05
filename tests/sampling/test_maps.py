"""Attention in numbers equals what the full map says, at a size that has one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcos.generation import generate
from jcos.sampling import maps
from jcos.sampling.maps import AttentionMass
from jcos.sampling.probes import Probe, chain
from jcos.wan import Wan
from tests.models import CONFIG, FRAMES, STEPS, TOKENS, close, frame

GRID = (FRAMES, 2, 2)
HEADS = CONFIG.dit.heads


class Map(Probe):
    """The whole map."""

    def on_attention(self, site, qk):
        scores = jnp.einsum("nhd,mhd->hnm", *qk) * qk[0].shape[-1] ** -0.5
        return qk, jax.nn.softmax(scores)


@pytest.mark.slow
@pytest.mark.parametrize("weights", [maps.WEIGHTS, 5 * HEADS * TOKENS])
def test_mass_and_entropy_are_those_of_the_map(model: Wan, weights: int, monkeypatch) -> None:
    """Also five queries at a time; no query, key or layer is lost or counted twice."""
    monkeypatch.setattr(maps, "WEIGHTS", weights)
    regions = np.stack([np.arange(TOKENS) < 4, np.arange(TOKENS) == 7, np.ones(TOKENS, bool)])
    some = AttentionMass.between(regions[:2], regions, [2, 0])
    frames, few = (AttentionMass.by_frame(GRID, [1], every=every) for every in (1, 3))
    condition = model.condition(frame(0), "left", FRAMES)
    trace = generate(model, condition, (0, 1), probe=chain(Map(), some, frames, few))
    full, *seen = trace.block_obs
    entropy = -(full * jnp.log(full)).sum(-1)
    close(seen[0]["mass"][..., 2], jnp.ones((2, STEPS, 2, HEADS, 2)))
    for slot, layer in enumerate((2, 0)):
        here = full[:, :, layer]
        for g, queries in enumerate(regions[:2]):
            mean = here[..., queries, :].mean(-2)
            close(seen[0]["mass"][:, :, slot, :, g], mean @ regions.T.astype(np.float32))
            mean = entropy[:, :, layer][..., queries].mean(-1)
            close(seen[0]["entropy"][:, :, slot, :, g], mean)
    by_frame = full[:, :, 1].reshape(2, STEPS, HEADS, FRAMES, 4, FRAMES, 4).sum(-1)
    assert seen[1]["mass"].shape == (2, STEPS, 1, HEADS, FRAMES, FRAMES)
    close(seen[1]["mass"][:, :, 0], by_frame.mean(-2))
    rows = full[:, :, 1][..., ::3, :].reshape(2, STEPS, HEADS, 4, FRAMES, 4).sum(-1)
    in_frame = [jnp.stack([rows[..., [0, 1], :].mean(-2), rows[..., 2, :], rows[..., 3, :]], -2)]
    close(seen[2]["mass"][:, :, 0], in_frame[0])


def test_what_does_not_fit_is_refused(model: Wan) -> None:
    condition = model.condition(frame(0), "left", FRAMES)
    with pytest.raises(ValueError, match="made for 16 tokens; this run has 12"):
        generate(model, condition, probe=AttentionMass.by_frame((4, 2, 2), [0]))
    with pytest.raises(IndexError, match="layer 9 is out of range"):
        generate(model, condition, probe=AttentionMass.by_frame(GRID, [9]))
    with pytest.raises(ValueError, match="every is 9; a frame has 4 tokens"):
        AttentionMass.by_frame(GRID, [0], every=9)
    none = np.zeros(TOKENS, bool)
    with pytest.raises(ValueError, match="region 1 of queries has no token"):
        AttentionMass.between(np.stack([~none, none]), np.stack([none]), [0])
    for queries in (~none, np.stack([~none])[:, 1:]):
        with pytest.raises(ValueError, match=r"queries and of keys are .* both are \[regions, N\]"):
            AttentionMass.between(queries, np.stack([~none]), [0])
    with pytest.raises(ValueError, match=r"AttentionMass.layers holds float32 values"):
        AttentionMass.by_frame(GRID, [0.5])
