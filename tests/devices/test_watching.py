"""Scalars of steps in a file, and a profile of a few."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import jax.numpy as jnp
import pytest

from jcos.devices import watching


def test_every_step_is_a_line(tmp_path, monkeypatch) -> None:
    """Where TensorBoard and W&B are there, they get the same numbers."""
    told: list[tuple] = []
    board = SimpleNamespace(add_scalar=lambda *a: told.append(a), close=lambda: told.append(()))
    run = SimpleNamespace(log=lambda v, step: told.append((v, step)), finish=lambda: None)
    writer = SimpleNamespace(SummaryWriter=lambda folder: board)
    wandb = SimpleNamespace(init=lambda project: told.append((project,)) or run)
    monkeypatch.setitem(sys.modules, "tensorboardX", writer)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(watching, "find_spec", lambda name: True)
    monkeypatch.setenv("WANDB_PROJECT", "steps")
    for part in ((2,), (), (4,)):  # lines follow those of an earlier part
        with watching.watched(tmp_path / "scalars"):
            for forwards in part:
                watching.step_done(jnp.zeros(3), forwards)
    watching.step_done(jnp.zeros(3), 8)  # nobody watches
    text = (tmp_path / "scalars" / watching.SCALARS).read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["step"], line["forwards"]) for line in lines] == [(0, 2), (1, 4)]
    assert all(line["seconds"] >= 0 and line["bytes"] > 0 for line in lines)
    assert ("forwards", 4, 1) in told
    assert told[0] == ("steps",)
    assert told[-1] == ()
    assert sum(isinstance(t[0], dict) for t in told if t) == 2


def test_scalars_that_cannot_be_written_end_no_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Path, "open", Mock(side_effect=TimeoutError("no answer")))
    warned = pytest.warns(UserWarning, match="scalars.jsonl.*no answer")
    with warned, watching.watched(tmp_path):
        watching.step_done(jnp.zeros(3), 1)


def test_the_steps_after_the_first_are_profiled(tmp_path: Path) -> None:
    with watching.watched(profile=tmp_path):
        watching.step_done(jnp.zeros(3), 1)
        assert not list(tmp_path.rglob("*.xplane.pb"))
        for _ in range(watching.PROFILED):
            watching.step_done(jnp.zeros(3) + 1, 1)
    assert list(tmp_path.rglob("*.xplane.pb"))


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_too_few_steps_for_a_profile_are_said(steps: int, tmp_path: Path) -> None:
    said = f"not 3: there were {steps}"
    with pytest.warns(UserWarning, match=said), watching.watched(profile=tmp_path):
        any(watching.step_done(jnp.zeros(3), 1) for _ in range(steps))


def test_processes_share_a_file(tmp_path: Path) -> None:
    with watching.watched(tmp_path), watching._scalars(tmp_path) as other:
        for _ in range(2):
            watching.step_done(jnp.zeros(3), 1)
            other(1)
    assert len((tmp_path / watching.SCALARS).read_text().splitlines()) == 4
