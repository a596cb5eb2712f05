"""The training script: what wrong input ends in. That training works is tested in test_training."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from jcos.lab import training
from jcos.lab.tasks import TASKS
from jcos.lab.training import PARTS, initial
from jcos.wan import Wan
from jcos.weights import checkpoint
from scripts import evaluate, train_tiny
from tests.lab.test_training import tiny


def refused(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    main: Callable[[], None],
    *arguments: object,
) -> str:
    """The sentence that a script ends in, after its usage."""
    monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
    with pytest.raises(SystemExit) as error:
        main()
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said.splitlines()[-1]


@pytest.fixture
def tiny_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """`train` makes this model instead of the toy model."""
    monkeypatch.setattr(training, "toy", tiny)


@pytest.mark.usefixtures("tiny_toy")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--steps", 0), "steps is 0; it is at least 1"),
        (("--part", 2), "every other one needs --start"),
        (("--start", "x"), "the first part starts from nothing"),
        (("--part", 2, "--start", "no-such-folder"), "is not a checkpoint folder"),
    ],
)
def test_wrong_input_is_one_sentence_and_writes_nothing(
    arguments: tuple, says: str, tmp_path, capsys, monkeypatch
) -> None:
    out = tmp_path / "run"
    assert says in refused(capsys, monkeypatch, train_tiny.main, *arguments, "--out", out)
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_toy")
def test_a_model_without_a_run_is_left_alone(tmp_path: Path, capsys, monkeypatch) -> None:
    config = tiny(training.vocabulary())
    checkpoint.save(tmp_path / "model", config, Wan(config, rngs=nnx.Rngs(0)), {})
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert "holds a model and" in refused(capsys, monkeypatch, train_tiny.main, "--out", tmp_path)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_toy")
def test_a_resumed_run_needs_no_start_and_clears_what_a_kill_left(tmp_path: Path) -> None:
    """All steps are done and saved; only the model is not."""
    config = tiny(training.vocabulary())
    recipe = dataclasses.replace(PARTS[1], steps=6, start=str(tmp_path / "is-gone"))
    state = initial(dataclasses.replace(recipe, start=None), config)
    state = state._replace(step=jax.numpy.int32(6), ema=state.params)
    history = dataclasses.asdict(recipe) | {"start": {"seed": 0}}
    notes = {"recipe": dataclasses.asdict(recipe), "losses": {}, "history": history}
    folder = tmp_path / "run"
    checkpoint.save(folder / "step-000006", config, state, notes)
    for left in (".step-000004.a_12bcd9", ".model.zzzz0000", ".mine", ".notes.abcdefgh"):
        (folder / left / "weights").mkdir(parents=True)
    assert list(training.train(recipe, folder)) == []
    kept = [".mine", ".notes.abcdefgh", "model", "step-000006"]
    assert sorted(p.name for p in folder.iterdir()) == kept
    manifest = checkpoint.read_manifest(folder / "model")
    assert manifest["notes"]["recipe"] == history
    made = checkpoint.restore(
        folder / "model", jax.eval_shape(lambda: Wan(config, rngs=nnx.Rngs(0)))
    )
    share = 1 - recipe.ema**6
    for name, value in checkpoint.leaves(made).items():
        np.testing.assert_allclose(value, state.params[name] / share, rtol=1e-6, atol=1e-6)


def test_evaluation_of_no_checkpoint_is_one_sentence(tmp_path: Path, capsys, monkeypatch) -> None:
    out = tmp_path / "out"
    arguments = ("--checkpoint", tmp_path, "--out", out)
    assert "is not a checkpoint folder" in refused(capsys, monkeypatch, evaluate.main, *arguments)
    arguments = ("--puzzles", 0, "--out", out)
    assert "at least 1 is needed" in refused(capsys, monkeypatch, evaluate.main, *arguments)
    assert not out.exists()


@pytest.mark.slow
def test_evaluation_of_a_model_that_solves_nothing(small_model: Wan) -> None:
    row = evaluate.evaluate(small_model, TASKS["maze"], 6)
    assert (row["different"], row["first frame held"], row["solved from step"]) == (6, 0.0, [])
    solved, low, high, *_ = row["solved"]
    assert (solved, low) == (0, 0)
    assert high > 0.1
    assert 0 <= row["chance"] < 0.9
    assert json.loads(json.dumps(row))["solved"][0] == 0
    assert evaluate.cells(row)[1].startswith("0.000 [0.000, ")
