"""jcos (JAX Chain-of-Steps): where does a video diffusion model reason?

The folders are floors, each imports only from those before it: devices, model, media, weights,
sampling, then `wan` and `generation` (the core), lab, plan, experiments, bench, report, cli.
"""

from jcos.config import DiTConfig, Numerics, Sampling, WanConfig
from jcos.devices.sharding import fetch, init_distributed, make_mesh, on
from jcos.generation import State, generate, generate_side_by_side, steps
from jcos.lab import tasks
from jcos.sampling.probes import (
    Chain,
    EstimateEnsemble,
    Noise,
    Probe,
    SeedEnsemble,
    Site,
    Swap,
    TokenEnergy,
    TokenFeatures,
    chain,
)
from jcos.sampling.trajectory import Condition, Trace, stack, sweep
from jcos.variants import VARIANTS
from jcos.wan import Wan, load

__version__ = "0.1.0"

__all__ = [
    "VARIANTS",
    "Chain",
    "Condition",
    "DiTConfig",
    "EstimateEnsemble",
    "Noise",
    "Numerics",
    "Probe",
    "Sampling",
    "SeedEnsemble",
    "Site",
    "State",
    "Swap",
    "TokenEnergy",
    "TokenFeatures",
    "Trace",
    "Wan",
    "WanConfig",
    "chain",
    "fetch",
    "generate",
    "generate_side_by_side",
    "init_distributed",
    "load",
    "make_mesh",
    "on",
    "stack",
    "steps",
    "sweep",
    "tasks",
]
