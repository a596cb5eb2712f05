"""Weights that wait in host memory, and reports of exhausted memory that become one sentence."""

import dataclasses
import math
import os
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from jcos import cli, generation, loop, wan
from jcos.config import Sampling
from jcos.devices import memory
from jcos.devices.memory import CODING, explained, run_knobs, sentence
from jcos.sampling import flow, trajectory
from jcos.sampling.probes import Noise, Probe, States, TokenEnergy, chain
from jcos.sampling.trajectory import Condition, Trace
from jcos.wan import Wan
from jcos.weights import checkpoint
from tests.conftest import GOLDEN, load_golden
from tests.models import CONFIG, FRAMES, frame, randomised

# ---- where weights lie


def two_experts(resident: bool | None) -> Wan:
    """The tiny image-to-video checkpoint of the original."""
    return wan.load(
        GOLDEN / "ckpt" / "Wan2.2-I2V-A14B",
        profile="float32",
        text=False,
        vae=False,
        resident=resident,
    )


def in_host(model: Wan) -> set[bool]:
    spaces = {a.sharding.memory_kind for a in jax.tree.leaves(model.experts)}
    return {kind == memory.HOST for kind in spaces}


def compare(found: Trace, want: Trace) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(jnp.abs(b).max()))


@pytest.mark.slow
def test_one_program_makes_every_step_of_both_experts() -> None:
    """Of a release: the host calls it for each step and brings the weights; what is observed is put
    together."""
    golden, whole, waiting = load_golden("loops/i2v_unipc6"), two_experts(True), two_experts(False)
    channels = jnp.asarray(np.moveaxis(golden["in.y"], 0, -1))
    prompt, negative = (whole.embed(golden[f"in.{k}"]) for k in ("context", "context_null"))
    frames, height, width, _ = channels.shape
    condition = Condition(prompt, (frames, height, width), negative, channels)
    sampling = Sampling(4, 5.0, "unipc", "unipc", (3.5, 2.0))
    how: dict[str, Any] = {"probe": chain(TokenEnergy(), States()), "sampling": sampling}
    assert in_host(whole) == {False}
    want = generation.generate(whole, condition, (0, 1), **how)
    programs, steps = loop._advance._cache_size, []  # type: ignore[attr-defined]
    before = programs()
    trace = generation.generate(waiting, condition, (0, 1), **how, on_step=steps.append)
    compare(trace, want)
    assert steps == [0, 1, 2, 3]
    assert in_host(waiting) == {True}
    how["sampling"] = dataclasses.replace(sampling, steps=5)
    generation.generate(waiting, condition, (3, 4), **how)
    assert programs() == before + 1


@pytest.fixture(scope="module")
def pair() -> Wan:
    """A small model of two experts."""
    guided = dataclasses.replace(CONFIG.sampling, guidance=(3.0, 2.0))
    return randomised(dataclasses.replace(CONFIG, boundary=0.8, sampling=guided))


@pytest.fixture(scope="module")
def waiting(pair: Wan) -> Wan:
    """The same, with its experts in host memory."""
    waiting = jax.tree.map(lambda a: a, pair)
    host = SingleDeviceSharding(jax.devices()[0], memory_kind=memory.HOST)
    waiting.experts = jax.device_put(pair.experts, host)
    return waiting


@pytest.mark.slow
def test_a_program_of_all_steps_takes_experts_that_wait(pair: Wan, waiting: Wan) -> None:
    """Sweeps are jitted as a whole; they bring the weights themselves."""
    plan = flow.plan(pair.config.sampling, pair.config.boundary)
    worlds = trajectory.tree_stack([pair.condition(frame(0), "left", FRAMES)])
    trace, want = (
        generation.generate_worlds(model, plan, worlds, loop.seed_keys((0, 1)), Probe())
        for model in (waiting, pair)
    )
    compare(trace, want)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [None, 1])
def test_runs_in_turns_are_swept(pair: Wan, waiting: Wan, chunk: int | None) -> None:
    condition, sampling = pair.condition(frame(0), "left", FRAMES), Sampling(2, guidance=(3.0, 2.0))
    probes = [Noise.at_steps(2, FRAMES, [s]) for s in (0, 1)]

    def one(probe: Probe) -> Trace:
        how: Any = {"probe": probe, "sampling": sampling}
        return generation.generate(waiting, condition, (0, 1), together=1, **how)

    found = trajectory.sweep(one, trajectory.tree_stack(probes), chunk=chunk)
    compare(found, trajectory.tree_stack([one(probe) for probe in probes]))


