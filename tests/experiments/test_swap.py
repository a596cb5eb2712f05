"""Swaps between runs that differ in one thing: laws that hold for any model."""

from pathlib import Path

import jax
import numpy as np
import pytest

from jcos.experiments.experiment import Settings
from jcos.experiments.puzzles import compilations, finish, playing
from jcos.experiments.swap import Swap, probe_of, side_by_side, velocity_swap
from jcos.experiments.swap_found import AT_ONCE, VELOCITY, WAY, Case, Ends, Found
from jcos.experiments.swap_pairs import PARTNERS, Pair, candidates, object_tokens, pairs_of
from jcos.lab.tasks import TASKS
from jcos.sampling.probes import Swap as SwapProbe
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan
from tests.experiments.conftest import clips_file

pytestmark = pytest.mark.slow  # the whole experiment, once for all tests

SMALL = Swap(tasks=("returns", "rotation"), puzzles=2, steps=(0, 2), until=(0.5, 1.0), seeds=(0, 5))
ALL = tuple(dict.fromkeys(task for task, _ in PARTNERS.values()))


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return [pair for task in ALL for pair in pairs_of(task, 3)]


def test_all_swaps_are_one_program_and_those_of_the_ideal_another(found) -> None:
    assert found[1] == 2


def test_the_ideal_denoiser_takes_a_swap_back_unless_it_lasts(found) -> None:
    rows = {(r.task, r.measure, r.case): r.value for r in found[0].rows}
    kind, flipped = "rotation, other angle", "flipped to the donor's answer"
    for when, flips in (("step 0", 0), ("step 2", 0), ("steps 0 to 2", 0), ("steps 0 to 3", 1)):
        case = f"velocity, {when}, ideal denoiser"
        assert rows[kind, flipped, case] == flips
        assert rows[kind, "share of the donor's answer at once", case] > 0.5
    assert rows[kind, "own answer solved", "no swap, ideal denoiser"] == 1


def test_arrays_table_and_figures_are_complete(found) -> None:
    findings, _ = found
    cases = 1 + 2 * (2 + 2 + 2)  # none; two layers × single steps, kept up, object and rest
    assert findings.arrays["own_answer_solved"].shape == (cases, 6, 2, 2)
    assert {"layer", "at-once", "map", "until", "tokens"} <= set(findings.figures)
    assert "film-returns-other-object" in findings.figures
    rows = {(r.task, r.measure, r.case): r for r in findings.rows}
    plain = rows["returns, other way", "own answer solved", "no swap"]
    assert (plain.value, plain.n, plain.still, plain.forwards) == (0, 2, 0, 4)
    assert plain.chance is not None
    assert rows["rotation, other angle", WAY, "layer 1, step 2"].forwards == 4 + 3
    assert rows["rotation, other angle", WAY, "layer 1, steps 0 to 3"].forwards == 4 + 4
    flipped = rows["rotation, other angle", "flipped to the donor's answer", "layer 0, step 0"]
    assert flipped.n == 0  # neither plain run is right
    assert (
        "returns, other way",
        "flipped to the donor's answer, own from donor",
        "layer 0, step 0",
    ) in rows


def test_without_a_swap_a_run_is_on_its_own_side(found) -> None:
    way = found[0].arrays["way_to_the_donors_end"]
    np.testing.assert_allclose(way[0], 0, atol=1e-9)
    assert np.isnan(found[0].arrays["way_to_the_donors_end"][5:, :, 1]).all()  # no receivers


def test_the_tokens_of_the_last_layer_are_the_donors_run(found) -> None:
    """Handed over in every step they decide everything, whatever the own picture and prompt."""
    arrays = found[0].arrays
    (last,) = np.flatnonzero(
        (arrays["layer"] == 1)
        & (arrays["first"] == 0)
        & (arrays["last"] == 3)
        & (arrays["tokens"] == "all")
    )
    np.testing.assert_allclose(arrays["way_to_the_donors_end"][last, :, 0], 1, atol=0.02)


def test_the_velocity_is_what_all_tokens_are_after_the_last_layer(small_model: Wan) -> None:
    (pair,) = pairs_of("rotation", 1)
    given, every = side_by_side(small_model, [pair]), np.ones(125, bool)
    for case in (Case(1, 1, 1), Case(1, 0, 2)):
        swapped = case._replace(layer=None, tokens=VELOCITY)
        ends = [
            finish(playing(small_model, given, probes=[probe])).latents
            for probe in (probe_of(case, 4, 2, every), velocity_swap(swapped, 4))
        ]
        np.testing.assert_allclose(*ends, atol=2e-4)


