"""What tokens carry: laws that hold for any model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from jcos.experiments.layers import Components, Layers, Readout, principal, probe_measures
from jcos.experiments.linear_probes import (
    Labels,
    auroc_within,
    by_identity,
    fit_and_read,
    identities_of,
    labels_of,
)
from jcos.experiments.samples import Samples
from jcos.experiments.sweeps import held_out
from jcos.generation import generate
from jcos.lab.tasks import TASKS
from jcos.sampling.inside import Capture
from jcos.sampling.probes import chain
from jcos.wan import Wan

pytestmark = pytest.mark.slow  # the whole experiment, once for all tests

SMALL = Layers(tasks=("maze", "pattern"), puzzles=12, steps=(0, 3), layers=(0.0, 1.0))


def test_dataset_table_and_figures_are_complete(data) -> None:
    dataset, programs = data
    assert programs == 1  # of all tasks
    identities = [len(set(identities_of(held_out(TASKS[task], 12)))) for task in SMALL.tasks]
    assert dataset["task"].values.tolist() == np.repeat(SMALL.tasks, identities).tolist()
    n, by_frame = sum(identities), dataset["energy_by_frame"]
    assert by_frame.shape == (n, 4, 2, 5)
    assert dataset["film_components"].shape == (2, 2, 2, 5, 5, 5, 3)
    assert dataset["answer"].shape == (n, 4, 5)  # two layers, x_s, x̂0, the ideal denoiser
    films = {f"{kind}-{task}" for kind in ("energy", "components") for task in SMALL.tasks}
    assert {name for name, _ in SMALL.figures(dataset)} == {"energy", *films}
    table = SMALL.table(dataset).set_index(["task", "measure", "case"])
    assert table.index.is_unique
    row = table.loc["maze", "token energy", "step 3, layer 1"]
    assert row.value == pytest.approx(by_frame.values[: identities[0], 3, 1].mean(), rel=1e-5)
    assert (row.n, row.forwards, row.chance) == (identities[0], 4, None)


def test_components_are_those_of_the_covariance() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 20)) * np.array([9, 6, 4, *[0.5] * 17])
    x = (x - x.mean(0)).astype(np.float32)
    left, size, _ = np.linalg.svd(x, full_matrices=False)
    want = left[:, :3] * size[:3]
    components = np.asarray(principal(jnp.asarray(x)))
    signs = np.sign((components * want).sum(0, keepdims=True))
    np.testing.assert_allclose(components, want * signs, atol=0.02 * size[0])


def test_spread_of_variance(small_model: Wan) -> None:
    """Observed in a run; the definitions, on the tokens themselves."""
    samples = Samples.of_tasks(small_model, ("maze",), 1)
    condition = jax.tree.map(lambda a: a[0, 0], samples.conditions)
    trace = generate(
        small_model, condition, probe=chain(Components((1,)), Capture("block", (0, 1)))
    )
    (scores, channels), tokens = trace.block_obs
    assert scores.shape == (1, 4, 1, 125, 3)
    x = np.asarray(tokens[0, 2, 1], np.float64)
    v, values = x.var(0), np.linalg.eigvalsh(np.cov(x.T, bias=True))
    assert float(channels[0, 2, 1]) == pytest.approx(v.sum() ** 2 / (v**2).sum() / 32, rel=1e-3)
    three = float(np.square(scores[0, 2, 0]).mean(0).sum())
    assert three == pytest.approx(values[-3:].sum(), rel=0.02)


def test_labels_are_what_is_drawn() -> None:
    puzzles = [p for p in held_out(TASKS["maze"], 12) if len(p.answers) == 1][:2]
    videos = np.stack([TASKS["maze"].routes(p)[:1] for p in puzzles])
    labels = labels_of(puzzles, videos, 4)
    assert labels.answer.shape == (2, 1, 4, 25)
    for puzzle, answer in zip(puzzles, labels.answer, strict=True):
        on_path = {5 * row + column for row, column in puzzle.answers[0]}
        assert set(np.flatnonzero(answer[0, -1])) == on_path
        assert answer[0, 0].sum() < answer[0, -1].sum()
    assert labels.foreground[labels.answer].all()
    assert not labels.contested.any()
    # Noise that leaves colours what they are changes no label.
    noisy = np.clip(videos + np.random.default_rng(0).normal(0, 8, videos.shape), 0, 255)
    again = labels_of(puzzles, noisy.astype(np.uint8), 4)
    np.testing.assert_array_equal(again.answer, labels.answer)


def test_contested_is_what_right_answers_differ_in() -> None:
    puzzle = next(p for p in held_out(TASKS["maze"], 40) if len(p.answers) == 2)
    video = TASKS["maze"].routes(puzzle)
    labels = labels_of([puzzle], video[None], 4)
    ways = [{5 * row + column for row, column in answer} for answer in puzzle.answers]
    for run, way in enumerate(ways):
        assert set(np.flatnonzero(labels.contested[0, run, -1])) == ways[0] ^ ways[1]
        assert set(np.flatnonzero(labels.answer[0, run, -1])) == way


def test_identities_are_numbered_as_they_appear_and_count_once() -> None:
    puzzles = held_out(TASKS["returns"], 30)
    identities = identities_of(puzzles)
    names = [repr(p.identity) for p in puzzles]
    assert len(set(names)) == identities.max() + 1 < 30
    assert [names.index(n) for n in names] == [list(identities).index(i) for i in identities]
    values = xr.DataArray([1.0, 0.5, np.nan, np.nan], dims="sample", attrs={"units": "1"})
    merged = by_identity(xr.Dataset({"read": values}), "sample", np.array([0, 1, 1, 2]))["read"]
    np.testing.assert_array_equal(merged, [1, 0.5, np.nan])
    assert (merged.dims, merged.attrs) == (("sample",), {"units": "1"})


def made_up(signal: float) -> tuple[np.ndarray, Labels]:
    """24 puzzles whose labels can be read off one of 5 channels, as far as the signal goes."""
    rng = np.random.default_rng(0)
    answer = rng.random((24, 1, 2, 9)) < 0.3
    features = rng.normal(size=(24, 1, 1, 1, 18, 5)).astype(np.float32)
    features[..., 2] += signal * answer.reshape(24, 1, 1, 1, 18)
    contested = rng.random(answer.shape) < 0.7
    return features, Labels(~answer, answer, contested)


@pytest.mark.parametrize(
    ("signal", "least", "most"), [(0.0, 0.3, 0.7), (1.0, 0.65, 0.9), (9.0, 0.999, 1)]
)
def test_probes_read_what_is_there_and_nothing_else(signal, least, most) -> None:
    features, labels = made_up(signal)
    areas, controls = fit_and_read(features, labels, np.arange(24), 1e-3)
    assert areas.shape == (3, 24, 1, 1, 1)
    for reading in (1, 2):
        assert least <= np.nanmean(areas[reading]) <= most
    np.testing.assert_allclose(areas[0], areas[1], atol=1e-6)  # opposite labels
    assert 0.25 < np.nanmean(controls) < 0.75
    blank, _ = fit_and_read(np.zeros_like(features), labels, np.arange(24), 1e-3)
    np.testing.assert_allclose(blank[np.isfinite(blank)], 0.5)  # what does not vary tells nothing


def test_probes_are_read_on_the_other_half_only() -> None:
    """A label that only its half could know cannot be read."""
    rng = np.random.default_rng(1)
    answer = rng.random((10, 1, 1, 9)) < 0.5
    features = np.zeros((10, 1, 1, 1, 9, 90), np.float32)
    for i in range(10):  # each token of each puzzle has another channel
        features[i, 0, 0, 0, :, 9 * i : 9 * (i + 1)] = np.eye(9)
    labels = Labels(~answer, answer, np.ones_like(answer))
    areas, _ = fit_and_read(features, labels, np.arange(10), 1e-3)
    np.testing.assert_allclose(areas[np.isfinite(areas)], 0.5, atol=1e-6)


def test_puzzles_of_one_identity_are_in_one_half() -> None:
    """With four puzzles in the second half, no probe is fitted."""
    features, labels = made_up(9.0)
    for many, known in ((4, False), (5, True)):
        identities = np.where(np.arange(24) < many, 1, 2 * np.arange(24))
        areas, _ = fit_and_read(features, labels, identities, 1e-3)
        assert np.isfinite(areas).any() == known


def test_auroc_within_a_frame_compares_no_frames() -> None:
    values = np.array([[0.1, 0.2, 0.3], [10.0, 11.0, 12.0], [5.0, 5.0, 5.0]])
    positive = np.array([[False, False, True], [True, False, False], [False, False, False]])
    assert auroc_within(values, positive, ~positive) == pytest.approx((1 + 0) / 2)
    assert np.isnan(auroc_within(values[2:], positive[2:], ~positive[2:]))
    assert auroc_within(values[2:], positive[:1], ~positive[:1]) == 0.5
    some = np.array([[True, False, False]] * 3)  # of the others, only the first of a frame counts
    assert auroc_within(values, positive, some & ~positive) == 1


def measured(identities: np.ndarray) -> xr.Dataset:
    """Probe measures of made-up tokens, whose answer the ideal denoiser knows."""
    features, labels = made_up(9.0)
    patches = np.zeros((24, 1, 1, 2, 18, 3), np.float32)
    change = labels.answer.reshape(24, 1, 1, 18).astype(np.float32)
    flat = np.ones((24, 1, 1, 1, 27), np.float32)
    readout = Readout(flat, flat, flat[..., None], flat[..., 0], (features, patches), change)
    return probe_measures(readout, labels, identities, [2], 1e-3)


def test_sources_are_layers_then_latents_then_the_ideal_denoiser() -> None:
    means = measured(np.arange(24)).mean(["puzzle", "seed"], keep_attrs=True).sel(step=2)
    assert means["answer"].sel(source="layer 0") > 0.999
    assert means["answer"].sel(source="x_s") == 0.5
    assert means["answer"].sel(source="x̂0") == 0.5
    assert means["answer"].sel(source="ideal denoiser at x_s") == 1
    assert means["answer_more_than_ideal"].item() == pytest.approx(0, abs=1e-3)
    assert means["answer_control"].sel(source="layer 0").item() == pytest.approx(0.5, abs=0.2)
    assert means["foreground"].sel(source="ideal denoiser at x_s").isnull()


def test_too_few_puzzles_for_probes_leave_the_ideal_denoiser(data) -> None:
    areas = measured(np.zeros(24, int))["answer"]
    assert areas.sel(source=["layer 0", "x_s", "x̂0"]).isnull().all()
    assert areas.sel(source="ideal denoiser at x_s").notnull().any()
    dataset, _ = data
    table = SMALL.table(dataset.assign(answer=dataset["answer"].fillna(0.5)))
    rows = table.set_index(["task", "measure", "case"])
    rows = rows.loc["maze"].loc["AUROC of what the answer changes"]
    for case, forwards in (("step 3, x_s", 4), ("step 3, ideal denoiser at x_s", 0)):
        assert (rows.value[case], rows.forwards[case]) == (0.5, forwards)
    assert rows.chance["step 3, x_s"] == 0.5


def test_the_change_of_an_estimate_is_read_within_frames() -> None:
    """The ideal denoiser's change of each token, by frame: [steps, frames × tokens]."""
    change = np.array([[2, 1, 0, 2, 1, 0], [1, 1, 1, 1, 1, 1], [0, 1, 2, 2, 1, 0]], np.float32)
    answer = np.array([[True, False, False], [True, True, False]])[None, None]
    contested = np.array([[True, True, False], [False, False, False]])[None, None]
    labels = Labels(answer, answer, contested)
    np.testing.assert_allclose(labels.auroc(change[None, None], "answer")[0, 0], [1, 0.5, 0.5])
    np.testing.assert_allclose(labels.auroc(change[None, None], "choice")[0, 0], [1, 0.5, 0])
