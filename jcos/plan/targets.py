"""Devices that are not here, as far as a compiler needs to know them: TPU slices and GPUs.

The compilers come with the extras `tpu` (libtpu) and `gpu` (jax's CUDA plugin); neither needs its
device.
"""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import jax
from jax.experimental import topologies

from jcos.plan.machines import HOST, Chip, Machine

# libtpu asks the cloud's metadata server who it is; on a laptop there is none.
_ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no device is held that a second process could want
}
_COMPILERS = {"gpu": ("jax_cuda13_plugin", "jax_cuda12_plugin"), "tpu": ("libtpu",)}
"""Packages any of which has the compiler."""
OPTIONS = {"gpu": {"xla_gpu_enable_triton_gemm": False}, "tpu": {}}
"""Of the compilers. Which of its kernels multiplies matrices fastest XLA finds out on a GPU, by
trying; without one it is told to call cuBLAS for all of them."""


def installed(machine: Machine) -> bool:
    """Return whether the compiler for it is here."""
    return any(map(find_spec, _COMPILERS[machine.platform]))


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
    """A GPU as XLA describes it to itself (its GpuTargetConfigProto): of the Hopper generation, as
    all are that are planned for."""
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
