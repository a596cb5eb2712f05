"""The runs of `jcos sample` as planes, which its page shows."""

from collections.abc import Iterator
from pathlib import Path

from jcos.experiments.sample import Sampled
from jcos.report.charts import listed
from jcos.report.plane import Line, Plane, puzzle_plane, save_planes
from jcos.runs import MANIFEST, read
from jcos.sampling.probe import Change

OFF = "mass on no right answer"


def save(folder: Path, sampled: Sampled) -> None:
    """Write the planes of a folder of `jcos sample`, beside its arrays."""
    manifest = read(folder / MANIFEST, "puzzles") or {}
    changes = [Change.from_json(change) for change in manifest["changes"]]
    save_planes(folder, list(_planes(sampled, manifest["seeds"], changes)), manifest)


def _planes(sampled: Sampled, seeds: list[int], changes: list[Change]) -> Iterator[Plane]:
    steps = range(sampled.x0.shape[2])
    for p, puzzle in enumerate(sampled.puzzles):
        for k, seed in enumerate(seeds):
            lines = [Line("score of x̂0", "score of x̂0", steps, listed(sampled.x0_scores[p, k]))]
            if len(puzzle.answers) > 1:
                lines.append(Line(OFF, OFF, steps, listed(sampled.off[p, k])))
            yield puzzle_plane(
                puzzle,
                sampled.model.decode(sampled.x0[p, k]),
                sampled.mass[p, k],
                label=f"seed {seed}",
                group=f"puzzle {p}",
                video=sampled.model.decode(sampled.latents[p, k]),
                solved=bool(sampled.solved[p, k]),
                lines=lines,
                sampling=sampled.sampling,
                changes=changes,
            )
