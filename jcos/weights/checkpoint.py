"""Weights on disk: Orbax folders with a manifest, restored into a model that exists only as shapes.

A model is addressed by the paths of its leaves (`blocks.self_attn.q.kernel`), here and in
`convert`. A folder holds `jcos.json` (what it is, how it was made, size and hash of every file) and
`weights/`: one Orbax checkpoint for a small model (format 1, `save`), or one for each part of a
large one (format 2, `write_part` and `write_manifest`), so that a part at a time is in memory. It
is written beside its final name and renamed, so that a folder under that name is always whole.
"""

import contextlib
import gc
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from jcos.config import WanConfig, from_json, to_json
from jcos.devices.sharding import leaf_path
from jcos.files import any_path, fetched, is_remote, sizes, visible, write
from jcos.weights import single
from jcos.weights.faults import listed, readable

MANIFEST = "jcos.json"
COMPLETE = "commit_success.txt"
FORMATS = (1, 2)
HASHED = 1_000_000_000
"""Bytes of a folder up to which every hash is checked when it is opened; sizes always are."""
CHUNK = 16_000_000
"""Bytes of the largest piece of an array on disk; a device reads the pieces its shard needs. Larger
pieces are slower to write: the system gives their memory anew, page by page."""
M = TypeVar("M")


class CheckpointError(ValueError):
    """A folder that is no checkpoint, or a damaged one; the message says what is wrong."""


def abstract_model(kind: type[M], config: Any, **options: Any) -> M:
    """Return a module that exists only as shapes: `kind(config, rngs=…, **options)` without its
    weights. What depends on the config alone is traced once."""
    structure, shapes = _traced(kind, config, tuple(options.items()))
    return jax.tree.unflatten(structure, shapes)


@cache
def _traced(kind: Any, config: Any, options: tuple[tuple[str, Any], ...]) -> tuple[Any, list]:
    made = jax.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0), **dict(options)))
    shapes, structure = jax.tree.flatten(made)
    return structure, [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in shapes]


def check_name(path: Path) -> None:
    """Raise CheckpointError where a path has bytes that are not UTF-8: Orbax does not take it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise CheckpointError(
            f"{readable(path)} has bytes in its name that are not UTF-8; give it another name"
        ) from None


def leaves(model: Any) -> dict[str, Any]:
    """Return every array (or shape) of a model by its path, stacked blocks as one leaf."""
    return {leaf_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(model)}


def with_leaves(model: M, values: Mapping[str, Any]) -> M:
    """Return `model` with its leaves replaced by those of the same path, cast to the model's types.

    Raises CheckpointError naming every missing, superfluous and wrongly shaped leaf at once.
    """
    _check_fit(leaves(model), values)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: values[leaf_path(path)].astype(leaf.dtype, copy=False), model
    )


def misfits(want: Mapping[str, Any], have: Mapping[str, Any]) -> list[str]:
    """Return how arrays (or anything with a shape) differ from a model's, a phrase for each."""
    faults = [f"{name} is missing" for name in want.keys() - have.keys()]
    faults += [f"{name} has no place in the model" for name in have.keys() - want.keys()]
    faults += [
        f"{name} has shape {tuple(have[name].shape)}, the model wants {tuple(leaf.shape)}"
        for name, leaf in want.items()
        if name in have and tuple(have[name].shape) != tuple(leaf.shape)
    ]
    return sorted(faults)


def _check_fit(want: Mapping[str, Any], have: Mapping[str, Any]) -> None:
    if faults := misfits(want, have):
        raise CheckpointError(listed(f"{len(faults)} weights do not fit the model", faults))


