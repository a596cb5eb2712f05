"""Samples of one shape through the model: on one device, or spread over a mesh of this process's
devices. What comes out does not depend on the mesh."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float

from jcos import loop, wan
from jcos.bench.arm import Arm, Shape
from jcos.bench.folder import Sample
from jcos.devices import memory, sharding
from jcos.experiments.memory import runs_that_fit
from jcos.lab import search
from jcos.sampling import flow
from jcos.sampling.interventions import places
from jcos.sampling.probe import Probe
from jcos.sampling.trajectory import Condition
from jcos.wan import Prompt, Wan

KNOBS = (
    "fewer samples at a time (--batch 1)",
    "a mesh with a larger branch, context or fsdp (--mesh; `jcos plan` says which)",
    "smaller or shorter videos (--set scale=0.5)",
)
"""What helps where a device has too little memory, the least change first."""
Made = tuple[Float[np.ndarray, "B F h w C"], Float[np.ndarray, "B S F h w C"], list[dict[str, Any]]]


class Sampler:
    """An arm of a model.

    model: with experts, spread over the mesh, on which it was loaded. rows: embeds a prompt; by
    default the model's own encoder. devices: the mesh, None for one device. coder: codes pictures
    and videos, on a mesh without experts on its first device.
    """

    def __init__(
        self,
        arm: Arm,
        model: Wan,
        rows: Callable[[str], Prompt] | None = None,
        devices: Mesh | None = None,
    ):
        self.arm, self.model, self.devices = arm, model, devices
        self.coder = model
        if devices is not None:
            light = jax.tree.map(lambda a: a, model)
            light.experts = nnx.List([])
            self.coder = jax.device_put(light, devices.devices.flat[0])
        self.rows = rows or self.coder.embed
        restarts = arm.search is not None and search.needs_vae(arm.search, model.config)
        if devices is not None and not restarts:
            model.vae = model.vision = None  # a copy on every device, which nothing uses

    def fitting(self, shape: Shape, total: int, batch: int | None) -> int:
        """Samples of a shape to generate at a time: `batch`, or as many as memory holds, of
        `total`."""
        config = self.model.config
        empty = Condition(jnp.zeros(0), wan.latent_grid(config, *shape))
        plan = flow.plan(config.sampling, config.boundary)
        seeds = self.arm.search.seeds if self.arm.search else self.arm.ensemble
        try:
            return runs_that_fit(self.model, empty, plan, seeds, 1, total, batch)
        except ValueError:
            return 1  # which is tried even if the estimate is against it

    def prepare(self, sample: Sample, shape: Shape) -> Condition:
        """What a sample is generated from, on the host, where it waits for its turn. Uses no device
        but the coder's, and may run while another batch is generated."""
        config = self.model.config
        first, seen = self.arm.first_frame(config, sample)
        prompt, negative = self.rows(sample.prompt), self.rows(config.negative)
        made = self.coder.condition(first, prompt, shape.frames, negative=negative, seen=seen)
        return jax.device_get(made)

    def generate(
        self, batch: list[Condition], shape: Shape, size: int, of: Sequence[Sample] = ()
    ) -> Made:
        """Return final latents and chosen clean estimates of samples of one shape, and what is to
        be noted of each: whom a search chose.

        size: of the program; a smaller batch is filled up. of: the samples, where seeds or noise
        differ by sample. Raises FloatingPointError where a latent is not finite, and MemoryError
        saying what would help where a device has too little.
        """
        filled = [*batch, *batch[-1:] * (size - len(batch))]
        conditions = jax.tree.map(lambda *a: jnp.asarray(np.stack(a)), *filled)
        arm, config = self.arm, self.model.config
        what = f"{size} sample(s) of {arm.ensemble} seed(s) of {config.name}"
        grid = (*wan.latent_grid(config, *shape), config.dit.out_channels)
        together = arm.together(config)
        each = [*of, *[*of[-1:]] * (size - len(of))]
        seeds = arm.seeds(each, arm.ensemble if together else 1)
        noise = arm.noise(each, grid)
        chosen, x0 = places(arm.x0, config.sampling.steps, "step"), []
        probe = arm.probe(arm.steps(config), grid[0], config.dit.layers, arm.ensemble)
        with sharding.use_mesh(self.devices), memory.explained(what, KNOBS):
            sampling = config.sampling
            if arm.search is not None:
                return self._searched(conditions, probe, len(batch), each)
            settings = {"probe": probe, "sampling": sampling, "noise": noise}
            runs = loop.steps(self.model, conditions, seeds, **settings)
            # Each sample is a world by itself; seeds that are only averaged with go on no longer.
            for state in runs:
                if not sharding.to_host(state.finite).all():
                    raise FloatingPointError(f"the latent is not finite from step {state.step} on")
                if state.step in chosen:
                    x0.append(np.asarray(state.x0[:, 0]))
                if state.step + 1 == together:
                    state.keep([0])
            assert runs.state is not None
            latents = np.asarray(runs.state.x)
        estimates = np.stack(x0, axis=1) if x0 else latents[:, :0]
        return latents[: len(batch), 0], estimates[: len(batch)], [{}] * len(batch)

    def _searched(
        self, conditions: Condition, probe: Probe, count: int, of: Sequence[Sample]
    ) -> Made:
        """Return what a search chose for the first samples."""
        assert self.arm.search is not None
        first = [self.arm.seed] * len(conditions.context)
        if self.arm.by_index:
            first = [self.arm.seed + sample.place for sample in of]
        sampling = self.model.config.sampling
        chosen = search.run(
            self.model, conditions, self.arm.search, first, probe=probe, sampling=sampling
        )
        latents = np.asarray(chosen.latents)[:count]
        if not np.isfinite(latents).all():
            raise FloatingPointError("the latent that was chosen is not finite")
        pairs = zip(chosen.seed.tolist(), chosen.cost.forwards.tolist(), strict=True)
        notes = [{"chosen seed": seed, "forwards": n} for seed, n in pairs]
        return latents, latents[:, None][:, :0], notes
