"""What judges say of estimates whose worth is known."""

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jcos.lab.judges import (
    PROXY,
    STANDARD,
    Decided,
    Entropy,
    Estimates,
    Frames,
    Head,
    Random,
    Scorer,
    agreement,
    change,
    energy,
    fit_head,
    motion,
    norm,
    palette_distance,
    peak,
    pooled,
    standard,
)
from jcos.lab.tasks import PALETTE, TASKS
from jcos.preview import fit_preview
from jcos.wan import Wan
from tests.test_wan import released

MAZE = TASKS["maze"]
PUZZLE = next(p for p in (MAZE.sample(i, "test") for i in range(99)) if len(p.answers) > 1)


def estimates(model: Wan, latents: list, before: list | None = None, alive=None) -> Estimates:
    """Of one video; every latent is a particle."""
    x0 = jnp.stack(latents)[None]
    last = x0 if before is None else jnp.stack(before)[None]
    alive = np.ones(x0.shape[:2], bool) if alive is None else np.array([alive])
    return Estimates(model, 3, 0.5, x0, x0, last, alive, {})


@pytest.fixture(scope="module")
def routes(small_model: Wan) -> list:
    return [small_model.encode(video) for video in MAZE.routes(PUZZLE)[:2]]


def test_pure_colours_are_decided_and_blends_are_not(small_model: Wan, routes) -> None:
    blend = 0.5 * routes[0] + 0.5 * routes[1]
    near = 0.9 * routes[0] + 0.1 * routes[1]
    at = estimates(small_model, [routes[0], near, blend])
    for judge in (Decided(), Decided(1, 1)):
        pure, little, much = np.asarray(judge(at))[0]
        assert pure > little > much
    assert float(Decided()(at)[0, 0]) == pytest.approx(0, abs=1e-3)
    colours = jnp.array([*PALETTE.values(), (236, 234, 230)], jnp.float32)
    np.testing.assert_allclose(palette_distance(colours)[:-1], 0)
    assert float(palette_distance(colours)[-1]) == pytest.approx(2)


@pytest.mark.slow
def test_answers_that_are_held_at_once_are_entropy(small_model: Wan, routes) -> None:
    still = jnp.broadcast_to(routes[0][:1], routes[0].shape)
    judge = Entropy(jnp.stack(routes)[None], still[None])
    at = estimates(small_model, [routes[0], 0.5 * routes[0] + 0.5 * routes[1], still])
    one, two, none = np.asarray(judge(at))[0]
    assert one == pytest.approx(0, abs=0.02)
    assert two == pytest.approx(-np.log(2), abs=0.02)
    assert none == pytest.approx(0, abs=0.02)  # decided on nothing


def test_the_scorer_knows_the_answer_and_frames_are_judged_on_the_host(
    small_model: Wan, routes
) -> None:
    wrong = small_model.encode(MAZE.draw(PUZZLE, PUZZLE.answers[0][:2]))
    at = estimates(small_model, [routes[0], wrong, routes[1]])
    right, little, other = Scorer([PUZZLE])(at)[0]
    assert right == other == 1
    assert little < 0.5
    scores = Frames(lambda video: float(video[-1].mean()))(at)
    want = [MAZE.routes(PUZZLE)[i][-1].mean() for i in range(2)]
    np.testing.assert_allclose(scores[0, ::2], want, atol=0.5)
    video = np.zeros((1, 3, 1, 2, 2, 3), np.uint8)
    tiled: Any = SimpleNamespace(decode=lambda x0, tiles: video + np.uint8(tiles[0]))
    at = at._replace(model=tiled, tiles=(7, 7))
    assert Frames(lambda video: float(video.mean()))(at).tolist() == [[7, 7, 7]]


@pytest.mark.slow
def test_signs_of_any_run(small_model: Wan, routes) -> None:
    a, b = routes
    at = estimates(small_model, [a, a, b], before=[a, b, b])
    still, moved, same = np.asarray(change(at))[0]
    assert still == same == 0
    assert moved < -0.01
    near, twin, far = np.asarray(agreement(at))[0]
    assert near == twin > far
    alone = np.asarray(agreement(estimates(small_model, [a, b], alive=[True, False])))[0]
    assert alone[0] == 0
    blurred = 0.5 * (a + jnp.roll(a, 1, axis=1))
    sharp, soft = np.asarray(energy(estimates(small_model, [a, blurred])))[0]
    assert sharp > soft
    blend = estimates(small_model, [a, 0.5 * (a + b)])
    assert (np.diff(np.asarray(norm(blend))) < 0).all()
    stopped = estimates(small_model, [a, jnp.broadcast_to(a[:1], a.shape)])
    moving, resting = np.asarray(motion(stopped))[0]
    assert moving > resting == 0
    one = jnp.zeros_like(a).at[0, 0, 0].set(1.0)  # a cell alone, of 500
    whole = jnp.full_like(a, 0.2)
    at = estimates(small_model, [one, whole], before=[0 * a, 0 * a])
    assert (np.asarray(change(at))[0] == -np.asarray([500**-0.5, 0.2], np.float32)).any()
    assert np.argmax(np.asarray(change(at))) == 0
    assert np.argmax(np.asarray(peak(at))) == 1
    seeds = np.array([[5, 6, 5]], np.uint32)
    at = estimates(small_model, [a, b, a])._replace(seeds=seeds)
    one, other, copy = Random()(at)[0]
    assert len({one, other, copy}) == 3
    alone = estimates(small_model, [b])._replace(seeds=seeds[:, 1:2])
    assert Random()(alone) == other


def test_a_head_learns_what_tokens_tell(small_model: Wan, routes) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((200, 6, 4))
    tokens[..., 3] = 1.0  # tells nothing
    right = tokens[..., 1].mean(1) > 0
    head = fit_head(2, np.asarray(pooled(tokens)), right.astype(float))
    assert isinstance(head, Head)
    at = estimates(small_model, [routes[0]] * 200)._replace(tokens={2: jnp.asarray(tokens[None])})
    scores = np.asarray(head(at))[0]
    assert scores[right].mean() > scores[~right].mean() + 0.3
    assert np.isfinite(scores).all()


def test_a_preview_is_the_mean_colour_of_a_cell(small_model: Wan, routes) -> None:
    """Of the small model's codec that is a linear function, so the fit is exact."""
    preview = fit_preview(small_model, size=20)
    video = MAZE.routes(PUZZLE)[0].astype(float)
    cells = video.reshape(5, 10, 2, 10, 2, 3).mean((2, 4))
    np.testing.assert_allclose(preview(routes[0]), cells, atol=1.5)
    judge = Frames(lambda film: float(film.shape[1]), preview)
    assert not judge.decodes
    assert judge(estimates(small_model, list(routes))).tolist() == [[10.0, 10.0]]


@pytest.mark.slow
def test_a_preview_is_fitted_for_any_vae() -> None:
    """With random weights; grey is grey: the fit is no worse than a constant."""
    model = released("ti2v")
    preview = fit_preview(model, frames=5, size=64, videos=2)
    picture = np.full((1, 64, 64, 3), 128, np.uint8)
    assert np.abs(preview(model.encode(picture)).astype(int) - 128).mean() < 80


def test_decided_is_a_sign_of_latents_where_nothing_is_drawn(small_model: Wan) -> None:
    drawn, filmed = (standard(model.config) for model in (small_model, released("i2v")))
    assert isinstance(drawn["decided"], Decided)
    assert filmed["decided"].identity == STANDARD[PROXY]().identity
    assert drawn.keys() - filmed.keys() == {"pixels"}
