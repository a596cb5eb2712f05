"""Conversion: every leaf equals the release's, a killed run goes on, memory stays small."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jax
import numpy as np
import pytest

from convert import stream
from convert.stream import Job, convert
from convert.work import Work
from jcos.weights import checkpoint
from jcos.weights.checkpoint import CheckpointError
from jcos.weights.loras import Lora
from jcos.weights.released import StoredType, load_released, open_released, part_of
from tests.conftest import ROOT
from tests.releases import DIFFSYNTH as LORA
from tests.releases import I2V, T2V, TI2V, write_release


@pytest.fixture
def release(tmp_path) -> Path:
    """A release with every part and a tokenizer."""
    folder = shutil.copytree(I2V, tmp_path / "release")
    (folder / "google" / "umt5-xxl").mkdir(parents=True)
    (folder / "google" / "umt5-xxl" / "tokenizer.json").write_text("{}")
    return folder


def stored(folder: Path) -> dict[str, Any]:
    """All leaves of a converted folder, in the types they are stored in."""
    checkpoint.read_manifest(folder)
    return checkpoint.restore(folder, checkpoint.stored(folder))


def published(folder: Path, dtype: StoredType = "bfloat16") -> dict[str, Any]:
    """The same, straight from the release."""
    source = open_released(folder)
    want = {
        path: jax.ShapeDtypeStruct(leaf.shape, source.stored_type(path, dtype))
        for path, leaf in source.leaves.items()
    }
    return load_released(source, want)


def assert_equal(found, want) -> None:
    assert found.keys() == want.keys()
    for path, a in want.items():
        assert found[path].dtype == a.dtype, path
        assert np.asarray(found[path]).tobytes() == np.asarray(a).tobytes(), path


def files(folder: Path, parts: Iterable[str] = ("",)) -> dict[str, tuple[int, int]]:
    """What changes when a file of these parts is written again."""
    return {
        str(p.relative_to(folder)): (p.stat().st_ino, p.stat().st_mtime_ns)
        for part in parts
        for p in (folder / part).rglob("*")
        if p.is_file()
    }


# ---- what is converted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "dtype"),
    [(I2V, "bfloat16"), (I2V, "float32"), (TI2V, "bfloat16"), (T2V, "bfloat16")],
    ids=lambda p: str(p)[-8:],
)
def test_every_leaf_equals_the_release(tmp_path, folder, dtype: StoredType):
    target = tmp_path / "out"
    convert(Job(folder, target, dtype))
    assert_equal(stored(target), published(folder, dtype))
    manifest = checkpoint.read_manifest(target)
    assert checkpoint.read_config(manifest) == open_released(folder).config
    assert list(tmp_path.iterdir()) == [target]


# ---- what is refused before anything is written


def test_a_damaged_source_and_a_disk_that_is_too_small(release, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(OSError, match=r"0\.00 GB free; about 0\.00 GB are to be written"):
            convert(Job(release, tmp_path / "out"))
    shard = release / "low_noise_model" / "diffusion_pytorch_model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="is truncated"):
        convert(Job(release, tmp_path / "out"))
    assert list(tmp_path.iterdir()) == [release]


# ---- what goes on

SCRIPT = """
import os, signal, sys
from pathlib import Path
from convert import stream, work

stream.BUNDLE = 150_000
finish_part = work.Work.finish_part

def finish_two(self, name, *rest):
    if name == "002":
        os.kill(os.getpid(), signal.SIGKILL)
    finish_part(self, name, *rest)

