"""Probes describe what they change, on step × frame or step × layer."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import jcos
from jcos.sampling.probe import Change
from jcos.sampling.probes import EstimateEnsemble, InWorlds, Noise, Probe, SeedEnsemble, Swap, chain

STEPS, FRAMES, LAYERS = 10, 4, 6


def noise_at(*cells: tuple[int, int]) -> Noise:
    return Noise(jnp.zeros((STEPS, FRAMES)).at[tuple(np.array(cells).T)].set(1.0))


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
        (noise_at((2, 1)), "noise in frame 1 at step 2", "frame", {(2, 1)}),
        (
            noise_at((2, 1), (3, 2)),
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
    (change,) = chain(Probe(), probe).changes()
    assert str(change) == says
    assert change.axis == axis
    assert set(change.cells) == cells
    assert Change.from_json(json.loads(json.dumps(change.to_json()))) == change


def test_each_world_has_its_own() -> None:
    swap = Swap.at_layers(STEPS, LAYERS, 20, [3])
    assert swap.changes(0)
    assert not swap.changes(1)
    noise = InWorlds(Noise.at_steps(STEPS, FRAMES, [3]), jnp.array([False, True]))
    assert [len(noise.changes(world)) for world in (0, 1)] == [0, 1]


def test_probes_that_do_nothing_change_nothing() -> None:
    assert not jcos.Noise.at_steps(STEPS, FRAMES, []).changes()
    assert not jcos.TokenEnergy().changes()


def test_noise_at_steps_and_in_frames_is_two_changes() -> None:
    noise = Noise.at_steps(STEPS, FRAMES, [1]) | Noise.at_frames(STEPS, FRAMES, [2])
    at_steps, in_frames = noise.changes()
    assert (str(at_steps), str(in_frames)) == ("noise at step 1", "noise in frame 2")
    cells = set(map(tuple, np.argwhere(np.asarray(noise.mask)).tolist()))
    assert {*at_steps.cells, *in_frames.cells} == cells
    assert [str(c) for c in Noise.at_steps(STEPS, FRAMES, range(STEPS)).changes()] == ["noise"]


def test_a_probe_of_ones_own_describes_itself() -> None:
    class Mute(Probe):
        mask: Array

        def changes(self, world: int = 0) -> list[Change]:
            return Change.at("muted", "layer", self.mask)

    mute = Mute(jnp.zeros((STEPS, LAYERS), bool).at[:2, 3].set(True))
    (change,) = chain(mute, jcos.TokenEnergy()).changes()
    assert change == Change("muted", "layer", LAYERS, STEPS, [(0, 3), (1, 3)])
    assert str(change) == "muted after layer 3 at step 0, 1"
