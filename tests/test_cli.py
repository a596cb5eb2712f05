"""The commands as a user types them, and what wrong input ends in."""

import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from PIL import Image

from jcos import __main__, cli, demo, puzzles, wan
from jcos.cli.common import bar, console, show_table
from jcos.experiments.sweeps import held_out
from jcos.generation import generate
from jcos.lab import tasks
from jcos.report.reading import read
from jcos.weights import checkpoint, hub
from tests.conftest import ROOT, Refused


def run(*arguments: object) -> None:
    cli.main([str(a) for a in arguments])


def test_programs_are_kept_in_the_users_cache(tmp_path, monkeypatch, capsys) -> None:
    """By every command; a folder that the environment names is left to jax."""
    option = "jax_compilation_cache_dir"
    before = getattr(jax.config, option)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "other"))
        run("tasks")
        assert getattr(jax.config, option) == before
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        run("tasks")
        assert getattr(jax.config, option) == str(tmp_path / "jcos" / "jax")
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        run("tasks")
        assert getattr(jax.config, option) == str(tmp_path / "home" / ".cache" / "jcos" / "jax")
    finally:
        jax.config.update(option, before)
    capsys.readouterr()


def test_the_demo_names_its_page_and_its_times(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(demo, "run", lambda *_, **__: demo.Done(31.0, 22.0, 9.0))
    monkeypatch.setattr(wan, "load", lambda folder: None)
    run("demo", "--out", tmp_path)
    page, times = capsys.readouterr().out.splitlines()
    assert page.endswith(str(tmp_path / "index.html"))
    assert re.findall(r"\d+ s", times) == ["31 s", "22 s", "9 s"]


def test_steps_of_minutes_have_a_time_left(monkeypatch, capsys) -> None:
    clock = [0.0]
    monkeypatch.setattr(console, "get_time", lambda: clock[0])
    with bar() as show:
        for done in range(3):
            clock[0] = 100.0 * done
            show("steps", done, 5)
    assert "steps: 2 of 5, 0:05:00 left" in capsys.readouterr().err


def test_tasks_are_listed_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("tasks", "--draw", 2, "--out", tmp_path / "t")
    assert "maze" in capsys.readouterr().out
    with Image.open(tmp_path / "t" / "maze.png") as picture:
        assert picture.size == (5 * (20 * 6 + 2), 2 * (20 * 6 + 2))


@pytest.mark.slow
def test_search_writes_the_tree_its_cost_and_pictures(tmp_path, capsys, refused) -> None:
    out = tmp_path / "s"
    run("search", "maze", "--seeds", 3, "--steps", 4, "--puzzles", 2, "--out", out)
    said = capsys.readouterr()
    assert "per puzzle 10.0 forwards (one run 4)" in said.out
    assert "denoising 2 × 1 videos: 4 of 4" in said.err
    manifest = json.loads((out / "run.json").read_text())
    assert manifest["forwards"] == [10, 10]
    (made,) = manifest["tree"]
    assert (made["step"], made["judge"]) == (2, "decided")
    assert made["seeds"] == [[0, 1, 2]] * 2
    for scores, (kept,) in zip(made["scores"], made["parents"], strict=True):
        assert kept == int(np.argmax(scores))
    others = {"run.json", "tree.npz", "index.html"}
    assert {p.name for p in out.iterdir()} == {"puzzle-0.webp", "puzzle-1.webp", *others}
    with Image.open(out / "puzzle-1.webp") as film:
        assert (film.n_frames, film.size) == (5, (160, 160))  # type: ignore[attr-defined]
    says = refused("search", "maze", "--preset", "best_of", "--steps", 4, "--out", out)
    assert "preset epbs, not best-of; seeds 3, not 8" in says
    assert "Method(" not in says
    assert f"{out} holds no runs" in refused("export", out, "--gif", tmp_path / "a.gif")
    assert (out / "index.html").read_text().count("1 of 3 went on") == 2
    for i, tree in enumerate(read(out).trees):
        assert tree["solved"] == manifest["solved"][i]
        ((_, _, particles),) = tree["rows"]
        assert [one["seed"] for one in particles if one["went"]] == [manifest["seed"][i]]
        assert [p["score"] for p in particles] == sorted(made["scores"][i], reverse=True)


def test_a_killed_search_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, tries = tmp_path / "s", []

    def killed(*_: object, **__: object) -> None:
        tries.append(1)
        (out / "tree.npz").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(wan, "load", lambda folder: None)
    monkeypatch.setattr(puzzles.sweeps, "conditions_of", lambda *_: None)
    monkeypatch.setattr(puzzles.searching, "run", killed)
    for _ in range(2):
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run("search", "maze", "--puzzles", 1, "--out", out)
    assert len(tries) == 2


def test_a_table_shows_words_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    words = "a[/b] [red] :duck:"
    show_table(words, (words,), [(words,)])
    assert capsys.readouterr().out.count(words) == 3


THREE_STEPS = ("sample", "maze", "--puzzles", 2, "--steps", 3, "--seeds", 0, -1, "--out")


@pytest.fixture(scope="module")
def sampled(tmp_path_factory) -> Path:
    """A folder of two puzzles, two seeds and three steps."""
    out = tmp_path_factory.mktemp("sampled") / "s"
    run(*THREE_STEPS, out)
    return out


@pytest.mark.slow
def test_sample_writes_pictures_and_manifest(sampled: Path) -> None:
    manifest = json.loads((sampled / "run.json").read_text())
    assert manifest["task"] == "maze"
    assert manifest["weights"] == checkpoint.identify(wan.TINY)
    assert len({puzzle["sha256"] for puzzle in manifest["puzzles"]}) == 2
    assert {"date", "versions", "device", "numerics"} <= manifest.keys()
    assert manifest["seeds"] == [0, -1]
    assert np.shape(manifest["solved"]) == np.shape(manifest["scores"]) == (2, 2)
    assert {p.name for p in sampled.iterdir()} == {"run.json", "planes.npz", "index.html"}
    # A seed is the same video in Python.
    model, task = wan.load(), tasks.get("maze")
    sampling = dataclasses.replace(model.config.sampling, steps=3)
    planes = np.load(sampled / "planes.npz")
    for i, puzzle in enumerate(held_out(task, 2)):
        condition = model.condition(task.first_frame(puzzle), puzzle.prompt, task.frames)
        trace = generate(model, condition, (0, -1), sampling=sampling)
        for k, x0 in enumerate(np.asarray(model.decode(trace.x0))):
            apart = np.abs(planes[f"x0_{2 * i + k}"].astype(int) - x0)
            assert apart.max() <= 1
        np.testing.assert_array_equal(planes[f"video_{2 * i}"], planes[f"x0_{2 * i}"][-1])


@pytest.mark.slow
def test_sample_is_deterministic_and_an_intervention_changes_it(sampled, tmp_path) -> None:
    puzzles.sample("maze", 2, seeds=np.array([0, -1]), steps=3, out=tmp_path / "again")
    run(*THREE_STEPS, tmp_path / "noised", "--noise-steps", 1)
    folders = (sampled, tmp_path / "again", tmp_path / "noised")
    a, b, c = (np.load(folder / "planes.npz")["x0_0"] for folder in folders)
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a[0], c[0])
    assert np.abs(a[1].astype(int) - c[1]).max() > 25


