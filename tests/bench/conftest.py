"""A small benchmark folder, and samples that cost nothing."""

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import pytest


@pytest.fixture
def bench_folder(tmp_path: Path) -> Path:
    """Two tasks in domain, one with a larger canvas out of domain; two samples each."""
    from jcos.bench.export import export

    export(tmp_path / "bench", ("maze", "pattern", "maze7"), 2)
    return tmp_path / "bench"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grey videos instead of the model's; the names of the samples asked for, in order."""
    from jcos import wan
    from jcos.bench.worker import Worker

    asked: list[str] = []

    def generate(worker: Worker, batch: Sequence) -> tuple:
        asked.extend(sample.name for sample in batch)
        config = worker.model.config
        grid = wan.latent_grid(config, *worker.shapes[batch[0]])
        latents = jnp.zeros((len(batch), *grid, config.dit.out_channels))
        return latents, latents[:, None][:, :0]

    monkeypatch.setattr(Worker, "generate", generate)
    return asked
