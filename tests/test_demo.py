"""The demo from end to end, on a random small model that samples in 50 steps."""

import html
from pathlib import Path

import numpy as np
import pytest

from jcos import demo
from jcos.lab.tasks import TASKS
from jcos.wan import Wan

SIZES = demo.Sizes(task=2, noise=1, ensemble=2)


def played(model: Wan, folder: Path) -> list[demo.Progress]:
    """A small demo, whose page does not say when it was made or how long it took."""
    settings = demo._settings
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "_settings", lambda model, _: settings(model, 0.0) | {"date": "then"})
        return list(demo.run(model, folder, "jcos demo", SIZES))


@pytest.fixture(scope="module")
def made(patient_model: Wan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list]:
    """The folder of a demo, and what it told. Read only."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, played(patient_model, folder)


@pytest.mark.slow
def test_demo_writes_its_page(made: tuple[Path, list]) -> None:
    folder, told = made
    total = len(demo.PARTS)
    assert [now.what for now in told] == [*demo.PARTS, "the page"]
    assert [(now.done, now.total) for now in told] == [(i, total) for i in range(total + 1)]
    page = (folder / "index.html").read_text()
    hero, *gallery = TASKS.values()
    assert hero.sample(0).prompt in page
    assert all(html.escape(task.about) in page for task in gallery)
    assert {p.name for p in folder.iterdir()} == {"index.html", "planes.npz", "run.json"}


@pytest.mark.slow
def test_the_same_seeds_give_the_same_numbers(
    patient_model: Wan, made: tuple[Path, list], tmp_path: Path
) -> None:
    folder, _ = made
    played(patient_model, tmp_path)
    with np.load(folder / "planes.npz") as first, np.load(tmp_path / "planes.npz") as again:
        assert len(first.files) == 3 * len(TASKS)
        for name in first.files:
            np.testing.assert_array_equal(first[name], again[name], err_msg=name)
    for name in ("index.html", "run.json"):
        assert (folder / name).read_text() == (tmp_path / name).read_text()


def test_demo_refuses_a_model_of_few_steps(small_model: Wan, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="samples in 4 steps"):
        list(demo.run(small_model, tmp_path / "x", "jcos demo"))
    assert not (tmp_path / "x").exists()
