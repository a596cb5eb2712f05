"""What a plan says: counted operations and bytes, compiled programs, and the command."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jcos import cli
from jcos.cli import plan
from jcos.config import Sampling
from jcos.devices import sharding
from jcos.model.dit import DiT
from jcos.plan import compiled, costs, forecast
from jcos.plan.costs import Job
from jcos.plan.forecast import Option
from jcos.plan.machines import GIB, machine
from jcos.variants import VARIANTS, toy
from tests.conftest import AS_USERS


def job(name: str, frames: int, height: int, width: int, seeds: int = 1) -> Job:
    return Job(VARIANTS[name](), frames, height, width, seeds)


I2V = job("wan2.2-i2v-a14b", 81, 480, 832)


@pytest.fixture
def planned(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[str, list[Option]]]:
    """`planned("--model", …)` is what `jcos plan` prints, in one line, and of which options."""
    taken, show = [], plan._show

    def noted(options: list[Option], *more: Any) -> None:
        taken.append(options)
        show(options, *more)

    def run(*words: str) -> tuple[str, list[Option]]:
        cli.main(["plan", *words])
        return " ".join(capsys.readouterr().out.split()), taken[-1]

    monkeypatch.setattr(plan, "_show", noted)
    return run


@pytest.fixture(autouse=True)
def without_a_gpus_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is calculated is tested as such, also where the extra `gpu` is installed."""
    monkeypatch.setitem(compiled.COMPILERS, "gpu", ())


# ---- counting


def matrix_flops(jaxpr: Any, times: int = 1) -> int:
    """Two per multiplication and addition of every matrix product of a program, loops unrolled."""
    total = 0
    for equation in jaxpr.eqns:
        inner = times * equation.params.get("length", 1)
        if equation.primitive.name == "dot_general":
            ((contracted, _), _) = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            shared = math.prod(left[axis] for axis in contracted)
            total += 2 * times * shared * math.prod(equation.outvars[0].aval.shape)
        for value in equation.params.values():
            if hasattr(value, "jaxpr"):
                total += matrix_flops(value.jaxpr, inner)
            elif hasattr(value, "eqns"):
                total += matrix_flops(value, inner)
    return total


@pytest.mark.parametrize("timesteps", [1, 2])
def test_formulas_count_the_matrix_products_of_the_model(timesteps: int) -> None:
    """Also with a pinned first frame, whose timestep is another."""
    cfg = toy().dit
    dit = jax.eval_shape(lambda: DiT(cfg, rngs=nnx.Rngs(0)))
    latents = jax.ShapeDtypeStruct((5, 10, 10, cfg.in_channels), jnp.float32)
    context = jax.ShapeDtypeStruct((cfg.text_len, cfg.text_dim), jnp.float32)
    t = jax.ShapeDtypeStruct((), jnp.float32)
    tokens = math.prod(cfg.tokens(5, 10, 10))
    clean = jnp.zeros(tokens, bool) if timesteps == 2 else None
    run = partial(DiT.__call__, clean=clean)
    program = jax.make_jaxpr(run)(dit, latents, t, context)
    counted = costs.forward_flops(cfg, tokens, timesteps)
    assert sum(counted.values()) == matrix_flops(program.jaxpr)


@pytest.mark.parametrize(
    ("asked", "tokens", "tera"),
    [
        (I2V, 32_760, 1_678),
        (job("wan2.2-i2v-a14b", 81, 720, 1280), 75_600, 6_524),
        (job("wan2.1-t2v-1.3b", 81, 480, 832), 32_760, 283),
        (job("wan2.2-ti2v-5b", 121, 704, 1280), 27_280, 517),
    ],
)
def test_operations_of_the_released_models(asked: Job, tokens: int, tera: int) -> None:
    assert asked.tokens == tokens
    assert costs.step_flops(asked) / 2e12 == pytest.approx(tera, rel=2e-3)


