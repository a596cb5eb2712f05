"""Samples of the benchmark on four simulated devices, in a process of their own, called as `python
-m tests.bench.devices meshes …` (`tests/many_devices.py`); and what stands in for the model."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def meshes(folder: str, *texts: str) -> dict[str, list[float]]:
    """How three samples, two seeds averaged in the first step, with guidance, differ from the same
    on one device: latents and clean estimates, relative to the largest."""
    import jax

    jax.config.update("jax_num_cpu_devices", 4)
    import numpy as np

    from jcos.bench.arm import Arm
    from jcos.bench.folder import read_bench
    from jcos.bench.sampler import Sampler
    from jcos.devices import sharding
    from jcos.experiments.experiment import Settings
    from tests.conftest import random_model

    arm = Arm(
        profile=None,
        scale=1 / 8,
        sampling=Settings(steps=2, guidance=(2.0,)),
        ensemble=2,
        ensemble_layers=(0.5,),
        noise_steps=(1,),
        x0=(0, 1),
    )
    samples = [s for s in read_bench(Path(folder)).samples if s.height == 160][:3]

    def made(text: str) -> tuple[Any, ...]:
        devices = sharding.make_mesh(sharding.parse_mesh(text)) if text else None
        with sharding.use_mesh(devices):
            model = random_model(2)
            if devices is not None:
                model = sharding.place(model, devices)
        model.config = arm.of(model.config)
        sampler = Sampler.of(arm, model, devices=devices)
        shape = arm.shape(model.config, samples[0])
        size = -(-3 // sampler.worlds) * sampler.worlds
        batch = [sampler.prepare(sample, shape, i) for i, sample in enumerate(samples)]
        latents, x0 = sampler.generate(batch, shape, size)
        coders = sampler.coders
        videos = [coders[i % len(coders)].decode(z) for i, z in enumerate(latents)]
        return latents, x0, np.stack(videos).astype(np.float32)

    want = made("")

    def off(text: str) -> list[float]:
        pairs = zip(made(text), want, strict=True)
        return [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs]

    return {text: off(text) for text in texts}


def named(self: Any, sample: Any, shape: Any, i: int = 0) -> Any:
    """Instead of `Sampler.prepare`, for `grey`: a condition that has the sample's name alone."""
    from jcos.sampling.trajectory import Condition

    return Condition(context=sample.name, grid=(1, 1, 1))


def grey(asked: list[str]) -> Callable[..., tuple]:
    """Instead of `Sampler.generate`: latents that cost nothing. Fills `asked` with the samples."""
    import numpy as np

    from jcos import wan

    def generate(sampler: Any, batch: Any, shape: Any, size: int, of: Any = ()) -> tuple:
        asked.extend(given.context for given in batch)
        config = sampler.model.config
        latents = np.zeros((len(batch), *wan.latent_grid(config, *shape), config.dit.out_channels))
        return latents, latents[:, None][:, :0]

    return generate


if __name__ == "__main__":
    print(json.dumps(meshes(*sys.argv[2:])))
