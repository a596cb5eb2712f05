"""A search along the denoising steps, as its page shows it: who was judged after which step, who
went on, and the video that was chosen."""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jcos.lab.methods import DRAWN, Method
from jcos.lab.outcome import Result
from jcos.lab.saved import as_json
from jcos.media import formats
from jcos.wan import Wan

TREE = "tree.npz"
"""Last frames: `estimates_P_R` [K, H, W, 3] of puzzle P's particles in row R of the method;
`chosen` and `right` [P, H, W, 3] of the chosen video and a right answer."""


def packed(
    estimates: Sequence[Sequence[UInt8[np.ndarray, "_ H W 3"]]],
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


def estimates(model: Wan, result: Result, i: int) -> list[UInt8[np.ndarray, "K H W 3"]]:
    """Return the last frames of the particles of the i-th video, by row of a recorded search."""
    return [np.asarray(model.decode(row.x0[i]))[:, -1] for row in result.tree if row.x0 is not None]


def entries(result: Result, method: Method, solved: Any, which: Sequence[int]) -> dict[str, Any]:
    """Return what a manifest says of some of the videos of a search. solved: of these."""
    tree = [
        {k: [v[i] for i in which] if isinstance(v, list) else v for k, v in as_json(made).items()}
        | {"drawn": row.select in DRAWN}
        for made, row in zip(result.tree, method.rows, strict=True)
    ]
    about = {"solved": solved, "seed": result.seed[which], "forwards": result.cost.forwards[which]}
    return {k: np.asarray(v).tolist() for k, v in about.items()} | {"tree": tree}


def trees_of(folder: Path, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what the page shows of every puzzle; nothing where the folder holds no search."""
    if not (folder / TREE).is_file():
        return []
    with np.load(folder / TREE, allow_pickle=False) as stored:
        pictures = dict(stored)
    rows = manifest["tree"]
    return [
        {name: manifest[name][i] for name in ("solved", "seed", "forwards")}
        | {name: _uri(pictures[name][i]) for name in ("chosen", "right")}
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
