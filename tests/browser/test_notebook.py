"""The notebook of docs/ runs from its first cell to its last, and its runs show themselves."""

from importlib import import_module
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "explore.ipynb"


@pytest.mark.slow
@pytest.mark.extra("browser")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Jupyter's own libraries
def test_the_notebook_runs(tmp_path: Path) -> None:
    nbformat, nbclient = import_module("nbformat"), import_module("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    done = nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    shown = [
        output["data"]["text/html"]
        for cell in done.cells
        for output in cell.get("outputs", ())
        if "text/html" in output.get("data", {})
    ]
    assert len(shown) == 2
    assert all(page.count("data:image/webp") == 2 for page in shown)
    page = (tmp_path / "out" / "notebook" / "compared.html").read_text()
    assert "noise, run 1" in page
    assert "noise at step 25" in page
