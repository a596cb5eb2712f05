"""A search along the denoising steps, as its page shows it: who was judged after which step, who
went on, and the video that was chosen."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from scipy import special

from jcos.lab.outcome import TREE, Result
from jcos.media import formats
from jcos.report.templates import inside
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
    return [
        {name: manifest[name][i] for name in ("seed", "forwards")}
        | ({"solved": manifest["solved"][i]} if "solved" in manifest else {})
        | {name: _uri(pictures[name][i]) for name in ("chosen", "right") if name in pictures}
        | {"rows": _rows(manifest, pictures, i)}
        for i in range(len(pictures["chosen"]))
    ]


def _rows(
    manifest: Mapping[str, Any], pictures: Mapping[str, np.ndarray], i: int
) -> list[tuple[int, str, list[dict[str, Any]]]]:
    """Return step, rule and particles of every row of video i, those that went on first, then by
    score. went: as how many. weight: where they are drawn by it. chosen: whether the chosen video
    comes from it: followed back from the best one of its seed at the end, to none (−1) in rows
    before it began."""
    rows, chosen = [], None
    for j, row in reversed([*enumerate(manifest["tree"])]):
        seeds, scores, parents, alive = (
            row[name][i] for name in ("seeds", "scores", "parents", "alive")
        )
        if chosen is None:
            left = [k for k in parents if k >= 0 and seeds[k] == manifest["seed"][i]]
            chosen = max(left, key=scores.__getitem__)
        else:
            chosen = parents[chosen] if 0 <= chosen < len(parents) else -1
        went = Counter(parents)
        order = sorted(np.flatnonzero(alive).tolist(), key=lambda k: (not went[k], -scores[k]))
        words = f"{row['judge']}: {row['rule']}"
        weights: dict[int, float] = {}
        if row["drawn"]:
            shares = special.softmax(np.array(row["log_weights"][i], float)[order])
            weights = dict(zip(order, shares.tolist(), strict=True))
            words += f"; {1 / np.square(shares).sum():.1f} of {len(order)} are effective"
        particles = [
            {"seed": seeds[k], "score": scores[k], "went": went[k], "chosen": k == chosen}
            | {"weight": weights.get(k), "src": _uri(pictures[f"estimates_{i}_{j}"][k])}
            for k in order
        ]
        rows.insert(0, (row["step"], words, particles))
    return rows


def _uri(picture: UInt8[np.ndarray, "H W 3"]) -> str:
    return inside("a.png", formats.png(picture))
