"""Conversion: every leaf equals the release's, a killed run goes on, memory stays small."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert import stream
from convert.stream import Job, convert
from convert.work import Work
from jcos.weights import checkpoint
from jcos.weights.checkpoint import CheckpointError
from jcos.weights.loras import Lora
from jcos.weights.released import StoredType, load_released, open_released, part_of
from jcos.weights.tensors import tensors_in
from tests.conftest import ROOT
from tests.releases import DIFFSYNTH as LORA
from tests.releases import I2V, T2V, TI2V, as_diffusers, write_release


def write_full(folder: Path) -> Path:
    """A release with every part and a tokenizer."""
    shutil.copytree(I2V, folder)
    (folder / "google" / "umt5-xxl").mkdir(parents=True)
    (folder / "google" / "umt5-xxl" / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def release(tmp_path) -> Path:
    return write_full(tmp_path / "release")


def run(job: Job) -> stream.Plan:
    return convert(job)


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Callable[..., Path]:
    """Conversions that several tests read."""

    @cache
    def convert(source: Path, dtype: StoredType = "bfloat16") -> Path:
        target = tmp_path_factory.mktemp("converted") / "out"
        run(Job(source, target, dtype))
        return target

    return convert


def stored(folder: Path) -> dict[str, Any]:
    """All leaves of a converted folder, in the types they are stored in."""
    checkpoint.read_manifest(folder, verify=True)
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


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("folder", [I2V, TI2V, T2V], ids=lambda p: p.name)
def test_every_leaf_equals_the_release(converted, folder, dtype):
    target = converted(folder, dtype)
    assert_equal(stored(target), published(folder, dtype))
    manifest = checkpoint.read_manifest(target)
    assert checkpoint.read_config(manifest) == open_released(folder).config
    assert list(target.parent.iterdir()) == [target]


def test_the_layout_of_diffusers_gives_the_same(tmp_path):
    run(Job(as_diffusers(I2V, tmp_path / "diffusers"), tmp_path / "out"))
    assert_equal(stored(tmp_path / "out"), published(I2V))


def test_a_converted_model_is_restored_into_another_type(converted):
    want = {k: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16) for k, a in published(T2V).items()}
    found = checkpoint.restore(converted(T2V, "float32"), want)
    for path, a in published(T2V, "float32").items():
        rounded = np.asarray(a).astype(jnp.bfloat16)
        assert np.asarray(found[path]).tobytes() == rounded.tobytes(), path


def test_the_manifest_says_what_was_converted_and_from_what(release, tmp_path):
    run(Job(release, tmp_path / "out", loras=(Lora(LORA, 1),)))
    manifest = checkpoint.read_manifest(tmp_path / "out")
    notes = manifest["notes"]
    assert notes["converted from"] == "release"
    assert notes["dtype"] == "bfloat16"
    assert re.fullmatch(r"jcos \d+\.\d+\.\d+.*", notes["by"])
    (lora,) = notes["lora"]
    assert (lora["into"], lora["keys unused"]) == ("experts.1", [])
    assert lora["keys used"] == sorted(tensors_in(LORA))
    name = "high_noise_model/diffusion_pytorch_model-00001-of-00002.safetensors"
    size, digest = notes["sources"][name]
    assert size == (release / name).stat().st_size
    assert digest == checkpoint.digests(release)[name][1]
    assert f"lora/0/{LORA.name}" in notes["sources"]
    assert "tokenizer/tokenizer.json" in manifest["files"]
    assert (tmp_path / "out" / "tokenizer" / "tokenizer.json").read_text() == "{}"


@pytest.mark.slow
def test_large_leaves_are_parts_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "BUNDLE", 60_000)
    made = run(Job(I2V, tmp_path / "out"))
    assert len(made.bundles) > 10
    for paths in made.bundles.values():
        assert len(paths) == 1 or made.bytes_stored(paths) <= 60_000
        assert len({part_of(path) for path in paths}) == 1
    assert_equal(stored(tmp_path / "out"), published(I2V))


# ---- what is refused before anything is written


def test_a_damaged_source(release, tmp_path):
    shard = release / "low_noise_model" / "diffusion_pytorch_model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="is truncated"):
        run(Job(release, tmp_path / "out"))
    assert list(tmp_path.iterdir()) == [release]


def test_a_disk_that_is_too_small(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"0\.00 GB free; about 0\.00 GB are to be written"):
        run(Job(T2V, tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


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


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A folder with a release, and what a process left of its conversion that was killed when the
    third part was written but not noted."""
    folder = tmp_path_factory.mktemp("stopped")
    write_full(folder / "release")
    command = [sys.executable, "-c", SCRIPT, str(folder / "release"), str(folder / "out")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=600)
    assert result.returncode == -signal.SIGKILL, result.stderr.decode()
    assert not (folder / "out").exists()
    return folder