def test_memory_follows_the_mesh() -> None:
    whole = costs.memory(I2V, {}, 3.0)
    assert whole.arguments > 57.2e9
    sliced = costs.memory(I2V, {"fsdp": 8}, 3.0)
    assert sliced.arguments == pytest.approx(whole.arguments / 8, rel=0.02)
    assert costs.memory(I2V, {"context": 8}, 3.0).arguments == whole.arguments
    seeds = dataclasses.replace(I2V, seeds=3)
    assert costs.memory(seeds, {"seed": 3}, 3.0) == whole
    assert costs.memory(seeds, {}, 3.0).temporaries == pytest.approx(3 * whole.temporaries)
    assert costs.link_bytes(I2V, {"branch": 2}) == 0
    assert costs.link_bytes(I2V, {"context": 2}) < costs.link_bytes(I2V, {"fsdp": 2})
    both = costs.link_bytes(I2V, {"context": 2, "fsdp": 8})  # 16 do not divide 40 heads
    assert both < costs.link_bytes(I2V, {"context": 16})


# ---- machines


@pytest.mark.parametrize(
    ("sold", "name", "devices"),
    [
        ("v5e:1x1", "v5e:1x1", 1),
        ("v5p:2x2x4", "v5p:2x2x4", 16),
        ("gpu:h100:8", "gpu:h100:8", 8),
        ("v5p-8", "v5p:2x2x1", 4),
        ("v5p-16", "v5p:2x2x2", 8),
        ("v5p-64", "v5p:2x4x4", 32),
        ("v5p-128", "v5p:4x4x4", 64),
        ("v5p-384", "v5p:4x4x12", 192),
        ("v5p-1792", "v5p:4x8x28", 896),
        ("v5p-12288", "v5p:16x16x24", 6144),
        ("v6e-1", "v6e:1x1", 1),
        ("v6e-8", "v6e:2x4", 8),
        ("tpu-v6e-256", "v6e:16x16", 256),
        ("v5litepod-16", "v5e:4x4", 16),
        ("h200:8", "gpu:h200:8", 8),
        ("H100", "gpu:h100:1", 1),
    ],
)
def test_machines_by_shape_and_as_clouds_sell_them(sold: str, name: str, devices: int) -> None:
    """A slice of v5p is sold by its cores, two per chip."""
    found = machine(sold)
    assert (found.name, found.devices) == (name, devices)
    assert machine(name) == found


def test_between_hosts_gpus_are_joined_by_a_network() -> None:
    near, far = (costs.seconds(I2V, machine(f"gpu:h200:{n}"), {}, 1e9)["links"] for n in (8, 16))
    assert far == pytest.approx(9 * near)
    assert machine("v5p:4x4x4").link == machine("v5p:2x2x1").link


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v7x-8", "there is no machine 'v7x-8'; the nearest are v6e-8, v5e-8"),
        ("v6e-10", "there is no machine 'v6e-10'; the nearest are v6e-4, v6e-8, v6e-16"),
        ("v5p-12", "the nearest are v5p-8, v5p-16, v5p-32"),
        ("a100:8", "h100:8"),
        ("gpu:v5e:8", "there is no machine"),
        ("h100:2x2", "there is no machine"),
        ("v5p:2x2", "v5p:2x2 is not made of whole hosts of v5p: give 3 axes"),
        ("v5e:3x3", "v5e:3x3 is not made of whole hosts"),
        ("gpu:h100:0", "give at least 1 device"),
    ],
)
def test_machines_that_are_none(name: str, says: str) -> None:
    with pytest.raises(ValueError, match=r"machine|hosts") as error:
        machine(name)
    assert says in str(error.value)


# ---- programs


@pytest.mark.slow
@pytest.mark.extra("tpu")
@pytest.mark.parametrize("sizes", [{"context": 2, "fsdp": 8}, {"branch": 2, "context": 8}])
def test_axes_of_a_mesh_may_share_one_of_the_slice(sizes: dict[str, int]) -> None:
    """Sixteen chips are a torus of 4 × 4."""
    devices = list(compiled.described(machine("v5e:4x4")))
    mesh = sharding.make_mesh(sizes, devices)
    assert {name: mesh.shape[name] for name in sizes} == sizes
    assert set(mesh.devices.flat) == set(devices)