@pytest.fixture(scope="module")
def few(small_model: Wan) -> Trace:
    """One pair under some swaps, leaves [Q, W, …]."""
    (pair,) = pairs_of("rotation", 1)
    mask = object_tokens(small_model, candidates(small_model, [pair]))[0]
    cases = [Case(), *(Case(1, 0, 0, tokens) for tokens in ("all", "object", "rest"))]
    probes = [probe_of(case, 4, 2, mask) for case in (*cases, Case(0, 1, 1))]
    probes += [
        SwapProbe.at_layers(4, 2, 125, [0], at_steps=[1], receivers=to)
        for to in ((True, False), (False, True))
    ]
    trace = finish(playing(small_model, side_by_side(small_model, [pair]), probes=probes))
    return jax.tree.map(lambda a: a[:, 0, :, 0], trace)


def test_the_object_and_the_rest_share_out_the_velocity(few: Trace) -> None:
    """After the last layer, in the first step: what all tokens move is what both parts move."""
    none, every, part, rest = np.asarray(few.x0[:4, :, 0])
    np.testing.assert_allclose(every[0], none[1], atol=1e-4)
    np.testing.assert_allclose(every - none, part - none + rest - none, atol=1e-4)
    assert np.abs(part - none).max() > 1e-3
    assert np.abs(rest - none).max() > 1e-3


def test_an_exchange_is_a_swap_each_way(few: Trace) -> None:
    both, first, second = np.asarray(few.latents[4:])
    np.testing.assert_allclose(both[0], first[0], atol=1e-4)
    np.testing.assert_allclose(both[1], second[1], atol=1e-4)
    assert np.abs(both[0] - second[0]).max() > 1e-3


def test_at_once_in_the_last_step_is_in_the_end(found) -> None:
    arrays = found[0].arrays
    late = np.flatnonzero(arrays["last"] == 3)
    assert len(late) == 6
    key = AT_ONCE.replace("'", "").replace(" ", "_")
    at_once, end = arrays[key][late], arrays["share_of_the_donors_answer_in_the_end"][late]
    np.testing.assert_array_equal(at_once, end)
    assert np.isfinite(at_once[:, :, 0]).all()


def test_what_is_read_off_known_ends(small_model: Wan) -> None:
    """Videos drawn instead of played: two pairs, of which the first swap flips one way of one."""
    pairs = pairs_of("tictactoe", 2)
    own = np.stack([[TASKS["tictactoe"].routes(p)[0] for p in pair.puzzles] for pair in pairs])
    flipped = own.copy()
    flipped[0, 0] = TASKS["tictactoe"].routes(pairs[0].crossed[0])[0]
    flipped[1, 1] = own[1, 1][:1]  # the still picture: neither
    shown = np.stack([own, flipped])[:, :, :, None]
    share = np.zeros((2, 2, 2, 1, 4))
    found = Found(
        cases=[Case(), Case(3, 1, 1)],
        pairs=pairs,
        given=side_by_side(small_model, pairs),
        forwards=lambda steps: steps,
        steps=4,
        object_here=np.zeros((2, 125), bool),
        ends=Ends(shown, share, share),
    )
    readings = {k: v[1, :, :, 0].tolist() for k, v in found.readings.items()}
    assert readings["flipped to the donor's answer"] == [[1, 0], [0, 0]]
    assert readings["own answer kept"] == [[0, 1], [1, 0]]
    assert readings["neither solved"] == [[0, 0], [0, 1]]
    assert readings[WAY][0][0] == 1
    assert readings[WAY][0][1] == 0
    (all_kept,) = found.estimate("own answer kept", [0], np.arange(2))
    assert (all_kept.mean, all_kept.n) == (1, 2)
    assert all_kept.low < 0.5  # two pairs prove little
    rows = {(r.measure, r.case): r for r in found.rows()}
    more = rows["donor's answer solved, more than without", "layer 3, step 1"]
    assert (more.value, more.n) == (0.25, 2)


