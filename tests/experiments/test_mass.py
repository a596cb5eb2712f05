"""The laws of mass per answer, on all right answers of puzzles that have several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcos.experiments.answers import Answers, answers_of, blend
from jcos.experiments.sweeps import held_out
from jcos.lab.ideal import ideal
from jcos.lab.tasks import TASKS, Puzzle
from jcos.wan import Wan

pytestmark = pytest.mark.slow

NUMBER = {"maze": 400, "tictactoe": 100}


@pytest.fixture(scope="module", params=NUMBER)
def several(request: pytest.FixtureRequest, small_model: Wan) -> tuple[list[Puzzle], Answers]:
    puzzles = held_out(TASKS[request.param], NUMBER[request.param])
    puzzles = [p for p in puzzles if len(p.answers) > 1]
    return puzzles, jax.tree.map(jnp.asarray, answers_of(small_model, puzzles))


_blend = jax.jit(jax.vmap(blend))


def test_each_right_answer_has_all_the_mass(several: tuple[list[Puzzle], Answers]) -> None:
    puzzles, answers = several
    on, off = _blend(answers.latents, answers)
    right = answers.right
    assert right.sum() > 20
    assert max(len(p.answers) for p in puzzles) > 1
    own = np.asarray(jnp.diagonal(on, axis1=1, axis2=2))
    assert own[right].min() >= 0.999
    assert (own[~right] == 0).all()
    np.testing.assert_allclose(on.sum(-1) + off, 1, atol=1e-5)


def test_blends_are_explained(several: tuple[list[Puzzle], Answers]) -> None:
    """Where their weights are unique they are found; else others that make the same blend, at
    least as even."""
    puzzles, answers = several
    for power in (0.2, 1.0, 5.0):
        draws = np.random.default_rng(0).gamma(power, size=answers.right.shape)
        weights = np.where(answers.right, draws, 0)
        weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
        mixed = jnp.einsum("pk,pkfhwc->pfhwc", weights, answers.latents)
        on, off = _blend(mixed[:, None], answers)
        assert float(off.max()) < 2e-3
        for i, puzzle in enumerate(puzzles):
            k = len(puzzle.answers)
            change = np.asarray(answers.latents[i, :k] - answers.still[i][None]).reshape(k, -1)
            if np.linalg.svd(change, compute_uv=False).min() > 0.1 * np.linalg.norm(change):
                np.testing.assert_allclose(on[i, 0, :k], weights[i, :k], atol=5e-3)
            fitted, drawn = (np.maximum(w, 1e-9) for w in (on[i, 0, :k], weights[i, :k]))
            assert -(fitted * np.log(fitted)).sum() > -(drawn * np.log(drawn)).sum() - 0.02


def test_the_ideal_denoisers_mass_is_its_posterior(several: tuple[list[Puzzle], Answers]) -> None:
    _, answers = several
    two = np.flatnonzero(answers.right.sum(1) == 2)
    answers = jax.tree.map(lambda a: a[two], answers)
    noise = jax.random.normal(jax.random.key(0), answers.latents[:, 0].shape)
    for sigma in (0.99, 0.8, 0.5):
        x = (1 - sigma) * answers.latents[:, 0] + sigma * noise
        found = jax.vmap(ideal, in_axes=(0, None, 0, 0))(
            x, jnp.float32(sigma), answers.latents, answers.log_prior
        )
        on, _ = _blend(found.x0[:, None], answers)
        np.testing.assert_allclose(on[:, 0], found.weights, atol=5e-3)


def test_what_is_no_answer_is_the_rest(several: tuple[list[Puzzle], Answers]) -> None:
    _, answers = several
    still = answers.still
    noise = jax.random.normal(jax.random.key(0), (len(still), 4, *still.shape[1:]))
    flat = jnp.stack([still, jnp.zeros_like(still), still * 0 + 1, still * 0 - 1], 1)
    on, off = _blend(jnp.concatenate([flat, noise, 0.5 * noise], 1), answers)
    assert float(on.max()) < 1e-3
    assert float(off.min()) > 0.999
