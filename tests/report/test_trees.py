"""What the page of a search says of its particles."""

from pathlib import Path

import numpy as np
import pytest

from jcos.lab.outcome import TREE, pictures
from jcos.report.trees import trees_of


def test_the_chosen_video_is_followed_back_through_copies(tmp_path: Path) -> None:
    """Copies share their seed; one of each row is what the chosen video comes from."""
    lasts = [np.zeros((count, 2, 2, 3), np.uint8) for count in (3, 5, 5)]
    ends = {"chosen": lasts[0][:1], "right": lasts[0][:1]}
    (tmp_path / TREE).write_bytes(pictures([lasts], **ends))
    common = {"judge": "energy", "drawn": False, "rule": "the best"}
    rows = [
        {"seeds": [0, 1, 2], "scores": [0.0, 2.0, 1.0], "parents": [1, 2, 1, 1]},
        {"seeds": [1, 2, 1, 1, 5], "scores": [0.0, 1.0, 3.0, 2.0, 4.0], "parents": [2, 3, 2, 4]},
        {"seeds": [1, 1, 1, 5], "scores": [1.0, 5.0, 2.0, 9.0], "parents": [0, 1, 2]},
    ]
    tree = [
        common
        | {name: [value] for name, value in row.items()}
        | {"step": step, "alive": [[True] * len(row["seeds"])]}
        for step, row in enumerate(rows)
    ]
    tree[0] |= {"drawn": True, "rule": "by weight", "log_weights": [[-np.inf, np.log(3), 0.0]]}
    manifest = {"solved": [True], "seed": [1], "forwards": [8], "tree": tree}
    (page,) = trees_of(tmp_path, manifest)
    first = page["rows"][0]
    assert [p["weight"] for p in first[2]] == pytest.approx([0.75, 0.25, 0.0])
    words = [rule for _, rule, _ in page["rows"]]
    assert words == ["energy: by weight; 1.6 of 3 are effective", *["energy: the best"] * 2]
    chosen = [[p["score"] for p in ps if p["chosen"]] for _, _, ps in page["rows"]]
    assert chosen == [[2.0], [2.0], [5.0]]
    # A particle that began after a row comes from none in it.
    tree[-1]["parents"], manifest["seed"] = [[3]], [5]
    (page,) = trees_of(tmp_path, manifest)
    chosen = [[p["score"] for p in ps if p["chosen"]] for _, _, ps in page["rows"]]
    assert chosen == [[], [4.0], [9.0]]
    # Without what the page shows of each video it is damaged, which `read` says.
    with pytest.raises(KeyError, match="forwards"):
        trees_of(tmp_path, {k: v for k, v in manifest.items() if k != "forwards"})