def test_an_answer_counts_in_either_picture(small_model: Wan) -> None:
    """The donor's whole run, its answer in the own picture, and the own answer in the donor's."""
    (pair,) = pairs_of("pattern", 1)
    own, donor = (TASKS["pattern"].routes(p)[0] for p in pair.puzzles)
    shown = [[own, donor], [donor, own]]
    shown += [
        [TASKS["pattern"].routes(p)[0] for p in order]
        for order in (pair.crossed, pair.crossed[::-1])
    ]
    share = np.zeros((4, 1, 2, 1, 4))
    found = Found(
        cases=[Case(), *(Case(k, 1, 1) for k in range(3))],
        pairs=[pair],
        given=side_by_side(small_model, [pair]),
        forwards=lambda steps: steps,
        steps=4,
        object_here=np.zeros((1, 125), bool),
        ends=Ends(np.array(shown)[:, None, :, None], share, share),
    )
    flipped = found.readings["flipped to the donor's answer"][:, 0, :, 0]
    np.testing.assert_array_equal(flipped, [[0, 0], [1, 1], [1, 1], [0, 0]])
    kept = found.readings["own answer kept"][:, 0, :, 0]
    np.testing.assert_array_equal(kept, 1 - flipped)


def test_pairs_differ_in_one_thing(pairs: list[Pair]) -> None:
    assert {pair.kind for pair in pairs} == set(PARTNERS)
    for kind, (own, donor), (crossed, back) in pairs:
        task = TASKS[own.task]
        assert own.held_out
        same = (task.first_frame(own) == task.first_frame(donor)).all()
        assert same == (own.prompt != donor.prompt) == (kind in list(PARTNERS)[:3])
        for scene, other, mixed in ((own, donor, crossed), (donor, own, back)):
            assert (task.first_frame(mixed) == task.first_frame(scene)).all()
            for video in task.routes(mixed):
                assert task.score(mixed, video).solved
                assert not task.score(scene, video).solved
            assert not task.score(mixed, task.routes(scene)[0]).solved
            if same:
                np.testing.assert_array_equal(task.routes(mixed), task.routes(other))


def test_pairs_are_the_same_each_time() -> None:
    for task in ALL:
        few, many = pairs_of(task, 1), pairs_of(task, 2)
        assert few == many[::2]
    assert pairs_of("rotation", 1, 1) != pairs_of("rotation", 1)


def test_object_tokens_are_those_that_the_answers_differ_in(small_model: Wan) -> None:
    pairs = pairs_of("returns", 1) + pairs_of("tictactoe", 1)
    masks = object_tokens(small_model, candidates(small_model, pairs)).reshape(-1, 5, 5, 5)
    way, thing, mover = masks
    assert way.sum() == way[-1].sum() == 2  # one exit or the other, in the last frame
    assert thing.sum() == thing[-1].sum() == 1  # the same exit
    puzzles = pairs[2].puzzles
    cells = {cell for puzzle in puzzles for cell in puzzle.answers}
    assert not mover[0].any()
    assert {(r - 1, c - 1) for r, c in np.argwhere(mover[-1]).tolist()} == cells


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"tasks": ("maze",)}, ValueError, "maze has no pairs that differ in one thing; the tasks"),
        ({"layers": (2,)}, IndexError, "layer 2 is out of range: there are layers 0 to 1"),
        ({"steps": (4,)}, IndexError, "step 4 is out of range"),
        ({"until": (-1,)}, IndexError, "step -1 is out of range"),
        ({"several": True}, ValueError, "several=true has no meaning here"),
        ({"sampling": Settings(steps=0)}, ValueError, "steps is 0"),
    ],
)
def test_what_cannot_be_run_is_refused_before(small_model: Wan, changes, error, said) -> None:
    before = compilations()
    with pytest.raises(error, match=said):
        finish(Swap(**{"puzzles": 2, **changes}).run(small_model))
    assert compilations() == before


def test_clips_of_a_released_model_go_in_pairs(model: Wan, tmp_path: Path) -> None:
    """No judge, but the way from one run's end to the other's."""
    before, settings = compilations(), Settings(steps=4)
    clips = clips_file(tmp_path, frames=5, count=2)
    experiment = Swap(clips=clips, sampling=settings, steps=(0,), until=(1.0,))
    result = finish(experiment.run(model))
    assert compilations() == before + 1
    assert {(r.task, r.measure.split(",")[0]) for r in result.rows} == {("clips", WAY)}
    layers = model.config.dit.layers
    ways = {r.case: r for r in result.rows if r.measure == WAY}
    assert ways["no swap"].value == 0
    assert ways[f"layer {layers - 1}, steps 0 to 3"].value == pytest.approx(1, abs=0.02)
    assert ways["no swap"].forwards == 8  # with guidance, two a step
    assert set(result.figures) == {"layer", "film-clips"}
    with pytest.raises(ValueError, match="lists 1 clips; two after each other make a pair"):
        finish(Swap(clips=clips_file(tmp_path, frames=5, count=1), sampling=settings).run(model))
