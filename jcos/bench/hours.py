"""How long a benchmark takes, before a machine is rented: from a step that was measured, or from
what chips are known to reach."""

import math
from collections.abc import Callable, Mapping, Sequence

from jcos.bench.arm import Arm, Shape
from jcos.bench.folder import Sample
from jcos.config import WanConfig
from jcos.plan import forecast
from jcos.plan.costs import Job, step_flops
from jcos.plan.machines import Machine

REFERENCE = Shape(81, 480, 832)
"""The video whose steps are measured."""
Pace = Callable[[WanConfig, Shape, int], float]
"""Seconds of a step of a video of this shape with so many seeds, guidance included."""


def measured(seconds: float) -> Pace:
    """From a guided step of one seed of `REFERENCE`, by floating point operations; the
    transformer's alone."""

    def pace(config: WanConfig, shape: Shape, seeds: int) -> float:
        passes = 1 if config.sampling.guidance is None else 2
        one = step_flops(Job(config, *REFERENCE)) * 2 / passes
        return seconds * step_flops(Job(config, *shape, seeds)) / one

    return pace


def expected(machine: Machine, sizes: Mapping[str, int]) -> Pace:
    """Of a machine with a mesh over all its devices, as `jcos plan` expects it without compiling.

    Samples on devices of their own (world) count as that much faster. Raises ValueError where the
    sizes do not make up the machine; the pace does where a video does not fit there.
    """
    if math.prod(sizes.values()) != machine.devices or min(sizes.values(), default=1) < 1:
        mesh = ",".join(f"{name}={size}" for name, size in sizes.items()) or "of one device"
        raise ValueError(
            f"a mesh {mesh} does not make up {machine.name}, which has {machine.devices} device(s)"
        )
    worlds = sizes.get("world", 1)
    # To the planner, worlds are seeds: both are runs that share nothing but the weights.
    inside = {name: size for name, size in sizes.items() if name != "world"} | {"seed": worlds}

    def pace(config: WanConfig, shape: Shape, seeds: int) -> float:
        job = Job(config, *shape, seeds * worlds)
        option = forecast.calculated(job, machine, inside)
        if option.trouble:
            raise ValueError(
                f"{shape.frames} frames of {shape.width} × {shape.height} pixels do not fit on "
                f"{machine.name} with this mesh: a device {option.trouble}"
            )
        return option.seconds.expected / worlds

    return pace


def hours(arm: Arm, config: WanConfig, samples: Sequence[Sample], pace: Pace) -> float:
    """All samples on one machine; the VAE and the prompts not counted."""
    config = arm.of(config)
    together, steps = arm.together(config), config.sampling.steps
    seconds = sum(
        count * pace(config, arm.shape(config, sample), seeds)
        for sample in samples
        for count, seeds in ((together, arm.ensemble), (steps - together, 1))
        if count
    )
    return seconds / 3600
