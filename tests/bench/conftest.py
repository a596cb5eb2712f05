"""A small benchmark folder, and samples that cost nothing."""

from pathlib import Path

import pytest

from tests.bench.devices import grey, named


@pytest.fixture
def bench_folder(tmp_path: Path) -> Path:
    """Two tasks in domain, one with a larger canvas out of domain; two samples each."""
    from jcos.bench.export import export

    export(tmp_path / "bench", ("maze", "pattern", "maze7"), 2)
    return tmp_path / "bench"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grey videos instead of the model's; the names of the samples asked for, in order."""
    from jcos.bench.sampler import Sampler

    asked: list[str] = []
    monkeypatch.setattr(Sampler, "prepare", named)
    monkeypatch.setattr(Sampler, "generate", grey(asked))
    return asked
