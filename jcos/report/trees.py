"""A search along the denoising steps, as its page shows it: who was judged after which step, who
went on, and the video that was chosen."""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jcos.media import formats

TREE = "tree.npz"
"""Last frames: `estimates_P_R` [K, H, W, 3] of puzzle P's particles in row R of the method;
`chosen` and `right` [P, H, W, 3] of the chosen video and a right answer."""


def packed(
    estimates: Sequence[Sequence[UInt8[np.ndarray, "K H W 3"]]],
    chosen: UInt8[np.ndarray, "P H W 3"],
    right: UInt8[np.ndarray, "P H W 3"],
) -> bytes:
    """Return the file of pictures. estimates: by puzzle and row."""
    named: dict[str, Any] = {
        f"estimates_{i}_{j}": a for i, rows in enumerate(estimates) for j, a in enumerate(rows)
    }
    out = io.BytesIO()
    np.savez_compressed(out, chosen=chosen, right=right, **named)
    return out.getvalue()


def trees_of(folder: Path, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what the page shows of every puzzle; nothing where the folder holds no search."""
    if not (folder / TREE).is_file():
        return []
    with np.load(folder / TREE, allow_pickle=False) as stored:
        pictures = dict(stored)
    return [_tree(manifest, pictures, i) for i in range(len(pictures["chosen"]))]


def _tree(manifest: Mapping[str, Any], pictures: Mapping[str, Any], i: int) -> dict[str, Any]:
    rows = manifest["tree"]
    return {
        "title": f"Puzzle {i}",
        "solved": bool(manifest["solved"][i]),
        "seed": manifest["seed"][i],
        "forwards": manifest["forwards"][i],
        "rows": [
            {
                "step": row["step"],
                "judge": row["judge"],
                "particles": sorted(
                    _particles(row, pictures[f"estimates_{i}_{j}"], manifest["seed"][i], i),
                    key=lambda p: (not p["went"], -p["score"]),
                ),
            }
            for j, row in enumerate(rows)
        ],
        "chosen": _uri(pictures["chosen"][i]),
        "right": _uri(pictures["right"][i]),
    }


def _particles(
    row: Mapping[str, Any], pictures: UInt8[np.ndarray, "K H W 3"], chosen: int, i: int
) -> Iterator[dict[str, Any]]:
    """Yield the particles of a row; `went`: as how many each went on."""
    for place in np.flatnonzero(row["alive"][i]).tolist():
        went, seed = row["parents"][i].count(place), row["seeds"][i][place]
        about = {"seed": seed, "score": row["scores"][i][place], "went": went}
        yield about | {"chosen": bool(went) and seed == chosen, "src": _uri(pictures[place])}


def _uri(picture: UInt8[np.ndarray, "H W 3"]) -> str:
    return formats.data_uri(formats.png(picture))
