"""A small benchmark folder, and samples that cost nothing."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
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
    from jcos.bench.sampler import Sampler

    asked: list[str] = []

    def generate(sampler: Sampler, batch: Sequence, shape: tuple, size: int) -> tuple:
        asked.extend(sample.name for sample in batch)
        config = sampler.model.config
        latents = np.zeros((len(batch), *wan.latent_grid(config, *shape), config.dit.out_channels))
        return latents, latents[:, None][:, :0]

    monkeypatch.setattr(Sampler, "generate", generate)
    return asked
