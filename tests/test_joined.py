"""Commands on two hosts of four simulated devices each, over loopback: killed once, they go on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import jcos
from jcos import cli
from jcos.lab import results
from tests.conftest import GOLDEN, ROOT
from tests.devices.test_sharding import free_port
from tests.many_devices import environment

SECONDS = 500.0
TI2V = GOLDEN / "ckpt" / "Wan2.2-TI2V-5B"


def begin(*command: object) -> list[subprocess.Popen]:
    """Start a command on both hosts."""
    known = environment() | {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_NUM_CPU_DEVICES": "4",
    }
    words = [sys.executable, "-m", "jcos", *map(str, command), "--join"]
    return [
        subprocess.Popen(
            words, cwd=ROOT, env=known | {"JAX_PROCESS_ID": str(i)}, stderr=subprocess.PIPE
        )
        for i in range(2)
    ]


def finish(hosts: list[subprocess.Popen]) -> list[int]:
    """Return how they end, all killed in the end."""
    try:
        said = [host.communicate(timeout=SECONDS)[1].decode()[-2000:] for host in hosts]
        print(*said, sep="\n----\n")
        return [host.returncode for host in hosts]
    finally:
        for host in hosts:
            host.kill()


def wait_until(true: Callable[[], object], host: subprocess.Popen) -> None:
    end = time.monotonic() + SECONDS
    while not true() and host.poll() is None and time.monotonic() < end:
        time.sleep(0.01)


@pytest.mark.slow
def test_a_joined_experiment_that_was_killed_goes_on(tmp_path: Path) -> None:
    small = [f"--set={s}" for s in ("tasks=maze", "puzzles=24", "chunk=8", "sampling.steps=2")]
    out, alone = tmp_path / "two", tmp_path / "alone"
    run = ["run", "steps", *small, "--out"]
    joined = [*run, out, "--mesh", "world=8", "--scalars", tmp_path / "scalars"]
    hosts = begin(*joined)
    wait_until(lambda: list(tmp_path.glob(".two.unfinished/*.npz")), hosts[0])
    for host in hosts:  # as a slice is preempted; test_a_run_that_lost_a_host_ends kills one
        host.kill()
    assert finish(hosts) == [-signal.SIGKILL] * 2
    assert not out.exists()
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.glob(".two.unfinished/*.npz")}
    assert 1 <= len(kept) < 3

    hosts = begin(*joined)
    wait_until(lambda: len(list(tmp_path.glob(".two.unfinished/*.npz"))) > len(kept), hosts[0])
    assert kept == {p: p.stat().st_mtime_ns for p in kept}
    assert finish(hosts) == [0, 0]
    assert not list(tmp_path.glob(".two*"))
    assert (out / "index.html").is_file()
    assert len((tmp_path / "scalars" / "scalars.jsonl").read_text().splitlines()) == 3 - len(kept)

    cli.main([*map(str, run), str(alone)])
    found, want = (results.load(folder / "results.nc") for folder in (out, alone))
    for name, values in want.data_vars.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(found[name], values, atol=1e-3, err_msg=str(name))


@pytest.mark.slow
def test_a_joined_video_is_the_same(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.ones((2, 64), np.float32))
    rows = ["--prompt", tmp_path / "rows.npy", "--negative", tmp_path / "rows.npy"]
    given = ["generate", TI2V, *rows, "--frames", 5, "--size", "64x64", "--profile", "float32"]
    given += ["--steps", 3, "--seeds", 0, 1, "--x0", 1, "--out"]
    shared = [*given, tmp_path / "two", "--mesh", "seed=2,context=4", "--trace"]
    assert finish(begin(*shared, "--trace-profile", tmp_path / "profile")) == [0, 0]
    cli.main([*map(str, given), str(tmp_path / "alone")])
    found, want = (load_file(tmp_path / n / "latents.safetensors") for n in ("two", "alone"))
    for name, values in want.items():
        np.testing.assert_allclose(found[name], values, atol=1e-3)
    assert (tmp_path / "two" / "seed-1.mp4").is_file()
    trace = jcos.Trace.load(tmp_path / "two" / "trace")
    np.testing.assert_array_equal(trace.latents, found["latents"])
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert os.listdir(tmp_path / "two" / "trace")
