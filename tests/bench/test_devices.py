"""The benchmark on many devices and hosts, and killed: what comes out is what one process makes."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from jcos import cli
from jcos.bench.arm import Arm
from jcos.bench.export import export
from jcos.bench.run import check_mesh
from jcos.devices import sharding
from jcos.experiments.experiment import Settings
from jcos.media import formats
from jcos.wan import TINY, read_config
from tests import many_devices

ARMS = """
from jcos.bench.arm import Arm
from jcos.experiments.experiment import Settings
arms = {"base": Arm(profile=None, scale=1 / 8, sampling=Settings(steps=STEPS))}
"""


@pytest.fixture
def eight_mazes(tmp_path: Path) -> list[str]:
    """A folder with eight samples of one shape; the arguments of a run on them."""
    export(tmp_path / "small", ("maze",), 8)
    return ["bench", "run", str(tmp_path / "arms.py"), "--samples", str(tmp_path / "small")]


def write_arms(folder: Path, steps: int) -> None:
    (folder / "arms.py").write_text(ARMS.replace("STEPS", str(steps)))


def videos(out: Path) -> dict[str, Path]:
    return {p.relative_to(out).as_posix(): p for p in sorted(out.rglob("*.mp4"))}


def check_same(out: Path, want: Path) -> None:
    """Every film is its own sample's. Numbers are compared before H.264, which turns a difference
    of rounding into levels (`test_a_mesh_leaves_the_result_alone`)."""
    found, other = (
        {name: formats.read_mp4(path).astype(float) for name, path in videos(folder).items()}
        for folder in (out, want)
    )
    assert found.keys() == other.keys()
    for name, film in found.items():
        far = {of: np.abs(film - known).mean() for of, known in other.items()}
        assert all(far[name] < 0.1 * far[of] for of in far if of != name), (name, far)


@pytest.mark.slow
def test_a_mesh_leaves_the_result_alone(eight_mazes: list[str]) -> None:
    """Samples, the branches of guidance, tokens and weights spread over four devices; three samples
    on two worlds are filled up to four."""
    texts = ["world=2,branch=2", "context=2,fsdp=2"]
    found = many_devices.find("meshes", eight_mazes[-1], *texts, module="tests.bench.devices")
    assert found.keys() == set(texts)
    for mesh, (latents, x0, pixels) in found.items():
        assert max(latents, x0) < 1e-5, mesh
        assert pixels < 0.005, mesh  # one of 255 levels


@pytest.mark.slow
def test_batches_side_by_side_on_a_mesh(eight_mazes: list[str], tmp_path: Path) -> None:
    """Two coders at the next batch and the one before, while collectives make one on all devices:
    four batches, each of two samples on two devices."""
    write_arms(tmp_path, 2)
    cli.main([*eight_mazes, "--out", str(tmp_path / "one")])
    spread = [*eight_mazes, "--out", str(tmp_path / "mesh"), "--mesh", "world=2,fsdp=2"]
    spread += ["--batch", "2"]
    many_devices.command(*spread, devices=4)
    check_same(tmp_path / "mesh", tmp_path / "one")


@pytest.mark.slow
def test_hosts_share_the_samples(eight_mazes: list[str], tmp_path: Path) -> None:
    """Two hosts of two devices that must start together: each takes samples of its own."""
    write_arms(tmp_path, 1)
    cli.main([*eight_mazes, "--out", str(tmp_path / "one")])
    joined = [*eight_mazes, "--out", str(tmp_path / "two"), "--join", "--mesh", "fsdp=2"]
    joined += ["--batch", "2"]
    with many_devices.hosts("-m", "jcos", *joined, devices=2) as hosts:
        for process in hosts:
            many_devices.finish(process)
    check_same(tmp_path / "two", tmp_path / "one")
    made = [
        json.loads(p.read_text()) for p in (tmp_path / "two" / "base/state/made").rglob("*.json")
    ]
    assert [about["mesh"] for about in made] == ["fsdp=2"] * 8

    # Begun again where one host has nothing left to make: hosts still read the model together.
    (tmp_path / "two" / min(videos(tmp_path / "two"))).unlink()
    with many_devices.hosts("-m", "jcos", *joined, devices=2) as hosts:
        for process in hosts:
            many_devices.finish(process)
    check_same(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(eight_mazes: list[str], tmp_path: Path) -> None:
    write_arms(tmp_path, 10)
    run = [*eight_mazes, "--batch", "1", "--out"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    cli.main([*run, str(whole)])
    victim = many_devices.launch("-m", "jcos", *run, killed)
    end = time.monotonic() + 500
    while not videos(killed) and victim.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    victim.kill()
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL
    before = {name: p.stat().st_mtime_ns for name, p in videos(killed).items()}
    assert 1 <= len(before) < 8
    for name in before:
        formats.read_mp4(killed / name)  # whole

    cli.main([*run, str(killed)])
    after = {name: p.stat().st_mtime_ns for name, p in videos(killed).items()}
    assert before.items() <= after.items()
    check_same(killed, whole)
    assert not [p for p in killed.rglob("*") if p.name.endswith(".part")]


@pytest.mark.parametrize(
    ("mesh", "guidance", "message"),
    [
        ("seed=2", 5.0, "a mesh of seed=2 leaves devices idle"),
        ("branch=2", 1.0, "1 pass.*branch=2"),
        ("tensor=3", 5.0, "heads do not divide over the mesh's tensor=3"),
    ],
)
def test_meshes_that_samples_cannot_be_spread_over_are_refused(
    mesh: str, guidance: float, message: str
) -> None:
    config = Arm(profile=None, sampling=Settings(guidance=(guidance,))).of(read_config(TINY))
    with pytest.raises(ValueError, match=message):
        check_mesh(sharding.parse_mesh(mesh), config)
