"""The result does not depend on the mesh: eight simulated devices, or two hosts, against one."""

import re
import signal
import subprocess

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from jcos import wan
from jcos.devices import sharding
from jcos.devices.mesh import AXES
from jcos.variants import VARIANTS
from jcos.weights import checkpoint
from jcos.weights.checkpoint import abstract_model
from tests import many_devices
from tests.models import CONFIG, randomised

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5
"""Of the largest value, in float32."""


@pytest.fixture(scope="module")
def eight() -> dict:
    """Results of all cases on eight devices, from one process."""
    return many_devices.find(devices=8)


@pytest.mark.parametrize("mesh", many_devices.LAYOUTS)
def test_axes_of_every_kind_leave_the_result_alone(eight, mesh):
    errors = eight["layouts"][mesh]
    assert errors["noise"] == 0.0, "seeds draw other noise"
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize(
    ("case", "apart"),
    [
        ("by_step", {"programs": 1}),  # of steps that the host calls for
        ("sweeps", {}),
        ("undivided", {"levels": 1.5 / 255}),  # whole ones, cut off: one apart at most
    ],
)
def test_what_a_mesh_gives_is_what_one_device_gives(eight, case, apart):
    """undivided: one head, odd grids: attention, VAE, and a run as docs/launch.md shows it."""
    errors = eight[case]
    if case in ("sweeps", "undivided"):
        (errors,) = errors.values()
    assert all(errors.pop(name) <= most for name, most in apart.items())
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize("mesh", many_devices.SHARED)
@pytest.mark.parametrize("method", many_devices.METHODS)
def test_a_shared_sequence_gives_the_same(eight, mesh, method):
    error, exchanges = eight["attention"][f"{mesh} {method}"]
    assert error < 2e-6
    assert exchanges


def test_a_model_is_restored_into_slices(eight):
    assert eight["slices"] == {"equal": True, "whole": [6, 128, 128], "slice": [6, 32, 64]}


@pytest.mark.parametrize(
    ("axis", "least", "most"),
    [
        ("fsdp", 0.124, 0.127),
        # Time and text embeddings of the experts (6 %) and UMT5's table are not cut by tensor.
        ("tensor", 0.126, 0.25),
        ("context", 1, 1),
    ],
)
def test_weights_are_held_in_slices(axis, least, most):
    """The share of A14B's bytes on one of eight devices."""
    model = abstract_model(wan.Wan, VARIANTS["wan2.2-i2v-a14b"]())
    model.vae = None
    mesh = AbstractMesh(tuple(8 if name == axis else 1 for name in AXES), AXES)
    where = sharding.shardings(model, mesh)
    whole = part = 0
    for path, leaf in checkpoint.leaves(model).items():
        whole += leaf.size * leaf.dtype.itemsize
        part += np.prod(where[path].shard_shape(leaf.shape)) * leaf.dtype.itemsize
    assert least <= part / whole <= most


def test_a_run_that_lost_a_host_ends():
    with many_devices.hosts("-m", "tests.many_devices", "lost", devices=1) as hosts:
        try:
            out, err = hosts[0].communicate(timeout=180)
        except subprocess.TimeoutExpired:
            pytest.fail("it still waits")
        assert hosts[0].returncode != 0
        assert hosts[1].wait(9) == 2  # in less than jax waits at its end
        assert "set is  on host 0 and y on host 1" in out
        assert re.search(
            "heartbeat|ConnectionError: another host|closed by peer|UNAVAILABLE|unhealthy", err
        )


def test_a_joined_process_ends_on_sigterm():
    code = "import os, signal; from jcos.devices import sharding; "
    code += f"sharding.init_distributed('localhost:{many_devices.free_port()}', 1, 0); "
    code += "os.kill(os.getpid(), signal.SIGTERM); import time; time.sleep(20)"
    process = many_devices.launch("-c", code)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGTERM


def test_a_host_that_knows_no_others_or_waits_in_vain_says_so():
    address = f"localhost:{many_devices.free_port()}"
    code = "from jcos.devices import sharding\n"
    code += "try: sharding.init_distributed()\nexcept ValueError as error: print(error)\n"
    code += "sharding.init_distributed(hosts=2, host=0, timeout=1)"
    process = many_devices.launch("-c", code, JAX_COORDINATOR_ADDRESS=address)
    out, err = process.communicate(timeout=120)
    assert "set JAX_NUM_PROCESSES, JAX_PROCESS_ID on" in out
    assert process.returncode == 2
    assert err.splitlines()[-1].startswith(f"jcos: the hosts did not meet at {address}")


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
        (("10.0.0.1:1", 2, 2), "host is 2; with 2 hosts they are 0 to 1"),
        (("10.0.0.1:1", 0, 0), "hosts is 0"),
        (("localhost", 2, 0), "'localhost'; it is HOST:PORT"),
        (("localhost:99999", 2, 1), "'localhost:99999'; it is HOST:PORT"),
        (("localhost:1", 2, 0), "before anything else of jax"),
    ],
)
def test_hosts_that_cannot_meet_are_refused(arguments, message, monkeypatch):
    jax.devices()
    with pytest.raises(ValueError, match=message):
        sharding.init_distributed(*arguments)
    address = f"localhost:{many_devices.free_port()}"
    with pytest.raises(ConnectionError, match=address):
        sharding.init_distributed(address, 2, 1, timeout=1)
    for name, value in zip(sharding._HOSTS, (address, "two", "0"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"JAX_NUM_PROCESSES.*'two'"):
        sharding.init_distributed()
