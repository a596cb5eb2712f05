"""Stored activations are those of the run, rounded to bfloat16; what is there is not made again."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import jcos
from jcos.experiments.sweeps import conditions_of, held_out
from jcos.lab import activations
from jcos.lab.tasks import get
from jcos.sampling.trajectory import Condition

STEPS, TOKENS, SEEDS = [0, 3], [0, 26, 124], [[1, 2], [3, 4], [5, 6]]
SITES = ("block", "mlp", "heads")
LABELS = {"task": ["a", "b", "c"]}


@pytest.fixture(scope="module")
def conditions(small_model) -> Condition:
    return conditions_of(small_model, held_out(get("maze"), 3))


def stored(folder: Path, model, conditions: Condition, **more) -> list[Path]:
    about = {
        "layers": [1],
        "at_steps": STEPS,
        "tokens": TOKENS,
        "at_once": 2,
        "labels": LABELS,
        "sites": SITES,
    }
    about |= more
    return activations.store(folder, model, conditions, SEEDS, **about)


@pytest.fixture(scope="module")
def folder(small_model, conditions, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("activations")
    stored(folder, small_model, conditions)
    return folder


@pytest.mark.slow
def test_what_is_stored_is_what_a_probe_observes(folder, small_model, conditions) -> None:
    for puzzle in (0, 2):
        condition = jax.tree.map(lambda a, p=puzzle: a[p], conditions)
        probe = jcos.Capture("block", (1,), jnp.asarray(TOKENS))
        trace = jcos.generate(small_model, condition, SEEDS[puzzle], probe=probe)
        with xr.open_dataset(folder / f"{puzzle:05d}.nc", engine="h5netcdf") as data:
            want = np.asarray(trace.block_obs)[:, STEPS].astype(np.float32)
            np.testing.assert_allclose(data["block"][0], want, rtol=2**-7, atol=1e-5)
            assert not (data["block"].values.view(np.uint32) & 0xFFFF).any()  # bfloat16
            np.testing.assert_allclose(data["latents"][0], trace.latents, atol=1e-5)
            np.testing.assert_allclose(data["sigma"], trace.sigma[0][np.array(STEPS)])
            assert data["mlp"].sizes["hidden"] == small_model.config.dit.ffn_dim
            assert data["heads"].shape[-2:] == (2, 16)
            assert data["noise"].values.tolist() == [SEEDS[puzzle]]


@pytest.mark.slow
def test_axes_have_names_and_places_can_be_chosen(folder) -> None:
    data = activations.load(folder, layer=1, step=3)
    assert data.sizes == {"puzzle": 3, "seed": 2, "token": 3, "channel": 32}
    assert data["task"].values.tolist() == ["a", "b", "c"]
    assert activations.load(str(folder), layer=1, step=3).identical(data)
    places = [data[name].values.tolist() for name in ("frame", "row", "column")]
    assert places == [[0, 1, 4], [0, 0, 4], [0, 1, 4]]
    with pytest.raises(ValueError, match="holds no cross; it holds block, heads, mlp"):
        activations.load(folder, "cross")
    with pytest.raises(ValueError, match="holds no activations"):
        activations.load(folder / "none")


def test_a_killed_call_resumes_and_another_run_is_refused(
    folder, small_model, conditions, monkeypatch
) -> None:
    paths = sorted(folder.iterdir())
    before = paths[0].read_bytes(), paths[2].stat().st_mtime_ns
    whole = activations.load(folder).values
    paths[1].unlink()
    stored(folder, small_model, conditions)
    np.testing.assert_array_equal(activations.load(folder).values, whole)
    assert (paths[0].read_bytes(), paths[2].stat().st_mtime_ns) == before
    monkeypatch.setattr(activations, "steps", None)  # nothing is run
    stored(folder, small_model, conditions)
    with pytest.raises(ValueError, match=r"00000.nc holds another run"):
        stored(folder, small_model, conditions, layers=[0])


@pytest.mark.slow
def test_batches_are_rows_of_the_files_each_once(folder) -> None:
    rows = activations.load(folder, layer=1).values.reshape(-1, 32)
    drawn = activations.batches(folder, 12, layer=1)
    one = np.concatenate([next(drawn) for _ in range(3)])
    np.testing.assert_array_equal(np.sort(one, 0), np.sort(rows, 0))
    few = activations.batches(folder, 12, layer=1, pool=1)
    assert next(few).shape == next(few).shape == (12, 32)
    with pytest.raises(ValueError, match="1 files hold 12 rows, a batch 13"):
        next(activations.batches(folder, 13, layer=1, pool=1))
    with pytest.raises(ValueError, match="3 files hold 36 rows, a batch 37"):
        next(activations.batches(folder, 37, layer=1))
    # Two of three files fill a batch, the third does not; all are read in the long run.
    drawn = activations.batches(folder, 24, layer=1, pool=2)
    some = np.concatenate([next(drawn) for _ in range(12)])
    np.testing.assert_array_equal(np.unique(some, axis=0), np.unique(rows, axis=0))
