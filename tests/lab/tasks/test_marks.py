import itertools

import numpy as np
import pytest

from jcos.lab.tasks.base import COLOURS, PALETTE
from jcos.lab.tasks.marks import (
    SYMBOLS,
    UNKNOWN,
    apart,
    canvas,
    decode,
    iou,
    paint,
    pure,
    ramp,
    stencil,
    symmetries,
    tiles,
    turned,
    turned_back,
)


def half(a, b):
    """A pixel half-way between two palette colours."""
    return (np.array([PALETTE[a]]) + PALETTE[b]) / 2


@pytest.fixture
def video():
    return np.random.default_rng(0).integers(0, 256, (5, 20, 20, 3), dtype=np.uint8)


def test_turns_are_eight_different_ones_and_undone(video):
    turns = [turned(video, turn) for turn in range(8)]
    assert len({one.tobytes() for one in turns}) == 8
    assert all((turned_back(one, turn) == video).all() for turn, one in enumerate(turns))
    copies = {copy.tobytes() for copy in symmetries(video[0, ..., 0])}
    assert copies == {one[0, ..., 0].tobytes() for one in turns}


def test_tiles_are_squares_of_the_picture(video):
    cut = tiles(video, 4)
    assert cut.shape == (5, 5, 5, 4, 4, 3)
    for row, column in itertools.product(range(5), repeat=2):
        top, left = 4 * row, 4 * column
        assert (cut[:, row, column] == video[:, top : top + 4, left : left + 4]).all()
    assert tiles(video[..., 0], 4).shape == (5, 5, 5, 4, 4)


def test_paint_colours_the_mask_and_nothing_else():
    frame, mask = canvas(6, 8), stencil("#.", "##")
    paint(frame, 3, 5, mask, "red")
    assert (frame[3:5, 5:7][mask] == PALETTE["red"]).all()
    assert (frame == PALETTE["red"]).all(-1).sum() == 3


def test_every_colour_is_read_as_itself_or_as_nothing():
    """Nothing is what is not asked for, and an object half mixed with floor."""
    pixels = np.array(list(PALETTE.values()), np.uint8)
    assert decode(pixels).tolist() == list(SYMBOLS.values())
    pixels = np.array([PALETTE["red"], PALETTE["blue"], PALETTE["grey"]], np.uint8)
    assert decode(pixels, ("floor", "red")).tolist() == [SYMBOLS["red"], UNKNOWN, UNKNOWN]
    for colour in COLOURS:
        assert decode(half(colour, "floor"), ("floor", colour)).tolist() == [UNKNOWN]


def test_what_is_half_of_another_colour_is_not_pure():
    for a, b in itertools.permutations(COLOURS, 2):
        assert pure(np.rint(half(a, b)).astype(np.uint8), a) == 0.0


def test_pure_is_a_mean_with_some_latitude():
    pixels = np.array([PALETTE["blue"]] * 4, np.uint8)
    pixels[:2] += 20
    pixels[2:] -= 20
    assert pure(pixels, "blue") == 1.0
    assert pure(pixels[:2] + 4, "blue") == pytest.approx(0.5)
    assert pure(pixels[:0], "blue") == 0.0


def test_apart_compares_with_colours_and_pictures(video):
    other = canvas(20, 20, "green")
    assert (apart(video, other) == apart(video, "green")).all()
    assert (apart(video, video) == 0).all()
    assert apart(np.array([[10.0, 20.0, 33.0]]), np.zeros((1, 3), np.uint8)).tolist() == [21.0]


def test_iou():
    a, b, none = stencil("##", ".."), stencil("#.", "#."), stencil("..", "..")
    both = iou(np.stack([a, b, none]), a)
    assert both.tolist() == pytest.approx([1.0, 1 / 3, 0.0])
    assert iou(none, none) == 1.0
    assert iou(np.stack([a, b])[:, None], np.stack([a, b, none])).shape == (2, 3)


def test_ramp_goes_either_way():
    assert [ramp(x, 1, 3) for x in (0, 1, 2, 3, 4)] == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert [ramp(x, 3, 1) for x in (0, 1, 2, 3, 4)] == [1.0, 1.0, 0.5, 0.0, 0.0]
