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
from jcos.devices import memory
from jcos.devices.memory import explained, run_knobs, sentence
from jcos.sampling import trajectory
from jcos.sampling.inside import Capture
from jcos.sampling.interventions import Interventions
from jcos.sampling.probe import Probe
from jcos.sampling.probes import Noise, TokenEnergy, chain
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan
from jcos.weights import checkpoint
from tests.models import CONFIG, FRAMES, LAYERS, STEPS, frame, randomised
from tests.releases import I2V

# ---- where weights lie


def in_host(model: Wan) -> set[bool]:
    spaces = {a.sharding.memory_kind for a in jax.tree.leaves(model.experts)}
    return {kind == memory.HOST for kind in spaces}


def compare(found: Trace, want: Trace) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(jnp.abs(b).max()))


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
def test_experts_that_wait_make_the_same_runs(pair: Wan, waiting: Wan) -> None:
    """Step by step, brought by the host, by one program; as one program of all steps, which sweeps
    are, and in turns."""
    condition = pair.condition(frame(0), "left", FRAMES)
    how: dict[str, Any] = {"probe": chain(Noise.at_steps(STEPS, FRAMES, [1]), TokenEnergy())}
    assert (in_host(pair), in_host(waiting)) == ({False}, {True})
    want = generation.generate(pair, condition, (0, 1), **how)
    programs, steps = loop._advance._cache_size, []  # type: ignore[attr-defined]
    before = programs()
    found = generation.generate(waiting, condition, (0, 1), **how, on_step=steps.append)
    compare(found, want)
    assert (steps, in_host(waiting)) == (list(range(STEPS)), {True})
    other = dataclasses.replace(pair.config.sampling, shift=5.0)
    generation.generate(waiting, condition, (3, 4), **how, sampling=other)
    assert programs() == before + 1

    def one(probe: Any) -> Trace:
        return generation.generate(waiting, condition, (0, 1), together=1, probe=probe)

    probes = [chain(Noise.at_steps(STEPS, FRAMES, [s]), TokenEnergy()) for s in (1, 2)]
    runs = [generation.generate(pair, condition, (0, 1), probe=probe) for probe in probes]
    for chunk in (None, 1):
        swept = trajectory.sweep(one, trajectory.tree_stack(probes), chunk=chunk)
        compare(swept, trajectory.tree_stack(runs))


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
    # A14B's two experts, 27 GiB each, stay on an H200 and not on 80 GB, by jax's share of each.
    weights = {f"experts.{i}.a": jax.ShapeDtypeStruct((27 * 2**29,), jnp.bfloat16) for i in (0, 1)}
    for share in (0.75, 0.92):
        assert [waits(None, int(share * gib * 2**30)) for gib in (139, 79)] == [False, True]


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


def test_a_folder_of_jcos_is_restored_into_host_memory(pair: Wan, tmp_path) -> None:
    checkpoint.save(tmp_path / "model", pair.config, pair, {})
    found = wan.load(tmp_path / "model", resident=False)
    assert in_host(found) == {True}
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(pair), strict=True):
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


def full(*arguments: object, **options: object) -> None:
    raise jax.errors.JaxRuntimeError(GPU)


@pytest.mark.parametrize(
    ("probe", "probed"),
    [(Interventions().probe(STEPS, FRAMES, LAYERS, 1), False), (Capture("block", (0,)), True)],
)
def test_a_smaller_probe_helps_where_something_is_observed(
    pair: Wan, monkeypatch, probe: Probe, probed: bool
) -> None:
    monkeypatch.setattr(generation, "generate_worlds", full)
    with pytest.raises(MemoryError) as error:
        generation.generate(pair, pair.condition(frame(0), "left", FRAMES), probe=probe)
    assert ("a probe that observes fewer" in str(error.value)) == probed


def test_loading_and_coding_have_their_own_knobs(monkeypatch) -> None:
    model = wan.load(I2V, text=False, experts=False)
    monkeypatch.setattr(wan, "_decode", full)
    with pytest.raises(MemoryError, match=re.escape(memory.CODING[0])):
        model.decode(np.zeros((1, 2, 2, 16), np.float32))
    monkeypatch.setattr(wan, "load_released", full)
    with pytest.raises(MemoryError, match=re.escape(memory.LOADING[0])):
        wan.load(I2V, text=False, experts=False)


def test_a_real_report_is_explained_by_what_helps_here(waiting: Wan, monkeypatch):
    knobs = run_knobs(waiting, True, 1)
    assert not any("mesh" in knob for knob in knobs)
    why = r"a petabyte asked a device for \d+\.\d GiB\. What"
    with pytest.raises(MemoryError, match=why), explained("a petabyte", knobs):
        jax.block_until_ready(jnp.ones(2**48, jnp.float32))
    monkeypatch.setattr(memory.mesh, "devices", lambda *axes: 8)
    assert "mesh with branch=2" in run_knobs(waiting, True, 1)[0]
