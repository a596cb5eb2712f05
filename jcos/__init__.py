"""jcos (JAX Chain-of-Steps): where does a video diffusion model reason?

The folders are floors, each imports only from those before it: devices, model, media, weights,
sampling, then `wan`, `loop`, `generation`, `preview`, `runs`, `staged` (so far the core), lab,
plan, experiments, bench, report, cli.

Public names are imported when they are first used: `import jcos` itself costs no import of jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `_PLACES` for type checkers
    from jcos.config import DiTConfig as DiTConfig
    from jcos.config import Numerics as Numerics
    from jcos.config import Sampling as Sampling
    from jcos.config import WanConfig as WanConfig
    from jcos.devices.sharding import init_distributed as init_distributed
    from jcos.devices.sharding import make_mesh as make_mesh
    from jcos.devices.sharding import parse_mesh as parse_mesh
    from jcos.devices.sharding import to_host as to_host
    from jcos.devices.sharding import use_mesh as use_mesh
    from jcos.generation import generate as generate
    from jcos.lab import measures as measures
    from jcos.lab import search as search
    from jcos.lab import tasks as tasks
    from jcos.lab.attribution import attribute as attribute
    from jcos.lab.attribution import jacobian as jacobian
    from jcos.lab.attribution import patch_effects as patch_effects
    from jcos.lab.lens import Lens as Lens
    from jcos.lab.lens import fit_lens as fit_lens
    from jcos.loop import State as State
    from jcos.loop import steps as steps
    from jcos.model.dit import DiT as DiT
    from jcos.sampling.inside import Capture as Capture
    from jcos.sampling.inside import KnockOut as KnockOut
    from jcos.sampling.inside import Patch as Patch
    from jcos.sampling.inside import Steer as Steer
    from jcos.sampling.inside import Swap as Swap
    from jcos.sampling.maps import AttentionMass as AttentionMass
    from jcos.sampling.probe import Probe as Probe
    from jcos.sampling.probe import Site as Site
    from jcos.sampling.probes import Chain as Chain
    from jcos.sampling.probes import EstimateEnsemble as EstimateEnsemble
    from jcos.sampling.probes import InWorlds as InWorlds
    from jcos.sampling.probes import Noise as Noise
    from jcos.sampling.probes import SeedEnsemble as SeedEnsemble
    from jcos.sampling.probes import States as States
    from jcos.sampling.probes import TokenEnergy as TokenEnergy
    from jcos.sampling.probes import chain as chain
    from jcos.sampling.trace import Trace as Trace
    from jcos.sampling.trajectory import Condition as Condition
    from jcos.sampling.trajectory import sweep as sweep
    from jcos.sampling.trajectory import tree_stack as tree_stack
    from jcos.variants import VARIANTS as VARIANTS
    from jcos.wan import Wan as Wan
    from jcos.wan import load as load

__version__ = "0.1.0"

_PLACES = {
    "config": ("DiTConfig", "Numerics", "Sampling", "WanConfig"),
    "devices.sharding": ("init_distributed", "make_mesh", "parse_mesh", "to_host", "use_mesh"),
    "generation": ("generate",),
    "lab.attribution": ("attribute", "jacobian", "patch_effects"),
    "lab.lens": ("Lens", "fit_lens"),
    "lab.measures": ("measures",),
    "lab.search": ("search",),
    "lab.tasks": ("tasks",),
    "loop": ("State", "steps"),
    "model.dit": ("DiT",),
    "sampling.inside": ("Capture", "KnockOut", "Patch", "Steer", "Swap"),
    "sampling.maps": ("AttentionMass",),
    "sampling.probe": ("Probe", "Site"),
    "sampling.probes": (
        *("Chain", "EstimateEnsemble", "InWorlds", "Noise", "SeedEnsemble", "States"),
        *("TokenEnergy", "chain"),
    ),
    "sampling.trace": ("Trace",),
    "sampling.trajectory": ("Condition", "sweep", "tree_stack"),
    "variants": ("VARIANTS",),
    "wan": ("Wan", "load"),
}
"""Public names by module; whatever else is touched is a module, like `jcos.wan`."""
_MODULES = {name: module for module, names in _PLACES.items() for name in names}
__all__ = list(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    path = f"jcos.{_MODULES.get(name, name)}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as missing:
        if missing.name != path:
            raise
        raise AttributeError(f"module 'jcos' has no attribute {name!r}") from None
    globals()[name] = value = getattr(module, name, module)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
