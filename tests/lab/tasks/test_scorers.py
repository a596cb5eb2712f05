"""Every scorer against what a model might show instead of an answer."""

import itertools
import json
import re

import numpy as np
import pytest

from jcos.lab.tasks import PALETTE, TASKS, chance, get, still_of
from jcos.lab.tasks.base import COLOURS
from jcos.lab.tasks.marks import SYMBOLS, UNKNOWN, decode, pure
from jcos.lab.tasks.pattern import SIDES, Item
from jcos.lab.tasks.returns import MODES, SHAPES, Outcome, Thing
from jcos.lab.tasks.rotation import TURNS

N = 10
NOTHING = 0.1
"""The most that a video without a proper answer may score."""
GOOD = 0.95
"""The least that a right answer must score when slightly off in colour."""


@pytest.fixture(params=TASKS.values(), ids=list(TASKS), scope="module")
def task(request):
    return request.param


@pytest.fixture(scope="module")
def puzzles(task):
    return [task.sample(i) for i in range(N)]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def blend(a, b, share=0.5):
    return np.rint((1 - share) * a.astype(float) + share * b).astype(np.uint8)


def fade(video):
    shares = np.linspace(0, 1, len(video))
    return np.stack([blend(video[0], video[-1], share) for share in shares])


def noise(video):
    return np.random.default_rng(0).integers(0, 256, video.shape, dtype=np.uint8)


def cut(when):
    """The first picture until a frame, the last one from there on."""
    return lambda video: np.concatenate([video[:1]] * when + [video[-1:]] * (len(video) - when))


SPOILT = {
    "fade": fade,
    "backwards": lambda video: video[::-1].copy(),
    "grey": lambda video: np.full_like(video, 128),
    "noise": noise,
    "noise after first": lambda video: np.concatenate([video[:1], noise(video)[1:]]),
} | {f"jump cut, frame {when}": cut(when) for when in range(1, 5)}


@pytest.mark.slow
def test_right_answers_score_one_and_are_videos_of_their_own(task, puzzles, rng):
    """With one first frame, as wrong ones; the reference is one of them."""
    for puzzle in puzzles:
        routes = task.routes(puzzle)
        assert routes.dtype == np.uint8
        assert routes.shape == (len(puzzle.answers), task.frames, task.height, task.width, 3)
        assert len({route.tobytes() for route in routes}) == len(routes) > 0
        for route, answer in zip(routes, puzzle.answers, strict=True):
            assert (route == task.draw(puzzle, answer)).all()
            score = task.score(puzzle, route)
            assert score.score == pytest.approx(1.0), score
            assert score.solved
        reference = task.reference(puzzle, rng)
        assert any((reference == route).all() for route in routes)
        guesses = [task.draw(puzzle, task.guess(puzzle, rng)) for _ in range(4)]
        assert len({video[0].tobytes() for video in [*routes, *guesses]}) == 1


def test_the_still_picture_scores_zero(task, puzzles, rng):
    for puzzle in puzzles:
        still = still_of(task.reference(puzzle, rng))
        assert task.score(puzzle, still).score == 0.0
        assert task.judge(puzzle, still).raw <= NOTHING  # so that little has to be subtracted


@pytest.mark.slow
@pytest.mark.parametrize("how", SPOILT)
def test_no_score_without_the_way(task, puzzles, rng, how):
    for puzzle in puzzles:
        video = task.reference(puzzle, rng)
        spoilt = SPOILT[how](video)
        if task.name == "pattern" and puzzle.answers[0].side == 2 and how == "jump cut, frame 2":
            assert (spoilt == video).all()  # the smallest item is drawn in a single step
            continue
        score = task.score(puzzle, spoilt)
        assert score.score <= NOTHING, (puzzle, score)


@pytest.mark.parametrize("paste", [False, True], ids=["whole", "own first frame"])
def test_no_score_for_the_answer_to_another_puzzle(task, puzzles, rng, paste):
    for puzzle, other in itertools.pairwise([*puzzles, puzzles[0]]):
        own, video = task.reference(puzzle, rng), task.reference(other, rng)
        if (own[0] == video[0]).all():
            continue  # the same scene, perhaps with another question
        if paste:
            video[0] = own[0]
        score = task.score(puzzle, video)
        assert score.score <= NOTHING, (puzzle, other, score)


