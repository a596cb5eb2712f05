"""How far a perturbation reaches: laws that hold for any model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcos.experiments.answers import answers_of
from jcos.experiments.experiment import Settings
from jcos.experiments.information_flow import (
    Flow,
    Put,
    case_by_case,
    grouped,
    ideal_perturbed,
)
from jcos.experiments.information_flow_found import AT, END, ON, Found
from jcos.experiments.noise_found import Case
from jcos.experiments.puzzles import compilations, finish
from jcos.experiments.samples import Samples
from jcos.lab.ideal import ideal_run
from jcos.wan import Wan

SMALL = Flow(
    tasks=("maze", "rotation"), puzzles=3, steps=(0, 2), frames=(1, 4), seeds=(0, 1), at_once=4
)


def test_the_whole_experiment_is_one_program(found) -> None:
    assert found[1] == 1


def test_arrays_table_and_figures_are_complete(found) -> None:
    findings, _ = found
    assert findings.arrays["tokens"].shape == (6, 6, 2, 4, 2, 6)
    assert findings.arrays["ideal"].shape == (6, 6, 2, 4, 6)
    assert set(findings.figures) == {"triangle", "sensitivity", "estimates", "layers", "frames"}
    assert len({(r.task, r.measure, r.case) for r in findings.rows}) == len(findings.rows)
    rows = {(r.measure, r.case): r for r in findings.rows if r.task == "maze"}
    row = rows[f"1 − CKA of tokens, {ON}", "step 2, all frames"]
    want = findings.arrays["tokens"][1, :3, :, 2:, :, 0].mean()
    assert (row.n, row.forwards) == (3, 8)
    assert row.value == pytest.approx(want, rel=1e-5)
    assert findings.arrays["reach"][1, :3].mean() == pytest.approx(row.value, rel=1e-5)
    row = rows[f"1 − CKA of tokens, {END}", "layer 1, noise at a step"]
    want = findings.arrays["tokens"][:2, :3, :, 3, 1, 0].mean()
    assert row.value == pytest.approx(want, rel=1e-5)
    assert rows[f"1 − CKA of x̂0 of the ideal denoiser, {AT}", "step 0, all frames"].forwards == 0
    assert rows["agreement", "step 2, all frames"].n == 0  # this model solves nothing
    assert rows["solved", "step 2, all frames"].still == 0


def test_a_clean_run_is_beside_each_group() -> None:
    cases = SMALL.cases(4, 5)
    groups = grouped(cases, 4)
    assert [len(group) for group in groups] == [4, 4]
    assert all(str(group[0]) == "no noise" for group in groups)
    assert [c for group in groups for c in group[1:]] == cases
    assert len(grouped(cases, 100)) == 1
    more = grouped(cases[:5], 2)
    assert (len(more), str(more[-1][-1])) == (3, "no noise")
    values = np.arange(3 * 2 * 2).reshape(3, 2, 2)  # groups, puzzles, cases
    np.testing.assert_array_equal(case_by_case(values, 5)[:, 0], [0, 1, 4, 5, 8])


def test_nothing_differs_before_the_noise(found) -> None:
    arrays = found[0].arrays
    late = [str(c).startswith("step 2") for c in arrays["case"]]
    for source in ("tokens", "x0", "ideal"):
        values = arrays[source][late]
        np.testing.assert_allclose(values[:, :, :, :2], 0, atol=1e-5)
        assert np.abs(values[:, :, :, 2:]).max() > 1e-3
    assert arrays["tokens"][..., 0].min() > -1e-5
    others = arrays["tokens"][-1, ..., 1 + 4]  # noise in frame 4, seen outside of it
    assert 0 < others.mean() < arrays["tokens"][-1, ..., 0].mean()


def test_frames_and_steps_are_compared_by_the_same_tokens(found) -> None:
    arrays = found[0].arrays
    tokens = np.float64(arrays["tokens"]).mean(4)  # cases, puzzles, seeds, steps, 1 + frames
    frames = np.mean([tokens[4, ..., 1 + 1].mean(-1), tokens[5, ..., 1 + 4].mean(-1)], 0)
    both = tokens[..., [1 + 1, 1 + 4]].mean(-1)
    steps = np.mean([both[0].mean(-1), both[1, ..., 2:].mean(-1)], 0)
    rows = {(r.measure, r.case): r for r in found[0].rows if r.task == "maze"}
    row = rows[f"1 − CKA of tokens, {ON}, by other frames", "at a frame less at a step"]
    assert row.value == pytest.approx((frames - steps)[:3].mean(), rel=1e-4)


def test_the_ideal_denoiser_gets_the_same_noise(small_model: Wan) -> None:
    samples = Samples.of_tasks(small_model, ("maze",), 1, several=True)
    answers = jax.tree.map(lambda a: a[0], answers_of(small_model, samples.puzzles))
    schedule = SMALL.plan(small_model.config).schedule
    fresh = jax.random.normal(jax.random.key(0), (4, *answers.latents.shape[1:]))
    none = jnp.zeros((4, 5, 1, 1, 1), bool)
    run = jax.jit(lambda put: ideal_perturbed(schedule, put, answers))
    plain = run(Put(fresh, none, none))
    want = ideal_run(schedule, fresh[0], jnp.asarray(answers.latents), answers.log_prior)
    np.testing.assert_allclose(plain, want.x0, atol=1e-5)

    here = none.at[2].set(True)
    replaced = run(Put(fresh, here, none))
    np.testing.assert_array_equal(replaced[:2], plain[:2])
    # From step 2 on it is the run that begins there with that noise.
    later = jax.tree.map(lambda a: a[2:], schedule._replace(sigmas=schedule.sigmas))
    again = ideal_run(later, fresh[2], jnp.asarray(answers.latents), answers.log_prior)
    np.testing.assert_allclose(replaced[2:], again.x0, atol=1e-4)


def test_one_answer_leaves_the_ideal_denoiser_unmoved(found) -> None:
    arrays = found[0].arrays
    ideal, several = np.abs(arrays["ideal"]).max((0, 2, 3, 4)), arrays["several"]
    np.testing.assert_allclose(ideal[~several], 0, atol=1e-5)
    assert (ideal[several] > 1e-3).all()
    assert (arrays["x0"][:, ~several].max((0, 2, 3, 4)) > 1e-3).all()


def test_sensitivity_is_read_where_it_stands(small_model: Wan) -> None:
    """A made-up effect: a case that reaches 0.1 × layer at step 3 only."""
    tokens = np.zeros((1, 2, 1, 4, 3, 6), np.float32)
    tokens[0, :, :, 3] = 0.1 * np.arange(3)[None, None, :, None]
    found = Found(
        cases=[Case("step", step=2)],
        samples=Samples.of_tasks(small_model, ("maze",), 2),
        forwards=0,
        tokens=tokens,
        x0=tokens[..., 0, :],
        ideal=None,
        solved=None,
        agreed=None,
    )
    for when, want in ((AT, 0.0), (ON, 0.05), (END, 0.1)):
        np.testing.assert_allclose(found.reading("tokens", 0, when), want, atol=1e-6)
    np.testing.assert_allclose(found.triangle("tokens", [0]), [[np.nan, np.nan, 0, 0.1]])
    np.testing.assert_allclose(found.by_layer([0], ON)[0, 0, 0], [0, 0.05, 0.1])
    over = found.layers_over_steps([0])
    np.testing.assert_allclose(over[:, 2:], [[0, 0], [0, 0.1], [0, 0.2]])
    assert np.isnan(over[:, :2]).all()


@pytest.mark.slow
def test_clips_have_no_ideal_denoiser(model: Wan, clips) -> None:
    experiment = Flow(clips=clips, sampling=Settings(steps=4), steps=(1, 3), frames=(2,))
    before = compilations()
    found = finish(experiment.run(model))
    assert compilations() == before + 1
    assert "ideal" not in found.arrays
    assert found.arrays["tokens"].shape == (5, 2, 1, 4, model.config.dit.layers, 4)
    assert not any("ideal" in r.measure or r.measure == "solved" for r in found.rows)
    assert max(r.forwards for r in found.rows) == 16  # two runs, with guidance
    assert set(found.figures) == {"triangle", "sensitivity", "estimates", "layers", "frames"}
    late = found.arrays["tokens"][1]
    assert np.abs(late[:, :, :3]).max() < 1e-4 < late[:, :, 3].max()


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"steps": (4,)}, IndexError, "step 4 is out of range: there are steps 0 to 3"),
        ({"frames": (5,)}, IndexError, "frame 5 is out of range"),
        ({"frames": (-1,)}, IndexError, "frame -1 is out of range"),
        ({"steps": (), "frames": ()}, ValueError, "no place for noise"),
        ({"at_once": 0}, ValueError, "at_once is 0"),
        ({"tasks": ("pattern",), "several": True}, ValueError, "has 0 puzzles with several"),
    ],
)
def test_what_cannot_be_run_is_refused_before(small_model: Wan, changes, error, said) -> None:
    before = compilations()
    with pytest.raises(error, match=said):
        finish(Flow(**{"puzzles": 2, **changes}).run(small_model))
    assert compilations() == before
