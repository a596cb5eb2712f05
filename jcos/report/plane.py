"""A run as pictures: its clean estimates, steps × frames, beside the final video.

`look(model, trace)` makes it of what `jcos.generate` returns. It shows itself in a notebook, and
`Look.save` leaves a folder that `jcos report` turns into a page.
"""

import dataclasses
import io
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from jcos.config import Sampling
from jcos.files import local_path, write
from jcos.lab.tasks import TASKS, Puzzle
from jcos.media import formats
from jcos.report.charts import listed
from jcos.report.templates import fill, inside
from jcos.runs import MANIFEST, read
from jcos.sampling import flow
from jcos.sampling.probe import Change
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan

PLANES = "planes.npz"
"""The pictures of runs, in the folder of a manifest that has `planes`."""
MASS = "mass on each right answer"
"""The chart of the answers, whose lines are named like their pictures."""
HUES = 4
"""Right answers with a colour of their own; the others share one."""
COMMITTED, HELD = 0.9, 0.1
"""Share of the mass from which on one answer is decided for, or is one of several."""
EXACT = 64
"""Frames up to so many pixels wide are kept without loss; larger ones as a photograph is."""
WIDEST = 256
"""Frames of a sheet are thinned to about so many pixels; the films keep all."""
LARGEST = 40_000_000
"""How many pixels a browser is given at once."""
UNREAD = np.zeros((0, 0, 0, 0, 3), np.uint8)
MANY, EVERY = 12, 5
"""Of runs of so many steps or more, every so many are shown where all have no room."""
CELL, FILM, GAP = 80, 200, 8
"""About how many pixels a frame is wide in a grid and in the film of a notebook, and how many lie
between frames."""


