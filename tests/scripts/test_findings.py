"""The page of findings: its numbers are those of results."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

ASCII = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
"""A machine on which text is not UTF-8 by default."""
TABLE = """task,measure,case,value,low,high,n,chance,still,forwards
maze,solved,step 3,0.98765,0.9,1.0,64,0.1,0.0,4
maze,"commitment step, median",model,23.456,20,25.5,60,,,50
maze,cosine,layer 3,0.998967,0.998913,0.999021,32,,,40
"""
WORDS = """From x̂0: solved {{ steps_2("maze", "solved", "step 3", n=1) }}, decided at
{{ steps_2("maze", "commitment step, median", "model") }}
by `{{ steps_2.command }}`, {{ steps_2("maze", "solved", "step 3", column="forwards") }} forwards,
chance {{ steps_2("maze", "solved", "step 3", column="chance") }}.
{{ steps_2("maze", "cosine", "layer 3") }}
![x](findings/steps_2-solved.svg)
"""


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results" / "steps_2"
    (folder / "figures").mkdir(parents=True)
    (folder / "table.csv").write_text(TABLE)
    (folder / "run.json").write_text(json.dumps({"command": "jcos run it"}))
    (folder / "figures" / "solved.svg").write_bytes(b"picture")
    return folder.parent


def command(results: Path, docs: Path, words: str) -> list[str]:
    docs.mkdir()
    if words:
        (docs / "findings.in.md").write_text(words, encoding="utf-8")
    script = ROOT / "scripts" / "findings.py"
    return [str(script), "--results", str(results), "--docs", str(docs)]


@pytest.mark.slow
def test_marks_become_numbers(results: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    subprocess.run([sys.executable, *command(results, docs, WORDS)], check=True, env=ASCII)
    page = (docs / "findings.md").read_text(encoding="utf-8")
    assert "From x̂0: solved 0.988 [0.900, 1.000] (n = 64), decided at\n23.5 [20, 25.5]\nby" in page
    assert "`jcos run it`, 4 forwards,\nchance 0.100.\n0.999 [0.9989, 0.999]\n" in page
    assert (docs / "findings" / "steps_2-solved.svg").read_bytes() == b"picture"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "has no *.in.md"),
        ('{{ steps_2("maze", "solved", "step 4") }}', "step 3"),
        ('{{ noise("maze", "solved", "step 3") }}', "noise"),
        ('{{ steps_2("maze", "commitment step, median", "model", column="chance") }}', "chance"),
        ("{{ steps_2.date }}", "date"),
    ],
)
def test_words_without_numbers_are_refused(
    results: Path, tmp_path: Path, words: str, says: str, monkeypatch, capsys
) -> None:
    docs = tmp_path / "docs"
    monkeypatch.syspath_prepend(ROOT / "scripts")
    monkeypatch.setattr(sys, "argv", command(results, docs, words))
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module("findings").main()
    assert says in capsys.readouterr().err
    assert not (docs / "findings.md").exists()


@pytest.mark.parametrize(
    ("name", "most"), [("findings", 150), ("findings-beyond", 150), ("search", 260)]
)
def test_a_page_is_its_words_with_numbers(name: str, most: int) -> None:
    """Nobody edits a page itself: around its numbers stand the words of `….in.md`."""
    words = (ROOT / "docs" / f"{name}.in.md").read_text()
    page = (ROOT / "docs" / f"{name}.md").read_text()
    plain = [line for line in words.splitlines() if "{" not in line]
    lines = iter(page.splitlines())
    assert all(line in lines for line in plain if line)  # in their order
    for line in words.splitlines():  # and the words between its marks
        if "{{" in line and "{%" not in line and "row(" not in line and not line.startswith("|"):
            parts = map(re.escape, re.split(r"\{\{.*?\}\}", line))
            assert re.search(f"^{'.*'.join(parts)}$", page, re.MULTILINE), line
    assert not re.search(r"\{[{%]", page)
    assert len(page.splitlines()) <= most
    assert all((ROOT / "docs" / p).is_file() for p in re.findall(r"\((findings/[^)]+)\)", page))
