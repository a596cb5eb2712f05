"""Messages stay short; what is left out is in the file they name."""

import tempfile
from pathlib import Path

import pytest

from jcos.weights.faults import LONGEST, listed, readable


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """Where the lists go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_long_list_is_in_the_file_that_is_named(folder):
    assert listed("2 places", ["a is missing", "b is short"]) == (
        "2 places: a is missing; b is short"
    )
    assert not list(folder.iterdir())
    phrases = [f"{i:04d} " + "x" * 250 for i in range(1000)]
    message = listed("1000 places", phrases)
    assert len(message) <= LONGEST
    (file,) = folder.iterdir()
    assert str(file) in message
    assert file.read_text().splitlines() == ["1000 places:", *phrases]
    assert message.startswith("1000 places: 0000 x")


def test_where_no_file_can_be_written(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    message = listed("1000 places", [f"{i} is missing" for i in range(1000)])
    assert len(message) <= LONGEST
    assert message.endswith("999 is missing")


def test_names_that_are_no_text(folder):
    name = "caf\udce9"
    assert readable(name) == readable(Path(name)) == r"caf\xe9"
    listed("places", [name] * 500)
    (file,) = folder.iterdir()
    assert "caf" in file.read_text()