class Line(NamedTuple):
    """A curve over denoising steps. chart: what lies in one chart has one name."""

    chart: str
    label: str
    steps: Sequence[int]
    values: Sequence[float | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plane:
    """One run. Steps and frames count from 0.

    group: what it is a run of (a puzzle, a prompt); runs of one group are shown side by side.
    label: which of them. x0: the clean estimates at `steps`, ascending. video: the end. reference:
    a right answer. solved: whether the end is one. changes: what was changed in it. answers: a
    picture of each right answer, by its name in the chart `MASS`. puzzle: a digest, where it is
    known. pair: equal for runs of the same puzzle and seed in several folders; else None. read:
    returns what is large of a run in a file, which it lacks until `load`.
    """

    label: str
    group: str
    steps: Sequence[int]
    x0: UInt8[np.ndarray, "S F H W 3"] = dataclasses.field(default_factory=lambda: UNREAD)
    video: UInt8[np.ndarray, "f h w 3"] | None = None
    reference: UInt8[np.ndarray, "f h w 3"] | None = None
    prompt: str = ""
    solved: bool | None = None
    lines: Sequence[Line] = ()
    changes: Sequence[Change] = ()
    answers: Mapping[str, UInt8[np.ndarray, "H W 3"]] = dataclasses.field(default_factory=dict)
    puzzle: str | None = None
    pair: int | None = None
    read: Callable[[], Mapping[str, Any]] | None = None

    def load(self) -> "Plane":
        """Return the run with its pictures."""
        return dataclasses.replace(self, read=None, **self.read()) if self.read else self

    def shown(self) -> list[int]:
        """Return the places of some steps that stand for all: of long runs every fifth, and the
        last."""
        last = len(self.x0) - 1
        return [*range(0, last, 1 if last < MANY else EVERY), last]

    def strip(self) -> list[tuple[int, str]]:
        """Return some steps with their last frames, as addresses of pictures."""
        thin = -(-self.x0.shape[3] // (2 * CELL))
        frames = self.x0[:, -1, ::thin, ::thin]
        return [(self.steps[i], inside("a.png", formats.png(frames[i]))) for i in self.shown()]

    def sheet(self) -> tuple[bytes, tuple[int, int], int]:
        """Return all pictures as one WebP, their width and height there, and how many lie side by
        side: the frames of each step, then of the video and of the right answer. Without loss where
        frames are small."""
        clips = [*self.x0, *(clip for clip in (self.video, self.reference) if clip is not None)]
        frames = np.concatenate(clips)
        thin = -(-frames.shape[2] // WIDEST)
        while len(frames) * frames[0, ::thin, ::thin, 0].size > LARGEST:
            thin += 1
        frames = frames[:, ::thin, ::thin]
        height, width = frames.shape[1:3]
        columns = math.ceil(math.sqrt(len(frames) * height / width))  # nearly a square
        empty = np.zeros((-len(frames) % columns, height, width, 3), np.uint8)
        rows = np.concatenate([frames, empty]).reshape(-1, columns, height, width, 3)
        picture = Image.fromarray(np.concatenate([formats.film_strip(row) for row in rows]))
        exact = self.x0.shape[3] <= EXACT
        picture.save(file := io.BytesIO(), "WEBP", lossless=exact, quality=82, method=2)
        return file.getvalue(), (width, height), columns

    def distances(self) -> list[Line]:
        """Return the distance of the estimates from the last and from the one before, 0..1 of the
        colours' range."""
        apart = [_rms(x, self.x0[-1]) for x in self.x0]
        moved = [None, *(_rms(a, b) for a, b in itertools.pairwise(self.x0))]
        charts = {"distance to the last x̂0": apart, "change of x̂0 from the step before": moved}
        return [Line(name, name, self.steps, listed(values)) for name, values in charts.items()]

    def about(self) -> dict[str, Any]:
        """Return all but the pictures, as JSON has it."""
        return {name: getattr(self, name) for name in ("label", "group", "prompt", "solved")} | {
            "steps": list(self.steps),
            "lines": [line._asdict() for line in self.lines],
            "changes": [change.to_json() for change in self.changes],
            "answers": list(self.answers),
        }

    def grid(self) -> bytes:
        """Return a PNG: a row for each step of `shown`, the final video last; a column for each
        frame."""
        rows = self.x0[self.shown()]
        if self.video is not None:
            rows = np.concatenate([rows, self.video[None]])
        thin = -(-rows.shape[3] // (2 * CELL))
        rows = rows[:, :, ::thin, ::thin]
        scale = formats.factor_for(rows.shape[3], CELL)
        return formats.png(formats.contact_sheet(rows, scale=scale, gap=GAP))

    def _repr_html_(self) -> str:
        video = self.x0[-1] if self.video is None else self.video
        film = formats.webp(formats.upscale(video, formats.factor_for(video.shape[2], FILM)))
        return fill(
            "notebook.html",
            run=self,
            steps=[self.steps[i] for i in self.shown()],
            grid=inside("grid.png", self.grid()),
            film=inside("film.webp", film),
        )


class Look(tuple[Plane, ...]):
    """Runs to look at, side by side in a notebook."""

    def _repr_html_(self) -> str:
        inside = "".join(plane._repr_html_() for plane in self)
        return f'<div style="display:flex;flex-wrap:wrap;gap:2rem">{inside}</div>'

    def save(self, folder: Path | str, **about: Any) -> None:
        """Write `planes.npz` and `run.json`, of which `jcos report FOLDER` makes a page; `about`
        goes into the latter. ValueError where the folder has another run."""
        folder = local_path(folder)
        read(folder / MANIFEST, "planes")
        save_planes(folder, self, about)


def save_planes(folder: Path, planes: Sequence[Plane], manifest: Mapping[str, Any]) -> None:
    """Write the pictures of runs, and what is known of them as the entry `planes` of a manifest."""
    arrays = {}
    for i, plane in enumerate(planes):
        answers = np.stack(list(plane.answers.values())) if plane.answers else None
        clips = {"x0": plane.x0, "video": plane.video, "reference": plane.reference}
        clips["answers"] = answers
        arrays |= {f"{name}_{i}": clip for name, clip in clips.items() if clip is not None}
    np.savez_compressed(packed := io.BytesIO(), allow_pickle=False, **arrays)
    manifest = {**manifest, "planes": [plane.about() for plane in planes]}
    text = json.dumps(manifest, indent=1, ensure_ascii=False, default=list) + "\n"
    write(folder / PLANES, packed.getvalue())
    write(folder / MANIFEST, text)


def look(
    model: Wan,
    trace: Trace,
    *,
    prompt: str = "",
    group: str = "run",
    changes: Sequence[Change] = (),
) -> Look:
    """The runs of a trace with all its steps, leaves [K, …], decoded: one `Plane` for each seed.
    changes: what was changed in them (`probe.changes()`)."""
    steps = range(trace.x0.shape[1])
    sampling = model.config.sampling
    lines = []
    if sampling.steps == len(steps):
        lines = [sigma_line(flow.schedule(sampling).sigmas[:-1])]
    return Look(
        Plane(
            label=f"run {k}",
            group=group,
            steps=steps,
            x0=model.decode(trace.x0[k]),
            video=model.decode(trace.latents[k]),
            prompt=prompt,
            lines=lines,
            changes=changes,
        )
        for k in range(len(trace.latents))
    )


def sigma_line(sigmas: Any) -> Line:
    """The noise level before each step."""
    return Line("noise level σ", "σ", range(len(sigmas)), listed(np.asarray(sigmas).tolist()))


def puzzle_plane(
    puzzle: Puzzle,
    x0: UInt8[np.ndarray, "S F H W 3"],
    mass: Float[np.ndarray, "S A"],
    *,
    lines: Sequence[Line],
    sampling: Sampling,
    kind: str = "answer",
    **about: Any,
) -> Plane:
    """Return a run that solves a puzzle, with every step.

    mass: on its right answers, as far as they were measured; of fewer there is no chart. lines:
    further ones. kind: what an answer is called. about: further fields of the `Plane`.
    """
    steps, routes = range(len(x0)), TASKS[puzzle.task].routes(puzzle)
    lines, drawn = [sigma_line(flow.schedule(sampling).sigmas[:-1]), *lines], {}
    if 1 < len(routes) <= mass.shape[1]:
        shown, drawn = answer_lines(steps, mass[:, : len(routes)], routes[:, -1], kind)
        lines += shown
    fixed = {"prompt": puzzle.prompt, "reference": routes[0], "answers": drawn}
    return Plane(steps=steps, x0=x0, lines=lines, **fixed, **about)


def answer_lines(
    steps: Sequence[int],
    mass: Float[np.ndarray, "S K"],
    pictures: UInt8[np.ndarray, "K H W 3"],
    kind: str = "answer",
) -> tuple[list[Line], dict[str, UInt8[np.ndarray, "H W 3"]]]:
    """Return the mass on each right answer as lines, that which is strongest at the end first, then
    by their mass at the beginning; and their pictures by the same names. The last of many answers
    share a line."""
    mass = np.nan_to_num(mass)
    taken = int(mass[-1].argmax())
    order = [taken, *(k for k in (-mass[0]).argsort(kind="stable").tolist() if k != taken)]
    names = [f"{kind} {i + 1}" for i in range(len(order))]
    lines = [
        Line(MASS, name, steps, listed(mass[:, k].tolist()))
        for name, k in zip(names[:HUES], order, strict=False)
    ]
    if rest := order[HUES:]:
        lines.append(Line(MASS, f"{len(rest)} more", steps, listed(mass[:, rest].sum(1).tolist())))
    return lines, {n: pictures[k] for n, k in zip(names[:HUES], order, strict=False)}


def telling(lines: Sequence[Line], solved: bool | None) -> tuple[bool, bool, int]:
    """Return how much a run shows, to be compared: whether several answers are held at first,
    whether it ends on one, and at which step the last one took over."""
    shares = np.array([line.values for line in lines if line.chart == MASS], np.float64)
    if len(shares) < 2:
        return False, bool(solved), 0
    shares = np.nan_to_num(shares) / np.maximum(np.nan_to_num(shares).sum(0), 1e-9)
    held = int((shares[:, 0] >= HELD).sum())
    undecided = np.flatnonzero(shares[shares[:, -1].argmax()] < COMMITTED)
    return held > 1, bool(solved), int(undecided[-1]) + 1 if len(undecided) else 0


def _rms(a: UInt8[np.ndarray, "F H W 3"], b: UInt8[np.ndarray, "F H W 3"]) -> float:
    """Return the mean distance of frames, 0..1 of the colours' range."""
    return float(np.sqrt(np.mean(np.square(a.astype(np.float32) - b), axis=(1, 2, 3))).mean()) / 255
