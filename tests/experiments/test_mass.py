"""The laws of mass per answer, on all right answers of puzzles that have several."""

import jax
import numpy as np
import pytest

from jcos.experiments.answers import Answers, answers_of, blend
from jcos.experiments.sweeps import held_out
from jcos.lab.ideal import ideal
from jcos.lab.tasks import TASKS, Puzzle
from jcos.wan import Wan

pytestmark = pytest.mark.slow

NUMBER = {"maze": 150, "tictactoe": 60}


@pytest.fixture(scope="module", params=NUMBER)
def several(request: pytest.FixtureRequest, small_model: Wan) -> tuple[list[Puzzle], Answers]:
    puzzles = held_out(TASKS[request.param], NUMBER[request.param])
    puzzles = [p for p in puzzles if len(p.answers) > 1]
    return puzzles, jax.tree.map(np.asarray, answers_of(small_model, puzzles))


_blend, _ideal = jax.jit(jax.vmap(blend)), jax.jit(jax.vmap(ideal, (0, None, 0, 0)))


def test_each_right_answer_has_all_the_mass(several: tuple[list[Puzzle], Answers]) -> None:
    puzzles, answers = several
    on, off = _blend(answers.latents, answers)
    right = answers.right
    assert right.sum() > 20
    assert max(len(p.answers) for p in puzzles) > 1
    own = np.diagonal(on, axis1=1, axis2=2)
    assert own[right].min() >= 0.999
    assert (own[~right] == 0).all()
    np.testing.assert_allclose(on.sum(-1) + off, 1, atol=1e-5)


def test_blends_are_explained(several: tuple[list[Puzzle], Answers]) -> None:
    """Where their weights are unique they are found; else others that make the same blend, at
    least as even."""
    puzzles, answers = several
    unique, still = [], np.asarray(answers.still)
    for i, puzzle in enumerate(puzzles):
        k = len(puzzle.answers)
        change = (answers.latents[i, :k] - still[i]).reshape(k, -1)
        sizes = np.linalg.svd(change, compute_uv=False)
        unique.append(sizes.min() > 0.1 * np.linalg.norm(change))
    for power in (0.2, 1.0, 5.0):
        draws = np.random.default_rng(0).gamma(power, size=answers.right.shape)
        weights = np.where(answers.right, draws, 0)
        weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
        mixed = np.einsum("pk,pkfhwc->pfhwc", weights, answers.latents)
        on, off = map(np.asarray, _blend(mixed[:, None], answers))
        assert off.max() < 2e-3
        assert min(on.min(), off.min()) >= 0
        np.testing.assert_allclose(on.sum(-1) + off, 1, atol=1e-6)
        for i, puzzle in enumerate(puzzles):
            k = len(puzzle.answers)
            if unique[i]:
                np.testing.assert_allclose(on[i, 0, :k], weights[i, :k], atol=5e-3)
            fitted, drawn = (np.maximum(w, 1e-9) for w in (on[i, 0, :k], weights[i, :k]))
            assert -(fitted * np.log(fitted)).sum() > -(drawn * np.log(drawn)).sum() - 0.02


def test_the_ideal_denoisers_mass_is_its_posterior(several: tuple[list[Puzzle], Answers]) -> None:
    _, answers = several
    two = np.flatnonzero(answers.right.sum(1) == 2)
    answers = jax.tree.map(lambda a: a[two], answers)
    noise = np.random.default_rng(0).standard_normal(answers.latents[:, 0].shape, np.float32)
    for sigma in (0.99, 0.8, 0.5):
        x = (1 - sigma) * answers.latents[:, 0] + sigma * noise
        found = _ideal(x, np.float32(sigma), answers.latents, answers.log_prior)
        on, _ = _blend(found.x0[:, None], answers)
        np.testing.assert_allclose(on[:, 0], found.weights, atol=5e-3)


def test_what_is_no_answer_is_the_rest(several: tuple[list[Puzzle], Answers]) -> None:
    _, answers = several
    still = np.asarray(answers.still)
    shape = (len(still), 4, *still.shape[1:])
    noise = np.random.default_rng(0).standard_normal(shape, np.float32)
    flat = np.stack([still, still * 0, still * 0 + 1, still * 0 - 1], 1)
    on, off = _blend(np.concatenate([flat, noise, 0.5 * noise], 1), answers)
    assert float(on.max()) < 1e-3
    assert float(off.min()) > 0.999
