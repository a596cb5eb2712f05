"""The true program, compiled ahead of time for devices that are not here (`targets`)."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jcos.devices import sharding
from jcos.devices.mesh import SEED, WORLD
from jcos.loop import seed_keys
from jcos.plan import targets
from jcos.plan.costs import Job, Memory
from jcos.sampling import flow
from jcos.sampling.probes import Probe
from jcos.sampling.trajectory import Condition
from jcos.wan import Wan

ATTENTION = {"splash": "splash_mha", "cudnn": "__cudnn$fmha"}
"""How a compiled program calls attention kernels."""


class DoesNotFit(Exception):
    """The compiler found no way to keep the run in a device's memory; the message says what was
    needed and what there is."""


def compile_for(mesh: Mesh, function: Any, *arguments: Any) -> tuple[Memory, str]:
    """Return what a device of the mesh holds of a jitted function, and the compiled program as
    text.

    arguments: those that are large as shapes that lie on the mesh. Raises DoesNotFit.
    """
    with sharding.use_mesh(mesh), _unkept():  # the devices are not here: nothing can be computed
        lowered = function.lower(*arguments)
        try:
            options = targets.OPTIONS[mesh.devices.flat[0].platform]
            program = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise DoesNotFit(str(error).strip().splitlines()[0]) from None
    held = program.memory_analysis()
    memory = Memory(
        arguments=held.argument_size_in_bytes,
        temporaries=held.temp_size_in_bytes,
        outputs=held.output_size_in_bytes - held.alias_size_in_bytes,
    )
    return memory, program.as_text()


@contextlib.contextmanager
def _unkept() -> Iterator[None]:
    """Keep nothing in jax's cache: a program for devices that are not here cannot be read back."""
    option = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, option)
    jax.config.update(option, math.inf)
    try:
        yield
    finally:
        jax.config.update(option, before)


def arguments(job: Job, mesh: Mesh, probe: Probe | None = None) -> tuple:
    """Return what `generation.generate_worlds` takes: all that is large as shapes on the mesh.

    Raises ValueError where the seeds do not divide over the mesh.
    """
    config, cfg = job.config, job.config.dit
    with sharding.use_mesh(mesh):
        sharding.check_runs(cfg, 1, job.seeds)
    model = jax.eval_shape(lambda: Wan(config, rngs=nnx.Rngs(0)))
    model.text = model.vae = None

    def condition() -> Condition:
        prompt = jnp.zeros((1, cfg.text_len, cfg.text_dim), config.numerics.text)
        extra = cfg.in_channels - cfg.out_channels
        channels = jnp.zeros((1, *job.latent, extra)) if extra else None
        first = jnp.zeros((1, 1, *job.latent[1:], cfg.out_channels))
        pinned = first if config.image == "pin" else None
        return Condition(prompt, job.latent, prompt, channels, pinned)

    keys = jax.eval_shape(lambda: seed_keys(range(job.seeds)))
    return (
        sharding.abstract(model, mesh),
        flow.plan(config.sampling, config.boundary),
        sharding.abstract_runs(jax.eval_shape(condition), mesh, WORLD),
        sharding.abstract_runs(keys, mesh, SEED),
        probe or Probe(),
    )
