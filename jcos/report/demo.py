"""What the demo page shows, as plain data, for `page.write_demo`.

Steps and frames are counted from 0 everywhere. A number that was not measured is None or nan and
leaves a hole in its figure; a figure without data is left out of the page.
"""

import dataclasses
from collections.abc import Mapping, Sequence, Sized

import numpy as np
from jaxtyping import Float, UInt8

from jcos.report.plane import Plane

Number = float | None


def _same_length(owner: str, **parts: Sized | None) -> None:
    """Raises ValueError unless all parts that are not None are equally long."""
    lengths = {name: len(part) for name, part in parts.items() if part is not None}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} has {n}" for name, n in lengths.items())
        raise ValueError(f"{owner}: these must be equally long, but {told}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One puzzle, watched along the denoising steps.

    task, about, prompt: name of the task, a sentence about it, what the model was told.
    seed: which puzzle and which noise this is and how it was chosen, in words.
    steps: the denoising steps that are shown, ascending.
    x0: the decoded clean estimate at those steps.
    video: the final video. reference: one right answer.
    scores: score of x0 at the shown steps, 0..1. solved: whether the final video is right.
    mass: how much of x0 lies on each of the puzzle's K right answers, 0..1 (`lab.measures`).
        off: how much lies on none, 0..1; all of it sums to 1.
    mass_steps: the steps that the rows of `mass` and `off` belong to; by default the shown steps if
        there are as many, and otherwise 0, 1, 2, ...
    answers: the K right answers, in the order of `mass`.
    """

    task: str
    about: str
    prompt: str
    seed: str
    steps: Sequence[int]
    x0: UInt8[np.ndarray, "shown F H W 3"]
    video: UInt8[np.ndarray, "F H W 3"]
    reference: UInt8[np.ndarray, "F H W 3"]
    scores: Sequence[Number]
    solved: bool
    mass: Float[np.ndarray, "S K"] | None = None
    off: Float[np.ndarray, "S"] | None = None
    mass_steps: Sequence[int] | None = None
    answers: UInt8[np.ndarray, "K F H W 3"] | None = None

    def __post_init__(self) -> None:
        owner = f"the example of {self.task!r}"
        if not len(self.steps):
            raise ValueError(f"{owner} shows no step; give at least one")
        if list(self.steps) != sorted(set(self.steps)):
            raise ValueError(f"{owner}: the steps {list(self.steps)} are not ascending")
        _same_length(owner, steps=self.steps, x0=self.x0, scores=self.scores)
        _same_length(owner, mass=self.mass, off=self.off, mass_steps=self.mass_steps)
        if self.mass is not None:
            _same_length(owner, answers=self.answers, **{"mass[0]": self.mass.T})
        clips = {"x0": self.x0[0], "video": self.video, "reference": self.reference}
        shapes = {name: clip.shape for name, clip in clips.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"{owner}: the videos have different shapes, {shapes}")

    @property
    def rows_of_mass(self) -> list[int]:
        """The denoising step of each row of `mass`; empty if there is no mass."""
        if self.mass is None:
            return []
        if self.mass_steps is not None:
            return list(self.mass_steps)
        return list(self.steps if len(self.mass) == len(self.steps) else range(len(self.mass)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """A measured curve. low, high: ends of the interval at each x. n: puzzles behind each point."""

    label: str
    x: Sequence[float]
    y: Sequence[Number]
    low: Sequence[Number] | None = None
    high: Sequence[Number] | None = None
    n: int | None = None

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise ValueError(f"the curve {self.label!r} has one end of its interval; give both")
        _same_length(f"the curve {self.label!r}", x=self.x, y=self.y, low=self.low, high=self.high)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """One way to run the model, and how it compares with the plain run on the same n puzzles.

    solved: fraction 0..1, with the ends of its interval. difference: fraction solved here less
        fraction solved by the plain run, paired by puzzle, with the ends of its interval; None for
        the plain run itself.
    """

    label: str
    solved: Number
    low: Number
    high: Number
    n: int
    difference: Number = None
    difference_low: Number = None
    difference_high: Number = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo:
    """All that the page shows.

    examples: the first is the large one at the top, the others make the gallery.
    planes: runs whose every step can be moved through.
    solved_by_step: fraction that the clean estimate of each step solves; a curve for each task or
        group.
    route_mass: means over mazes with several routes: mass on the route finally taken, on the other
        routes, off all routes; in this order.
    noise_steps, noise_frames: score against the step at which noise is put into all frames, and
        against the frame into which noise is put at all steps. noise_baseline: without noise.
    ensemble: the plain run first, then the ways to average over seeds.
    settings: model, steps, shift, solver, seeds, versions, date, hardware, seconds ...
    command: repeats it all. interval: what the intervals are.
    """

    examples: Sequence[Example]
    planes: Sequence[Plane] = ()
    solved_by_step: Sequence[Curve] = ()
    route_mass: Sequence[Curve] = ()
    noise_steps: Curve | None = None
    noise_frames: Curve | None = None
    noise_baseline: Number = None
    ensemble: Sequence[Comparison] = ()
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    command: str = "jcos demo"
    interval: str = "95% confidence intervals over puzzles"

    def __post_init__(self) -> None:
        if not self.examples:
            raise ValueError("a demo needs at least one example; the first one is shown large")
