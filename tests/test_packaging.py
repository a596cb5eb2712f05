"""What is installed: every package, the core without the laboratory, configs by their names."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from jcos import files
from jcos.__main__ import ELSEWHERE, LAB
from jcos.cli.paths import check_config, config_file
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def python(program: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_every_folder_of_the_package_is_installed() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    places = PROJECT["tool"]["setuptools"]["package-dir"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("jcos", "convert", "configs")
        for path in files.visible(ROOT / top, "**/*.py")
    }
    assert listed == {next((k for k, v in places.items() if v == name), name) for name in found}


@pytest.mark.slow
def test_the_core_needs_nothing_of_the_laboratory() -> None:
    """Its packages are as good as not installed, and of jcos nothing below the core is loaded."""
    assert set(PROJECT["project"]["optional-dependencies"]["lab"]) == set(LAB)
    done = python(f"""
import sys
for name in set({LAB}) - {{"scipy", "rich"}}:  # which jax and flax bring
    sys.modules[name] = None
import jcos
core = {{name for name, place in jcos._MODULES.items() if not place.startswith("lab")}}
for name in core:
    getattr(jcos, name)
import jcos.media.formats, jcos.weights.released
below = {{"lab", "plan", "experiments", "bench", "report", "cli", "demo"}}
loaded = {{name.split(".")[1] for name in sys.modules if name.startswith("jcos.")}}
assert not below & loaded, below & loaded
""")
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_converter_is_among_the_commands(name: str, tmp_path: Path) -> None:
    none = tmp_path / "none"
    done = python(f"""
import sys
sys.argv = ["jcos", {name!r}, {str(none)!r}, {str(tmp_path / "out")!r}][: {3 + (name == "convert")}]
from jcos.__main__ import main
main()
""")
    assert done.returncode == 2
    assert done.stderr.startswith(f"jcos {name}: ")
    assert str(none) in done.stderr


def test_a_config_is_named_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert config_file(Path("noise")) == ROOT / "configs" / "noise.py"
    assert config_file(Path("a/noise.py")) == Path("a/noise.py")
    check_config(Path("vbvr_base"))
    with pytest.raises(ValueError, match="is noise meant"):
        check_config(Path("nois"))
    with pytest.raises(ValueError, match="layers"):
        check_config(Path("xyz"))
    monkeypatch.chdir(tmp_path)
    Path("noise").mkdir()
    assert config_file(Path("noise")) == ROOT / "configs" / "noise.py"
