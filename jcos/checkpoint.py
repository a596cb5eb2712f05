"""Weights on disk: Orbax folders with a manifest, restored into a model that exists only as shapes.

A model is addressed by the paths of its leaves (`blocks.self_attn.q.kernel`), here and in
`convert`. A folder holds `jcos.json` (what it is, how it was made, size and hash of every file) and
`weights/`. It is written beside its final name and renamed, so that a folder under that name is
always whole.
"""

import contextlib
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from jcos.config import WanConfig, from_json, to_json

MANIFEST = "jcos.json"
FORMAT = 1
M = TypeVar("M")


class CheckpointError(ValueError):
    """A folder that is no checkpoint, or a damaged one; the message says which file and what is
    wrong."""


def leaves(model: Any) -> dict[str, Any]:
    """Every array of a model (or shape of an abstract one) by its path, stacked blocks as one
    leaf."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(model)}


def with_leaves(model: M, values: Mapping[str, Any]) -> M:
    """`model` with its leaves replaced by those of the same path, cast to the model's types.

    Raises CheckpointError naming every missing, superfluous and wrongly shaped leaf at once.
    """
    want = leaves(model)
    faults = [f"{name} is missing" for name in want.keys() - values.keys()]
    faults += [f"{name} has no place in the model" for name in values.keys() - want.keys()]
    faults += [
        f"{name} has shape {tuple(values[name].shape)}, the model wants {tuple(leaf.shape)}"
        for name, leaf in want.items()
        if name in values and tuple(values[name].shape) != tuple(leaf.shape)
    ]
    if faults:
        raise CheckpointError(
            f"{len(faults)} weights do not fit the model: " + "; ".join(sorted(faults))
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: values[_name(path)].astype(leaf.dtype), model
    )


def save(folder: Path, config: WanConfig, model: Any, notes: Mapping[str, Any]) -> None:
    """Writes a model (any pytree of arrays) and its configuration; `notes` say how it was made.

    Raises FileExistsError if the folder exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists; remove it or choose another name")
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        beside.chmod(0o755)
        with quiet_orbax(), ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(beside.absolute() / "weights", leaves(model))
        # Says where it was written, which is not where it will be; needed on object stores only.
        (beside / "weights" / "commit_success.txt").unlink(missing_ok=True)
        files = {
            str(p.relative_to(beside)): _digest(p) for p in sorted(beside.rglob("*")) if p.is_file()
        }
        manifest = {
            "format": FORMAT,
            "config": to_json(config),
            "notes": dict(notes),
            "files": files,
        }
        (beside / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint folder, every file of it checked for size and hash."""
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files = dict(manifest["files"])
        if not files:
            raise ValueError
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise CheckpointError(
            f"{folder} is not a checkpoint folder: it has no {MANIFEST}"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"{folder / MANIFEST} is damaged; restore the folder from its source"
        ) from None
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} has format {manifest.get('format')}, this version of jcos reads {FORMAT}"
        )
    for name, want in files.items():
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} is incomplete: {name} is missing")
        if _digest(folder / name) != want:
            raise CheckpointError(
                f"{folder / name} is damaged: its content is not what was written"
            )
    return manifest


def read_config(manifest: Mapping[str, Any]) -> WanConfig:
    try:
        return from_json(manifest["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint's configuration is not one this version reads: {error}"
        ) from None


def restore(folder: Path, model: M) -> M:
    """Fills an abstract model (`jax.eval_shape`) from a folder whose manifest was read."""
    shapes = leaves(model)
    with quiet_orbax(), ocp.StandardCheckpointer() as checkpointer:
        path = Path(folder).absolute() / "weights"
        stored = checkpointer.metadata(path).item_metadata.tree
        if stored.keys() == shapes.keys():
            device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            target = {
                name: jax.ShapeDtypeStruct(stored[name].shape, stored[name].dtype, sharding=device)
                for name in shapes
            }
            stored = checkpointer.restore(path, target)
    return with_leaves(model, stored)


@contextlib.contextmanager
def quiet_orbax():
    """Orbax reports every save and restore through absl at warning level; a user has no use for
    that."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def _digest(path: Path) -> list[Any]:
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def parameter_count(model: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in leaves(model).values())