def test_no_score_for_two_answers_at_once(task, puzzles, rng):
    """Both right, or one of them wrong; mixed, or side by side."""
    for puzzle in puzzles:
        pairs = list(itertools.islice(itertools.combinations(task.routes(puzzle), 2), 3))
        wrong = task.draw(puzzle, task.guess(puzzle, rng))
        if not task.score(puzzle, wrong).solved:
            pairs.append((task.reference(puzzle, rng), wrong))
        for a, b in pairs:
            assert task.score(puzzle, blend(a, b)).score <= NOTHING
            beside = np.where((a != a[:1]).any(-1, keepdims=True), a, b)
            if not any((beside == one).all() for one in (a, b)):
                assert task.score(puzzle, beside).score <= NOTHING


@pytest.mark.slow
def test_a_colour_cast_noise_and_a_lost_pixel_are_forgiven(task, puzzles, rng):
    noisy = []
    for puzzle in puzzles:
        video = task.reference(puzzle, rng)
        for cast in ((8, 8, 8), (-8, -8, -8), (8, -8, 8)):
            other = (video.astype(int) + cast).clip(0, 255).astype(np.uint8)
            assert task.score(puzzle, other).score >= GOOD
        other = np.rint(video + rng.normal(0, 20, video.shape)).clip(0, 255).astype(np.uint8)
        noisy.append(task.score(puzzle, other).score)
        if task.name in ("pattern", "rotation"):  # whose objects are larger than a few pixels
            y, x = np.argwhere((video[-1] != video[0]).any(-1))[0]
            video[-1, y, x] = video[0, y, x]
            assert task.score(puzzle, video).score >= 0.9
    assert np.mean(noisy) >= GOOD, noisy


LISTED = {
    "tictactoe": lambda scene: [
        divmod(i, 3) for i, colour in enumerate(scene.colours) if colour is None
    ],
    "pattern": lambda scene: itertools.starmap(Item, itertools.product(SIDES, scene.colours)),
    "rotation": lambda scene: TURNS,
    "returns": lambda scene: (
        Outcome(Thing(colour, shape), mode)
        for colour, shape, mode in itertools.product(COLOURS, SHAPES, MODES)
    ),
}
"""All answers that one may give to a scene."""


@pytest.mark.slow
def test_only_right_answers_are_solved(task, puzzles, rng):
    listed = LISTED.get(task.name.removesuffix("-block"))
    for puzzle in puzzles:
        some = [task.guess(puzzle, rng) for _ in range(8)]
        for answer in listed(puzzle.scene) if listed else some:
            score = task.score(puzzle, task.draw(puzzle, answer))
            assert score.solved == (answer in puzzle.answers), answer
            assert score.solved or not listed or score.score < 0.05, answer


@pytest.mark.parametrize("colour", COLOURS)
def test_what_is_half_of_another_colour_is_nothing(colour):
    for other in ("floor", *COLOURS):
        half = (np.array([PALETTE[colour]]) + PALETTE[other]) / 2
        if other == "floor":
            assert decode(half, ("floor", colour)).tolist() == [UNKNOWN]
        elif other != colour:
            assert pure(np.rint(half).astype(np.uint8), colour) == 0.0
    assert decode(np.array([PALETTE[colour]])).tolist() == [SYMBOLS[colour]]


def test_guesses_are_mostly_wrong(task, puzzles, rng):
    scores = [task.score(p, task.draw(p, task.guess(p, rng))) for p in puzzles]
    assert np.mean([score.score for score in scores]) < 0.8
    assert all(0.0 <= score.score <= 1.0 for score in scores)
    assert 0.0 <= chance(task, 4) <= 1.0
    assert json.loads(json.dumps(scores[0]._asdict())) == scores[0]._asdict()
    video = task.reference(puzzles[0], rng)
    with pytest.raises(ValueError, match=re.escape(str(video[:-1].shape))):
        task.score(puzzles[0], video[:-1])


def test_same_seed_same_puzzle(task):
    for seed in range(8):
        a, b = task.sample(seed), task.sample(seed)
        assert re.fullmatch(r"[a-z0-9]+( [a-z0-9]+){0,7}", a.prompt), a.prompt
        assert (a.prompt, a.identity) == (b.prompt, b.identity)
        assert (task.draw(a, a.answers[-1]) == task.draw(b, b.answers[-1])).all()


@pytest.mark.slow
def test_splits_share_no_identity(task):
    train, test = ([task.sample(i, split) for i in range(60)] for split in ("train", "test"))
    assert not {p.identity for p in train} & {p.identity for p in test}
    assert all(p.held_out for p in test)
    assert not any(p.held_out for p in train)


def test_get_names_what_there_is():
    with pytest.raises(ValueError, match=r"'chess'.*maze.*tictactoe"):
        get("chess")
