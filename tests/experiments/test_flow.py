"""How far a perturbation reaches: laws that hold for any model."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcos.experiments.answers import answers_of
from jcos.experiments.flow import Flow, Perturbed, by_case, grouped, triangle
from jcos.experiments.noise import NONE, STEP, Case, probe_of
from jcos.experiments.samples import Samples
from jcos.experiments.sweeps import sweep
from jcos.lab.ideal import ideal_run
from jcos.lab.results import of_kind
from jcos.sampling.probes import Probe, States, chain
from jcos.sampling.trajectory import tree_stack
from jcos.wan import Wan

pytestmark = pytest.mark.slow  # the whole experiment, once for all tests

SMALL = Flow(
    tasks=("maze", "rotation"), puzzles=3, steps=(0, 2), frames=(1, 4), seeds=(0, 1), at_once=4
)


def test_dataset_table_and_figures_are_complete(data, rows) -> None:
    dataset, programs = data
    assert programs == 2  # of the model, and of the ideal denoiser
    assert dataset["tokens"].shape == (6, 6, 2, 4, 2, 6)
    assert dataset["ideal"].shape == (6, 6, 2, 4, 6)
    assert [name for name, _ in SMALL.figures(dataset)] == ["triangle"]
    rows = {(measure, case): row for (task, measure, case), row in rows.items() if task == "maze"}
    row = rows["1 − CKA of tokens, at the end", "step 2, all frames"]
    tokens = dataset["tokens"].values.astype(float)
    assert (row.n, row.forwards) == (3, 8)
    assert row.value == pytest.approx(tokens[1, :3, :, 3, :, 0].mean(), rel=1e-5)
    row = rows["1 − CKA of x̂0 of the ideal denoiser, at the end", "step 0, all frames"]
    assert row.forwards == 0
    assert ("agreement", "step 2, all frames") not in rows  # this model solves nothing
    assert rows["solved", "step 2, all frames"].still == 0
    assert ("solved", "all steps, frame 1") not in rows
    row = rows["step of farthest reach, median, at the end", "replaced"]
    ends = tokens[:2, :3, :, 3, :, 0].mean((2, 3))
    assert row.value == np.median(np.array([0, 2])[ends.argmax(0)])


def test_each_group_has_a_clean_run_and_the_last_is_filled_up() -> None:
    clean, cases = Case(NONE), SMALL.cases(4, 5)[:5]
    groups = [[clean, *cases[:2]], [clean, *cases[2:4]], [clean, cases[4], clean]]
    assert grouped(cases, 2) == groups
    assert by_case(np.arange(9).reshape(3, 1, 3), 5)[:, 0].tolist() == [1, 2, 4, 5, 7]


def test_nothing_differs_before_the_noise(data) -> None:
    late = data[0].isel(case=data[0]["at_step"].values == 2)
    for source in ("tokens", "x0", "ideal"):
        values = late[source]
        np.testing.assert_allclose(values.sel(step=[0, 1]), 0, atol=1e-5)
        assert np.abs(values.sel(step=[2, 3])).max() > 1e-3
    tokens = data[0]["tokens"]
    assert tokens.sel(without="nothing").min() > -1e-5
    noised = tokens.sel(case="all steps, frame 4")
    assert 0 < noised.sel(without="frame 4").mean() < noised.sel(without="nothing").mean()
    np.testing.assert_allclose(
        data[0]["tokens_end"].sel(case="all steps, frame 4"),
        noised.sel(without="frame 4", step=3).astype(float).mean("layer"),
    )


def test_frames_and_steps_are_compared_by_the_same_tokens(data) -> None:
    tokens = data[0]["tokens"].sel(step=3).values.astype(float).mean(3)  # cases … seeds, without
    frames = np.mean([tokens[4, ..., 1 + 1], tokens[5, ..., 1 + 4]], 0)
    steps = tokens[:2, ..., [1 + 1, 1 + 4]].mean((0, -1))
    less = data[0]["tokens_end_others"].sel(contrast="at a frame less at a step")
    np.testing.assert_allclose(less, frames - steps, rtol=1e-6)
    assert less.attrs["long_name"] == "1 − CKA of tokens, at the end, by other frames"


def test_the_ideal_denoiser_gets_the_same_noise(small_model: Wan) -> None:
    samples = Samples.of_tasks(small_model, ("maze",), 1, several=True)
    worlds = jax.tree.map(lambda a: np.repeat(a, 2, axis=1), samples.conditions)
    noise = [probe_of(case, 4, 5, 0) for case in (Case(NONE), Case(STEP, step=2))]
    probe = chain(Perturbed(tree_stack(noise), 5), States())
    plan, answers = SMALL.plan(small_model.config), answers_of(small_model, samples.puzzles)

    def run(ideal: Probe | None) -> Any:
        return sweep(small_model, worlds, probes=[probe], item_probe=ideal, plan=plan)

    of_model, of_ideal = (
        jax.tree.map(lambda a: a[0, 0, :, 0], run(d)) for d in (None, answers.ideal)
    )
    x, same = of_model.estimate_obs[1], of_ideal.estimate_obs[1][1]
    np.testing.assert_array_equal(same[1, 2], x[1, 2])
    assert np.abs(same[:, 2] - same[0, 2]).max() > 1
    # From step 2 on it is the run that begins there with that noise.
    right, prior = jnp.asarray(answers.latents[0]), answers.log_prior[0]
    later = jax.tree.map(lambda a: a[2:], plan.schedule)
    for start, world, schedule in ((0, 0, plan.schedule), (2, 1, later)):
        want = ideal_run(schedule, jnp.asarray(same[world, start]), right, prior)
        np.testing.assert_allclose(of_ideal.x0[world, start:], want.x0, atol=1e-4)


def test_one_answer_leaves_the_ideal_denoiser_unmoved(data) -> None:
    rest = ("case", "seed", "step", "without")
    several = data[0]["several"].values
    ideal, x0 = (np.abs(data[0][name]).max(rest).values for name in ("ideal", "x0"))
    np.testing.assert_allclose(ideal[~several], 0, atol=1e-5)
    assert (ideal[several] > 1e-3).all()
    assert (x0[~several] > 1e-3).all()


def test_the_triangle_has_nothing_before_the_noise(data) -> None:
    values = triangle(of_kind(data[0], STEP, "at_step")["x0"])
    np.testing.assert_array_equal(
        values.isnull().all(("puzzle", "seed")), [[0, 0, 0, 0], [1, 1, 0, 0]]
    )