def save(folder: Path, config: WanConfig, model: Any, notes: Mapping[str, Any]) -> None:
    """Write a model (any pytree of arrays) and its configuration; `notes` say how it was made.

    Raises FileExistsError if the folder exists.
    """
    folder = any_path(folder)
    if (folder / MANIFEST if is_remote(folder) else folder).exists():
        raise FileExistsError(f"{folder} exists; remove it or choose another name")
    check_name(folder.absolute())
    if is_remote(folder):  # whole with its manifest
        _save_leaves(folder / "weights", leaves(model))
        return write_manifest(folder, config, notes, digests(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        beside.chmod(0o755)
        _save_leaves(beside / "weights", leaves(model))
        write_manifest(beside, config, notes, digests(beside))
        beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _save_leaves(folder: Path, values: Mapping[str, Any]) -> None:
    with target_of(folder) as place, quiet_orbax(), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(place, values, force=True)
    _forget_place(folder)


def check_target(folder: Path) -> None:
    """Raise ValueError where several hosts are to write into a bucket that Orbax does not know."""
    if _is_foreign(folder) and jax.process_count() > 1:
        raise ValueError(f"{folder} cannot be written by several hosts; use gs:// or a shared disk")


@contextlib.contextmanager
def target_of(folder: Path) -> Iterator[str]:
    """Yield where Orbax writes a folder: there, or, for a bucket that it does not know (s3://), on
    a disk, from where it is uploaded. Raises as `check_target`."""
    check_target(folder)
    if not _is_foreign(folder):
        yield str(folder.absolute())
        return
    with tempfile.TemporaryDirectory() as place:
        yield f"{place}/{folder.name}"
        folder.upload(Path(place) / folder.name)  # type: ignore[attr-defined]


@contextlib.contextmanager
def source_of(folder: Path) -> Iterator[str]:
    """Yield where Orbax reads a folder: there, or from a copy on a disk, as `target_of`."""
    with fetched(folder) if _is_foreign(folder) else contextlib.nullcontext(folder) as place:
        yield str(place.absolute())


def _is_foreign(folder: Path) -> bool:
    return is_remote(folder) and not str(folder).startswith("gs:")


def clean(folder: Path, *names: str) -> None:
    """Remove what killed `save`s left in a folder, of checkpoints whose names fit one of these
    patterns. Nobody may be saving there."""
    for name in names:
        for left in Path(folder).glob(f".{name}.{'?' * 8}"):  # as `tempfile.mkdtemp` names them
            shutil.rmtree(left)


def write_part(folder: Path, name: str, values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Write some leaves as `folder/weights/name`, whole or not at all; returns what
    `write_manifest` wants to know of the part: its leaves.

    Takes no memory beside the values (if they begin on 64-byte boundaries, `tensors.empty`) but for
    some chunks on their way. Raises OSError where the disk is full or may not be written to.
    """
    arrays = {path: jax.device_put(value, may_alias=True) for path, value in values.items()}
    pieces = {path: ocp.SaveArgs(chunk_byte_size=CHUNK) for path in arrays}
    # Plain files: the default (OCDBT) collects all chunks in memory before it writes them.
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False)
    target = folder / "weights" / name
    try:
        with target_of(target) as place, quiet_orbax(), ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(place, arrays, save_args=pieces)
    except ValueError as error:
        # What the disk refuses comes as a ValueError with the system's number in it.
        if not (code := re.search(r"os_error_code='(\d+)'", str(error))):
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(target)) from None
    del arrays
    gc.collect()  # when jax lets go of the memory that it shared
    _forget_place(target)
    return {path: [str(value.dtype), list(value.shape)] for path, value in values.items()}


def write_manifest(
    folder: Path,
    config: WanConfig,
    notes: Mapping[str, Any],
    files: Mapping[str, Any],
    parts: Mapping[str, Any] | None = None,
) -> None:
    """Make a folder with `weights/` in it a checkpoint.

    files: `digests` of it. parts: what `write_part` returned, by the part's name.
    """
    manifest = {
        "format": 1 if parts is None else 2,
        "config": to_json(config),
        "notes": dict(notes),
        "files": dict(files),
        **({} if parts is None else {"parts": dict(parts)}),
    }
    write(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def digests(folder: Path, below: str = "") -> dict[str, list[Any]]:
    """Return size and hash of every file under `folder/below`, by its path from `folder`."""
    places = [folder / below / name for name in sizes(folder / below)]
    names = [place.relative_to(folder).as_posix() for place in places]
    with ThreadPoolExecutor(16 if is_remote(folder) else 1) as pool:
        return dict(zip(names, pool.map(_digest, places), strict=True))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint folder, every file of it checked for its size, and for
    its hash if the folder is on a disk and has less than `HASHED` bytes (objects in buckets are
    whole or absent, and each costs a request)."""
    folder = any_path(folder)
    manifest = _parse(folder)
    files = manifest["files"]
    if is_remote(folder):
        there = sizes(folder)  # with one request
    else:
        places = {name: folder / name for name in files}
        there = {name: p.stat().st_size for name, p in places.items() if p.is_file()}
    if str(folder).startswith("gs:"):  # where Orbax asks for a note
        for part in manifest.get("parts", ["."]):
            note = (Path("weights") / part / COMPLETE).as_posix()
            if note not in there:
                raise CheckpointError(f"{folder} is incomplete: add an empty file {note}")
    hashed = not is_remote(folder) and sum(size for size, _ in files.values()) < HASHED
    for name, (size, digest) in files.items():
        if name not in there:
            raise CheckpointError(f"{folder} is incomplete: {name} is missing")
        found = _digest(folder / name) if hashed else [there[name], digest]
        if found != [size, digest]:
            raise CheckpointError(f"{folder / name} is damaged: it is not what was written")
    return manifest


def _parse(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        sizes = [int(size) for size, _ in dict(manifest["files"]).values()]
        if not sizes:
            raise ValueError
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise CheckpointError(
            f"{folder} is not a checkpoint folder: it lacks {MANIFEST}, and what a release has "
            "(config.json or model_index.json); nor is it a transformer's safetensors or GGUF file"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise _damaged(folder) from None
    if manifest.get("format") not in FORMATS:
        known = " and ".join(map(str, FORMATS))
        raise CheckpointError(f"{folder} has format {manifest.get('format')}; known are {known}")
    return manifest


def _damaged(folder: Path) -> CheckpointError:
    return CheckpointError(f"{folder / MANIFEST} is damaged; restore the folder from its source")


def read_config(manifest: Mapping[str, Any]) -> WanConfig:
    try:
        return from_json(manifest["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint's configuration cannot be read: {error}") from None


def stored(folder: Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Return shape and type of every leaf of a checkpoint folder, by its path."""
    return {path: leaf for part in _parts(folder).values() for path, leaf in part.items()}


def restore(
    folder: Path,
    model: M,
    shardings: Mapping[str, jax.sharding.Sharding] | None = None,
    only: Sequence[str] | None = None,
) -> M:
    """Fill an abstract model (`jax.eval_shape`) from a folder whose manifest was read.

    Parts are read one after the other, straight onto the devices and in the model's types.
    shardings: by path; the first device for those that are not named. only: leaves of the folder
    whose paths begin with one of these are restored, the others left alone.
    Raises CheckpointError naming every leaf that does not fit the model, before anything is read.
    """
    chosen = tuple(only) if only is not None else ("",)
    parts = {
        name: {path: leaf for path, leaf in part.items() if path.startswith(chosen)}
        for name, part in _parts(folder).items()
    }
    want = leaves(model)
    _check_fit(want, {path: leaf for part in parts.values() for path, leaf in part.items()})
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    found: dict[str, Any] = {}
    for name, part in parts.items():
        target = {
            path: jax.ShapeDtypeStruct(
                leaf.shape, want[path].dtype, sharding=(shardings or {}).get(path, first)
            )
            for path, leaf in part.items()
        }
        if target:
            found |= _restore_part(folder / name, target)
    return jax.tree_util.tree_map_with_path(lambda path, _: found[leaf_path(path)], model)


def _restore_part(path: Path, target: dict[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    arguments = ocp.args.PyTreeRestore(
        item=target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=True,
    )
    handler = ocp.PyTreeCheckpointHandler()
    with source_of(path) as place, quiet_orbax(), ocp.Checkpointer(handler) as checkpointer:
        return checkpointer.restore(place, args=arguments)


def _parts(folder: Path) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Return leaves of every Orbax checkpoint of a folder, by its place in it."""
    manifest = _parse(folder)
    check_name(folder.absolute())
    if manifest["format"] == 1:
        weights = source_of(folder / "weights")
        with weights as place, quiet_orbax(), ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.metadata(place).item_metadata.tree
        return {"weights": {k: jax.ShapeDtypeStruct(a.shape, a.dtype) for k, a in tree.items()}}
    try:
        return {
            f"weights/{name}": {
                path: jax.ShapeDtypeStruct(tuple(shape), jax.numpy.dtype(dtype))
                for path, (dtype, shape) in part.items()
            }
            for name, part in manifest["parts"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _damaged(folder) from None


@contextlib.contextmanager
def quiet_orbax():
    """Keep Orbax quiet: it reports every save and restore through absl at warning level, and errors
    that it raises too; a user has no use for that."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _forget_place(folder: Path) -> None:
    """Empty Orbax's note of where it wrote, which is not where the folder will be; in gs:// Orbax
    asks for the note."""
    if not is_remote(folder):
        (folder / COMPLETE).write_bytes(b"")


def _digest(path: Path) -> list[Any]:
    if is_remote(path):  # with fewer requests than an open file takes
        data = path.read_bytes()
        return [len(data), hashlib.sha256(data).hexdigest()]
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def identify(checkpoint: Path) -> dict[str, str]:
    """Return which weights a checkpoint folder holds: the hash of its manifest, which lists every
    file's; of a released folder, of the names and sizes of all files but hidden ones and compiled
    programs, and of pieces of those that hold weights or say what they are; of a single file, of
    it, the other expert's, and what may be its VAE and encoders. Folders of results of earlier
    versions, which know names and sizes alone, are of others."""
    manifest = checkpoint / MANIFEST
    if manifest.is_file():
        return {"manifest": hashlib.sha256(manifest.read_bytes()).hexdigest()}
    inside = {*visible(checkpoint, "**/*"), *visible(checkpoint, "*/*")}  # the latter enters links
    names = {p: p.relative_to(checkpoint) for p in sorted(inside) if p.is_file()}
    if checkpoint.is_file():
        experts = single.experts(checkpoint)
        parts = ("vae", "text", "vision")
        others = [p for part in parts for p in single.companions(experts[0], part)]
        names = {p: Path(p.name) for p in (*experts, *others)}
    files = [path for path, name in names.items() if name.parts[0] != "programs"]
    listed = [(names[p].as_posix(), p.stat().st_size) for p in files]
    pieces = hashlib.sha256()
    for path in files:
        if path.suffix in (".safetensors", ".gguf", ".pth", ".json"):
            pieces.update(_pieces(path))
    listing = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
    return {"files": listing, "weights": pieces.hexdigest()}


HEAD, PIECES, PIECE = 2**20, 64, 2**12
"""Bytes that are read of a file's beginning, which has the header; how many pieces besides, and
their bytes: 1.3 MB of any file. Fine-tuning changes nearly all weights."""


def _pieces(path: Path) -> bytes:
    last = max(0, path.stat().st_size - PIECE)
    with path.open("rb") as file:
        found = [file.read(HEAD)]
        for i in range(PIECES):
            file.seek(last * i // (PIECES - 1))
            found.append(file.read(PIECE))
    return b"".join(found)
