"""Commands on two hosts of four simulated devices each, over loopback: killed once, they go on."""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import jcos
from jcos import cli
from jcos.lab import results
from tests.conftest import GOLDEN
from tests.many_devices import finish, hosts
from tests.models import release_config

SECONDS = 500.0
TI2V = GOLDEN / "ckpt" / "Wan2.2-TI2V-5B"


def wait_until(true: Callable[[], object], host: subprocess.Popen) -> None:
    end = time.monotonic() + SECONDS
    while not true() and host.poll() is None and time.monotonic() < end:
        time.sleep(0.01)


@pytest.mark.slow
def test_a_joined_experiment_that_was_killed_goes_on(tmp_path: Path) -> None:
    small = [f"--set={s}" for s in ("tasks=maze", "puzzles=24", "chunk=8", "sampling.steps=2")]
    out, alone = tmp_path / "two", tmp_path / "alone"
    run = ["run", "steps", *small, "--out"]
    joined = ["-m", "jcos", *run, out, "--join", "--mesh", "world=8"]
    joined += ["--scalars", tmp_path / "scalars"]
    with hosts(*joined) as processes:  # killed as a slice is preempted
        wait_until(lambda: list(tmp_path.glob(".two.unfinished/*.npz")), processes[0])
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * 2
    assert not out.exists()
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob(".two.unfinished/*.npz")}
    assert 1 <= len(before) < 3
    scalars = tmp_path / "scalars" / "scalars.jsonl"
    lines = scalars.read_text().splitlines()

    with hosts(*joined) as processes:
        more = len(before) + 1
        wait_until(lambda: len(list(tmp_path.glob(".two.unfinished/*.npz"))) >= more, processes[0])
        assert before == {p: p.stat().st_mtime_ns for p in before}
        for process in processes:
            finish(process)
    assert not list(tmp_path.glob(".two*"))
    assert (out / "index.html").is_file()
    assert scalars.read_text().splitlines()[: len(lines)] == lines
    assert len(scalars.read_text().splitlines()) == len(lines) + 3 - len(before)

    cli.main([*map(str, run), str(alone)])
    found, want = (results.load(folder / "results.nc") for folder in (out, alone))
    for name, values in want.data_vars.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(found[name], values, atol=1e-3, err_msg=str(name))


@pytest.mark.slow
def test_a_joined_video_is_the_same(tmp_path: Path) -> None:
    width = release_config("ti2v").dit.text_dim
    np.save(tmp_path / "rows.npy", np.ones((2, width), np.float32))
    rows = ["--prompt", tmp_path / "rows.npy", "--negative", tmp_path / "rows.npy"]
    given = ["generate", TI2V, *rows, "--frames", 5, "--size", "64x64", "--profile", "float32"]
    given += ["--steps", 3, "--seeds", 0, 1, "--x0", 1, "--out"]
    shared = [*given, tmp_path / "two", "--join", "--mesh", "seed=2,context=4", "--trace"]
    with hosts("-m", "jcos", *shared, "--trace-profile", tmp_path / "profile") as processes:
        for process in processes:
            finish(process)
    cli.main([*map(str, given), str(tmp_path / "alone")])
    found, want = (load_file(tmp_path / n / "latents.safetensors") for n in ("two", "alone"))
    for name, values in want.items():
        np.testing.assert_allclose(found[name], values, atol=1e-3)
    assert (tmp_path / "two" / "seed-1.mp4").is_file()
    trace = jcos.Trace.load(tmp_path / "two" / "trace")
    np.testing.assert_array_equal(trace.latents, found["latents"])
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
