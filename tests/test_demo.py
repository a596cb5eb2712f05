"""The demo from end to end, on a random small model that samples in 50 steps."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from jcos import demo
from jcos.experiments.batches import Batches
from jcos.lab import results
from jcos.report.reading import read
from jcos.wan import Wan

pytestmark = pytest.mark.slow

SIZES = demo.Sizes(task=2, routes=3, noise=1, ensemble=2, search=2)


@pytest.fixture(scope="module")
def made(patient_model: Wan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list, list]:
    """The folder of a demo, what it told, and its page after each part. Read only."""
    folder = tmp_path_factory.mktemp("demo")
    told, pages = [], []

    def progress(what: str, done: int, total: int) -> None:
        told.append((what, done, total))
        pages.append((folder / "index.html").read_text() if done else "")

    done = demo.run(patient_model, folder, "jcos demo", SIZES, progress)
    assert done.total > done.sampling > 0
    assert done.total > done.first > 0
    return folder, told, pages


def test_the_page_fills_as_parts_arrive(made: tuple[Path, list, list]) -> None:
    folder, told, pages = made
    assert told == [(part, i, 6) for part, i in zip(demo.PARTS, (*range(5), 6), strict=True)]
    lengths = [len(re.findall('class="story"', page)) for page in pages]
    assert lengths == [0, 2, 3, 4, 5, 7]
    refreshed = ['http-equiv="refresh"' in page for page in pages]
    assert refreshed == [False, True, True, True, True, False]
    ids = re.findall('<section class="(?:story|search)" id="([^"]+)"', pages[-1])
    assert ids[-3:] == ["section-5", "search", "section-6"]
    found = read(folder)
    assert not found.missing
    assert len(found.runs) == len({run.group for run in found.runs}) == 8
    (tree,) = found.trees
    assert [len(particles) for _, _, particles in tree["rows"]] == [4]
    assert tree["forwards"] == 31


def test_the_dataset_has_every_measure(made: tuple[Path, list, list]) -> None:
    folder, *_ = made
    with results.load(folder / "results.nc", "demo") as data:
        rows = 8 * SIZES.task + SIZES.search + SIZES.routes
        assert data.sizes["puzzle"] == rows
        mass = data["mass"].values
        np.testing.assert_allclose(mass[:, -SIZES.routes :].sum(0), 1, atol=0.02)
        assert np.isnan(mass[:, : -SIZES.routes]).all()
        judged = np.isfinite(data["solved"].values[0])
        assert np.flatnonzero(judged).tolist() == list(demo.SHOWN)
        assert np.isfinite(data["noise"].values).sum() == (1 + len(demo.NOISED) + 5) * SIZES.noise
        assert np.isfinite(data["ensemble"].values).sum() == 2 * SIZES.ensemble
        assert np.isfinite(data["search"].values).sum() == 2 * SIZES.search


def test_the_same_seeds_give_the_same_numbers(
    patient_model: Wan, made: tuple[Path, list, list], tmp_path: Path
) -> None:
    folder, *_ = made
    again = demo.Story(patient_model, SIZES, "jcos demo")
    again.routes(Batches(patient_model))
    again.write(tmp_path, None, 1.0)
    with np.load(folder / "planes.npz") as first, np.load(tmp_path / "planes.npz") as second:
        assert second.files
        for name in second.files:
            np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    told = [json.loads((place / "run.json").read_text()) for place in (folder, tmp_path)]
    assert told[0]["sections"][:2] == told[1]["sections"]
    assert told[0]["planes"][:1] == told[1]["planes"]


def test_demo_refuses_a_model_of_few_steps(small_model: Wan, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="made for 50 steps; this model samples in 4"):
        demo.run(small_model, tmp_path / "x", "jcos demo")
    assert not (tmp_path / "x").exists()
