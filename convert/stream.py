"""Conversion of a released folder, a part at a time.

A part is one large leaf (a weight of all layers) or a bundle of small ones. Its tensors are read
one after the other into an array of the type that is stored, so that little more than the largest
leaf is in memory. While it is written, files are hashed, and the next part is read if both together
take no more than half as much again as the largest one, or 1 GB.
"""

import hashlib
import itertools
import os
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from jcos.config import to_json
from jcos.files import any_path, check_room, is_remote, visible, write
from jcos.staged import Progress, silent
from jcos.weights import checkpoint, hub
from jcos.weights import lora as lora_files
from jcos.weights.faults import readable
from jcos.weights.lora import Adapter
from jcos.weights.loras import Lora
from jcos.weights.released import Released, StoredType, open_released, part_of
from jcos.weights.tensors import check_fetched, check_finite

from .work import Work

BUNDLE = 512_000_000
"""Bytes that small leaves are collected up to."""
COMPRESSED = 0.7
"""Weights take at least this part of their size on disk."""


@dataclass(frozen=True)
class Job:
    """What is converted into what.

    dtype: `jcos.weights.released.stored_type` says of which weights.
    allow_unused: go on where LoRA files have keys without a place in the model.
    """

    source: Path
    target: Path
    dtype: StoredType = "bfloat16"
    loras: tuple[Lora, ...] = ()
    allow_unused: bool = False


@dataclass(frozen=True)
class Plan:
    """Everything that is known before the first tensor is read.

    types: of every leaf on disk, by path. bundles: paths of the leaves of each part. adapters: with
    the part that each is merged into.
    """

    job: Job
    released: Released
    types: dict[str, np.dtype]
    bundles: dict[str, list[str]]
    adapters: list[tuple[str, Adapter]]

    def bytes_stored(self, paths: Iterable[str]) -> int:
        return sum(self.released.leaves[p].size * self.types[p].itemsize for p in paths)


def plan(job: Job) -> Plan:
    """Open all files and match all names; raises CheckpointError for what does not fit."""
    released = open_released(hub.find(job.source))
    if released.tokenizer and "text" in released.parts:
        check_fetched(released.tokenizer / "tokenizer.json")
    types = {path: released.stored_type(path, job.dtype) for path in released.leaves}
    adapters = lora_files.read(released.config, job.loras, allow_unused=job.allow_unused)
    return Plan(job, released, types, _bundles(released, types), adapters)


def convert(job: Job, progress: Progress = silent) -> Plan:
    """Write `job.target`; when it fails or is killed, the parts that are finished stay beside it to
    go on with.

    Raises FileExistsError where the target exists; CheckpointError where files are missing, damaged
    or do not fit the model (before anything is written), or hold a nan; ValueError where another
    conversion to it was begun, also of files that have changed since, or the target is a whole
    bucket; OSError where the disk is full or may not be written to.
    """
    target = any_path(job.target).absolute()
    if (target / checkpoint.MANIFEST if is_remote(target) else target).exists():
        raise FileExistsError(f"{target} exists; remove it or choose another name")
    checkpoint.check_name(target)
    made = plan(job)
    check_room(target)
    work = Work(target, _settings(made))
    stopped = threading.Event()
    hasher, writer, noter = (ThreadPoolExecutor(n) for n in (4, 1, 1))
    try:
        sources = {k: hasher.submit(_digest, f, stopped) for k, f in _sources(made).items()}
        left = {name: paths for name, paths in made.bundles.items() if name not in work.parts}
        sizes = {name: made.bytes_stored(paths) for name, paths in left.items()}
        check_room(target, more=int(COMPRESSED * sum(sizes.values())))
        noted: list[Future[None]] = []

        def write(name: str, values: dict[str, np.ndarray]) -> None:
            leaves = checkpoint.write_part(work.folder, name, values)
            noted.append(noter.submit(note, name, leaves))

        def note(name: str, leaves: dict[str, Any]) -> None:
            files = checkpoint.digests(work.folder, f"weights/{name}")
            work.finish_part(name, leaves, files)

        most = max(2 * BUNDLE, *(1.5 * made.bytes_stored(p) for p in made.bundles.values()))
        written: list[Future[None]] = []
        before = 0
        for number, (name, paths) in enumerate(left.items()):
            progress("converting", number, len(left))
            if before + sizes[name] > most:
                _wait(written)
            values = _read_part(made, paths)
            _wait(written)
            _wait([future for future in noted if future.done()])
            written, before = [writer.submit(write, name, values)], sizes[name]
            del values  # it is let go of when it is written
        _wait(written)
        progress("checking files", len(left), len(left))
        _wait(noted)
        _finish(made, work, {name: future.result() for name, future in sources.items()})
    finally:
        stopped.set()
        for threads in (hasher, writer, noter):  # the second fills the third
            threads.shutdown(cancel_futures=True)
        work.close()
    return made