@pytest.mark.slow
def test_a_sample_is_made_once_and_never_mixed_up(sampled, capsys, monkeypatch, refused) -> None:
    """A page that could not be written is made by the same call; another run is refused."""
    monkeypatch.setattr(wan, "load", None)
    with monkeypatch.context() as failing:
        full = OSError(errno.ENOSPC, "No space left on device", "somewhere")
        failing.setattr("jcos.cli.common.explorer.make", Mock(side_effect=full))
        assert "somewhere: No space left on device" in refused(*THREE_STEPS, sampled)
    run(*THREE_STEPS, sampled)
    assert re.match(r"Solved [0-4] of 4; the page is at ", capsys.readouterr().out)
    for changes, says in (
        (("--puzzles", 1), "(puzzles 2, not 1)"),
        (("--puzzle-seed", 1), "puzzle_seed 0, not 1"),
        (("--seeds", 1), "seeds [0, -1], not [1]"),
        (("--steps", 4), "sampling.steps 3, not 4"),
        (("--noise-steps", 1), "interventions.noise_steps [], not [1]"),
    ):
        assert says in refused(*THREE_STEPS, sampled, *changes)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("sample", "mazes"), "there is no task 'mazes'; the tasks are maze, "),
        (
            ("search", "maze", "--preset", "luck"),
            "there is no preset 'luck'; the presets are best-of",
        ),
        (("search", "maze", "--preset", "chain"), "a puzzle is one clip; chain makes"),
        (("search", "maze", "--preset", "early_failure", "--seeds", 0), "tries -1"),
        (("tasks", "--draw", -1), "at least 1 is needed"),
        (("search", "maze", "--judge", "mood"), "there is no judge 'mood'"),
        (("search", "maze", "--seeds", -3), "a search of -3 seeds"),
        (("search", "maze", "--preset", "early-failure", "--seeds", 0), "tries -1"),
        (("search", "maze", "--preset", "early-failure", "--judge", "energy"), "give least"),
        (("search", "maze", "--least", 0.5), "the search epbs takes no least"),
        (("sample", "maze", "--steps", 0), "steps is 0"),
        (("sample", "maze", "--steps", 2, "--sigmas", 1, 0.5), "sigmas are the whole schedule"),
        (("search", "maze", "--sigmas", 500, 750), "sigmas (500.0, 750.0) must descend"),
        (("sample", "maze", "--puzzles", 0), "at least 1 is needed"),
        (("search", "maze", "--puzzle-seed", -1), "the puzzle seed is -1"),
        (("sample", "maze", "--seeds", 0, 1, 0), "the seed 0 is given twice"),
        (("sample", "maze", "--seeds", 0, 2**64), f"the seed is {2**64}; PyTorch takes"),
        (("sample", "maze", "--steps", 3, "--noise-steps", 3), "step 3 is out of range"),
        (("sample", "maze", "--steps", 3, "--noise-frames", 5), "frame 5 is out of range"),
        (("sample", "maze", "--steps", 3, "--ensemble-layers", 6, "--seeds", 0, 1), "layer 6 is"),
        (("sample", "maze", "--ensemble-layers", 3), "averages over seeds; 1 is given"),
        (("sample", "maze", "--ensemble-steps", 3), "ensemble-steps go together: give both"),
    ],
)
def test_wrong_input_is_one_sentence(arguments: tuple, says: str, tmp_path, refused) -> None:
    out = tmp_path / "nothing"
    assert says in refused(*arguments, "--out", out)
    assert not out.exists()


