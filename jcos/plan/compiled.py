"""The true program, compiled ahead of time for devices that are not here: TPU slices and GPUs.

The compilers come with the extras `tpu` (libtpu) and `gpu` (jax's CUDA plugin); neither needs its
device.
"""

import math
import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from jcos.devices import sharding
from jcos.devices.mesh import SEED, WORLD
from jcos.loop import seed_keys
from jcos.plan.costs import Job, Memory
from jcos.plan.machines import HOST, Chip, Machine
from jcos.sampling import flow
from jcos.sampling.probes import Probe
from jcos.sampling.trajectory import abstract_condition
from jcos.wan import Wan
from jcos.weights.checkpoint import abstract_model

ATTENTION = {"splash": "splash_mha", "cudnn": "__cudnn$fmha"}
"""How a compiled program calls attention kernels."""
COMPILERS = {"gpu": ("jax_cuda13_plugin", "jax_cuda12_plugin"), "tpu": ("libtpu",)}
"""Packages any of which has the compiler."""
# libtpu asks the cloud's metadata server who it is; on a laptop there is none.
_ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no device is held that a second process could want
}
OPTIONS = {"gpu": {"xla_gpu_enable_triton_gemm": False}, "tpu": {}}
"""Of the compilers. Which of its kernels multiplies matrices fastest XLA finds out on a GPU, by
trying; without one it calls cuBLAS for all of them."""


def installed(machine: Machine) -> bool:
    """Return whether the compiler for it is here."""
    return any(map(find_spec, COMPILERS[machine.platform]))


def described(machine: Machine) -> Sequence[Any]:
    """Return the devices of a machine, for a mesh to compile for.

    Raises ValueError where the compiler knows no such slice.
    """
    if machine.platform == "gpu":
        hosts = -(-machine.devices // HOST)
        if machine.devices % hosts:
            raise ValueError(f"{machine.name} is not made of equal hosts of at most {HOST} GPUs")
        # XLA warns where it would like to use less memory than there is. (jax has set 1 here.)
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
        shape, config = f"1x{hosts}x{machine.devices // hosts}", _target(machine.chip)
        return topologies.get_topology_desc(
            platform="cuda", topology=shape, target_config=config
        ).devices
    for name, value in _ALONE.items():
        os.environ.setdefault(name, value)
    alone = {"chips_per_host_bounds": (1, 1, 1)} if machine.devices == 1 else {}
    try:
        slice_ = topologies.get_topology_desc(platform="tpu", topology_name=machine.name, **alone)
    except jax.errors.JaxRuntimeError as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"libtpu knows no slice {machine.name}: {first}") from None
    return slice_.devices


def _target(chip: Chip) -> str:
    """A GPU of the Hopper generation, as XLA describes it to itself (its GpuTargetConfigProto)."""
    return f"""
platform_name: "CUDA" device_description_str: "NVIDIA {chip.name.upper()}"
dnn_version_info {{ major: 9 minor: 12 }} runtime_version {{ major: 13 }}
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  device_memory_size: {chip.memory:.0f} memory_bandwidth: {chip.bandwidth:.0f}
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 l2_cache_size: {50 * 2**20}
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  shared_memory_per_block: {48 * 2**10} shared_memory_per_block_optin: {227 * 2**10}
  shared_memory_per_core: {228 * 2**10}
  block_dim_limit_x: {2**31 - 1} block_dim_limit_y: 65535 block_dim_limit_z: 65535
}}
"""


def compile_for(mesh: Mesh, function: Any, *arguments: Any) -> tuple[Memory, str]:
    """Return what a device of the mesh holds of a jitted function, and the compiled program as
    text.

    arguments: those that are large as shapes that lie on the mesh. Raises MemoryError where the
    compiler finds no way to keep the run in a device's memory.
    """
    option = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, option)
    # A program for devices that are not here cannot be read back: nothing is kept in jax's cache.
    jax.config.update(option, math.inf)
    try:
        with sharding.use_mesh(mesh):
            lowered = function.lower(*arguments)
            options = OPTIONS[mesh.devices.flat[0].platform]
            program = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(str(error).strip().splitlines()[0]) from None
    finally:
        jax.config.update(option, before)
    held = program.memory_analysis()
    memory = Memory(
        arguments=held.argument_size_in_bytes,
        temporaries=held.temp_size_in_bytes,
        outputs=held.output_size_in_bytes - held.alias_size_in_bytes,
    )
    return memory, program.as_text()


def arguments(job: Job, mesh: Mesh, probe: Probe | None = None) -> tuple:
    """Return what `generation.generate_worlds` takes: all that is large as shapes on the mesh."""
    config = job.config
    model = abstract_model(Wan, config)
    model.text = model.vae = model.vision = None

    keys = jax.eval_shape(lambda: seed_keys(range(job.seeds)))
    return (
        sharding.abstract(model, mesh),
        flow.plan(config.sampling, config.boundary),
        sharding.abstract_runs(abstract_condition(config, job.latent), mesh, WORLD),
        sharding.abstract_runs(keys, mesh, SEED),
        probe or Probe(),
    )
