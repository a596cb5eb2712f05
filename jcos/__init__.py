"""jcos (JAX Chain-of-Steps): where does a video diffusion model reason?

The files stand on floors; each imports only those above it:
config, flow, measures, mesh, attention, layers, dit, vae, text, sharding, checkpoint, probes,
trajectory, wan, generation, planning, tasks, training, experiments, media, bench, report, cli.
"""

from jcos import tasks
from jcos.config import DiTConfig, Numerics, Sampling, WanConfig
from jcos.generation import generate, generate_side_by_side
from jcos.probes import (
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
from jcos.sharding import fetch, init_distributed, make_mesh, on
from jcos.trajectory import Condition, Trace, stack, sweep
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
    "sweep",
    "tasks",
]
