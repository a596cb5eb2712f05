"""The result does not depend on the mesh: eight simulated devices, or two hosts, against one."""

import re
import socket
import subprocess

import jax
import pytest
from jax.sharding import PartitionSpec as P

from jcos import checkpoint, sharding
from tests import many_devices
from tests.test_trajectory import CONFIG, randomised

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


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


@pytest.mark.slow
def test_two_hosts_give_what_one_gives():
    port = str(free_port())
    hosts = [many_devices.start("host", str(number), port) for number in range(2)]
    try:
        for number, process in enumerate(hosts):
            check({f"host {number}": many_devices.finish(process)})
    finally:
        for process in hosts:
            process.kill()


@pytest.mark.slow
def test_a_run_that_lost_a_host_ends():
    port = str(free_port())
    hosts = [many_devices.start("lost", str(number), port) for number in range(2)]
    try:
        _, err = hosts[0].communicate(timeout=180)
    except subprocess.TimeoutExpired:
        pytest.fail("it still waits")
    finally:
        for process in hosts:
            process.kill()
            process.communicate()  # closes its pipes
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
        ({"seed": 0}, "at least 1"),
        ({"seed": -1, "context": -1}, "only one axis"),
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
        (("localhost:1", 2, 0), "must come before anything else of jax"),
    ],
)
def test_hosts_that_cannot_meet_are_refused(arguments, message):
    jax.devices()
    with pytest.raises(ValueError, match=message):
        sharding.init_distributed(*arguments)
