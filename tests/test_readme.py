"""The README's examples run as they stand, and have an effect."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

import jcos
from jcos.experiments.sweeps import held_out, play, score
from tests.conftest import optimized

README = Path(__file__).resolve().parent.parent / "README.md"


@pytest.mark.slow
def test_readme_example_runs(capsys, monkeypatch) -> None:
    """As it stands, in half the steps."""
    model = jcos.load()
    model.config = dataclasses.replace(model.config, sampling=model.config.sampling_with(steps=25))
    monkeypatch.setattr(jcos, "load", lambda: model)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 1
    with optimized():
        exec(compile(blocks[0], str(README), "exec"), {"__name__": "readme"})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    solved = [re.fullmatch(r"noise after block \d: ([0-4]) of 4 solved", line) for line in lines]
    assert len({match and match[1] for match in solved} - {None}) > 1  # layers differ


@pytest.mark.slow
def test_noise_at_the_readmes_step_changes_answers() -> None:
    """On the puzzles that `jcos sample` takes by itself."""
    (step,) = re.findall(r"`jcos sample maze --noise-steps (\d+)`", README.read_text())
    model, task = jcos.load(), jcos.tasks.get("maze")
    puzzles, steps = held_out(task, 2), model.config.sampling.steps
    probes = [jcos.Noise.at_steps(steps, task.frames, at) for at in ((), (int(step),))]
    latents = play(model, puzzles, probes=probes).latents
    plain, noised = (score(model, puzzles, a)[1] for a in latents)
    assert np.array(plain).sum() > np.array(noised).sum()


def test_readme_names_only_files_that_exist() -> None:
    text = README.read_text()
    for name in re.findall(r"`((?:jcos|convert|scripts|tests)/[\w/.]*)`", text):
        assert (README.parent / name.split("#")[0]).exists(), name
    for name in re.findall(r"\]\(((?!http)[^)]+)\)", text):
        assert (README.parent / name.split("#")[0]).exists(), name
