"""How many runs fit into memory at once."""

import os
from pathlib import Path

import jax

from jcos.devices import mesh
from jcos.plan import costs
from jcos.sampling.flow import Plan
from jcos.sampling.trajectory import Condition
from jcos.wan import Wan

MOST = 32
"""Runs at a time on a CPU, where more of them gain no speed."""


def runs_that_fit(
    model: Wan,
    conditions: Condition,
    plan: Plan,
    seeds: int,
    worlds: int,
    total: int,
    number: int | None,
    read: int = 0,
) -> int:
    """Return how many runs to compute at a time, of `total`: `number`, if there is one. read:
    bytes that are observed and read of a run. Raises ValueError where not even one fits."""
    if number is not None:
        return min(number, total)
    passes = 1 if plan.guidance is None else 2
    trajectories = worlds * _share(seeds, mesh.SEED) * _share(passes, mesh.BRANCH)
    stored, scores = run_bytes(model, conditions, plan.steps)
    free = free_bytes()
    if trajectories * stored + read > free:
        raise ValueError(
            f"one run of {worlds} worlds × {seeds} seeds × {plan.steps} steps needs about "
            f"{_gigabytes(trajectories * stored + read)}, {_gigabytes(free)} are free: take fewer "
            "seeds, fewer steps or a smaller video"
        )
    fitting = int(0.5 * free / (trajectories * (stored + scores) + read))
    most = MOST if jax.default_backend() == "cpu" else 8 * MOST
    return min(max(1, min(fitting, most)) * mesh.devices(mesh.WORLD), total)


def _share(number: int, axis: str) -> int:
    """Return how many of them one device of the mesh in use has; all where they do not divide."""
    return number if number % mesh.devices(axis) else number // mesh.devices(axis)


def sweep_knobs(chunk: int, seeds: int) -> list[str]:
    """Return what a sweep that is too large can be changed in, that which changes least about its
    results first (`jcos.devices.memory.explained`)."""
    many = mesh.devices(*mesh.AXES) > 1
    table = [
        (chunk > 1, f"fewer runs at a time, the same results (jcos run --set chunk={chunk // 2})"),
        (many, "a mesh with a larger context or fsdp: fewer tokens per device"),
        (seeds > 1, f"fewer than {seeds} seeds (--set seeds=0)"),
        (not many, "more devices and a mesh (--mesh; `jcos plan` says how many)"),
        (True, "a smaller or shorter video"),
    ]
    return [knob for helps, knob in table if helps]


def run_bytes(model: Wan, conditions: Condition, steps: int) -> tuple[int, int]:
    """Return about what a trajectory needs, in bytes: what it cannot do without, and attention
    scores (`costs.run_bytes`). On a mesh in use: on one of the devices that share its tokens."""
    sizes = {axis: mesh.devices(axis) for axis in mesh.AXES}
    held = costs.run_bytes(model.config, conditions.grid, steps, sizes)
    return int(held.estimates + held.block), int(held.scores)


def free_bytes() -> int:
    """Return the bytes that are free on the device, or on the host where the device is the CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    about = Path("/proc/meminfo")
    if about.exists():
        lines = dict(line.split(":", 1) for line in about.read_text().splitlines())
        return 1024 * int(lines["MemAvailable"].split()[0])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
