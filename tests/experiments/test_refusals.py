"""What cannot be run is refused in one sentence, before anything is compiled."""

from pathlib import Path

import pytest

from jcos.devices import mesh
from jcos.experiments.activations import Activations
from jcos.experiments.attribution import Attribution
from jcos.experiments.behaviour import Behaviour
from jcos.experiments.budget import Budget
from jcos.experiments.cosine import Cosine
from jcos.experiments.ensemble import Ensemble
from jcos.experiments.experiment import Experiment, Settings
from jcos.experiments.features import Features
from jcos.experiments.flow import Flow
from jcos.experiments.heads import Heads
from jcos.experiments.jacobian import Jacobian
from jcos.experiments.lens import Lenses
from jcos.experiments.noise import Noise
from jcos.experiments.search import Search
from jcos.experiments.signs import Signs
from jcos.experiments.store import Store
from jcos.experiments.swap import Swap
from jcos.wan import Wan
from tests.conftest import compilations

RANGES = [
    (Flow(frames=(5,)), "frame 5 .* 0 to 4"),
    (Noise(steps=(4,)), "step 4 .* 0 to 3"),
    (Cosine(layers=(2,)), "layer 2"),
    (Swap(until=(-1,)), "step -1"),
]
"""Raise IndexError. A kind of parameter (`experiments.parameters`) stands here once."""

VALUES = [
    (Swap(layers=()), "layers is empty"),
    (Noise(tasks=("maze", "maze7")), "canvases of different sizes"),
    (Noise(tasks=("chess",)), "'chess'"),
    (Noise(tasks=()), "tasks is empty"),
    (Noise(tasks=("maze", "maze")), "tasks are maze, maze"),
    (Noise(seeds=(1, 1)), "each once"),
    (Noise(seeds=()), "at least one is needed"),
    (Noise(chunk=0), "chunk is 0"),
    (Noise(sampling=Settings(steps=0)), "steps is 0"),
    (Noise(strengths=(0.0,)), "above 0"),
    (Noise(cleanup=5), "cleanup is 5"),
    (Flow(steps=(), frames=()), "no place for noise"),
    (Flow(puzzles=2, tasks=("pattern",), several=True), "has 0 puzzles"),
    (Cosine(seeds=(3,)), "give at least 2"),
    (Cosine(puzzles=1), "puzzles is 1"),
    (Activations(largest=17), "1 to half of 32"),
    (Signs(seeds=(0,)), "give at least 2"),
    (Signs(clips=Path("clips.json")), "leave it out"),
    (Lenses(tasks=("maze",)), "name two"),
    (Store(sites=("head",)), "sites are head"),
    (Ensemble(members=1), "1 members"),
    (Ensemble(more_members=(9,)), "9 members"),
    (Ensemble(window=(0.5,)), "a last fraction"),
    (Ensemble(window=(0.7, 0.5)), "0.7 to 0.5"),
    (Heads(windows=5), "windows is 5"),
    (Heads(puzzles=1), "chosen on one half"),
    (Heads(pair_tasks=("maze",)), "maze has no pairs"),
    (Features(tasks=("rotation", "maze")), "rotation has"),
    (Features(features=40, k=32), "k is 32"),
    (Features(layers=(0, 1)), "one layer"),
    (Features(tokens=8), "all tokens"),
    (Features(sites=("mlp",)), "sites are mlp"),
    (Features(puzzles=4, tasks=("maze", "rotation"), steps=(0, 3), batch=1001), "have 1000 tokens"),
    (Features(puzzles=1, tasks=("maze",)), "all puzzles are of one half"),
    (Search(seeds=(0, 1, 2, 3), sampling=Settings(solver="unipc")), "unipc remembers"),
    (Search(seeds=(0, 1)), "4 seeds"),
    (Search(sampling=Settings(steps=2)), "at least 3 steps"),
    (Attribution(tasks=("pattern",)), "pattern has no pairs"),
    (Attribution(several=True), "several=true"),
    (Swap(tasks=("maze",)), "maze has no pairs"),
    (Swap(several=True), "several=true"),
    (Behaviour(wrong=-1), "wrong is -1"),
    (Budget(steps=(0, 2)), "each is at least 1"),
    (Budget(shifts=(0.0,)), "each is a positive number"),
    (Budget(middles=(1.0,)), "each is above 0 and below 0.999"),
    (Budget(sampling=Settings(sigmas=(1000.0, 500.0))), "leave out sampling.sigmas"),
    (Budget(sampling=Settings(steps=8)), "sampling.steps is 8"),
]
"""Raise ValueError."""


@pytest.mark.parametrize(
    ("error", "experiment", "said"),
    [(IndexError, *case) for case in RANGES] + [(ValueError, *case) for case in VALUES],
    ids=[f"{experiment.name}: {said}" for experiment, said in RANGES + VALUES],
)
def test_what_cannot_be_run_is_refused_before(
    small_model: Wan, error: type[Exception], experiment: Experiment, said: str
) -> None:
    before = compilations()
    with pytest.raises(error, match=said):
        experiment.run(small_model)
    assert compilations() == before


@pytest.mark.parametrize(
    ("experiment", "says"),
    [
        (Attribution(puzzles=2), r"^1 world\(s\) do not divide over the mesh's world=2"),
        (Jacobian(), r"^1 world\(s\)"),
        (Lenses(fit=5), r"^5 world\(s\)"),
        (Store(chunk=3), r"^3 world\(s\)"),
    ],
)
def test_what_a_mesh_does_not_divide(
    small_model: Wan, experiment: Experiment, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what is no sweep, which would be filled up."""
    experiment.check(small_model.config)
    monkeypatch.setattr(mesh, "devices", lambda *axes: 1 + (mesh.WORLD in axes))
    with pytest.raises(ValueError, match=says):
        experiment.check(small_model.config)
