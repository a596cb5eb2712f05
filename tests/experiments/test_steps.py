"""Every step of every run, compared with the ideal denoiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcos.experiments.answers import answers_of, blend, chosen, shares, wrong_answers
from jcos.experiments.samples import Samples, puzzles_of
from jcos.experiments.steps import Steps, predictions
from jcos.experiments.sweeps import held_out, play, sweep
from jcos.experiments.watching import watch_answers
from jcos.lab.ideal import ideal
from jcos.lab.results import MODEL
from jcos.lab.tasks import TASKS
from jcos.sampling.probes import Probe
from jcos.wan import Wan

pytestmark = pytest.mark.slow  # the whole experiment, once for all tests

MAZE = TASKS["maze"]
SMALL = Steps(tasks=("maze", "rotation"), puzzles=4, wrong=3)


def test_table_and_figures_are_complete(data, rows) -> None:
    dataset, programs = data
    assert programs == 1
    last = rows["maze", "solved", "step 3"]
    assert (last.value, last.n, last.still, last.forwards) == (0, 4, 0, 4)
    assert rows["maze", "solved", "step 0"].forwards == 1
    assert rows["rotation", "solved", "step 3, ideal denoiser"].value == 1
    assert rows["rotation", "commitment step, median", "ideal denoiser"].value == 0
    assert ("rotation", "commitment step, median", "model") not in rows  # it commits to nothing
    wrong = rows["rotation, one answer", "mass on wrong answers", "step 0, ideal denoiser"]
    assert wrong.value == pytest.approx(0, abs=1e-3)
    assert ("rotation, one answer", "mass on other right answers", "step 0") not in rows
    figures = {name for name, _ in SMALL.figures(dataset)}
    assert figures == {"solved", "blend"}
    assert not list(predictions(dataset, (2,)))  # nothing is ever solved
    assert dataset["solved"].sizes == {"denoiser": 2, "puzzle": 8, "seed": 1, "step": 4}


def test_the_last_estimate_is_the_end_of_a_plain_run(small_model: Wan, data) -> None:
    puzzles = held_out(MAZE, 4)
    latents = play(small_model, puzzles).latents[0, :, 0]
    answers = answers_of(small_model, puzzles, wrong=3, room=9)
    on = np.asarray(jax.jit(jax.vmap(blend))(latents, answers).on)
    mass = shares(on[:, None, None], answers)
    last = data[0].sel(denoiser=MODEL, step=3, seed=0).isel(puzzle=slice(0, 4))
    np.testing.assert_allclose(mass.taken[:, 0, 0], last["taken"], atol=2e-2)


class Ideally(Probe):
    """A model that answers as the ideal denoiser does: the experiment must find no difference."""

    answers: jax.Array
    log_prior: jax.Array

    def on_estimate(self, site, x, x0):
        return ideal(x, site.sigma, self.answers, self.log_prior).x0, x


def test_the_ideal_denoiser_does_not_differ_from_itself(small_model: Wan) -> None:
    (puzzle,) = [p for p in held_out(MAZE, 60) if len(p.answers) == 3][:1]
    samples = Samples.of_tasks(small_model, ("maze",), 1)
    answers = answers_of(small_model, [puzzle])
    probe = Ideally(jnp.asarray(answers.latents[0]), answers.log_prior[0])
    watched = sweep(
        small_model,
        samples.conditions,
        (0, 1, 2),
        probes=[probe],
        readout=watch_answers,
        aux=answers,
    )
    watched = jax.tree.map(lambda a: a[0, 0], watched)
    np.testing.assert_allclose(watched.gap, 0, atol=1e-4)
    np.testing.assert_allclose(watched.off, 0, atol=1e-3)
    np.testing.assert_allclose(watched.ideal_on, watched.ideal_run_on, atol=5e-3)
    np.testing.assert_array_equal(watched.video[:, -1], watched.ideal_video[:, -1])
    dense = answers.latents[0] - answers.still[0][None]
    if np.linalg.matrix_rank(dense.reshape(3, -1)) == 3:
        np.testing.assert_allclose(watched.on, watched.ideal_on, atol=5e-3)


def test_wrong_answers_are_legal_different_and_wrong() -> None:
    for name in ("rotation", "pattern", "maze"):
        (puzzle,) = [p for p in puzzles_of(name, 20, 0, False) if len(p.answers) == 1][:1]
        drawn = wrong_answers(puzzle, 4)
        assert 2 <= len(drawn) <= 4
        task = TASKS[name]
        assert not any(task.score(puzzle, video).solved for video in drawn)
        assert len({video.tobytes() for video in drawn}) == len(drawn)
        np.testing.assert_array_equal([v[0] for v in drawn], [drawn[0][0]] * len(drawn))
    assert wrong_answers(puzzle, 0) == []


def test_candidates_are_right_then_wrong_then_room(small_model: Wan) -> None:
    puzzles = puzzles_of("maze", 40, 0, False)
    several = next(p for p in puzzles if 1 < len(p.answers) <= 6)
    single = next(p for p in puzzles if len(p.answers) == 1)
    answers = answers_of(small_model, [single, several], wrong=2, room=6)
    assert answers.right.sum(1).tolist() == [1, len(several.answers)]
    assert answers.wrong.sum(1).tolist() == [2, 0]
    with pytest.raises(ValueError, match="room for 2 answers; one puzzle has"):
        answers_of(small_model, [single], wrong=2, room=2)
    for room in answers.latents[0, 3:]:
        np.testing.assert_array_equal(room, answers.still[0])
    assert np.isneginf(answers.log_prior[0, 1:]).all()
    mixed = 0.25 * answers.latents[0, 0] + 0.75 * answers.latents[0, 2]
    on, off = jax.jit(blend)(mixed[None], jax.tree.map(lambda a: a[0], answers))
    np.testing.assert_allclose(on[0], [0.25, 0, 0.75, 0, 0, 0], atol=2e-3)
    assert float(off[0]) < 2e-3


def test_shares_sort_the_mass(small_model: Wan) -> None:
    puzzles = puzzles_of("maze", 40, 0, False)
    pair = [next(p for p in puzzles if len(p.answers) == n) for n in (2, 1)]
    answers = answers_of(small_model, pair, wrong=1, room=3)
    on = np.array([[[[0.6, 0.3, 0.0], [0.2, 0.7, 0.0]]], [[[0.1, 0.5, 0.0], [0.4, 0.6, 0.0]]]])
    np.testing.assert_array_equal(chosen(on[:, :, -1], answers), [[1], [0]])
    mass = shares(on, answers)
    np.testing.assert_allclose(mass.taken[:, 0], [[0.3, 0.7], [0.1, 0.4]])
    np.testing.assert_allclose(mass.others[:, 0], [[0.6, 0.2], [0, 0]])
    np.testing.assert_allclose(mass.wrong[:, 0], [[0, 0], [0.5, 0.6]])


def test_signs_are_judged_by_who_fails(data) -> None:
    """Of a made-up outcome: the puzzles that fail are those whose estimate changes most."""
    dataset = data[0].isel(puzzle=np.tile(np.arange(4), 3)).copy(deep=True)
    solved = np.arange(12) >= 6
    dataset["solved"][:] = solved[None, :, None, None]
    dataset["change"] = (
        ("puzzle", "seed", "step"),
        np.broadcast_to(1.0 - solved[:, None, None], (12, 1, 4)),
    )
    rows = SMALL.table(dataset).set_index(["measure", "case"])
    row = rows.loc["AUROC of failure: change from the step before", "step 2"]
    assert (row.value, row.n, row.forwards) == (1, 12, 3)
