"""Each experiment on a random small model, and on latents whose answer is known."""

import jax.numpy as jnp
import numpy as np
import pytest

from jcos.experiments.ensemble import ensemble_solved
from jcos.experiments.evaluate import evaluate
from jcos.experiments.sweeps import held_out
from jcos.experiments.watching import Watch, masses, routes, watch
from jcos.lab.tasks import TASKS, Puzzle
from jcos.sampling.probes import SeedEnsemble
from jcos.wan import Wan

MAZE = TASKS["maze"]


def answers_of(model: Wan, puzzle: Puzzle) -> np.ndarray:
    drawn = MAZE.routes(puzzle)
    return np.stack([np.asarray(model.encode(a)) for a in drawn])


def several(n: int) -> list[Puzzle]:
    return [p for p in held_out(MAZE, 100) if len(p.answers) in (2, 3)][:n]


def test_mass_is_the_weight_of_each_answer_in_a_blend(small_model: Wan) -> None:
    for puzzle in several(4):
        answers = answers_of(small_model, puzzle)
        weights = np.linspace(1, 2, len(answers))
        weights /= weights.sum()
        blend = np.tensordot(weights, answers, 1)
        on, off = masses(small_model, puzzle, jnp.asarray(np.stack([blend, answers[0]])), 12)
        independent = np.linalg.matrix_rank((answers - answers[0, :1]).reshape(len(answers), -1))
        if independent == len(answers):
            np.testing.assert_allclose(on[0], weights, atol=2e-3)
        np.testing.assert_allclose(on[1], np.eye(len(answers))[0], atol=1e-3)
        np.testing.assert_allclose(off, 0, atol=2e-3)


def test_route_taken_is_the_one_at_the_end(small_model: Wan) -> None:
    puzzles = several(2)
    rows = []
    for puzzle in puzzles:
        answers = answers_of(small_model, puzzle)
        rows.append(np.stack([answers[:2].mean(0), answers[1]]))
    x0 = jnp.asarray(np.stack(rows))
    judged = np.zeros((2, 2))
    mass = routes(small_model, puzzles, Watch(x0, x0[:, -1], judged, judged > 0))
    np.testing.assert_allclose(mass.taken, [[0.5, 1.0]] * 2, atol=2e-2)
    np.testing.assert_allclose(mass.others, [[0.5, 0.0]] * 2, atol=2e-2)
    np.testing.assert_allclose(mass.off, 0, atol=1e-3)


def test_watch_judges_the_steps_it_is_asked_for(small_model: Wan) -> None:
    watched = watch(small_model, MAZE, held_out(MAZE, 2), range(4), judged=(0, 3))
    assert watched.x0.shape == (2, 4, 5, 10, 10, 12)
    assert watched.scores.shape == watched.solved.shape == (2, 2)
    np.testing.assert_allclose(watched.x0[:, -1], watched.latents, atol=1e-4)


@pytest.mark.slow
def test_ensembles_have_their_axes(small_model: Wan) -> None:
    probes = [SeedEnsemble.window(4, 2, at_steps=()), SeedEnsemble.window(4, 2)]
    puzzles = held_out(MAZE, 2)
    assert ensemble_solved(small_model, MAZE, puzzles, (0, 1, 2), probes).shape == (2, 2, 3)


def test_evaluation_of_a_model_that_solves_nothing(small_model: Wan) -> None:
    result = evaluate(small_model, MAZE, 6)
    assert result.solved.mean == 0
    assert result.solved.high > 0.1
    assert result.commitment is None
    assert result.still == 0
    assert 0 <= result.chance < 0.9
    assert result.distinct == 6
