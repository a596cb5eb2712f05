"""A small benchmark folder, and samples that cost nothing."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def named(self: Any, sample: Any, shape: Any) -> Any:
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
        return latents, latents[:, None], [{}] * len(batch)

    return generate


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from jcos.bench.export import export

    folder = tmp_path_factory.mktemp("exported") / "bench"
    export(folder, ("maze", "pattern", "maze7"), 2)
    return folder


@pytest.fixture
def bench_folder(exported: Path, tmp_path: Path) -> Path:
    """Two tasks in domain, one with a larger canvas out of domain; two samples each."""
    return shutil.copytree(exported, tmp_path / "bench")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grey videos instead of the model's; the names of the samples asked for, in order."""
    from jcos.bench.sampler import Sampler

    asked: list[str] = []
    monkeypatch.setattr(Sampler, "prepare", named)
    monkeypatch.setattr(Sampler, "generate", grey(asked))
    return asked
