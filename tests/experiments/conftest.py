"""What tests of experiments share: a small experiment run once a file, and a released model with
clips."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from jcos.lab.results import Row
from jcos.wan import Wan
from tests.conftest import compilations, load_golden
from tests.test_wan import released


@pytest.fixture(scope="module")
def data(small_model: Wan, request: pytest.FixtureRequest) -> tuple[xr.Dataset, int]:
    """The dataset of the file's experiment `SMALL`, and how many programs were compiled for it."""
    before = compilations()
    dataset = request.module.SMALL.run(small_model)
    mute = [n for n, v in dataset.items() if "statistic" in v.attrs and "comment" not in v.attrs]
    assert mute == []  # every measure says in a sentence what it is
    return dataset, compilations() - before


@pytest.fixture(scope="module")
def rows(data: tuple[xr.Dataset, int], request: pytest.FixtureRequest) -> dict[tuple, Row]:
    """The lines of the experiment's table by task, measure and case, each of which comes once."""
    table = request.module.SMALL.table(data[0])
    lines = [Row(*line) for line in table.astype(object).where(table.notna(), None).values]
    named = {(row.task, row.measure, row.case): row for row in lines}
    assert len(named) == len(lines)
    return named


@pytest.fixture(scope="module")
def model() -> Wan:
    """Two experts, guidance, a VAE."""
    return released("i2v")


def clips_file(folder: Path, *, frames: int, count: int) -> Path:
    """A file of clips that differ in their prompts, as embeddings, on the original's picture."""
    golden = load_golden("loops/i2v_unipc6")
    Image.fromarray(golden["in.image_u8"]).save(folder / "picture.png")
    np.save(folder / "one.npy", golden["in.context"])
    np.save(folder / "other.npy", golden["in.context_null"])
    listed = [
        {"prompt": f"{name}.npy", "negative": "other.npy", "picture": "picture.png"}
        for name in ("one", "other")[:count]
    ]
    about = {"frames": frames, "height": 80, "width": 64, "clips": listed}
    path = folder / f"clips-{count}.json"
    path.write_text(json.dumps(about))
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips_file(tmp_path_factory.mktemp("clips"), frames=9, count=2)