@pytest.fixture
def unfinished(stopped, tmp_path, monkeypatch) -> Path:
    """A copy of it, to go on with."""
    monkeypatch.setattr(stream, "BUNDLE", 150_000)
    return shutil.copytree(stopped, tmp_path / "copy")


@pytest.mark.slow
def test_a_killed_conversion_goes_on_where_it_stopped(unfinished, monkeypatch):
    """Also stopped when all is done but the name."""
    release, target, work = (unfinished / name for name in ("release", "out", ".out.unfinished"))
    journal = json.loads((work / "journal.json").read_text())
    assert list(journal["parts"]) == ["000", "001"]
    assert (work / "weights" / "002").is_dir()
    before = files(work / "weights", journal["parts"])
    with monkeypatch.context() as patch:
        patch.setattr(Work, "finish", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(Job(release, target))
    after = files(work / "weights")
    assert {k: after[k] for k in before} == before
    run(Job(release, target))
    assert files(target / "weights") == after
    assert {p.name for p in target.iterdir()} == {"jcos.json", "weights", "tokenizer"}
    assert not work.exists()
    assert_equal(stored(target), published(release))
    run(Job(release, unfinished / "whole"))
    manifests = [checkpoint.read_manifest(unfinished / name) for name in ("out", "whole")]
    assert manifests[0]["notes"] == manifests[1]["notes"]
    assert manifests[0]["parts"] == manifests[1]["parts"]


def test_no_part_outlives_the_sources_that_it_was_made_from(release, tmp_path, monkeypatch):
    """What fails while the sources are still hashed leaves nothing that others could go on with."""
    plain, stop = stream._read_part, threading.Event()

    def hashing(self: Work, files: object, advance: Callable[[int], object]) -> None:
        while not stop.wait(0.01):
            advance(0)  # raises once the conversion has failed

    def read(*arguments: Any) -> Any:
        if len(parts) == 2:
            raise OSError(28, "No space left on device")
        parts.append(None)
        return plain(*arguments)

    parts: list[None] = []
    monkeypatch.setattr(stream, "BUNDLE", 150_000)
    monkeypatch.setattr(Work, "check_sources", hashing)
    monkeypatch.setattr(stream, "_read_part", read)
    with pytest.raises(OSError, match="No space left"):
        run(Job(release, tmp_path / "out"))
    stop.set()
    assert not (tmp_path / ".out.unfinished").exists()


@pytest.mark.slow
def test_other_settings_and_changed_sources_are_refused(unfinished):
    release, target, work = (unfinished / name for name in ("release", "out", ".out.unfinished"))
    before = files(work / "weights", ["000", "001"])

    def refused(job: Job) -> str:
        with pytest.raises(CheckpointError) as error:
            run(job)
        assert before.items() <= files(work / "weights").items()
        return str(error.value)

    message = refused(Job(release, target, "float32"))
    assert f"{work} is an unfinished conversion with another dtype" in message
    assert "with another LoRA" in refused(Job(release, target, loras=(Lora(LORA, 0),)))
    vae = release / "Wan2.1_VAE.pth"
    content = vae.read_bytes()
    changed = bytearray(content)
    changed[len(content) // 2] ^= 1
    vae.write_bytes(changed)
    assert f"Wan2.1_VAE.pth changed since {work} was begun" in refused(Job(release, target))
    # Written anew with the same content, it is the same.
    vae.write_bytes(content)
    run(Job(release, target))
    assert_equal(stored(target), published(release))


def test_a_second_conversion_to_the_same_folder_is_refused(tmp_path):
    first = Work(tmp_path / "out", {})
    first._journal["parts"]["000"] = {"leaves": {}, "files": {}}
    with pytest.raises(CheckpointError, match=r"another process is converting to .*out"):
        Work(tmp_path / "out", {})
    first.close()
    Work(tmp_path / "out", {}).close()


def test_a_damaged_journal(release, tmp_path):
    work = tmp_path / ".out.unfinished"
    work.mkdir()
    (work / "journal.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"journal\.json is damaged; remove that folder"):
        run(Job(release, tmp_path / "out"))


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
