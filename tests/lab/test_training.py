"""Training: what is drawn, that it learns, and that a killed run ends in the same weights."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jcos.config import WanConfig, Words
from jcos.lab import training
from jcos.lab.tasks import TASKS
from jcos.lab.tasks.base import Puzzle, Task
from jcos.lab.training import (
    PARTS,
    Recipe,
    State,
    averaged,
    batches,
    drawn,
    initial,
    loss,
    make_update,
    schedule,
    train,
)
from jcos.variants import toy
from jcos.wan import Wan, load
from jcos.weights.checkpoint import leaves, read_manifest, restore, with_leaves

# A constant learning rate (floor), so that one compiled update serves 6 steps as well as 20.
RECIPE = Recipe(
    steps=6, small=2, large=1, warmup=1, constant=0.5, floor=1.0, learning_rate=1e-2, ema=0.9
)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2, 20, 229, 400])
@pytest.mark.parametrize("constant", [0.0, 0.65625, 1.0])
def test_the_learning_rate_does_not_jump(steps: int, constant: float) -> None:
    """However short the run: it changes by no more than the slopes of its rise and fall."""
    recipe = dataclasses.replace(PARTS[0], steps=steps, constant=constant)
    rates = np.asarray(schedule(recipe)(jnp.arange(steps + 1))) / recipe.learning_rate
    hold = int(constant * steps)
    rise, fall = 1 / max(min(recipe.warmup, hold), 1), 1 / max(steps - hold, 1)
    assert np.diff(rates).max(initial=0) <= rise + 1e-6
    assert np.diff(rates).min(initial=0) >= -fall - 1e-6
    assert rates[hold] == pytest.approx(1)
    assert rates[-1] == pytest.approx(recipe.floor if hold < steps else 1)


def tiny(vocabulary: tuple[str, ...] = ()) -> WanConfig:
    """`toy` made as small as it can be."""
    config = toy(vocabulary)
    sizes = {"dim": 16, "ffn_dim": 16, "heads": 2, "layers": 2, "freq_dim": 8}
    dit = dataclasses.replace(config.dit, **sizes)
    return dataclasses.replace(config, dit=dit, image="concat")


@pytest.fixture(scope="module")
def config() -> WanConfig:
    return tiny(training.vocabulary())


@pytest.fixture(scope="module")
def update(config) -> Callable:
    """One program for all tests."""
    return make_update(RECIPE, config)


@pytest.fixture(scope="module")
def small_runs(update):
    """Runs are of the tiny model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "toy", tiny)
        patch.setattr(training, "make_update", lambda recipe, config: update)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_runs) -> tuple[Path, list[training.Progress]]:
    """The folder of a run of all steps, saved after every second, and what it told. Read only."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    return folder, list(train(RECIPE, folder, save_every=2))


def same(a, b) -> bool:
    return all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


# ---- batches


def test_a_batch_is_a_function_of_recipe_and_step(config):
    recipe = Recipe(small=3, large=2)
    small, large = batches(recipe, config, 4)
    assert small.videos.shape == (3, 5, 20, 20, 3)
    assert large.videos.shape == (2, 5, 28, 28, 3)
    assert small.words.shape == (3, 8)
    assert large.words.shape == (2, 8)
    assert same((small, large), batches(recipe, config, 4))
    assert not same(small.videos, batches(recipe, config, 5)[0].videos)
    other = dataclasses.replace(recipe, seed=1)
    assert not same(small.videos, batches(other, config, 4)[0].videos)


@pytest.fixture
def seen(monkeypatch) -> list[Puzzle]:
    """All puzzles that are sampled."""
    puzzles, sample = [], Task.sample

    def record(self, *args, **kwargs):
        puzzles.append(sample(self, *args, **kwargs))
        return puzzles[-1]

    monkeypatch.setattr(Task, "sample", record)
    return puzzles


@pytest.mark.slow
def test_videos_are_right_answers_to_their_prompts_and_none_is_held_out(config, seen):
    recipe = Recipe(small=16, large=4, null_text=0.5)
    given = [batch for step in range(12) for batch in batches(recipe, config, step)]
    trained, empty, vocabulary = set(TASKS) - {"maze9"}, 0, config.text.vocabulary
    assert {puzzle.task for puzzle in seen} == trained
    assert all(part.shares.keys() == trained for part in (Recipe(), *PARTS))
    videos = [video for batch in given for video in batch.videos]
    prompts = [words for batch in given for words in batch.words]
    for puzzle, video, words in zip(seen, videos, prompts, strict=True):
        assert not puzzle.held_out
        assert TASKS[puzzle.task].score(puzzle, video).solved
        said = " ".join(vocabulary[i] for i in words if i >= 0)
        assert said in ("", puzzle.prompt)
        empty += not said
    assert 0 < empty < len(videos)
    for task in TASKS.values():  # words of the other split are known, too
        for seed in range(50):
            assert set(task.sample((3, seed), "test").prompt.split()) <= set(vocabulary)


def test_more_draws_find_more_puzzles_with_several_answers():
    def several(draws: int) -> float:
        rng = np.random.default_rng(0)
        found = [drawn(TASKS["maze"], rng, draws) for _ in range(60)]
        assert not any(puzzle.held_out for puzzle in found)
        return float(np.mean([len(puzzle.answers) > 1 for puzzle in found]))

    assert several(1) < 0.5 < several(3)
    assert several(20) > 0.98


# ---- one update


@pytest.mark.slow
def test_twenty_updates_lower_the_loss_of_a_fixed_batch(config, update):
    """From that of predicting nothing, since the head starts at zero: the mean square of ε − x0.
    And the average follows the weights."""
    fixed = batches(RECIPE, config, 0)
    state = initial(RECIPE, config)
    kinds = state.optimizer[1].inner_states  # Muon has one moment of a weight, Adam two
    muon, adam = (
        {name for name, a in kinds[kind].inner_state[0].mu.items() if hasattr(a, "shape")}
        for kind in ("muon", "adam")
    )
    matrices = {n for n in state.params if ".blocks." in n and n.endswith(".kernel")}
    assert all(state.params[name].ndim == 3 for name in matrices)
    assert muon == matrices
    assert adam == state.params.keys() - matrices
    start = jax.tree.map(np.asarray, state.params)
    average = jax.tree.map(np.asarray, state.ema)

    @jax.jit
    def measure(params) -> jax.Array:
        model = with_leaves(jax.eval_shape(lambda: Wan(config, rngs=nnx.Rngs(0))), params)
        keys = jax.random.split(jax.random.key(9), 4)
        return jnp.mean(jax.vmap(lambda key: loss(model, fixed[0], key, 3.0))(keys))

    before = float(measure(start))
    x0 = (fixed[0].videos / 255 - 0.55) / 0.42
    assert before == pytest.approx(1 + np.square(x0).mean(), rel=0.1)
    for _ in range(20):
        state, each = update(state, fixed)
        assert each.shape == (2,)
        average = {k: 0.9 * v + 0.1 * np.asarray(state.params[k]) for k, v in average.items()}
    assert int(state.step) == 20
    assert float(measure(state.params)) < 0.8 * before
    for name, value in state.params.items():
        assert np.isfinite(value).all()
        assert not same(value, start[name]), f"{name} was not trained"
        assert not same(value, state.ema[name]), f"{name}: the average is the last value"
        np.testing.assert_allclose(state.ema[name], average[name], atol=1e-6, err_msg=name)


# ---- runs


def final(folder: Path, config: WanConfig) -> State:
    return restore(
        folder / f"step-{RECIPE.steps:06d}", jax.eval_shape(lambda: initial(RECIPE, config))
    )


@pytest.mark.slow
def test_a_killed_and_resumed_run_ends_in_the_same_weights(tmp_path, config, finished):
    """Stopped after step 5 of 6, when 4 are saved, and resumed: as if nothing had happened."""
    (whole, progress), broken = finished, tmp_path / "broken"
    assert [p.step for p in progress] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(p.loss) for p in progress)

    assert len([*itertools.islice(train(RECIPE, broken, save_every=2), 5)]) == 5
    assert [p.name for p in sorted(broken.iterdir())] == ["step-000002", "step-000004"]

    assert [p.step for p in train(RECIPE, broken, save_every=2)] == [5, 6]
    assert same(final(broken, config), final(whole, config))
    notes = [read_manifest(f / "step-000006")["notes"] for f in (whole, broken)]
    assert notes[0] == notes[1]
    assert {len(values) for values in notes[0]["losses"].values()} == {6}
    assert same(load(whole / "model"), load(broken / "model"))

    names = [p.name for p in sorted(whole.iterdir())]
    assert names == ["model", "step-000004", "step-000006"]
    state, model = final(whole, config), load(whole / "model")
    assert model.config == config
    assert same(leaves(model), averaged(RECIPE, state))
    assert list(train(RECIPE, whole, save_every=2)) == []  # there is nothing left to do

    other = dataclasses.replace(RECIPE, learning_rate=1e-3)
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    with pytest.raises(ValueError, match="holds a run of another recipe; choose another folder"):
        next(train(other, whole, save_every=2))
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*")} == before


@pytest.mark.slow
def test_a_second_run_goes_on_from_the_model_of_the_first(tmp_path, config, finished):
    """If it has the same words; what it came from is told, not where that lay."""
    start = finished[0] / "model"
    recipe = dataclasses.replace(RECIPE, start=str(start), seed=1)
    assert same(initial(recipe, config).params, leaves(load(start)))
    _, _, notes = training._resumed(recipe, config, tmp_path / "second")
    assert notes["seed"] == 1
    assert notes["start"] == read_manifest(start)["notes"]["recipe"]
    assert str(start) not in str(notes)
    with pytest.raises(ValueError, match="holds a model of another architecture or vocabulary"):
        initial(recipe, dataclasses.replace(config, text=Words(("another",), 64)))
