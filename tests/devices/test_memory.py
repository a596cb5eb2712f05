"""Weights that wait in host memory, and reports of exhausted memory that become one sentence."""

import dataclasses
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from jcos import cli, generation, loop, wan
from jcos.config import Sampling
from jcos.devices import memory
from jcos.devices.memory import CODING, LOADING, explained, run_knobs, sentence
from jcos.sampling import flow, trajectory
from jcos.sampling.probes import Probe, States, TokenEnergy, chain
from jcos.sampling.trajectory import Condition, Trace
from jcos.wan import Wan
from jcos.weights import checkpoint
from tests.conftest import GOLDEN, load_golden
from tests.models import CONFIG, FRAMES, STEPS, frame, randomised

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
def test_experts_of_a_release_in_turns_make_the_same_videos() -> None:
    golden, whole, waiting = load_golden("loops/i2v_unipc6"), two_experts(True), two_experts(False)
    channels = jnp.asarray(np.moveaxis(golden["in.y"], 0, -1))
    prompt, negative = (whole.embed(golden[f"in.{k}"]) for k in ("context", "context_null"))
    frames, height, width, _ = channels.shape
    condition = Condition(prompt, (frames, height, width), negative, channels)
    sampling = Sampling(4, 5.0, "unipc", "unipc", (3.5, 2.0))
    assert in_host(whole) == {False}
    assert in_host(waiting) == {True}
    want = generation.generate(whole, condition, (0, 1), sampling=sampling)
    compare(generation.generate(waiting, condition, (0, 1), sampling=sampling), want)


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
def test_one_program_makes_every_step_of_both_experts(pair: Wan, waiting: Wan) -> None:
    """The host calls it for each and brings the weights; what is observed is put together."""
    condition, probe = pair.condition(frame(0), "left", FRAMES), chain(TokenEnergy(), States())
    want = generation.generate(pair, condition, (0, 1), probe=probe)
    programs = loop._advance._cache_size  # type: ignore[attr-defined]
    before, told = programs(), []
    found = generation.generate(waiting, condition, (0, 1), probe=probe, on_step=told.append)
    compare(found, want)
    assert told == list(range(STEPS))
    assert in_host(waiting) == {True}
    longer = dataclasses.replace(pair.config.sampling, steps=STEPS + 1)
    generation.generate(waiting, condition, (3, 4), probe=probe, sampling=longer)
    assert programs() == before + 1


def test_a_program_of_all_steps_takes_experts_that_wait(pair: Wan, waiting: Wan) -> None:
    """Sweeps are jitted as a whole; they bring the weights themselves."""
    plan = flow.plan(pair.config.sampling, pair.config.boundary)
    worlds = trajectory.tree_stack([pair.condition(frame(0), "left", FRAMES)])
    found, want = (
        generation.generate_worlds(model, plan, worlds, loop.seed_keys((0, 1)), Probe())
        for model in (waiting, pair)
    )
    compare(found, want)


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
    [(139, 0.92, True), (139, 0.75, True), (79, 0.92, False), (79, 0.75, False), (141, 0.92, True)],
)
def test_two_experts_lie_together_on_an_h200_and_wait_on_80_gb(
    gib: int, share: float, together: bool, monkeypatch
) -> None:
    """A14B's, 27 GiB each, where jax has a share of the device."""
    expert = jax.ShapeDtypeStruct((27 * 2**29,), jnp.bfloat16)
    monkeypatch.setattr(memory, "device_memory", lambda: int(share * gib * 2**30))
    found = memory.waiting({"experts.0": expert, "experts.1": expert}, {}, None)
    assert (not found) == together


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"XLA_CLIENT_MEM_FRACTION": memory.CLAIM}),
        ({"XLA_CLIENT_MEM_FRACTION": ".5"}, {"XLA_CLIENT_MEM_FRACTION": ".5"}),
        ({"XLA_PYTHON_CLIENT_MEM_FRACTION": ".5"}, {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".5"}),
    ],
)
def test_a_command_takes_more_of_a_gpu_unless_told_otherwise(before, after) -> None:
    """One name alone: jax refuses both."""
    memory.claim(before)
    assert before == after


