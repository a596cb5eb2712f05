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


RUN = """
from importlib import import_module
for module, *words in json.loads(sys.argv[1]):
    try:
        import_module(module).main(words)
        code = 0
    except SystemExit as error:
        code = error.code or 0
    print(json.dumps([code, [name for name in SLOW if name in sys.modules]]))
"""
WORDS = [
    (0, "jcos.cli", "--help"),
    (0, "jcos.cli", "--version"),
    (0, "jcos.cli", "generate", "--help"),
    (0, "jcos.cli", "bench", "run", "--help"),
    (2, "jcos.cli", "sample", "maze", "--wrong"),
    (2, "jcos.cli", "nothing"),
    (2, "jcos.cli", "run", "none.py"),
    (2, "jcos.cli", "run", "README.md"),
    (2, "jcos.cli", "generate", "none", "--prompt", "x"),
    (2, "jcos.cli", "sample", "maze", "--out", "gs://bucket/out"),
    (2, "jcos.cli", "report", "none"),
    (2, "jcos.cli", "bench", "run", "vbvr_base", "--samples", "docs", "--ray", "--address", "auto"),
    (2, "jcos.cli", "plan", "--model", "jcos-tiny", "--topology", "h2000:8"),
    (0, "convert.__main__", "--help"),
    (2, "convert.__main__", ".", "hf://bucket/out"),
    (0, "convert.verify", "--help"),
]


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"import json, sys\nSLOW = {SLOW}{code}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_help_and_mistakes_import_nothing_slow() -> None:
    """In one process, one after the other; the first that imports something is the one to mend. A
    task that is none needs numpy, but not jax."""
    tried = [words for _, *words in WORDS] + [["jcos.cli", "sample", "mazes"]]
    result = python(RUN, json.dumps(tried))
    ended = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("[")]
    assert ended[:-1] == [[code, []] for code, *_ in WORDS], result.stderr
    assert ended[-1] == [2, ["numpy"]]
    assert "'mazes'" in result.stderr
    assert f"jcos {jcos.__version__}, jax " in result.stdout


def test_a_reader_that_has_enough_ends_a_command_quietly() -> None:
    command = [sys.executable, "-m", "jcos", "run", "--help"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # like `head`, at once
        assert b"Traceback" not in process.stderr.read()


@pytest.mark.slow
def test_import_jcos_is_light_and_its_names_are_all_there() -> None:
    code = """
def loaded(): print(json.dumps([name for name in SLOW if name in sys.modules]))
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
