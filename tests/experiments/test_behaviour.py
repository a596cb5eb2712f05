"""Working memory, self-correction, perception before action: on runs whose course is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcos.experiments.answers import answers_of
from jcos.experiments.behaviour import (
    Behaviour,
    Judged,
    common,
    judge_parts,
    run_measures,
    shows_wrong,
    step_measures,
)
from jcos.experiments.behaviour_memory import (
    HIDDEN,
    PLACES,
    RETURNS,
    labels_of,
    places_of,
    read_places,
    readings,
)
from jcos.experiments.samples import puzzles_of
from jcos.experiments.sweeps import held_out
from jcos.lab import results
from jcos.lab.measures import ridge
from jcos.lab.tasks import TASKS, still_of
from jcos.lab.tasks.base import PALETTE, TILE
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan

pytestmark = pytest.mark.slow  # the whole experiment, once for all tests

SMALL = Behaviour(tasks=("maze", "rotation"), puzzles=3, wrong=2, learned=20, remembered=8)


def left_behind(latents: jax.Array, x0: jax.Array, **observed: jax.Array) -> Trace:
    """A trace of these latents and clean estimates [W, K, S, …]."""
    steps = x0.shape[2]
    none = dict(block_obs=(), estimate_obs=()) | observed
    one, levels = jnp.ones(steps, bool), jnp.linspace(1, 0.1, steps)
    layer = -jnp.ones(steps, jnp.int32)
    return Trace(latents, x0, **none, finite=one, layer=layer, sigma=levels, timestep=levels)


def test_dataset_table_and_figures_are_complete(data) -> None:
    dataset, programs = data
    assert programs == 2  # all tasks, and memory
    assert dataset["solved"].shape == dataset["scene"].shape == (2, 6, 1, 4)
    sources, steps = 2 + 1, 4
    identities = len({p.identity for p in held_out(RETURNS, 8)})
    assert dataset["read_shape"].shape == (identities, 1, len(PLACES), steps, sources, 2)
    rows = {(r.task, r.measure, r.case): r for r in results.rows(dataset)}
    last = rows["maze", "solved", "step 3"]
    assert (last.value, last.n, last.still, last.forwards) == (0, 3, 0, 4)
    assert rows["maze", "scene right", "step 0"].still == 1
    assert rows["maze", "corrected: wrong at step 0, right at the end", "model"].value == 0
    # Nothing is ever solved, so nothing is said of runs that are.
    assert ("maze", "step of correction, median", "model") not in rows
    read = rows["returns", "shape of the hidden object read off", "where it started, step 3, x̂0"]
    assert (read.chance, read.forwards) == (0.25, 4)
    for case in (
        "behind the block, step 0, layer 1, shuffled labels",
        "behind the block, x̂0 of the ideal denoiser",
    ):
        assert ("returns", "colour of the hidden object read off", case) in rows
    assert dict(SMALL.figures(dataset)).keys() == {"correction", "memory-depth"}


def test_the_ideal_denoiser_has_the_scene_and_no_wrong_answer(data) -> None:
    ideal = data[0].sel(denoiser="ideal denoiser")
    assert ideal["scene"].all()
    assert ideal["solved"][..., -1].all()
    assert not ideal["turned"].any()
    # Its estimate of the hidden frames is the same for all objects: one reading for all puzzles.
    identities = {repr(p.identity): labels_of(p) for p in held_out(RETURNS, 8)}
    labels = np.array(list(identities.values()))
    for y, label in enumerate(("colour", "shape")):
        read = data[0][f"ideal_read_{label}"].sel(place="behind the block").values.ravel()
        assert set(read) <= {0.0, 1.0}
        assert len(set(labels[read == 1, y])) <= 1


@pytest.mark.parametrize("name", list(TASKS))
def test_parts_are_judged_apart(name: str) -> None:
    task = TASKS[name]
    puzzles = puzzles_of(name, 2, 0, False)
    right = np.stack([task.draw(p, p.answers[0]) for p in puzzles])
    still = np.stack([still_of(v) for v in right])
    spoilt = right.copy()
    for puzzle, video in zip(puzzles, spoilt, strict=True):
        same = common(puzzle)
        last = np.flatnonzero(same.any((1, 2)))[-1]
        video[last, same[last]] = PALETTE["purple"]
    judged = judge_parts(puzzles, np.stack([right, still, spoilt], 1))
    assert judged.solved.tolist() == [[True, False, False]] * 2
    assert judged.answer[:, :2].tolist() == [[True, False]] * 2
    assert judged.scene.tolist()[0][::2] == [True, False]


def test_an_estimate_that_shows_a_wrong_answer(small_model: Wan) -> None:
    puzzles = puzzles_of("maze", 40, 0, False)
    pair = [next(p for p in puzzles if len(p.answers) == n) for n in (2, 1)]
    answers = answers_of(small_model, pair, wrong=1, room=3)
    on = np.array(
        [
            [[[0.8, 0.2, 0], [0.5, 0.5, 0], [0.1, 0.9, 0]]],
            [[[0.2, 0.8, 0], [0.6, 0.4, 0], [0.9, 0, 0]]],
        ]
    )
    assert shows_wrong(on, answers)[:, 0].tolist() == [[False] * 3, [True, False, False]]


NONE = np.nan
SOLVED = [[0, 0, 1, 1], [0, 1, 0, 1], [1, 1, 0, 0], [1, 1, 1, 1]]
SCENE = [[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]]
ANSWER = [[0, 0, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 0]]


@pytest.mark.parametrize(
    ("runs", "name", "want"),
    [
        ((SOLVED, SOLVED, SOLVED), "corrected", [1, 1, 0, 0]),
        ((SOLVED, SOLVED, SOLVED), "spoiled", [0, 0, 1, 0]),
        ((SOLVED, SOLVED, SOLVED), "correction_step", [2, 3, NONE, NONE]),
        ((SOLVED, SOLVED, SOLVED), "corrected_later", [1, 1, 0, 0]),
        ((SOLVED, SOLVED, SOLVED), "spoiled_later", [0, 0, 1, 0]),
        ((SOLVED, SOLVED, SOLVED), "turned", [1, 1, 0, 0]),
        ((ANSWER, SCENE, ANSWER), "scene_first", [1, 0, 0, NONE]),
        ((ANSWER, SCENE, ANSWER), "at_once", [0, 1, 0, NONE]),
        ((ANSWER, SCENE, ANSWER), "answer_first", [0, 0, 1, NONE]),
    ],
)
def test_the_course_of_known_runs(runs, name: str, want: list[float]) -> None:
    """Of one denoiser and seed; of measures of every step, the first."""
    solved, scene, answer = (np.array(x, bool)[None, :, None] for x in runs)
    judged = Judged(solved, answer, scene)
    _, values, _ = (run_measures(judged, ~solved) | step_measures(judged))[name]
    np.testing.assert_array_equal(values.reshape(4, -1)[:, 0], want)


def test_places_are_where_things_are() -> None:
    for puzzle in held_out(RETURNS, 12):
        weights = places_of(puzzle).reshape(len(PLACES), 5, 5)
        np.testing.assert_allclose(weights.sum((1, 2)), 1, rtol=1e-5)
        assert ((weights > 0).sum(0) <= 1).all()
        video = RETURNS.routes(puzzle)[0]
        thing = (video == PALETTE[puzzle.scene.thing.colour]).all(-1)
        block = (video == PALETTE["grey"]).all(-1)
        tiles = [m.reshape(5, 5, TILE, 5, TILE).any((2, 4)) for m in (thing, block)]
        np.testing.assert_array_equal(weights[3] > 0, tiles[0][0])
        np.testing.assert_array_equal(weights[1] > 0, tiles[0][-1])
        assert tiles[1][2][weights[0] > 0].all()
        assert not tiles[0][list(HIDDEN)].any()


def test_tokens_of_the_hidden_frames_are_averaged_over_places(small_model: Wan) -> None:
    rng = np.random.default_rng(0)
    weights = places_of(held_out(RETURNS, 1)[0])
    tokens = rng.normal(size=(1, 1, 4, 2, len(HIDDEN) * 25, 3)).astype(np.float32)
    x0 = np.asarray(small_model.encode(RETURNS.routes(held_out(RETURNS, 1)[0])[0]))
    steps = np.array([1, 3], np.int32)
    x0, tokens = jnp.asarray(x0), jnp.asarray(tokens)
    aux = jnp.asarray(weights), jnp.asarray(steps)
    every = jnp.broadcast_to(x0, (1, 1, 4, *x0.shape))
    trace = left_behind(x0, every, block_obs=tokens)
    read, estimate = read_places(small_model, SMALL.plan(small_model.config), trace, aux)
    want = np.asarray(tokens[0, 0, 3, 1]).reshape(2, 25, 3).mean(0)
    np.testing.assert_allclose(read[0, 1, 1], weights @ want, atol=1e-5)
    assert estimate.shape == (1, 2, len(PLACES), 48)
    grey = np.asarray(small_model.encode(np.full((1, 4, 4, 3), PALETTE["grey"], np.uint8)))
    np.testing.assert_allclose(
        np.sort(estimate[0, 0, 0]), np.sort(np.tile(grey[0, 0, 0], 4)), atol=1e-4
    )


def test_probes_read_what_is_there_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    labels = np.stack([rng.integers(5, size=300), rng.integers(4, size=300)], 1)
    colour = np.eye(5)[labels[:, 0]] @ rng.normal(size=(5, 8))
    features = np.stack([colour, rng.normal(size=(300, 8)), np.ones((300, 8))], 1)[:, None]
    read = readings(features, labels, 200, 0.01)
    assert read.shape == (100, 1, 3, 2, 2)
    share = read.mean((0, 1))
    assert share[0, 0, 0] > 0.95
    assert share[0, 0, 1] < 0.35  # the control
    assert share[0, 1, 0] < 0.45
    assert (share[1] < 0.45).all()
    assert np.isfinite(read).all()


def test_ridge_is_least_squares_where_the_penalty_vanishes() -> None:
    rng = np.random.default_rng(1)
    x, z = rng.normal(size=(50, 2, 3)), rng.normal(size=(7, 2, 3))
    w = rng.normal(size=(3, 4))
    got = ridge(x, x[:, 1] @ w + 2, 1e-9)(z)
    np.testing.assert_allclose(got[:, 1], z[:, 1] @ w + 2, atol=1e-6)
