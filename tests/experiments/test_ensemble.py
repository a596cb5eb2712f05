"""Means over seeds: laws that hold for any model, and what is counted."""

import jax
import numpy as np
import pytest

from jcos.experiments.ensemble import Case, Ensemble, dataset, groups_of, probe_of
from jcos.experiments.experiment import Settings
from jcos.experiments.samples import Samples
from jcos.experiments.sweeps import held_out, play, sweep
from jcos.lab import results
from jcos.lab.tasks import TASKS
from jcos.sampling.probes import SeedEnsemble
from jcos.wan import Wan

pytestmark = pytest.mark.slow  # the whole experiment, once for all tests

MAZE = TASKS["maze"]
SMALL = Ensemble(puzzles=2, seeds=(0, 1, 2, 3), more_members=(2, 4), until=(0, 0.5))


def test_dataset_table_and_figures_are_complete(small_model: Wan, data, rows) -> None:
    known, programs = data
    assert programs == 1 + 2 + 1  # all means, two longer runs, the ideal denoiser
    # none; the paper's (which is the window at layer 1 too); two sizes; two layers × two spans less
    # one; two other kinds × two spans
    means = 1 + 2 + 3 + 4
    # one run; of three sizes the majority and the best; of each mean one more; longer runs
    cases = 1 + 3 * 2 + means * 3 + 2
    assert known["solved"].shape == (cases, 2, 2, 4)
    assert dict(SMALL.figures(known)).keys() == {"compared"}
    rows = {(measure, case): row for (_, measure, case), row in rows.items()}
    plain = rows["solved", "one run"]
    assert (plain.value, plain.n, plain.still, plain.forwards) == (0, 2, 0, 4)
    assert plain.chance is not None
    paper = "mean tokens of 3, layer 1, step 0"
    assert str(SMALL.means(small_model.config)[1]) == f"{paper}, one goes on"
    assert rows["solved", f"{paper}, one goes on"].forwards == 4 + 2 * 1
    assert rows["solved", f"{paper}, majority of all"].forwards == 3 * 4
    assert rows["solved", "one run of 6 steps"].forwards == 6
    assert rows["solved", "one run of 12 steps"].forwards == 12
    long = "mean velocities of 3, steps 0 to 2, one goes on"
    assert rows["solved", long].forwards == 4 + 2 * 3
    assert ("solved, more than one run of 6 steps", f"{paper}, one goes on") in rows
    assert ("solved, more than one run of 12 steps", "3 runs, majority") in rows
    assert rows["solved only without", long].value == 0
    assert rows["solved", "one run, ideal denoiser"].value == 1
    assert rows["solved, more than one run", f"{long}, ideal denoiser"].forwards == 0
    assert not any("tokens" in case and "ideal" in case for _, case in rows)


EVERY = tuple(range(4))
PAIRS = {
    "plain": Case(),
    "tokens": Case("tokens", 2, (0, 1), EVERY),
    "velocities": Case("velocities", 2, (), EVERY),
    "estimates": Case("estimates", 2, (), EVERY),
    "two steps": Case("tokens", 2, (1,), (0, 1)),
}
"""Means over seeds 0 and 1, and over 2 and 3."""


@pytest.fixture(scope="module")
def ends(small_model: Wan) -> dict[str, np.ndarray]:
    """Latents [seeds, …] of one puzzle."""
    samples = Samples.of_tasks(small_model, ("maze",), 1)
    probes = [probe_of(mean, 4, 2, 4) for mean in PAIRS.values()]
    latents = sweep(small_model, samples.conditions, EVERY, probes=probes).latents
    return dict(zip(PAIRS, latents[:, 0, 0], strict=True))


def test_the_first_case_is_the_plain_run(small_model: Wan, ends) -> None:
    plain = play(small_model, held_out(MAZE, 1), EVERY).latents[0, 0]
    np.testing.assert_allclose(ends["plain"], plain, atol=2e-4)
    assert np.abs(ends["two steps"] - plain).max() > 0.01


def test_seeds_under_one_velocity_keep_the_difference_of_their_noise(ends) -> None:
    """Also those whose tokens are averaged; those whose estimates are end alike. A seed of another
    group is of another mind."""
    keys = [jax.random.fold_in(jax.random.key(seed), 0) for seed in EVERY]
    shape = ends["plain"].shape[1:]
    noise = np.stack([jax.random.normal(jax.random.split(key)[0], shape) for key in keys])
    for kind in ("tokens", "velocities"):
        x = ends[kind]
        np.testing.assert_allclose(x[0] - x[1], noise[0] - noise[1], atol=1e-3)
        assert np.abs(x[2] - x[0] - noise[2] + noise[0]).max() > 0.1
    assert np.abs(ends["tokens"] - ends["velocities"]).max() > 1e-3
    x0 = ends["estimates"]
    np.testing.assert_allclose(x0[0], x0[1], atol=1e-4)
    np.testing.assert_allclose(x0[2], x0[3], atol=1e-4)
    assert np.abs(x0[0] - x0[2]).max() > 0.1