RELEASE = "Wan-AI/Wan2.2-I2V-A14B"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("generate", RELEASE, "--prompt", "x", "--join"), "--mesh"),
        (("generate", RELEASE, "--prompt", "x", "--mesh", "context:4"), "context:4"),
        (("generate", RELEASE, "--prompt", "x", "--steps", 0), "steps is 0"),
        (("generate", RELEASE, "--prompt", "x"), "first frame"),
        (("run", "steps", "--checkpoint", RELEASE, "--mesh", "time=1"), "'time'"),
    ],
)
def test_nothing_is_downloaded_for_a_run_that_cannot_be(
    arguments: tuple, says: str, tmp_path, refused, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_download", None)
    assert says in refused(*arguments, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ("--mesh", "branch=2,context=4"),
            "1 pass(es) of a step do not divide over the mesh's branch=2",
        ),
        (("--mesh", "tensor=8"), "4 heads do not divide over the mesh's tensor=8"),
        (("--mesh", "seed=8", "--set", "seeds=0,1"), "do not divide over the mesh's seed=8"),
        (("--mesh", "context=4"), "context=4 does not make up 8 device(s)"),
    ],
)
def test_an_experiment_refuses_a_mesh_that_it_cannot_use(
    arguments: tuple, says: str, tmp_path, refused, monkeypatch
) -> None:
    """Of eight devices, as far as the command knows; before any weights are read."""
    monkeypatch.setattr(jax, "local_devices", lambda: 8 * jax.devices()[:1])
    monkeypatch.setattr(wan, "load", None)
    out = tmp_path / "nothing"
    config = ROOT / "configs" / "steps.py"
    assert says in refused("run", config, *arguments, "--out", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--help",), ("convert", "verify", "--version")),
        (("bench",), ("jcos bench --help",)),
        (("sample", "maze", "--wrong"), ("jcos sample --help",)),
        (("sample", "--help"), ("or fractions of the whole",)),
    ],
)
def test_help_names_what_there_is(words: tuple, says: tuple, monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        run(*words)
    said = "".join(capsys.readouterr())
    assert not [word for word in says if word not in said]


class Callback:
    """Ctrl-C comes where nothing is raised."""

    def __del__(self) -> None:
        raise KeyboardInterrupt


def lost(command: object) -> None:
    Callback()
    time.sleep(20)


def swallowed(command: object) -> None:
    import_module("swallows")


@pytest.mark.parametrize("work", [Mock(side_effect=KeyboardInterrupt), lost, swallowed])
def test_ctrl_c_is_one_line(work, monkeypatch, tmp_path, capsys) -> None:
    """And the process ends at once: Python's own end crashes where threads of XLA are at work."""
    (tmp_path / "swallows.py").write_text(
        "import contextlib, signal\n"
        "with contextlib.suppress(KeyboardInterrupt):\n"
        "    signal.raise_signal(signal.SIGINT)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("jcos.cli.small.Tasks.run", work)
    monkeypatch.setattr(sys, "argv", ["jcos", "tasks"])
    monkeypatch.setattr(sys, "unraisablehook", None)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as end:
        __main__.main()
    signal.signal(signal.SIGINT, before)
    assert end.value.code == 130
    assert capsys.readouterr().err == "jcos: stopped\n"


def test_no_checkpoint_and_a_damaged_one(tmp_path: Path, refused: Refused) -> None:
    out = tmp_path / "nothing"
    says = refused("sample", "maze", "--checkpoint", tmp_path, "--out", out)
    assert "is not a checkpoint folder" in says
    copy = tmp_path / "copy"
    shutil.copytree(wan.TINY, copy)
    largest = max((p for p in copy.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    assert "is damaged" in refused("demo", "--checkpoint", copy, "--out", out)
    assert not out.exists()


def test_shipped_model_is_what_it_says() -> None:
    manifest = checkpoint.read_manifest(wan.TINY)
    assert manifest["notes"]["recipe"]["steps"] > 0
    size = sum(p.stat().st_size for p in wan.TINY.rglob("*") if p.is_file())
    assert size <= 10 * 2**20
