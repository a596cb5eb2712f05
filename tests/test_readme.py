"""The README's example runs as it stands."""

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"


@pytest.mark.slow
def test_readme_example_runs(capsys) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 1
    exec(compile(blocks[0], str(README), "exec"), {"__name__": "readme"})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all(re.fullmatch(r"without block \d .*: [0-4] of 4 solved", line) for line in lines)


def test_readme_names_only_files_that_exist() -> None:
    text = README.read_text()
    for name in re.findall(r"`((?:jcos|convert|scripts|tests)/[\w/.]*)`", text):
        assert (README.parent / name.split("#")[0]).exists(), name
    for name in re.findall(r"\]\(((?!http)[^)]+)\)", text):
        assert (README.parent / name.split("#")[0]).exists(), name
