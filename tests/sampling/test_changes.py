"""Probes describe what they change, on step × frame or step × layer."""

import itertools
import json
from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
import pytest

from jcos.sampling.inside import KnockOut, Patch, Steer, Swap
from jcos.sampling.probe import Change
from jcos.sampling.probes import EstimateEnsemble, InWorlds, Noise, Probe, SeedEnsemble, chain
from tests.models import CONFIG

STEPS, FRAMES, LAYERS = 10, 4, 6


def noise_at(*cells: tuple[int, int]) -> Noise:
    return Noise(jnp.zeros((STEPS, FRAMES)).at[tuple(np.array(cells).T)].set(1.0))


def cells(steps: Iterable[int], places: Iterable[int]) -> set[tuple[int, int]]:
    return set(itertools.product(steps, places))


FRAME = {
    "noise at step 3": (Noise.at_steps(STEPS, FRAMES, [3]), cells([3], range(FRAMES))),
    "noise in frame 0–2": (Noise.at_frames(STEPS, FRAMES, [0, 1, 2]), cells(range(10), range(3))),
    "noise in frame 1 at step 2": (noise_at((2, 1)), {(2, 1)}),
    "noise at 2 pairs of step and frame": (noise_at((2, 1), (3, 2)), {(2, 1), (3, 2)}),
    "estimates averaged at step 7": (
        EstimateEnsemble(jnp.arange(STEPS) == 7, jnp.array(False)),
        {(7, 0)},
    ),
}
LAYER = {
    "seeds averaged after layer 4 at step 0, 1": (
        SeedEnsemble.window(STEPS, LAYERS, [0, 1], [4]),
        cells([0, 1], [4]),
    ),
    "tokens taken from another run after layer 3 at step 0": (
        Swap.at_layers(STEPS, LAYERS, 20, [3]),
        {(0, 3)},
    ),
}


MEAN = {"at_steps": [1], "by": "mean"}
INSIDE = {
    "self-attention of layer 0 set to the mean over tokens in head 1 at step 1": (
        KnockOut.at(CONFIG, "heads", [(0, 1)], **MEAN),
        {(1, 1)},
    ),
    "self-attention of layer 2 set to the mean over tokens at step 1": (
        KnockOut.at(CONFIG, "heads", [(2, 0), (2, 1)], **MEAN),
        cells([1], [0, 1]),
    ),
    "feed-forward of layer 0 set to zero in neuron 5": (
        KnockOut.at(CONFIG, "mlp", [(0, 5)]),
        cells(range(4), [5]),
    ),
    "feed-forward of a stored run after layer 1 at step 0": (
        Patch.of("mlp", np.zeros((1, 4, 1, 12, 48)), (1,), at_steps=[0]),
        {(0, 1)},
    ),
    "a direction added after layer 1 at step 0, 1": (
        Steer.at(CONFIG, jnp.ones(32), [1], when=[0, 1]),
        cells([0, 1], [1]),
    ),
    "block left out after layer 1": (
        KnockOut.at(CONFIG, "update", [1]),
        cells(range(4), [1]),
    ),
}
AXES = ["frame"] * len(FRAME) + ["layer"] * len(LAYER) + ["head", "head", "neuron"] + ["layer"] * 3


@pytest.mark.parametrize(("says", "axis"), [*zip([*FRAME, *LAYER, *INSIDE], AXES, strict=True)])
def test_probes_tell_what_they_change(says: str, axis: str) -> None:
    probe, places = {**FRAME, **LAYER, **INSIDE}[says]
    (change,) = chain(Probe(), probe).changes()
    assert (str(change), change.axis, set(change.cells)) == (says, axis, places)
    assert Change.from_json(json.loads(json.dumps(change.to_json()))) == change


def test_worlds_and_probes_that_are_left_alone_tell_nothing() -> None:
    assert not Swap.at_layers(STEPS, LAYERS, 20, [3]).changes(1)
    noise = InWorlds(Noise.at_steps(STEPS, FRAMES, [3]), jnp.array([False, True]))
    assert [len(noise.changes(world)) for world in (0, 1)] == [0, 1]
    for probe in (Noise.at_steps(STEPS, FRAMES, []), KnockOut.at(CONFIG, "heads", []), Probe()):
        assert not probe.changes()


def test_noise_at_steps_and_in_frames_is_two_changes() -> None:
    noise = Noise.at_steps(STEPS, FRAMES, [1]) | Noise.at_frames(STEPS, FRAMES, [2])
    want = np.zeros((STEPS, FRAMES))
    want[1], want[:, 2] = 1, 1
    np.testing.assert_array_equal(noise.mask, want)
    at_steps, in_frames = noise.changes()
    assert (str(at_steps), str(in_frames)) == ("noise at step 1", "noise in frame 2")
    assert {*at_steps.cells, *in_frames.cells} == set(map(tuple, np.argwhere(want).tolist()))
    assert [str(c) for c in Noise.at_steps(STEPS, FRAMES, range(STEPS)).changes()] == ["noise"]
