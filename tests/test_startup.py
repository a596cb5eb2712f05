"""What costs no import of jax: help, mistakes, and `import jcos` itself."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import jcos
from tests.conftest import ROOT

SLOW = ("jax", "flax", "orbax", "matplotlib", "numpy", "av", "optax")
LOADED = f"""
import json, sys
def loaded(): print(json.dumps([name for name in {SLOW} if name in sys.modules]))
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LOADED + code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def ended(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, whose last line says which slow modules it imported."""
    code = f"import atexit; atexit.register(loaded); from {module} import main; main(sys.argv[1:])"
    return python(code, *arguments)


@pytest.mark.parametrize(
    ("module", "arguments", "code"),
    [
        ("jcos.cli", ("--help",), 0),
        ("jcos.cli", ("--version",), 0),
        ("jcos.cli", ("generate", "--help"), 0),
        ("jcos.cli", ("bench", "run", "--help"), 0),
        ("jcos.cli", ("sample", "maze", "--wrong"), 2),
        ("jcos.cli", ("nothing",), 2),
        ("jcos.cli", ("run", "none.py"), 2),
        ("jcos.cli", ("run", "README.md"), 2),
        ("jcos.cli", ("generate", "none", "--prompt", "x"), 2),
        ("jcos.cli", ("sample", "maze", "--out", "gs://bucket/out"), 2),
        ("jcos.cli", ("report", "none"), 2),
        ("convert.__main__", ("--help",), 0),
        ("convert.__main__", (".", "hf://bucket/out"), 2),
        ("convert.verify", ("--help",), 0),
    ],
)
def test_help_and_mistakes_import_nothing_slow(
    module: str, arguments: tuple[str, ...], code: int
) -> None:
    result = ended(module, *arguments)
    assert result.returncode == code, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == []


def test_a_reader_that_has_enough_ends_a_command_quietly() -> None:
    command = [sys.executable, "-m", "jcos", "run", "--help"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # like `head`, at once
        assert b"Traceback" not in process.stderr.read()


def test_a_task_that_is_none_is_told_without_jax() -> None:
    result = ended("jcos.cli", "sample", "mazes")
    assert result.returncode == 2
    assert "'mazes'" in result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == ["numpy"]


def test_the_version_is_told_with_those_that_results_depend_on() -> None:
    told = ended("jcos.cli", "--version").stdout
    assert told.startswith(f"jcos {jcos.__version__}, jax ")


def test_import_jcos_is_light_and_its_names_are_all_there() -> None:
    code = """
import jcos
loaded()
assert set(jcos.__all__) <= set(dir(jcos))
assert jcos.VARIANTS["wan2.2-i2v-a14b"]().dit.layers == 40
assert not hasattr(jcos, "chian")
loaded()
from jcos import generate, tasks
from jcos.wan import load
assert jcos.load is load and tasks.TASKS and jcos.wan.load is load
assert all(getattr(jcos, name) is not None for name in jcos.__all__)
"""
    result = python(code)
    assert result.returncode == 0, result.stderr
    assert [json.loads(line) for line in result.stdout.splitlines()] == [[], []]


def test_type_checkers_and_python_read_the_same_names() -> None:
    (block,) = (n for n in ast.parse(Path(jcos.__file__).read_text()).body if isinstance(n, ast.If))
    shown = {
        (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    places = {
        (f"jcos.{place}".removesuffix(f".{name}"), name)
        for place, names in jcos._PLACES.items()
        for name in names
    }
    assert shown == places
    assert {name for _, name in places} == set(jcos.__all__)
