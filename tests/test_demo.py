"""The demo from end to end, on a random small model that samples in 50 steps."""

import html
from pathlib import Path

import pytest

from jcos import demo
from jcos.tasks import TASKS
from jcos.wan import Wan


@pytest.mark.slow
def test_demo_writes_its_page(patient_model: Wan, tmp_path: Path) -> None:
    sizes = demo.Sizes(task=2, noise=1, ensemble=2)
    parts = list(demo.run(patient_model, tmp_path, "jcos demo", sizes))
    assert parts[-1] == "the page"
    page = (tmp_path / "index.html").read_text()
    hero, *gallery = TASKS.values()
    assert hero.sample(0).prompt in page
    assert all(html.escape(task.about) in page for task in gallery)
    assert {p.name for p in tmp_path.iterdir()} == {"index.html", "planes.npz", "run.json"}


def test_demo_refuses_a_model_of_few_steps(small_model: Wan, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="samples in 4 steps"):
        list(demo.run(small_model, tmp_path / "x", "jcos demo"))
    assert not (tmp_path / "x").exists()
