"""jcos (JAX Chain-of-Steps): where does a video diffusion model reason?

The folders are floors, each imports only from those before it: devices, model, media, weights,
sampling, then `wan`, `loop`, `generation` (so far the core), lab, plan, experiments, bench, report,
cli.

Public names are imported when they are first used: `import jcos` itself costs no import of jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jcos.config import DiTConfig, Numerics, Sampling, WanConfig
    from jcos.devices.sharding import (
        init_distributed,
        make_mesh,
        parse_mesh,
        to_host,
        use_mesh,
    )
    from jcos.generation import generate, generate_side_by_side
    from jcos.lab import search, tasks
    from jcos.loop import State, steps
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
    from jcos.sampling.trace import Trace
    from jcos.sampling.trajectory import Condition, sweep, tree_stack
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
    "generate",
    "generate_side_by_side",
    "init_distributed",
    "load",
    "make_mesh",
    "parse_mesh",
    "search",
    "steps",
    "sweep",
    "tasks",
    "to_host",
    "tree_stack",
    "use_mesh",
]

_PLACES = {
    "config": ("DiTConfig", "Numerics", "Sampling", "WanConfig"),
    "devices.sharding": (*("init_distributed", "make_mesh", "parse_mesh", "to_host", "use_mesh"),),
    "generation": ("generate", "generate_side_by_side"),
    "loop": ("State", "steps"),
    "lab.search": ("search",),
    "lab.tasks": ("tasks",),
    "sampling.probes": (
        *("Chain", "EstimateEnsemble", "Noise", "Probe", "SeedEnsemble", "Site", "Swap"),
        *("TokenEnergy", "TokenFeatures", "chain"),
    ),
    "sampling.trace": ("Trace",),
    "sampling.trajectory": ("Condition", "sweep", "tree_stack"),
    "variants": ("VARIANTS",),
    "wan": ("Wan", "load"),
}
"""The imports above, at run time; whatever else is touched is a module, like jcos.wan."""


def __getattr__(name: str) -> Any:
    place = next((place for place, names in _PLACES.items() if name in names), name)
    try:
        module = importlib.import_module(f"jcos.{place}")
    except ModuleNotFoundError as missing:
        if missing.name != f"jcos.{place}":
            raise
        raise AttributeError(f"module 'jcos' has no attribute {name!r}") from None
    globals()[name] = value = getattr(module, name, module)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
