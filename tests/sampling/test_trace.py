"""A trace on disk, and as a dataset with named axes."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import jcos
from jcos.config import OFFICIAL
from jcos.generation import generate
from jcos.sampling import trajectory
from jcos.sampling.probes import States, TokenEnergy, chain
from jcos.sampling.trace import OUTLINE, digest, model_digest
from jcos.weights.checkpoint import CheckpointError
from tests.models import CONFIG, LAYERS, STEPS, TOKENS


def test_what_is_loaded_is_what_was_saved(model, condition, tmp_path) -> None:
    trace = generate(model, condition, (0, 1), probe=chain(TokenEnergy(), States()))
    trace.save(tmp_path / "trace")
    found = jcos.Trace.load(tmp_path / "trace")
    for name in ("latents", "x0", "finite", "layer", "sigma", "timestep"):
        np.testing.assert_array_equal(getattr(found, name), getattr(trace, name))
    np.testing.assert_array_equal(found.block_obs[0], trace.block_obs[0])
    np.testing.assert_array_equal(found.estimate_obs[1], trace.estimate_obs[1])
    with pytest.raises(FileExistsError, match="trace"):
        trace.save(tmp_path / "trace")


def test_a_folder_that_is_no_whole_trace_is_refused(model, condition, tmp_path) -> None:
    generate(model, condition).save(tmp_path / "trace")
    outline = tmp_path / "trace" / OUTLINE
    content = json.loads(outline.read_text())
    outline.write_text(json.dumps(content | {"about": {}}))
    with pytest.raises(CheckpointError, match="trace"):
        jcos.Trace.load(tmp_path / "trace")
    outline.unlink()
    for folder in (tmp_path / "trace", tmp_path / "none", tmp_path):
        with pytest.raises(CheckpointError, match=folder.name):
            jcos.Trace.load(folder)


def test_a_digest_reads_masks_whole_and_no_addresses() -> None:
    mask = np.zeros((4, 300_000), bool)
    other = mask.copy()
    other[2, 1] = True
    assert digest(mask) != digest(other)
    one, two = (jax.tree_util.Partial(lambda x: x, np.ones(2)) for _ in range(2))
    assert str(jax.tree.structure(one)) != str(jax.tree.structure(two))
    assert digest(one) == digest(two)


def test_a_digest_of_a_model_knows_its_numerics(model) -> None:
    other = jax.tree.map(lambda a: a, model)
    assert model_digest(other) == model_digest(model)
    other.config = dataclasses.replace(CONFIG, numerics=OFFICIAL)
    assert model_digest(other) != model_digest(model)


@pytest.mark.slow
def test_a_dataset_has_named_axes(model, condition) -> None:
    trace = generate(model, condition, (0, 1), probe=TokenEnergy())
    data = trace.to_xarray()
    assert data.x0.dims == ("seed", "step", "frame", "row", "column", "channel")
    assert data.sizes["step"] == STEPS
    assert data.block_obs.shape == (2, STEPS, LAYERS, TOKENS)
    np.testing.assert_array_equal(data.sigma, trace.sigma[0])
    np.testing.assert_array_equal(data.bad_layer, trace.layer)
    np.testing.assert_array_equal(data.x0.sel(step=2), trace.x0[:, 2])
    worlds = trajectory.tree_stack([condition, condition])
    swept = jax.tree.map(lambda a: np.stack([a, a]), trace)
    assert swept.to_xarray(("layer", "seed")).block_obs.dims[:3] == ("layer", "seed", "step")
    with pytest.raises(ValueError, match="there are 2 leading axes"):
        swept.to_xarray(("probe",))
    assert jax.tree.map(lambda a: a[0], trace).to_xarray().latents.dims[0] == "frame"
    both = generate(model, worlds, (0,)).to_xarray()
    assert both.latents.dims[:2] == ("world", "seed")
    assert "block_obs" not in both
