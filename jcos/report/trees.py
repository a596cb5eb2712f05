"""A search along the denoising steps, as its page shows it: who was judged after which step, who
went on, and the video that was chosen."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jcos.lab.outcome import TREE, Result
from jcos.media import formats
from jcos.wan import Wan


def estimates(model: Wan, result: Result, i: int) -> list[UInt8[np.ndarray, "K H W 3"]]:
    """Return the last frames of the particles of the i-th video, by row of a recorded search."""
    return [np.asarray(model.decode(row.x0[i]))[:, -1] for row in result.tree if row.x0 is not None]


def trees_of(folder: Path, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what the page shows of every video; nothing where the folder holds no search."""
    if not (folder / TREE).is_file():
        return []
    with np.load(folder / TREE, allow_pickle=False) as stored:
        pictures = dict(stored)
    rows = manifest["tree"]
    return [
        {name: manifest[name][i] for name in ("solved", "seed", "forwards") if name in manifest}
        | {name: _uri(pictures[name][i]) for name in ("chosen", "right") if name in pictures}
        | {
            "rows": [
                (
                    row["step"],
                    row["judge"] + ", drawn by weight" * row.get("drawn", False),
                    [*_particles(row, pictures[f"estimates_{i}_{j}"], i, chosen)],
                )
                for j, (row, chosen) in enumerate(zip(rows, _line(manifest, i), strict=True))
            ]
        }
        for i in range(len(pictures["chosen"]))
    ]


def _line(manifest: Mapping[str, Any], i: int) -> list[int]:
    """Return the particle of every row that the chosen one comes from, back from the end, where it
    is the best one of its seed; −1 in rows before it began."""
    *before, last = manifest["tree"]
    seeds, scores = last["seeds"][i], last["scores"][i]
    left = [k for k in last["parents"][i] if k >= 0 and seeds[k] == manifest["seed"][i]]
    line = [max(left, key=scores.__getitem__)]
    for row in reversed(before):
        line.insert(0, dict(enumerate(row["parents"][i])).get(line[0], -1))
    return line


def _particles(
    row: Mapping[str, Any],
    pictures: UInt8[np.ndarray, "K H W 3"],
    i: int,
    chosen: int,
) -> Iterator[dict[str, Any]]:
    """Yield the particles of a row, those that went on first, then by their score; `went`: as how
    many each went on. chosen: which one was."""
    scores, went = row["scores"][i], [row["parents"][i].count(k) for k in range(len(pictures))]
    alive = np.flatnonzero(row["alive"][i]).tolist()
    for k in sorted(alive, key=lambda k: (not went[k], -scores[k])):
        about = {"seed": row["seeds"][i][k], "score": scores[k], "went": went[k]}
        about["chosen"] = k == chosen
        yield about | {"src": _uri(pictures[k])}


def _uri(picture: UInt8[np.ndarray, "H W 3"]) -> str:
    return formats.data_uri(formats.png(picture))
