"""The true program, compiled ahead of time for devices that are not here (`targets`)."""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jcos.devices import sharding
from jcos.devices.mesh import SEED, WORLD
from jcos.generation import generate_worlds
from jcos.loop import seed_keys
from jcos.plan import targets
from jcos.plan.costs import Job, Memory
from jcos.plan.hlo import Traffic, collectives
from jcos.sampling import flow
from jcos.sampling.probes import Probe
from jcos.sampling.trajectory import Condition
from jcos.wan import Wan


class Compiled(NamedTuple):
    """What the compiler says of one device's part in a whole run.

    attention: the kernel that the blocks call. sent: collectives of one denoising step. seconds:
    how long it compiled.
    """

    memory: Memory
    attention: str
    sent: Mapping[str, Traffic]
    seconds: float


class DoesNotFit(Exception):
    """The compiler found no way to keep the run in a device's memory; the message says what was
    needed and what there is."""


def compile_run(
    job: Job, mesh: Mesh, *, store: Sequence[str] = (sharding.FSDP,), probe: Probe | None = None
) -> Compiled:
    """`jcos.generate` of the job on that mesh: all steps, experts and seeds, no weights needed.

    store: as in `sharding.shardings`. Raises DoesNotFit, and ValueError where the seeds do not
    divide over the mesh.
    """
    start = time.monotonic()
    taken = arguments(job, mesh, store, probe or Probe())
    with sharding.use_mesh(mesh):
        sharding.check_runs(job.config.dit, 1, job.seeds)
    memory, text = compile_for(mesh, generate_worlds, *taken)
    steps = job.sampling.steps
    sent = {
        kind: Traffic(math.ceil(traffic.count / steps), traffic.bytes / steps)
        for kind, traffic in collectives(text).items()
    }
    attention = next((name for name, call in _CALLS.items() if call in text), "xla")
    return Compiled(memory, attention, sent, time.monotonic() - start)


def compile_for(mesh: Mesh, function: Any, *arguments: Any) -> tuple[Memory, str]:
    """What a device of the mesh holds of a jitted function, and the compiled program as text.

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
            raise DoesNotFit(_first_line(error)) from None
    held, text = program.memory_analysis(), program.as_text()
    memory = Memory(
        arguments=held.argument_size_in_bytes,
        temporaries=held.temp_size_in_bytes,
        outputs=held.output_size_in_bytes - held.alias_size_in_bytes,
    )
    return memory, text


@contextlib.contextmanager
def _unkept() -> Iterator[None]:
    """Nothing is kept in jax's cache: a program for devices that are not here cannot be read
    back."""
    option = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, option)
    jax.config.update(option, math.inf)
    try:
        yield
    finally:
        jax.config.update(option, before)


_CALLS = {"splash": "splash_mha", "cudnn": "__cudnn$fmha"}
"""How a compiled program calls attention kernels."""


def arguments(job: Job, mesh: Mesh, store: Sequence[str], probe: Probe) -> tuple:
    """What `generation.generate_worlds` takes: all that is large as shapes that lie on the mesh."""
    config, cfg = job.config, job.config.dit
    model = jax.eval_shape(lambda: Wan(config, rngs=nnx.Rngs(0)))
    model.text = model.vae = None

    def given() -> Condition:
        prompt = jnp.zeros((1, cfg.text_len, cfg.text_dim), config.numerics.text)
        extra = cfg.in_channels - cfg.out_channels
        channels = jnp.zeros((1, *job.latent, extra)) if extra else None
        first = jnp.zeros((1, 1, *job.latent[1:], cfg.out_channels))
        pinned = first if config.image == "pin" else None
        return Condition(prompt, job.latent, prompt, channels, pinned)

    keys = jax.eval_shape(lambda: seed_keys(range(job.seeds)))
    return (
        sharding.abstract(model, mesh, store=store),
        flow.plan(config.sampling, config.boundary),
        sharding.abstract_runs(jax.eval_shape(given), mesh, WORLD),
        sharding.abstract_runs(keys, mesh, SEED),
        probe,
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
