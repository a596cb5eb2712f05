"""Pytrees of arrays as Orbax folders, in which every process writes the shards that it holds."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jcos.files import write
from jcos.weights.checkpoint import CheckpointError, quiet_orbax

OUTLINE = "outline.json"
"""Written last: a folder without it is not whole."""


def save(folder: Path | str, tree: Any, about: dict[str, Any]) -> None:
    """Write a pytree of dicts, tuples and arrays, with a dictionary about it.

    Every process of a run calls it with the same; arrays stay where they lie. Raises
    FileExistsError where the folder exists.
    """
    folder = Path(folder).absolute()
    leaves: dict[str, Any] = {}
    outline = _outline(tree, leaves)
    if jax.process_count() > 1:  # or one might find what another has just made
        multihost_utils.sync_global_devices("jcos.weights.arrays.save")
    if (folder / OUTLINE).exists():
        raise FileExistsError(f"{folder} exists; remove it or choose another name")
    with quiet_orbax(), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "arrays", leaves, force=True)
    if jax.process_index() == 0:
        write(folder / OUTLINE, json.dumps({"outline": outline, "about": about}))


def load(folder: Path | str) -> tuple[Any, dict[str, Any]]:
    """Return what `save` wrote, as numpy arrays; lists come back as tuples. Raises CheckpointError
    where the folder holds nothing of the kind, or is not whole."""
    folder = Path(folder).absolute()
    try:
        content = json.loads((folder / OUTLINE).read_text())
        outline, about = content["outline"], content["about"]
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{folder} holds no arrays of jcos, or not all of them") from None
    with quiet_orbax(), ocp.PyTreeCheckpointer() as checkpointer:
        as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
        stored = checkpointer.metadata(folder / "arrays").item_metadata.tree
        leaves = checkpointer.restore(
            folder / "arrays", restore_args=jax.tree.map(lambda _: as_numpy, dict(stored))
        )
    return _filled(outline, leaves), about


def _outline(tree: Any, leaves: dict[str, Any]) -> Any:
    """The containers of a tree as JSON; its arrays are collected in `leaves` by number."""
    match tree:
        case None:
            return None
        case dict():
            return {str(key): _outline(value, leaves) for key, value in tree.items()}
        case tuple() | list():
            return [_outline(value, leaves) for value in tree]
    name = str(len(leaves))
    leaves[name] = tree if isinstance(tree, jax.Array) else np.asarray(tree)
    return name


def _filled(outline: Any, leaves: dict[str, Any]) -> Any:
    match outline:
        case dict():
            return {key: _filled(value, leaves) for key, value in outline.items()}
        case list():
            return tuple(_filled(value, leaves) for value in outline)
        case str():
            return leaves[outline]
    return None
