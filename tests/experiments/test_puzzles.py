"""Many puzzles as one program: pairing, order, scores."""

import numpy as np
import pytest

from jcos.experiments.puzzles import held_out, play, score
from jcos.probes import Noise
from jcos.tasks import TASKS
from jcos.wan import Wan

MAZE = TASKS["maze"]


def test_puzzles_are_held_out_and_the_same_each_time() -> None:
    puzzles = held_out(MAZE, 5)
    assert all(p.held_out for p in puzzles)
    assert [p.identity for p in puzzles] == [p.identity for p in held_out(MAZE, 8)[:5]]
    assert [p.identity for p in puzzles] != [p.identity for p in held_out(MAZE, 5, seed=1)]


def test_a_run_does_not_depend_on_its_neighbours(small_model: Wan) -> None:
    puzzles = held_out(MAZE, 3)
    off, wipe = (Noise.at_steps(4, MAZE.frames, at) for at in ((), (1,)))
    many = play(small_model, MAZE, puzzles, (0, 3), probes=[off, wipe], keep=(0, 3))
    assert many.x0.shape == (2, 3, 2, 2, 5, 10, 10, 12)
    one = play(small_model, MAZE, puzzles[:1], (3,), probes=[off], keep=(0, 3))
    np.testing.assert_allclose(one.x0[0, 0, 0], many.x0[0, 0, 1], atol=2e-4)
    np.testing.assert_allclose(many.x0[0, :, :, 0], many.x0[1, :, :, 0], atol=2e-4)
    assert np.abs(np.asarray(many.latents[0] - many.latents[1])).max() > 0.1


def test_score_judges_what_is_decoded(small_model: Wan) -> None:
    """References as latents are solved, on the axes they came in; noise is not."""
    import jax.numpy as jnp

    from jcos.vae import encode_pixels

    puzzles = held_out(MAZE, 2)
    right = jnp.stack(
        [encode_pixels(small_model.codec, jnp.asarray(MAZE.routes(p)[0])) for p in puzzles]
    )
    latents = jnp.stack([right, jnp.zeros_like(right)], axis=1)
    scores, solved = score(small_model, MAZE, puzzles, latents)
    np.testing.assert_array_equal(solved, [[True, False]] * 2)
    np.testing.assert_allclose(scores, [[1, 0]] * 2)


@pytest.mark.parametrize("name", list(TASKS))
def test_every_task_fits_the_model(small_model: Wan, name: str) -> None:
    task = TASKS[name]
    for puzzle in held_out(task, 3):
        condition = small_model.condition(task.first_frame(puzzle), puzzle.prompt, task.frames)
        assert condition.channels is not None
        assert condition.channels.shape == (5, task.height // 2, task.width // 2, 16)