COMPILED = """
import sys
from jcos import cli
from jcos.cli import plan
show = plan._show
def noted(options, *more):
    show(options, *more)
    print(options[0].compiled, options[0].held.arguments)
plan._show = noted
cli.main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    "machine",
    [
        pytest.param("v5e:2x2", marks=pytest.mark.extra("tpu")),
        pytest.param("gpu:h100:4", marks=pytest.mark.extra("gpu")),
    ],
)
def test_a_run_compiles_for_a_machine_that_is_not_here(machine: str) -> None:
    """All blocks of a released model at full width, a short small video; in a process of its own,
    since jax fills classes with other things than arrays when it lowers, which the shape checks of
    these tests do not allow."""
    model = ["--model", "wan2.1-t2v-1.3b", "--topology", machine, "--mesh", "branch=2,context=2"]
    video = ["--size", "256x256", "--frames", "17", "--steps", "4", "--seeds", "2"]
    command = [sys.executable, "-c", COMPILED, "plan", *model, *video]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | AS_USERS)
    assert run.returncode == 0, run.stderr
    assert "Recommended: branch=2,context=2" in run.stdout
    done, held = run.stdout.splitlines()[-1].split()
    assert done == "True"
    weights = costs.expert_bytes(VARIANTS["wan2.1-t2v-1.3b"]())
    assert int(held) == pytest.approx(weights, rel=0.05)


# ---- forecasts


@pytest.mark.parametrize("name", ["v5e:2x4", "v5p:2x2x4", "gpu:h100:8"])
@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_proposed_meshes_make_up_the_machine(name: str, seeds: int) -> None:
    asked, target = dataclasses.replace(I2V, seeds=seeds), machine(name)
    proposed = forecast.meshes(asked, target)
    assert len({tuple(sizes.items()) for sizes in proposed}) == len(proposed)
    assert all(math.prod(sizes.values()) == target.devices for sizes in proposed)
    assert all(seeds % sizes.get("seed", 1) == 0 for sizes in proposed)
    first = forecast.calculated(asked, target, proposed[0])
    if name != "v5e:2x4":  # where memory is short, weights are sliced over all there is
        assert not first.trouble
        assert proposed[0]["branch"] == 2  # the two passes need not talk
    elif seeds == 1:
        assert proposed[0] == {"fsdp": 8}
        assert not first.trouble


def test_one_gpu_by_calculation(planned) -> None:
    video = ("--size", "832x480", "--frames", "81", "--steps", "50")
    printed, (option,) = planned("--model", "wan2.2-i2v-a14b", "--topology", "gpu:h200:1", *video)
    assert "All of this is calculated" in printed
    assert "pip install 'jcos[lab,gpu]'" in printed
    assert not option.compiled
    assert costs.step_flops(option.job) == pytest.approx(2 * 1678e12, rel=2e-3)
    assert option.step == pytest.approx(2 * 1678 / 989, rel=2e-3)
    assert option.limit == "compute"
    assert option.held is not None
    assert 57.2e9 < option.held.total < 139 * GIB


def test_a_distilled_model_is_planned_with_its_preset(planned) -> None:
    model = ("--model", "wan2.2-i2v-a14b", "--size", "832x480", "--topology", "gpu:h200:1")
    _, (option,) = planned(*model, "--preset", "lightning-4")
    assert option.job.steps == 4
    assert costs.step_flops(option.job) == pytest.approx(1678e12, rel=2e-3)  # of one pass


def test_experts_that_do_not_fit_together_come_in_turns(planned) -> None:
    model = ("--model", "wan2.2-i2v-a14b", "--size", "1280x720", "--frames", "81")
    printed, (together, turns) = planned(*model, "--topology", "gpu:h100:1")
    assert "Recommended: one device, in turns" in printed
    assert "58 GB of weights wait in host memory, and each comes once per run" in printed
    assert "71.1 can be counted on" in together.trouble
    assert (together.resident, turns.resident) == (True, False)
    saved = together.held.arguments - turns.held.arguments
    assert saved == costs.expert_bytes(I2V.config)
    assert turns.seconds["compute"] == together.seconds["compute"]
    one_expert = job("wan2.2-ti2v-5b", 121, 704, 1280)
    assert len(list(forecast.options(one_expert, machine("gpu:h100:1"), [{}]))) == 1


def test_what_does_not_fit_says_what_would_help(planned) -> None:
    model = ("--model", "wan2.2-i2v-a14b", "--seeds", "3", "--topology", "gpu:h100:1")
    printed, _ = planned(*model, "--size", "1280x720")
    assert "None of these fits" in printed
    assert "more devices, fewer seeds at a time, a smaller --size, fewer --frames" in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--model", "wan3"), "there is no model 'wan3'; known are wan2.2-t2v-a14b"),
        (("--topology", "v5p:2x2"), "give 3 axes"),
        (("--frames", "80"), "a video has 4 n + 1; ask for 77 or 81"),
        (("--size", "830x480"), "the width is 830 pixels"),
        (("--size", "big"), "WIDTHxHEIGHT in pixels"),
        (("--seeds", "0"), "0 seeds asked for"),
        (("--steps", "0"), "steps is 0"),
        (("--mesh", "context=3"), "context=3 does not make up 8 device(s)"),
        (("--mesh", "time=8"), "has no axis 'time'"),
        (("--mesh", "context"), "is no mesh"),
        (("--mesh", "world=8"), "a plan is of one"),
        (("--mesh", "world=-1"), "a plan is of one"),
        (("--mesh", "branch=-1,context=2"), "do not divide over the mesh's branch=4"),
        (("--mesh", "seed=2,context=4"), "1 seed(s) do not divide over the mesh's seed=2"),
    ],
)
def test_wrong_input_is_one_sentence(arguments: tuple[str, ...], says: str, refused) -> None:
    asked = {"--model": "wan2.2-i2v-a14b", "--topology": "gpu:h100:8", arguments[0]: arguments[1]}
    assert says in refused("plan", *(part for pair in asked.items() for part in pair))


def test_a_mesh_that_is_named_is_the_one_tried(planned) -> None:
    model = ("--model", "wan2.2-ti2v-5b", "--topology", "gpu:h100:8")
    printed, options = planned(*model, "--mesh", "branch=2,context=-1", "--mesh", "fsdp=8")
    assert [option.mesh for option in options] == ["branch=2,context=4", "fsdp=8"]
    assert "Recommended: branch=2,context=4" in printed


COUNTED = """
import dataclasses, json, jax
from jcos.devices import sharding
from jcos.generation import generate_worlds
from jcos.model import attention
from jcos.plan import compiled, costs
from jcos.sampling import maps
from jcos.sampling.inside import KnockOut
from jcos.variants import VARIANTS, toy

