"""The measurement at full size goes on whatever a second conversion takes."""

import subprocess
import sys
from pathlib import Path

import pytest

from jcos.weights.checkpoint import MANIFEST
from scripts.full_size import convert, folder_size, kill_halfway
from tests.conftest import GOLDEN

WRITER = """
import json, sys, time
from pathlib import Path

folder, parts, wait = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
folder.mkdir()
journal = {"parts": {}}
for i in range(parts):
    (folder / str(i)).write_bytes(bytes(1000))
    journal["parts"][str(i)] = {}
    (folder / "beside").write_text(json.dumps(journal))
    (folder / "beside").rename(folder / "journal.json")
time.sleep(wait)
"""


def writing(folder: Path, parts: int, wait: float) -> subprocess.Popen:
    """A conversion that writes parts of 1000 bytes, and then sleeps."""
    return subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(parts), str(wait)])


def test_a_conversion_is_killed_when_half_is_written(tmp_path: Path) -> None:
    process = writing(tmp_path / "work", 5, 60)
    assert kill_halfway(process, tmp_path / "work", 9000)
    assert process.poll() is not None
    assert folder_size(tmp_path / "work") >= 5000


@pytest.mark.parametrize(("parts", "size"), [(0, 0), (3, 9000)])
def test_one_that_ends_before_is_no_error(tmp_path: Path, parts: int, size: int) -> None:
    """However quick it is: nothing is killed by the clock."""
    assert not kill_halfway(writing(tmp_path / "work", parts, 0), tmp_path / "work", size)


@pytest.mark.slow
def test_every_row_is_given_as_soon_as_it_is_known(tmp_path: Path) -> None:
    """The tiny release is one part: written in whole before a journal names it."""
    rows = dict(convert(GOLDEN / "ckpt" / "Wan2.2-TI2V-5B", tmp_path / "out"))
    assert (tmp_path / "out" / MANIFEST).exists()
    assert [what for what in rows if what.startswith("resumed after a kill")]
    assert "conversion" in rows