def test_weights_wait_where_they_fill_more_than_their_share(monkeypatch) -> None:
    weights = {"experts.0.a": jnp.zeros(300), "experts.1.a": jnp.zeros(200)}  # 2000 bytes
    first = SingleDeviceSharding(jax.devices()[0])

    def waits(resident: bool | None, limit: int | None) -> bool:
        monkeypatch.setattr(memory, "device_memory", lambda: limit)
        found = memory.waiting(weights, {"experts.0.a": first}, resident)
        assert all(where.memory_kind == memory.HOST for where in found.values())
        assert not found or found.keys() == weights.keys()
        return bool(found)

    enough = math.ceil(2000 / memory.ROOM)
    assert [waits(None, limit) for limit in (None, enough, enough - 1)] == [False, False, True]
    assert not waits(True, 100)
    assert waits(False, None)


@pytest.mark.parametrize(
    ("gib", "share", "together"),
    [(139, 0.92, True), (139, 0.75, True), (79, 0.92, False), (79, 0.75, False)],
)
def test_two_experts_lie_together_on_an_h200_and_wait_on_80_gb(gib, share, together, monkeypatch):
    """A14B's, 27 GiB each, where jax has a share of the device."""
    expert = jax.ShapeDtypeStruct((27 * 2**29,), jnp.bfloat16)
    monkeypatch.setattr(memory, "device_memory", lambda: int(share * gib * 2**30))
    found = memory.waiting({"experts.0": expert, "experts.1": expert}, {}, None)
    assert (not found) == together


def test_a_command_takes_more_of_a_gpu_unless_told_otherwise(monkeypatch) -> None:
    """One name alone: jax refuses both."""
    for name in memory._FRACTION:
        memory.claim(environment := {name: ".5"})
        assert environment == {name: ".5"}
        monkeypatch.setenv(name, "")
    memory.claim(environment := {})
    assert environment == {"XLA_CLIENT_MEM_FRACTION": memory.CLAIM}
    cli.main(["tasks"])
    assert os.environ["XLA_CLIENT_MEM_FRACTION"] == memory.CLAIM


def test_a_folder_of_jcos_is_restored_into_host_memory(tmp_path) -> None:
    model = two_experts(True)
    checkpoint.save(tmp_path / "model", model.config, model, {})
    found = wan.load(tmp_path / "model", text=False, vae=False, resident=False)
    assert in_host(found) == {True}
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(a, b)


# ---- when it runs out

GPU = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 34359738368 bytes."
TPU = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 22.50G of 15.75G hbm."


@pytest.mark.parametrize(
    ("report", "limit", "numbers"),
    [(GPU, 139 * 2**30, "32.0 GiB of its 139.0 GiB"), (TPU, None, "22.5 GiB of its 15.8 GiB")],
)
def test_the_sentence_says_what_was_asked_and_what_there_is(report, limit, numbers):
    assert numbers in sentence(report, "3 seeds", ["less"], limit)


def test_a_larger_mesh_helps_where_there_are_more_devices(monkeypatch):
    assert not any("mesh" in knob for knob in run_knobs(two_experts(False), True, 1))
    monkeypatch.setattr(memory.mesh, "devices", lambda *axes: 8)
    assert "mesh with branch=2" in run_knobs(two_experts(False), True, 1)[0]


def test_a_real_report_is_explained():
    why = r"a petabyte asked a device for \d+\.\d GiB\. What"
    with (
        pytest.raises(MemoryError, match=why),
        explained("a petabyte", run_knobs(two_experts(False), True, 1)),
    ):
        jax.block_until_ready(jnp.ones(2**48, jnp.float32))


def test_coding_has_its_own_knobs(monkeypatch):
    def full(*arguments: object) -> None:
        raise jax.errors.JaxRuntimeError(GPU)

    model = two_experts(True)
    monkeypatch.setattr(model, "vae", model.experts[0])  # one that is there, but not called
    monkeypatch.setattr(wan, "_decode", full)
    with pytest.raises(MemoryError, match=re.escape(CODING[0])):
        model.decode(np.zeros((3, 4, 6, 16), np.float32))