work.Work.finish_part = finish_two
stream.convert(stream.Job(Path(sys.argv[1]), Path(sys.argv[2])))
"""


@pytest.mark.slow
def test_a_killed_conversion_goes_on_where_it_stopped(release, tmp_path, monkeypatch):
    """Killed when the third part is written but not noted, and again when all is done but the name;
    in between it is asked for with other settings, of other files, beside another process, and on a
    disk that becomes full."""
    target, work = tmp_path / "out", tmp_path / ".out.unfinished"
    command = [sys.executable, "-c", SCRIPT, str(release), str(target)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=600)
    assert result.returncode == -signal.SIGKILL, result.stderr.decode()
    assert not target.exists()
    assert (work / "weights" / "002").is_dir()
    before = files(work / "weights", ["000", "001"])
    assert before
    monkeypatch.setattr(stream, "BUNDLE", 150_000)

    def refused(job: Job) -> str:
        with pytest.raises(ValueError, match=f"{work} holds a run with other settings") as error:
            convert(job)
        return str(error.value)

    assert "dtype bfloat16, not float32" in refused(Job(release, target, "float32"))
    assert "LoRA" in refused(Job(release, target, loras=(Lora(LORA, 0),)))
    vae = release / "Wan2.1_VAE.pth"
    about = vae.stat()
    os.utime(vae)
    assert "sources.Wan2.1_VAE.pth" in refused(Job(release, target))
    os.utime(vae, ns=(about.st_atime_ns, about.st_mtime_ns))

    with (work / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=f"another process is converting to {target}"):
            convert(Job(release, target))
    assert files(work / "weights", ["000", "001"]) == before

    write_part = checkpoint.write_part

    def full(folder: Path, name: str, values: Any) -> Any:
        if name == "004":
            raise OSError(errno.ENOSPC, "the disk is full")
        return write_part(folder, name, values)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_part", full)
        with pytest.raises(OSError, match="the disk is full"):
            convert(Job(release, target))
    noted = json.loads((work / "journal.json").read_text())["parts"]
    assert noted.keys() > {"000", "001"}
    before = files(work / "weights", noted)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "digests", lambda *_: {})  # as where another process removed it
        with pytest.raises(FileNotFoundError, match="let one process convert"):
            convert(Job(release, target))

    with monkeypatch.context() as patch:
        patch.setattr(Work, "finish", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            convert(Job(release, target))
    after = files(work / "weights")
    assert {k: after[k] for k in before} == before
    made = convert(Job(release, target))
    assert files(target / "weights") == after
    assert {p.name for p in target.iterdir()} == {"jcos.json", "weights", "tokenizer"}
    assert not work.exists()
    assert_equal(stored(target), published(release))
    for paths in made.bundles.values():  # large leaves are parts of their own
        assert len(paths) == 1 or made.bytes_stored(paths) <= 150_000
        assert len({part_of(path) for path in paths}) == 1
    convert(Job(release, tmp_path / "whole"))
    manifests = [checkpoint.read_manifest(tmp_path / name) for name in ("out", "whole")]
    assert manifests[0]["notes"] == manifests[1]["notes"]
    assert manifests[0]["parts"] == manifests[1]["parts"]


# ---- memory

MEASURED = """
import re, sys
from pathlib import Path
from convert import stream
from jcos.weights import checkpoint

stream.BUNDLE, checkpoint.CHUNK = 8_000_000, 4_000_000
source, small, target = map(Path, sys.argv[1:])

def peak():
    # Of this process alone: the resource module also counts what its parent took.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1])

# What libraries take when they first run is no part of a conversion's memory.
stream.convert(stream.Job(small, target.with_name("small-out")))
before = peak()
made = stream.convert(stream.Job(source, target))
largest = max(made.bytes_stored([path]) for path in made.released.leaves)
print(peak() - before, largest, made.bytes_stored(made.released.leaves))
"""


@pytest.mark.slow
def test_memory_stays_near_the_largest_leaf(tmp_path):
    """A source of 430 MB; all of it, or a copy of the largest leaf too many, would be too much."""
    source = write_release(tmp_path / "source", dim=256, ffn_dim=4096, layers=40)
    command = [sys.executable, "-c", MEASURED, str(source), str(T2V), str(tmp_path / "out")]
    result = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        timeout=600,
        env={**os.environ, "MALLOC_ARENA_MAX": "2"},
    )
    assert result.returncode == 0, result.stderr.decode()
    grown, largest, total = map(int, result.stdout.split())
    assert total > 2 * largest
    assert grown < 2 * largest, f"{grown / 1e6:.0f} MB for a leaf of {largest / 1e6:.0f} MB"
