"""The result does not depend on the mesh: eight simulated devices, or two hosts, against one."""

import json
import re
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file

from jcos import cli
from jcos.devices import sharding
from jcos.devices.mesh import AXES, SEQUENCE
from jcos.experiments import memory
from jcos.lab import results
from jcos.media import formats
from jcos.sampling import flow
from jcos.sampling.trajectory import Condition
from jcos.weights import checkpoint
from tests import many_devices
from tests.conftest import GOLDEN
from tests.experiments.conftest import clips_file
from tests.models import CONFIG, randomised

TOLERANCE = 1e-5
"""Of the largest value, in float32."""


def check(found: dict[str, dict[str, float]]) -> None:
    for mesh, off in found.items():
        assert off["noise"] == 0.0, f"{mesh}: seeds draw other noise"
        assert max(off.values()) < TOLERANCE, f"{mesh}: {off}"


@pytest.mark.slow
def test_axes_of_every_kind_leave_the_result_alone():
    meshes = ("seed=2,branch=2,context=2", "fsdp=4,tensor=2")
    found = many_devices.find("layouts", "1", "2", *meshes)
    assert found.keys() == set(meshes)
    check(found)


SWEPT = ("branch=2,context=4", "fsdp=4,seed=2", "world=2,seed=4")  # not divided by 4: idle
SIZES = ((1, 8), (2, 4), (4, 2), (8, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("worlds", "seeds", "first", "second", "sizes"),
    [
        (1, 8, "seed", "context", SIZES),
        (8, 1, "world", "fsdp", SIZES),
        (1, 2, "tensor", "fsdp", SIZES),
        (1, 2, "context", "fsdp", SIZES[1:3]),
        (1, 2, "branch", "tensor", SIZES[1:2]),
    ],
)
def test_every_layout_of_an_axis_gives_what_one_device_gives(worlds, seeds, first, second, sizes):
    meshes = [f"{first}={a},{second}={b}" for a, b in sizes]
    check(many_devices.find("layouts", str(worlds), str(seeds), *meshes))


@pytest.mark.slow
def test_steps_that_the_host_calls_for_are_one_program_on_a_mesh():
    found = many_devices.find("by_step", "seed=2,branch=2,fsdp=2")
    assert found["off"] < TOLERANCE
    assert found["waiting, off"] < TOLERANCE
    assert found["programs"] == 1


@pytest.mark.slow
def test_a_sweep_gives_on_a_mesh_what_it_gives_on_one_device():
    for mesh, off in many_devices.find("sweeps", *SWEPT).items():
        assert max(off.values()) < TOLERANCE, mesh


@pytest.mark.slow
def test_what_a_mesh_does_not_divide_gives_what_one_device_gives():
    """One head, odd grids: attention, VAE, and a run as docs/launch.md shows it."""
    for mesh, off in many_devices.find("undivided", "context=8", "tensor=2,fsdp=4").items():
        assert off.pop("levels") < 1.5 / 255, mesh  # whole ones, cut off: one apart at most
        assert max(off.values()) < TOLERANCE, f"{mesh}: {off}"


def test_weights_are_held_in_slices():
    found = many_devices.find("weights")
    for mesh in ("fsdp=8", "context=8, stored over context"):
        assert found[mesh] == pytest.approx(1 / 8, rel=0.01)
    # Time and text embeddings of the experts (6 %) and UMT5's table are not cut by tensor.
    assert 1 / 8 < found["tensor=8"] < 0.25
    assert found["context=8"] == 1.0
    assert found["equal"]
    assert found["whole"] == [6, 128, 128]
    assert found["slice"] == [6, 32, 64]


RELEASE = GOLDEN / "ckpt" / "Wan2.2-I2V-A14B"


@pytest.mark.slow
def test_the_command_makes_the_same_videos_on_a_mesh(tmp_path: Path) -> None:
    """Seeds, passes, tokens and weights spread; a mean over the seeds in the first step.

    Latents and clean estimates are compared, and not the films, which are theirs through H.264: it
    turns a difference of rounding into whole levels, more of them on some CPUs than on others.
    """
    clips_file(tmp_path, frames=5, count=2)
    given = [RELEASE, "--image", tmp_path / "picture.png", "--prompt", tmp_path / "one.npy"]
    given += ["--negative", tmp_path / "other.npy", "--profile", "float32", "--frames", 5]
    given += ["--size", "48x80", "--steps", 2, "--seeds", 3, 4, "--ensemble-layers", 0]
    given += ["--x0", 0, 1]
    cli.main(["generate", *map(str, given), "--out", str(tmp_path / "one")])
    spread = ["--mesh", "seed=2,branch=2,fsdp=2", "--out", tmp_path / "many"]
    many_devices.command("generate", *given, *spread)
    want, found = (load_file(tmp_path / name / "latents.safetensors") for name in ("one", "many"))
    assert found.keys() == {"latents", "x0"}
    for name, a in found.items():
        np.testing.assert_allclose(a, want[name], atol=1e-5 * np.abs(want[name]).max())
    for seed in (3, 4):
        videos = [formats.read_mp4(tmp_path / n / f"seed-{seed}.mp4") for n in ("one", "many")]
        assert videos[0].shape == videos[1].shape
    about = json.loads((tmp_path / "many" / "run.json").read_text())
    assert about["mesh"] == "seed=2,branch=2,fsdp=2"


@pytest.mark.slow
def test_clips_of_odd_grids_run_on_a_mesh(tmp_path: Path) -> None:
    """5 x 4 cells a token are no multiple of eight devices; pictures are coded inside the mesh."""
    config = tmp_path / "ensemble.py"
    config.write_text(ENSEMBLE.replace("CLIPS", str(clips_file(tmp_path, frames=5, count=1))))
    given = ["run", config, "--checkpoint", RELEASE, "--profile", "float32"]
    many_devices.command(*given, "--mesh", "tensor=2,fsdp=4", "--out", tmp_path / "many")


ENSEMBLE = """
from pathlib import Path
from jcos.experiments.ensemble import Ensemble
from jcos.experiments.experiment import Settings
experiment = Ensemble(
    clips=Path("CLIPS"), seeds=(0, 1), members=2, more_members=(), layers=(), until=(),
    sampling=Settings(steps=2), chunk=3,
)
"""


@pytest.mark.slow
def test_an_experiment_finds_the_same_on_a_mesh(tmp_path: Path) -> None:
    """Two arms on two clips, three runs at a time, which two worlds make four of."""
    config = tmp_path / "ensemble.py"
    config.write_text(ENSEMBLE.replace("CLIPS", str(clips_file(tmp_path, frames=5, count=2))))
    given = ["run", config, "--checkpoint", RELEASE, "--profile", "float32", "--out"]
    cli.main([*map(str, given), str(tmp_path / "one")])
    many_devices.command(*given, tmp_path / "many", "--mesh", "world=2,seed=2,fsdp=2")
    want, spread = (results.load(tmp_path / name / "results.nc") for name in ("one", "many"))
    assert set(spread.variables) == set(want.variables)
    for name in want.variables:
        values, same = (np.asarray(data[name]) for data in (spread, want))
        if np.issubdtype(same.dtype, np.floating):
            scale = np.nanmax(np.abs(same))
            np.testing.assert_allclose(values, same, atol=1e-4 * scale, err_msg=str(name))
        else:
            np.testing.assert_array_equal(values, same)
    about = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "many"))
    assert [each["mesh"] for each in about] == ["of size 1", "world=2,seed=2,fsdp=2"]