def test_the_command_line_claims_before_anything_of_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in memory._FRACTION:
        monkeypatch.setenv(name, "")
    cli.main(["tasks", "--only", "maze"])
    assert os.environ["XLA_CLIENT_MEM_FRACTION"] == memory.CLAIM


def test_a_folder_of_jcos_is_restored_into_host_memory(tmp_path) -> None:
    model = two_experts(True)
    checkpoint.save(tmp_path / "model", model.config, model, {})
    found = wan.load(tmp_path / "model", text=False, vae=False, resident=False)
    assert in_host(found) == {True}
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(a, b)


# ---- when it runs out

RUN: dict[str, Any] = dict(
    seeds=3, worlds=1, guided=True, probed=False, float32=False, resident=False
)
GPU = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 34359738368 bytes."
TPU = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 22.50G of 15.75G hbm."


@pytest.mark.parametrize(
    ("report", "limit", "words"),
    [
        (GPU, 139 * 2**30, "3 seeds asked a device for 32.0 GiB of its 139.0 GiB. "),
        (GPU.replace("34359738368 bytes", "32.00GiB"), None, "a device for 32.0 GiB. "),
        (TPU, None, "a device for 22.5 GiB of its 15.8 GiB. "),
        ("RESOURCE_EXHAUSTED: it is full", None, "for more memory than there is. "),
    ],
)
def test_the_sentence_says_what_was_asked_and_what_there_is(report, limit, words):
    said = sentence(report, "3 seeds", ["less", "least"], limit)
    assert words in said
    assert said.endswith("the least change first: (1) less; (2) least")


def test_knobs_are_those_that_this_run_has(monkeypatch):
    assert run_knobs(**RUN)[0].startswith("fewer than 3 seeds")
    assert not any("mesh" in knob or "expert" in knob for knob in run_knobs(**RUN))
    assert run_knobs(**RUN | {"resident": True})[1].startswith("one expert at a time")
    monkeypatch.setattr(memory.mesh, "devices", lambda *axes: 8)
    many = run_knobs(**{**RUN, "seeds": 1})
    assert [knob.split(":")[0] for knob in many[:2]] == [
        "a mesh with branch=2",
        "a mesh with a larger fsdp or context",
    ]
    assert many[-1] == "a smaller or shorter video"


def test_a_real_report_is_explained():
    why = r"a petabyte asked a device for \d+\.\d GiB\. What"
    with pytest.raises(MemoryError, match=why), explained("a petabyte", run_knobs(**RUN)):
        jax.block_until_ready(jnp.ones(2**48, jnp.float32))


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError), explained("nothing", ()):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("place", "call", "words"),
    [
        ("load_released", lambda model: two_experts(True), ("the weights of", LOADING[0])),
        (
            "_decode",
            lambda model: model.decode(np.zeros((3, 4, 6, 16), np.float32)),
            ("for 3 latent frame(s) of 6x4, asked a device for 32.0 GiB", CODING[0]),
        ),
        (
            "_encode",
            lambda model: model.encode(np.zeros((5, 32, 48, 3), np.uint8)),
            ("for 5 frame(s) of 48x32 pixels, asked", CODING[0]),
        ),
    ],
)
def test_loading_and_coding_have_their_own_knobs(monkeypatch, place, call, words):
    def full(*arguments: object) -> None:
        raise jax.errors.JaxRuntimeError(GPU)

    model = two_experts(True)
    monkeypatch.setattr(model, "vae", model.experts[0])  # one that is there, but not called
    monkeypatch.setattr(wan, place, full)
    with pytest.raises(MemoryError) as error:
        call(model)
    assert all(word in str(error.value) for word in words)
