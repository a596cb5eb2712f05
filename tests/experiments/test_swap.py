"""Swaps between runs that differ in one thing: laws that hold for any model."""

import jax
import numpy as np
import pandas as pd
import pytest

from jcos.experiments.samples import baselines
from jcos.experiments.swap import (
    AT_ONCE,
    TOKENS,
    VELOCITY,
    WAY,
    Case,
    Ends,
    Swap,
    end_measures,
    levels,
    pair_conditions,
    probe_of,
)
from jcos.experiments.swap_pairs import PARTNERS, Pair, candidates, object_tokens, pairs_of
from jcos.experiments.sweeps import sweep
from jcos.lab import results
from jcos.lab.results import of_kind
from jcos.lab.tasks import TASKS
from jcos.sampling.inside import Swap as SwapProbe
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan

pytestmark = pytest.mark.slow  # the whole experiment, once for all tests

SMALL = Swap(tasks=("returns", "rotation"), puzzles=2, steps=(0, 2), until=(0.5, 1.0), seeds=(0, 5))
ALL = tuple(dict.fromkeys(task for task, _ in PARTNERS.values()))


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return [pair for task in ALL for pair in pairs_of(task, 3)]


@pytest.fixture(scope="module")
def table(data) -> pd.DataFrame:
    return SMALL.table(data[0]).set_index(["task", "measure", "case"])


def test_the_ideal_denoiser_takes_a_swap_back_unless_it_lasts(table: pd.DataFrame) -> None:
    rows = table.loc["rotation, other angle"].value
    for when, flips in (("step 0", 0), ("step 2", 0), ("steps 0 to 2", 0), ("steps 0 to 3", 1)):
        case = f"velocity, {when}, ideal denoiser"
        assert rows["flipped to the donor's answer", case] == flips
        assert rows[AT_ONCE, case] > 0.5
    assert rows["receiver's answer kept", "no swap, ideal denoiser"] == 1


def test_dataset_table_and_figures_are_complete(data, table: pd.DataFrame) -> None:
    dataset, programs = data
    assert programs == 2  # of all swaps, and of those of the ideal denoiser
    cases = 1 + 2 * (2 + 2 + 1)  # none; two layers × single steps, kept up, the object's
    ideal = 1 + 2 + 2
    assert dataset["flipped"].shape == (cases + ideal, 6, 2, 2)
    assert [name for name, _ in SMALL.figures(dataset)] == ["layer"]
    assert table.index.is_unique
    plain = table.loc["returns, other way", "receiver's answer kept", "no swap, ideal denoiser"]
    assert (plain.value, plain.n, plain.forwards) == (1, 2, 0)
    angle = table.loc["rotation, other angle"]
    assert angle.loc[WAY, "layer 1, step 2"].forwards == 4 + 3
    assert angle.loc[WAY, "layer 1, steps 0 to 3"].forwards == 4 + 4
    assert angle.loc[WAY, "velocity, step 0, ideal denoiser"].forwards == 0
    of_model = dataset["flipped"][:cases, :, 0]
    assert of_model.isnull().all()  # no plain run is right
    assert set(dataset["direction"].values) == {"donor to receiver", "receiver to donor"}


def test_without_a_swap_a_run_is_on_its_side(data) -> None:
    way = data[0]["way"]
    np.testing.assert_allclose(way[0], 0, atol=1e-9)
    kept_up = of_kind(way, [f"from step 0 on{tokens}" for tokens in TOKENS.values()])
    assert kept_up.sizes["case"] == 6 + 2
    assert kept_up.isel(direction=1).isnull().all()  # the donor receives nothing


def test_the_tokens_of_the_last_layer_are_the_donors_run(data) -> None:
    """Handed over in every step they decide everything, whatever the receiver's picture and
    prompt."""
    way = data[0]["way"].sel(case="layer 1, steps 0 to 3", direction="donor to receiver")
    np.testing.assert_allclose(way, 1, atol=0.02)


def test_the_velocity_is_what_all_tokens_are_after_the_last_layer(small_model: Wan) -> None:
    (pair,) = pairs_of("rotation", 1)
    conditions, every = pair_conditions(small_model, [pair]), np.ones(125, bool)
    for case in (Case(1, 1, 1), Case(1, 0, 2)):
        swapped = case._replace(layer=None, tokens=VELOCITY)
        ends = [
            sweep(small_model, conditions, probes=[probe]).latents
            for probe in (probe_of(one, 4, 2, every) for one in (case, swapped))
        ]
        np.testing.assert_allclose(*ends, atol=2e-4)