def test_a_device_of_a_mesh_needs_memory_for_its_part_of_a_run(monkeypatch) -> None:
    """Runs that fit into memory: as many more as devices share a run, or make others."""
    model = randomised(CONFIG)
    given = Condition(jnp.zeros(0), (3, 16, 16))
    plan = flow.plan(model.config.sampling).replace(guidance=jnp.ones(1))
    monkeypatch.setattr(memory, "free_bytes", lambda: 2**30)

    monkeypatch.setattr(memory, "MOST", 10**6)

    def on(**sizes: int) -> AbstractContextManager:
        shape = tuple(sizes.get(axis, 1) for axis in AXES)
        return jax.sharding.use_abstract_mesh(AbstractMesh(shape, AXES))

    def fitting() -> int:
        return memory.runs_that_fit(model, given, plan, 2, 1, 10**6, None)

    one, (stored, scores) = fitting(), memory.run_bytes(model, given, plan.steps)
    for axis in ("seed", "branch", "world"):
        with on(**{axis: 2}):
            assert fitting() == pytest.approx(2 * one, abs=1)
    with on(seed=4):
        assert fitting() == one  # two seeds do not divide
    for axis in SEQUENCE:
        with on(**{axis: 4}):
            less, fewer = memory.run_bytes(model, given, plan.steps)
        assert fewer == scores / 4
        assert stored / 4 < less < stored


@pytest.mark.slow
def test_two_hosts_give_what_one_gives():
    with many_devices.hosts("-m", "tests.many_devices", "host") as hosts:
        for process in hosts:
            check({"host": json.loads(many_devices.finish(process).splitlines()[-1])})


@pytest.mark.slow
def test_a_run_that_lost_a_host_ends():
    with many_devices.hosts("-m", "tests.many_devices", "lost", devices=1) as hosts:
        try:
            _, err = hosts[0].communicate(timeout=180)
        except subprocess.TimeoutExpired:
            pytest.fail("it still waits")
        assert hosts[0].returncode != 0
        assert re.search("heartbeat|Connection|closed by peer|UNAVAILABLE|unhealthy", err)


def test_every_leaf_of_a_block_that_has_a_rule_exists():
    """A rule that no leaf matches is a typing error."""
    model = randomised(CONFIG)
    paths = list(checkpoint.leaves(model))
    for rule, _ in sharding.RULES:
        if not rule.startswith("text"):
            assert any(re.search(rf"(^|\.)(?:{rule})$", path) for path in paths), rule
    assert sharding.spec_of("experts.0.blocks.ffn.layers_2.kernel") == P(None, "tensor", "fsdp")
    assert sharding.spec_of("experts.1.blocks.modulation") == P()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"batch": 1}, "no axis 'batch'; its axes are world, seed"),
        ({"seed": 2}, r"seed=2 does not make up 1 device"),
        ({"seed": 0}, "seed=0 does not make up 1 device"),
        ({"seed": -1, "context": -1}, "does not make up 1 device"),
    ],
)
def test_meshes_that_cannot_be_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(sizes, jax.devices()[:1])


def test_meshes_are_read_and_written():
    assert sharding.parse_mesh("branch=2, context=4") == {"branch": 2, "context": 4}
    mesh = sharding.make_mesh({"seed": -1}, jax.devices()[:1])
    assert mesh.shape["seed"] == 1
    assert sharding.describe({"branch": 2, "context": 4, "seed": 1}) == "branch=2,context=4"
    with pytest.raises(ValueError, match="write it as branch=2,context=4"):
        sharding.parse_mesh("context:4")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("10.0.0.1:1",), "needs hosts and host too"),
        (("10.0.0.1:1", 2, 2), "host is 2; with 2 hosts they are 0 to 1"),
        (("localhost:1", 2, 0), "before anything else of jax"),
    ],
)
def test_hosts_that_cannot_meet_are_refused(arguments, message):
    jax.devices()
    with pytest.raises(ValueError, match=message):
        sharding.init_distributed(*arguments)