def test_a_group_is_an_ensemble_of_its_own(small_model: Wan, ends) -> None:
    """Seeds 2 and 3 among others are what they are alone, by the probe without groups."""
    samples = Samples.of_tasks(small_model, ("maze",), 1)
    probe = SeedEnsemble.window(4, 2, at_steps=(0, 1), at_layers=(1,))
    alone = sweep(small_model, samples.conditions, (2, 3), probes=[probe]).latents[0, 0, 0]
    np.testing.assert_allclose(ends["two steps"][2:], alone, atol=1e-4)


def test_seeds_are_grouped_in_their_order() -> None:
    assert groups_of(8, 3).tolist() == [0, 0, 0, 1, 1, 1, 6, 7]
    assert groups_of(4, 1).tolist() == [0, 1, 2, 3]
    assert groups_of(4, 4).tolist() == [0, 0, 0, 0]


def test_gain_majority_and_best_of_known_ends(small_model: Wan) -> None:
    """Videos drawn instead of played; six seeds make two groups of three."""
    puzzles = held_out(MAZE, 2)
    right = np.stack([MAZE.routes(p)[0] for p in puzzles])
    still = np.repeat(right[:, :1], 5, 1)
    plain = np.stack([right, still, still, still, right, right], 1)
    mean = np.stack([right, right, still, right, right, right], 1)
    mean[1] = plain[1]
    samples = Samples.of_tasks(small_model, ("maze",), 2)
    mean_of, averaged = Case("tokens", 3, (3, 4), (0,)), Case("estimates", 2, (), (0,))
    ideal = np.array([[True] * 6, [True, True, False, False, False, False]])
    known = dataset(
        [Case(), mean_of, averaged],
        Samples(samples.conditions, samples.tasks, tuple(puzzles)),
        np.stack([plain, mean, mean]),
        {12: np.array([True, False]), 30: np.array([False, False])},
        {Case(): np.ones((2, 6), bool), averaged: ideal},
        range(31),
        10,
    )
    every, one = str(mean_of._replace(how="majority")), str(mean_of)
    ends = known["solved"].sel(denoiser="model")[..., ::3]  # the first seeds of the groups
    assert ends.sel(case="3 runs, majority").values.tolist() == [[False, True]] * 2
    assert ends.sel(case="3 runs, best").values.tolist() == [[True, True]] * 2
    assert ends.sel(case=every).values.tolist() == [[True, True], [False, True]]
    assert known["gain"].sel(case=one, denoiser="model").mean() == (5 - 3) / 6 / 2
    rows = {(r.measure, r.case): r.value for r in results.rows(known)}
    assert rows["solved", "one run"] == 0.5
    assert rows["solved only with averaging", one] == pytest.approx(2 / 12)
    assert rows["solved only without", one] == 0
    assert rows["solved, more than one run of 12 steps", one] == 0.5
    assert rows["solved, more than one run of 30 steps", every] == 0.5
    assert rows["solved, more than one run of 30 steps", "3 runs, majority"] == 0
    assert rows["solved", "one run, ideal denoiser"] == 1
    case = f"{averaged}, ideal denoiser"
    assert rows["solved", case] == pytest.approx(8 / 12)
    assert rows["solved, more than one run", case] == pytest.approx(-4 / 12)


def test_the_papers_comparison_alone(small_model: Wan) -> None:
    """What is left for many puzzles: plain runs, one mean, and the runs with more steps."""
    alone = Ensemble(seeds=(0, 1, 2), more_members=(), layers=(), until=())
    plain, *means = alone.means(small_model.config)
    assert plain == Case()
    assert [str(mean) for mean in means] == ["mean tokens of 3, layer 1, step 0, one goes on"]
    assert alone.step_counts(small_model.config) == (6, 12)


def test_longer_runs_have_no_explicit_levels(small_model: Wan) -> None:
    explicit = Ensemble(members=2, sampling=Settings(sigmas=(1000.0, 500.0)))
    assert explicit.step_counts(small_model.config) == (3, 4)
    assert [explicit.plan(small_model.config, n).steps for n in (3, 4)] == [3, 4]