def programs(config, size, *makers):
    dit = dataclasses.replace(config.dit, layers=1)
    sampling = dataclasses.replace(config.sampling, steps=1, guidance=None)
    config = dataclasses.replace(config, dit=dit, sampling=sampling, boundary=None)
    job, mesh = costs.Job(config, *size), sharding.make_mesh({}, jax.devices()[:1])
    for make in makers:
        yield generate_worlds.lower(*compiled.arguments(job, mesh, make(job)))

def mass(every):
    return lambda job: maps.AttentionMass.by_frame(dit.tokens(*job.latent), [0], every=every)

def off(where):
    return lambda job: KnockOut.at(job.config, where, [(0, 0), (0, 1)])

a14b, dit = VARIANTS["wan2.2-i2v-a14b"](), toy().dit
large = programs(a14b, (81, 480, 832), lambda job: None, off("heads"), off("mlp"))
large = [program.compile().cost_analysis() for program in large]
attention.SCORES = maps.WEIGHTS = 2**60  # no loops, whose body is counted once
small = programs(toy(), (81, 40, 40), lambda job: None, mass(1), mass(16))
flops = [program.cost_analysis()["flops"] for program in small]
print(json.dumps([[(cost["flops"], cost["bytes accessed"]) for cost in large], flops]))
"""


@pytest.mark.slow
def test_what_probes_add_is_counted() -> None:
    """Heads or neurons that are knocked out cost at most two percent of the operations and bytes of
    a block of A14B at 480p; attention of n of N queries in R regions n (d + R) / 2 N d of
    self-attention's products."""
    command = [sys.executable, "-c", COUNTED]  # shapes stand for arrays: types are not seen
    environment = os.environ | AS_USERS
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    (plain, *off), (none, every, some) = json.loads(done.stdout.splitlines()[-1])
    assert len(off) == 2
    assert (np.array(off) <= 1.02 * np.array(plain)).all()
    formula = costs.mass_flops(Job(toy(), 81, 40, 40))
    assert formula < every - none < 1.2 * formula
    assert some - none == pytest.approx((every - none) / 16, rel=0.1)


def test_guidance_off_is_one_pass() -> None:
    alone = dataclasses.replace(I2V.config, sampling=Sampling(steps=50))
    once = dataclasses.replace(I2V, config=alone)
    assert costs.step_flops(once) == costs.step_flops(I2V) / 2
    assert all("branch" not in sizes for sizes in forecast.meshes(once, machine("gpu:h100:8")))
    assert sharding.describe(forecast.meshes(once, machine("gpu:h100:8"))[0]) == "context=8"