def _wait(futures: Iterable[Future[Any]]) -> None:
    for future in futures:
        future.result()


def _digest(file: Path, stopped: threading.Event) -> list[Any]:
    """Return size and hash of a file, unless this is stopped before its end."""
    digest, block = hashlib.sha256(), memoryview(bytearray(1 << 22))
    with file.open("rb", buffering=0) as stream:
        while not stopped.is_set() and (size := stream.readinto(block)):
            digest.update(block[:size])
    return [file.stat().st_size, digest.hexdigest()]


def _bundles(released: Released, types: dict[str, np.dtype]) -> dict[str, list[str]]:
    """Small leaves together, large ones alone; none together with those of another expert, VAE or
    text encoder, which may be loaded alone. Small and large ones take turns, so that two of the
    largest are seldom neighbours."""
    sizes = {path: leaf.size * types[path].itemsize for path, leaf in released.leaves.items()}
    bundles: list[list[str]] = []
    for part in released.parts:
        room, ascending = 0, []
        for path in sorted((p for p in sizes if part_of(p) == part), key=sizes.__getitem__):
            if sizes[path] > room:
                ascending.append([])
                room = BUNDLE
            ascending[-1].append(path)
            room -= sizes[path]
        half = -(-len(ascending) // 2)
        turns = itertools.zip_longest(ascending[:half], reversed(ascending[half:]))
        bundles += [bundle for pair in turns for bundle in pair if bundle]
    return {f"{i:03d}": paths for i, paths in enumerate(bundles)}


def _settings(made: Plan) -> dict[str, Any]:
    """What must be the same for a conversion to be gone on with."""
    sources = {name: file.stat() for name, file in _sources(made).items()}
    return {
        "version": metadata.version("jcos"),
        "dtype": made.job.dtype,
        "parts": made.bundles,
        "configuration": to_json(made.released.config),
        "LoRA": [[lora.file.name, lora.expert, lora.scale] for lora in made.job.loras],
        "sources": {name: [about.st_size, about.st_mtime_ns] for name, about in sources.items()},
    }


def _sources(made: Plan) -> dict[str, Path]:
    """All files that are read, by their names in the manifest."""
    folder = made.released.folder
    start = folder.parent if folder.is_file() else folder
    files = {readable(os.path.relpath(file, start)): file for file in made.released.files()}
    for i, (_, adapter) in enumerate(made.adapters):
        files |= {f"lora/{i}/{readable(file.name)}": file for file in adapter.files}
    return files


def _read_part(made: Plan, paths: list[str]) -> dict[str, np.ndarray]:
    def read(name: str, dtype: np.dtype) -> np.ndarray:
        tensor = made.released.tensors[name]
        with np.errstate(all="ignore"):  # what comes of it is looked at below
            array = made.released.merged(made.adapters, name).astype(dtype, copy=False)
        check_finite(array, f"{name} of {tensor.file}")
        return array

    def build(path: str) -> np.ndarray:
        dtype = made.types[path]
        return made.released.leaves[path].build(lambda name: read(name, dtype), dtype)

    return {path: build(path) for path in paths}


def _finish(made: Plan, work: Work, sources: dict[str, list[Any]]) -> None:
    released = made.released
    if released.tokenizer and "text" in released.parts:
        for file in visible(released.tokenizer, "**/*"):
            if file.is_file():
                name = file.relative_to(released.tokenizer)
                write(work.folder / "tokenizer" / name, file.read_bytes())
    notes = {
        "converted from": readable(released.folder.resolve().name),
        "by": f"jcos {metadata.version('jcos')}",
        "dtype": made.job.dtype,
        "sources": sources,
        "notes": released.notes,
        "lora": [
            {
                "file": readable(adapter.file.name),
                "into": part,
                "scale": adapter.scale,
                "note": adapter.note,
                "keys used": adapter.used,
                "keys skipped": adapter.skipped,
                "keys unused": adapter.unused,
            }
            for part, adapter in made.adapters
        ],
    }
    files = work.files | checkpoint.digests(work.folder, "tokenizer")
    checkpoint.write_manifest(work.folder, released.config, notes, files, work.parts)
    work.finish()