@pytest.fixture(scope="module")
def few(small_model: Wan) -> Trace:
    """One pair under some swaps, leaves [Q, W, …]."""
    (pair,) = pairs_of("rotation", 1)
    mask = object_tokens(small_model, candidates(small_model, [pair]))[0]
    probes = [probe_of(case, 4, 2, mask) for case in (Case(), Case(1, 0, 0))]
    probes += [probe_of(Case(1, 0, 0, "object"), 4, 2, part) for part in (mask, ~mask)]
    probes.append(probe_of(Case(0, 1, 1), 4, 2, mask))
    probes += [
        SwapProbe.at_layers(4, 2, 125, [0], at_steps=[1], receivers=to)
        for to in ((True, False), (False, True))
    ]
    trace = sweep(small_model, pair_conditions(small_model, [pair]), probes=probes)
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


def test_what_is_read_off_known_ends() -> None:
    """Videos drawn instead of played: two pairs, of which the first swap flips one way of one."""
    pairs = pairs_of("tictactoe", 2)
    plain = np.stack([[TASKS["tictactoe"].routes(p)[0] for p in pair.puzzles] for pair in pairs])
    flipped = plain.copy()
    flipped[0, 0] = TASKS["tictactoe"].routes(pairs[0].crossed[0])[0]
    flipped[1, 1] = plain[1, 1][:1]  # the first frame held: neither
    share = np.broadcast_to(np.arange(4) / 4, (2, 2, 2, 1, 4))
    videos = np.stack([plain, flipped])[:, :, :, None]
    measured = end_measures([Case(), Case(3, 1, 1)], pairs, Ends(videos, share))
    swapped = measured.isel(case=1, seed=0)
    assert swapped["flipped"].values.tolist() == [[1, 0], [0, 0]]
    assert swapped["kept"].values.tolist() == [[0, 1], [1, 0]]
    assert (swapped["at_once"] == 1 / 4).all()  # of the step of the swap
    assert swapped["way"].values[0].tolist() == [1, 0]
    rows = results.table(measured).set_index(["measure", "case"])
    kept = rows.loc["receiver's answer kept", "no swap"]
    assert (kept.value, kept.n) == (1, 2)
    assert kept.low < 0.5  # two pairs prove little


def test_an_answer_counts_in_either_picture() -> None:
    """The donor's whole run, its answer in the receiver's picture, and the receiver's answer in the
    donor's."""
    (pair,) = pairs_of("pattern", 1)
    receiver, donor = (TASKS["pattern"].routes(p)[0] for p in pair.puzzles)
    ends = [[receiver, donor], [donor, receiver]]
    ends += [
        [TASKS["pattern"].routes(p)[0] for p in order]
        for order in (pair.crossed, pair.crossed[::-1])
    ]
    share = np.zeros((4, 1, 2, 1, 4))
    videos = np.array(ends)[:, None, :, None]
    cases = [Case(), *(Case(k, 1, 1) for k in range(3))]
    measured = end_measures(cases, [pair], Ends(videos, share)).isel(pair=0, seed=0)
    np.testing.assert_array_equal(measured["flipped"], [[0, 0], [1, 1], [1, 1], [0, 0]])
    np.testing.assert_array_equal(measured["kept"], 1 - measured["flipped"])


def test_a_pair_has_the_chance_of_both_its_puzzles() -> None:
    pairs = pairs_of("returns", 2)
    dims, chance, _ = levels(pairs)["chance_flipped"]
    assert (dims, chance.shape) == (("pair",), (4,))
    puzzles = [p for pair in pairs[:2] for p in pair.puzzles]
    want, _ = baselines(puzzles, np.random.default_rng(0))
    np.testing.assert_array_equal(chance[:2], want.solved.reshape(2, 2).mean(1))


def test_pairs_differ_in_one_thing(pairs: list[Pair]) -> None:
    assert {pair.kind for pair in pairs} == set(PARTNERS)
    for kind, (receiver, donor), (crossed, back) in pairs:
        task = TASKS[receiver.task]
        assert receiver.held_out
        same = (task.first_frame(receiver) == task.first_frame(donor)).all()
        assert same == (receiver.prompt != donor.prompt) == (kind in list(PARTNERS)[:3])
        for scene, other, mixed in ((receiver, donor, crossed), (donor, receiver, back)):
            assert (task.first_frame(mixed) == task.first_frame(scene)).all()
            for video in task.routes(mixed):
                assert task.score(mixed, video).solved
                assert not task.score(scene, video).solved
            assert not task.score(mixed, task.routes(scene)[0]).solved
            if same:
                np.testing.assert_array_equal(task.routes(mixed), task.routes(other))


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
