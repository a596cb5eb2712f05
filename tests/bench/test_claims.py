"""Claims: one owner each, and none of a dead worker stays."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from jcos.bench.claims import Claims, _here

NAME = "In-Domain_50/T-1_maze_data-generator/00000"


def test_a_sample_is_one_workers(tmp_path: Path) -> None:
    with Claims(tmp_path) as a, Claims(tmp_path) as b:
        assert a.take(NAME)
        assert not a.take(NAME)
        assert not b.take(NAME)
        assert b.take(NAME.replace("00000", "00001"))
        a.release(NAME)
        assert b.take(NAME)
    assert list(tmp_path.iterdir()) == []


def test_a_claim_of_an_ended_process_is_free_at_once(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with Claims(tmp_path) as a:
        left = a._file(NAME, 3)
        left.write_text(json.dumps({**_here(), "pid": ended.pid}))
        assert a.take(NAME)
        assert a.held[NAME].name.endswith(".4")
    assert list(tmp_path.iterdir()) == []


def test_a_claim_that_is_not_touched_is_taken_over(tmp_path: Path) -> None:
    with Claims(tmp_path, beat=1e6) as sleeper, Claims(tmp_path, dead=0.0) as other:
        assert sleeper.take(NAME)
        assert not other.take(NAME)  # the first look starts the clock
        os.utime(sleeper.held[NAME], (1, 1))
        assert not other.take(NAME)  # touched since
        assert other.take(NAME)
        assert not sleeper.keeps(NAME)
        assert other.keeps(NAME)
        sleeper.release(NAME)
        assert other.keeps(NAME)


def test_an_owner_touches_its_claims(tmp_path: Path) -> None:
    with Claims(tmp_path, beat=0.01) as a:
        assert a.take(NAME)
        claim = a.held[NAME]
        os.utime(claim, (1, 1))
        for _ in range(1000):
            if claim.stat().st_mtime != 1:
                break
            time.sleep(0.01)
        assert claim.stat().st_mtime != 1
