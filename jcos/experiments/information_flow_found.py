"""What follows from pairs of a clean and a perturbed run: the table of `information_flow.py`."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from jcos.experiments.experiment import Row, row
from jcos.experiments.noise_found import Case
from jcos.experiments.samples import Samples
from jcos.lab.measures import UNBOUNDED, estimate, median_step

AT, ON, END = "at that step", "from there on", "at the end"
"""When a perturbation is looked at: where it is put in, on average over that and all later steps,
in the last step."""
SOURCES = {"tokens": "tokens", "x0": "x̂0", "ideal": "x̂0 of the ideal denoiser"}


AXES = {
    "tokens": "case puzzle seed step layer part: 1 − CKA of tokens",
    "reach": f"case puzzle seed: 1 − CKA of tokens, {ON}",
    "x0": "case puzzle seed step part: 1 − CKA of x̂0",
    "ideal": "case puzzle seed step part: 1 − CKA of the ideal denoiser's x̂0",
    "solved": "case puzzle seed",
    "agreed": "case puzzle seed: same answer as the clean run",
    "part": "part",
    "step": "case",
    "frame": "case",
    "own": "case",
    "task": "puzzle",
}
"""Of the arrays below (`Experiment.axes`)."""


@dataclasses.dataclass
class Found:
    """1 − CKA between clean and perturbed runs of Q cases, P samples, K seeds, S observed steps, L
    layers; the last axis: of all tokens, then without those of each frame.

    forwards: passes of a pair of runs. solved, agreed: of the perturbed run, and with the choice of
    the clean one (nan where that cannot be told).
    """

    cases: list[Case]
    samples: Samples
    forwards: int
    tokens: Float[np.ndarray, "Q P K S L G"]
    x0: Float[np.ndarray, "Q P K S G"]
    ideal: Float[np.ndarray, "Q P K S G"] | None
    solved: Bool[np.ndarray, "Q P K"] | None
    agreed: Float[np.ndarray, "Q P K"] | None

    @property
    def sources(self) -> list[str]:
        """What was compared."""
        return [name for name in SOURCES if getattr(self, name) is not None]

    def where(self, kind: str, *, own: bool = False) -> list[int]:
        """Numbers of the cases of a kind."""
        return [i for i, c in enumerate(self.cases) if c.kind == kind and c.own is own]

    def steps(self, cases: list[int]) -> list[int]:
        """The steps of those cases."""
        return [self.cases[c].step or 0 for c in cases]

    def seen(self, source: str, case: int, without: int | None = None) -> np.ndarray:
        """[P, K, S] (tokens: mean over layers), by all tokens, or by those outside a frame. By
        default, that is the frame of the noise."""
        frame = self.cases[case].frame if without is None else without
        values = getattr(self, source)[case][..., 0 if frame is None else 1 + frame]
        return np.asarray(values.mean(-1) if source == "tokens" else values, np.float64)

    def reading(
        self, source: str, case: int, when: str, without: int | None = None
    ) -> Float[np.ndarray, "P K"]:
        """How far a case reaches, as seen at that step, from there on, or at the end."""
        return self.seen(source, case, without)[..., self._window(case, when)].mean(-1)

    def _window(self, case: int, when: str) -> slice:
        """The observed steps of a reading."""
        first = self.cases[case].step or 0
        return {AT: slice(first, first + 1), ON: slice(first, None), END: slice(-1, None)}[when]

    def triangle(self, source: str, cases: list[int]) -> Float[np.ndarray, "cases S"]:
        """Noised step × observed step, nan before the noise."""
        rows = np.stack([self.seen(source, c).mean((0, 1)) for c in cases])
        before = np.arange(rows.shape[1]) < np.array(self.steps(cases))[:, None]
        return np.where(before, np.nan, rows)

    def by_layer(self, cases: list[int], when: str) -> Float[np.ndarray, "cases P K L"]:
        """How far each case reaches in each layer."""
        every = self.tokens[..., 0].astype(np.float64)
        return np.stack([every[c][:, :, self._window(c, when)].mean(2) for c in cases])

    def layers_over_steps(self, cases: list[int]) -> Float[np.ndarray, "L S"]:
        """Layer × observed step, the mean of the cases whose noise is in by then."""
        after = np.array(self.steps(cases))[:, None] <= np.arange(self.tokens.shape[3])
        mean = self.tokens[cases][..., 0].astype(np.float64).mean((1, 2))
        total = np.einsum("qs,qsl->ls", after, mean)
        with np.errstate(invalid="ignore"):
            return total / after.sum(0)

    def arrays(self) -> dict[str, np.ndarray]:
        frames = self.x0.shape[-1] - 1
        reach = [self.reading("tokens", i, ON) for i in range(len(self.cases))]
        found = {
            "reach": np.stack(reach).astype(np.float32),
            "case": np.array([str(c) for c in self.cases]),
            "step": np.array([-1 if c.step is None else c.step for c in self.cases]),
            "frame": np.array([-1 if c.frame is None else c.frame for c in self.cases]),
            "own": np.array([c.own for c in self.cases]),
            "part": np.array(["all", *(f"without frame {f}" for f in range(frames))]),
            "task": np.array(self.samples.tasks),
            "several": self.samples.several,
        }
        measured = (*SOURCES, "solved", "agreed")
        known = {k: getattr(self, k) for k in measured if getattr(self, k) is not None}
        return found | known

    def rows(self) -> Iterator[Row]:
        for task, p in self.samples.groups.items():
            for source in self.sources:
                yield from self._reaches(task, source, p)
            yield from self._layers(task, p)
            yield from self._greatest(task, p)
            yield from self._frames_less_steps(task, p)
            yield from self._outcomes(task, p)

    def _row(
        self, task: str, source: str, about: str, case: object, values: Shaped[np.ndarray, "P K"]
    ) -> Row:
        forwards = 0 if source == "ideal" else self.forwards
        return row(
            task, f"1 − CKA of {SOURCES[source]}, {about}", case, values, forwards, span=UNBOUNDED
        )

    def _reaches(self, task: str, source: str, p: Int[np.ndarray, " n"]) -> Iterator[Row]:
        for when in (AT, ON, END):
            for i, case in enumerate(self.cases):
                if case.frame is None or when != AT:
                    yield self._row(task, source, when, case, self.reading(source, i, when)[p])

    def _layers(self, task: str, p: Int[np.ndarray, " n"]) -> Iterator[Row]:
        """Of each layer, over all noised steps."""
        for own, kind in ((False, "noise at a step"), (True, "noise at a step, at its own level")):
            cases = self.where("step", own=own)
            for when in (ON, END) if cases else ():
                values = self.by_layer(cases, when).mean(0)[p]
                for layer in range(values.shape[-1]):
                    about = f"layer {layer}, {kind}"
                    yield self._row(task, "tokens", when, about, values[..., layer])

    def _greatest(self, task: str, p: Int[np.ndarray, " n"]) -> Iterator[Row]:
        """Puzzle by puzzle, the step at which noise reaches farthest."""
        for own, kind in ((False, "replaced"), (True, "at its own level")):
            cases = self.where("step", own=own)
            for when in (ON, END) if len(cases) > 1 else ():
                reach = np.stack([self.reading("tokens", c, when)[p].mean(1) for c in cases])
                steps = np.array(self.steps(cases))[reach.argmax(0)].astype(np.float64)
                middle = median_step(steps, self.tokens.shape[3])
                yield row(
                    task, f"step of farthest reach, median, {when}", kind, middle, self.forwards
                )

    def _frames_less_steps(self, task: str, p: Int[np.ndarray, " n"]) -> Iterator[Row]:
        """Noise at a frame less noise at a step, puzzle by puzzle, both seen by the tokens outside
        that frame; each averaged over its positions."""
        frames, steps = self.where("frame"), self.where("step")
        for source in self.sources if frames and steps else ():
            for when in (ON, END):
                less = self.compared(source, frames, when) - self.compared(source, steps, when)
                about = f"{when}, by other frames"
                yield self._row(task, source, about, "at a frame less at a step", less[p])

    def compared(self, source: str, cases: list[int], when: str) -> Float[np.ndarray, "P K"]:
        """The mean reach of cases by the tokens outside a frame: the noisy one, or, of noise at a
        step, each of those that are noised elsewhere, in turn."""
        left_out = [self.cases[c].frame for c in self.where("frame")]
        found = [
            self.reading(source, c, when, f)
            for c in cases
            for f in (left_out if self.cases[c].frame is None else [self.cases[c].frame])
        ]
        return np.mean(found, axis=0)

    def _outcomes(self, task: str, p: Int[np.ndarray, " n"]) -> Iterator[Row]:
        if self.solved is None or self.agreed is None:
            return
        base = self.samples.baselines()[task, "solved"]
        for i, case in enumerate(self.cases):
            if case.kind == "step":  # a noised frame ends as noise: nothing is solved
                solved, agreed = self.solved[i, p], self.agreed[i, p]
                yield row(task, "solved", case, solved, self.forwards // 2, base)
                yield row(task, "agreement", case, agreed, self.forwards)
        for same, name in ((1, "same answer"), (0, "another answer")):
            for own, kind in ((False, "replaced"), (True, "at its own level")):
                cases = self.where("step", own=own)
                if cases:
                    reach = np.stack([self.reading("tokens", c, END)[p] for c in cases])
                    known = np.where(self.agreed[cases][:, p] == same, reach, np.nan)
                    flat = np.moveaxis(known, 0, -1).reshape(len(p), -1)
                    found = estimate(flat, UNBOUNDED)
                    about = f"1 − CKA of tokens, {END}, {name}"
                    yield row(task, about, f"all steps, {kind}", found, self.forwards)
