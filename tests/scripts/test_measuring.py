"""The benchmarks and the report of compilations run at toy size. No test says how long."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.conftest import AS_USERS, ROOT


def run(script: str, *options: object, **variables: str) -> str:
    """In a process of its own; variables: of its environment."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    command = [sys.executable, f"scripts/{script}.py", *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_this_machine_is_measured(tmp_path: Path) -> None:
    """That contenders agree within their tolerance is checked by the script itself."""
    run("benchmark", "--quick", "--repeat", 1, "--out", tmp_path)
    found = json.loads((tmp_path / "quick" / "table.json").read_text())
    groups = {row["group"] for row in found["rows"]}
    assert {"3-step sample, per video", "noise at each of 3 steps", "help and mistakes"} <= groups
    assert all(row["median"] > 0 for row in found["rows"])
    assert found["machine"]["jax"] == jax.__version__
    assert (tmp_path / "quick" / "table.md").read_text().startswith("|  |  | median, ms |")


@pytest.mark.slow
def test_a_gpu_is_measured(tmp_path: Path) -> None:
    run("bench_gpu", "--tiny", "--minutes", 5, "--out", tmp_path)
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    known = {row["what"]: row["value"] for row in rows}
    assert known["peak"] > 0
    assert np.isfinite([value for value in known.values() if value is not None]).all()
    for what in ("guided step, 720p", "energy observation", "first step, warm, 480p"):
        assert known[what] is not None


SAMPLERS = ("cps", "cpws")


@pytest.mark.slow
def test_samplers_and_steering_are_measured(tmp_path: Path) -> None:
    sizes = dict.fromkeys(["--steps", "--puzzles", "--mazes", "--seeds", "--particles"], 3)
    options = [*sum(sizes.items(), ()), "--solvers", *SAMPLERS, "--out", tmp_path]
    run("samplers", *options)
    for name, lines in (("samplers", 4), ("steering", 1)):
        assert len(json.loads((tmp_path / name / "table.json").read_text())["rows"]) == lines


@pytest.mark.slow
def test_what_there_was_no_time_for_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    rows = importlib.import_module("bench_gpu").collect(tiny=True, minutes=0)
    assert "no time" in {row.what: row.note for row in rows}["jcos, incomplete"]


@pytest.mark.slow
def test_an_image_with_jax_flax_and_torch_is_enough() -> None:
    """What the measurements do not need is imported nowhere on their way."""
    absent = dict.fromkeys(["av", "ftfy", "tyro", "torch", "diffusers", "transformers"])
    code = f"import sys; sys.modules.update({absent}); sys.path.append('scripts'); import bench_gpu"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_table_is_written_where_it_cannot_be_printed(tmp_path: Path) -> None:
    """Measured for hours, on a machine whose text is not UTF-8."""
    code = "import sys; sys.path.append('scripts'); import tables; from pathlib import Path; "
    code += r"tables.save(Path(sys.argv[1]), '| 8 \u00d7 H200 |\n', {'chip': 'H200'}, [{'ms': 1}])"
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | plain, capture_output=True, text=True)
    assert "UnicodeEncodeError" in done.stderr
    assert (tmp_path / "table.md").read_text(encoding="utf-8").startswith("| 8 × H200 |")
    assert json.loads((tmp_path / "table.json").read_text())["rows"] == [{"ms": 1}]


@pytest.mark.slow
def test_formulas_are_written_into_a_page(tmp_path: Path) -> None:
    marks = "<!-- curves: scripts/compile_report.py -->\n<!-- end of curves -->\n"
    (tmp_path / "pods.md").write_text(f"before\n{marks}after\n")
    run("compile_report", "--only", "curves", "--docs", tmp_path)
    lines = (tmp_path / "pods.md").read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    (row,) = (line for line in lines if line.startswith("| 81 × 832x480 "))
    assert row.split("|")[2:4] == [" 32,760 ", " 1,678 "]


def test_a_line_of_machines_has_all_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    report = importlib.import_module("compile_report")
    monkeypatch.setattr(report.compiled, "installed", lambda machine: False)
    for video, where in (("wan2.2-ti2v-5b", "h200:1"), ("wan2.2-t2v-a14b", "v5e:1x1")):
        assert len(report.row(video, "704p", where)) == 2 + len(report.forecast.COLUMNS)


@pytest.mark.slow
@pytest.mark.extra("gpu")
def test_programs_compile_for_a_gpu_that_is_not_here() -> None:
    lines = run("compile_report", "--tiny", **AS_USERS).splitlines()
    rows = [line.split("|") for line in lines]
    kernels = {row[1].strip(): row[-2].strip() for row in rows if len(row) == 7}
    assert kernels["a whole run"] == "cudnn"
    assert kernels["the small model, a training step in bfloat16"] == "cudnn"
