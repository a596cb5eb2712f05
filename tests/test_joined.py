"""Commands on two hosts of four simulated devices each, over loopback: killed once, they go on."""

import json
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
from jcos.bench.export import export
from jcos.lab import results
from jcos.media import formats
from tests.experiments.conftest import clips_file
from tests.many_devices import finish, hosts
from tests.models import close
from tests.releases import I2V

pytestmark = pytest.mark.slow

SECONDS = 500.0


def wait_until(true: Callable[[], object], host: subprocess.Popen) -> None:
    end = time.monotonic() + SECONDS
    while not true() and host.poll() is None and time.monotonic() < end:
        time.sleep(0.01)


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


ARMS = """
from jcos.bench.arm import Arm
from jcos.experiments.experiment import Settings
sampling = Settings(steps=2, guidance=(2.0,))
arms = {"base": Arm(profile=None, scale=1/8, sampling=sampling, ensemble=2, ensemble_layers=(3,))}
"""


def video(folder: Path, *words: object) -> list[str]:
    """A mean over the seeds in the first step."""
    given = ["generate", I2V, "--image", folder / "picture.png", "--prompt", folder / "one.npy"]
    given += ["--negative", folder / "other.npy", "--profile", "float32", "--frames", 5]
    given += ["--size", "48x80", "--steps", 2, "--seeds", 3, 4, "--ensemble-layers", 0]
    return [str(word) for word in (*given, "--x0", 0, 1, *words)]


def samples(folder: Path, *words: object) -> list[str]:
    given = ["bench", "run", folder / "arms.py", "--samples", folder / "small", *words]
    return [str(word) for word in given]


@pytest.fixture(scope="module")
def joined(tmp_path_factory) -> Path:
    """The folder in which two hosts made a video and samples."""
    folder = tmp_path_factory.mktemp("joined")
    clips_file(folder, frames=5, count=2)
    export(folder / "small", ("maze",), 8)
    (folder / "arms.py").write_text(ARMS)
    out = ["--out", folder / "two", "--join"]
    watched = ["--trace", "--trace-profile", folder / "profile"]
    commands = [
        video(folder, *out, "--mesh", "seed=2,branch=2,fsdp=2", *watched),
        samples(folder, *out, "--mesh", "context=2,fsdp=2", "--batch", 3),
    ]
    with hosts("-m", "tests.many_devices", "host", *map(json.dumps, commands)) as processes:
        for process in processes:
            finish(process)
    return folder


def test_a_joined_video_is_the_same(joined):
    """Before H.264, which turns a difference of rounding into whole levels."""
    folder = joined
    cli.main(video(folder, "--out", folder / "alone"))
    values, want = (load_file(folder / n / "latents.safetensors") for n in ("two", "alone"))
    assert values.keys() == {"latents", "x0"}
    for name, a in values.items():
        close(a, want[name], 1e-5)
    for seed in (3, 4):
        both = [formats.read_mp4(folder / n / f"seed-{seed}.mp4") for n in ("two", "alone")]
        assert both[0].shape == both[1].shape
    about = json.loads((folder / "two" / "run.json").read_text())
    assert about["mesh"] == "seed=2,branch=2,fsdp=2"
    trace = jcos.Trace.load(folder / "two" / "trace")
    np.testing.assert_array_equal(trace.latents, values["latents"])
    assert list((folder / "profile").rglob("*.xplane.pb"))


def test_hosts_share_the_samples(joined):
    """Each makes its own on its devices, of seeds that are averaged with and then dropped, in
    batches of which the last is filled up; every film is its own sample's."""
    folder = joined
    cli.main(samples(folder, "--out", folder / "alone"))
    values, want = (
        {p.name: formats.read_mp4(p).astype(float) for p in (folder / n / "base").rglob("*.mp4")}
        for n in ("two", "alone")
    )
    assert len(values) == 8
    assert values.keys() == want.keys()
    for name, film in values.items():
        far = {other: np.abs(film - known).mean() for other, known in want.items()}
        assert all(far[name] < 0.1 * far[other] for other in far if other != name), (name, far)
    notes = [json.loads(p.read_text()) for p in (folder / "two/base/state/made").rglob("*.json")]
    assert [note["mesh"] for note in notes] == ["context=2,fsdp=2"] * 8
