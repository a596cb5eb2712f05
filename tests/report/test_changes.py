"""What was changed in a run is read off its probes, on step × layer × frame."""

import jax.numpy as jnp
import pytest

import jcos
from jcos.report.changes import Change, asked, changes_of
from jcos.sampling.probes import EstimateEnsemble, InWorlds, Noise, Probe, SeedEnsemble, Swap, chain

STEPS, FRAMES, LAYERS = 10, 4, 6


@pytest.mark.parametrize(
    ("probe", "says", "axis", "cells"),
    [
        (
            Noise.at_steps(STEPS, FRAMES, [3]),
            "noise at step 3",
            "frame",
            {(3, f) for f in range(4)},
        ),
        (
            Noise.at_frames(STEPS, FRAMES, [0, 1, 2]),
            "noise in frame 0–2",
            "frame",
            {(s, f) for s in range(10) for f in range(3)},
        ),
        (Noise.at_cells(STEPS, FRAMES, [(2, 1)]), "noise in frame 1 at step 2", "frame", {(2, 1)}),
        (
            Noise.at_cells(STEPS, FRAMES, [(2, 1), (3, 2)]),
            "noise at 2 pairs of step and frame",
            "frame",
            {(2, 1), (3, 2)},
        ),
        (
            SeedEnsemble.window(STEPS, LAYERS, [0, 1], [4]),
            "seeds averaged after layer 4 at step 0, 1",
            "layer",
            {(0, 4), (1, 4)},
        ),
        (
            Swap.at_layers(STEPS, LAYERS, 20, [3]),
            "tokens of another run after layer 3 at step 0",
            "layer",
            {(0, 3)},
        ),
        (
            EstimateEnsemble(jnp.arange(STEPS) == 7, jnp.array(False)),
            "estimates averaged at step 7",
            "frame",
            {(7, 0)},
        ),
    ],
)
def test_probes_of_the_paper_tell_what_they_change(
    probe: Probe, says: str, axis: str, cells: set[tuple[int, int]]
) -> None:
    (change,) = changes_of(chain(Probe(), probe))
    assert str(change) == says
    assert change.axis == axis
    assert set(change.cells) == cells
    assert Change.of(change.told()) == change


def test_each_world_has_its_own() -> None:
    swap = Swap.at_layers(STEPS, LAYERS, 20, [3])
    assert changes_of(swap, 0)
    assert not changes_of(swap, 1)
    noise = InWorlds(Noise.at_steps(STEPS, FRAMES, [3]), jnp.array([False, True]))
    assert [len(changes_of(noise, world)) for world in (0, 1)] == [0, 1]


def test_probes_that_do_nothing_change_nothing() -> None:
    assert not changes_of(jcos.Noise.at_steps(STEPS, FRAMES, []))
    assert not changes_of(jcos.TokenEnergy())
    assert not asked({}, STEPS, FRAMES, LAYERS)


def test_what_a_command_was_asked_for() -> None:
    given = {"noise_steps": [1], "noise_frames": [], "ensemble_layers": [2], "ensemble_steps": [0]}
    assert [str(change) for change in asked(given, STEPS, FRAMES, 0)] == [
        "noise at step 1",
        "seeds averaged after layer 2 at step 0",
    ]
    # Steps are named by default; without layers nothing is averaged in them.
    assert not asked({"ensemble_layers": [], "ensemble_steps": [0]}, STEPS, FRAMES, LAYERS)
