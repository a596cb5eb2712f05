"""What follows from the choices at every step: the table of `behaviour.py`."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8

from jcos.experiments.answers import Answers, chosen
from jcos.experiments.behaviour_memory import LABELS, PLACES, Memory
from jcos.experiments.experiment import Row, looked_at, row
from jcos.experiments.samples import GUESSES, Baseline, Samples
from jcos.experiments.watching import Seen
from jcos.lab.measures import POSITIVE, SCORES, UNBOUNDED, commitment_step, estimate, median_step
from jcos.lab.tasks import TASKS, Puzzle, still_of
from jcos.lab.tasks.marks import OPAQUE, apart

GATES: dict[str, tuple[str, ...]] = {
    "maze": ("scene", "agent", "goal"),
    "maze7": ("scene", "agent", "goal"),
    "tictactoe": ("scene",),
    "tictactoe-block": ("scene",),
    "pattern": ("kept", "empty"),
    "rotation": ("colour",),
    "returns": ("bystander", "hidden"),
    "bounce": ("room", "one", "whole", "colour"),
    "bounce-hard": ("room", "one", "whole", "colour"),
}
"""Which gates of a task's judge are about the scene: what the first frame shows is kept, and there
are as many objects as there should be. The others are about how the answer comes about."""
SHOWN = 0.5
"""An estimate shows a candidate that makes up more than this of it."""
COMMON = 64
"""Random legal answers of a puzzle that tell which pixels no answer changes."""
STRAY = 0.01
"""Of a frame, so many pixels may be wrong where the scene is right: half of what the smallest
object covers."""


class Judged(NamedTuple):
    """Of each video: solved; answer: that alone, at the task's bar, whatever the scene. scene: all
    of the first frame that no answer changes is there, in every frame. gates: the judge's gates
    about the scene pass the bar; a blend of answers fails them where it blurs an object, so they
    are not independent of the answer."""

    solved: Bool[np.ndarray, "P *axes"]
    answer: Bool[np.ndarray, "P *axes"]
    scene: Bool[np.ndarray, "P *axes"]
    gates: Bool[np.ndarray, "P *axes"]


def judge_parts(puzzles: Sequence[Puzzle], videos: UInt8[np.ndarray, "P *axes F H W 3"]) -> Judged:
    """`Judged` of videos, each by its puzzle's task."""
    axes = videos.shape[:-4]
    rows = videos.reshape(len(puzzles), -1, *videos.shape[-4:])
    found = []
    for puzzle, of_puzzle in zip(puzzles, rows, strict=True):
        task, first = TASKS[puzzle.task], TASKS[puzzle.task].first_frame(puzzle)[None]
        same = common(puzzle)
        for video in of_puzzle:
            score = task.score(puzzle, video)
            stray = ((apart(video, first) > OPAQUE) & same).mean((1, 2)).max()
            gate = min(score.gates[name] for name in GATES[puzzle.task])
            bar = task.solved_at
            found.append((score.solved, score.answer >= bar, stray <= STRAY, gate >= bar))
    return Judged(*np.moveaxis(np.array(found, bool).reshape(*axes, 4), -1, 0))


def common(puzzle: Puzzle) -> Bool[np.ndarray, "F H W"]:
    """The pixels that stay as they are in the first frame whatever the answer, right or wrong."""
    task, rng = TASKS[puzzle.task], np.random.default_rng(0)
    drawn = [task.draw(puzzle, task.guess(puzzle, rng)) for _ in range(COMMON)]
    videos = np.stack([*task.routes(puzzle), *drawn])
    return (videos == videos[:1, :1]).all((0, -1))


def baselines(samples: Samples) -> dict[tuple[str, str], Baseline]:
    """By task and field of `Judged`, of random legal answers and of the first frame held."""
    rng, found = np.random.default_rng(0), {}
    for name, rows in samples.groups.items():
        task, puzzles = TASKS[name], [samples.puzzles[i] for i in rows]
        again = -(-GUESSES // len(puzzles))
        guessed = [[task.draw(p, task.guess(p, rng)) for _ in range(again)] for p in puzzles]
        stills = [still_of(task.draw(p, p.answers[0])) for p in puzzles]
        chance, still = (judge_parts(puzzles, np.array(v)) for v in (guessed, stills))
        for field in Judged._fields:
            found[name, field] = Baseline(
                float(getattr(chance, field).mean()), float(getattr(still, field).mean())
            )
    return found


class Shown(NamedTuple):
    """Which candidate each estimate shows, if any: the one that the run ends with, another right
    one, a wrong one. All false where it shows none."""

    last: Bool[np.ndarray, "P K S"]
    other: Bool[np.ndarray, "P K S"]
    wrong: Bool[np.ndarray, "P K S"]


def shown(on: Float[np.ndarray, "P K S A"], answers: Answers) -> Shown:
    """`Shown` of blends; the right answer with most mass at the last step is what a run ends
    with."""
    taken = chosen(on[:, :, -1], answers)[:, :, None]
    leader, clear = on.argmax(-1), on.max(-1) > SHOWN

    def kind(which: Bool[np.ndarray, "P A"]) -> Bool[np.ndarray, "P K S"]:
        return clear & np.stack([w[at] for w, at in zip(which, leader, strict=True)])

    right = kind(np.asarray(answers.right))
    return Shown(
        right & (leader == taken), right & (leader != taken), kind(np.asarray(answers.wrong))
    )


@dataclasses.dataclass
class Course:
    """The runs of one denoiser: what it judged and shown at every step, and what follows."""

    judged: Judged
    shown: Shown

    def __post_init__(self) -> None:
        self.solved = self.judged.solved
        self.steps = self.solved.shape[-1]
        self.end = self.solved[..., -1:]
        self.solved_step = commitment_step(self.solved)
        self.scene_step = commitment_step(self.judged.scene)
        self.answer_step = commitment_step(self.judged.answer)

    def readings(self) -> dict[str, Shaped[np.ndarray, "P K S"]]:
        """By step; nan where a run cannot tell."""
        now, end = self.solved, np.broadcast_to(self.end, self.solved.shape)
        return {
            "solved": now,
            "scene right": self.judged.scene,
            "answer right": self.judged.answer,
            "scene's gates": self.judged.gates,
            "wrong now, right at the end": ~now & end,
            "right now, wrong at the end": now & ~end,
            "right at the end, of those wrong now": np.where(now, np.nan, end),
            "wrong at the end, of those right now": np.where(now, ~end, np.nan),
            "shows the answer it ends with": self.shown.last,
            "shows another right answer": self.shown.other,
            "shows a wrong answer": self.shown.wrong,
            "shows a wrong answer, right at the end": self.shown.wrong & end,
        }

    def of_runs(self) -> dict[str, Shaped[np.ndarray, "P K"]]:
        """One number for each run; nan where it cannot tell."""
        good, start = self.end[..., 0], self.solved[..., 0]
        lost = (self.solved[..., :-1] & ~self.solved[..., 1:]).sum(-1)
        both = (self.scene_step < self.steps) & (self.answer_step < self.steps)
        later = self.answer_step - self.scene_step
        return {
            "corrected: wrong at step 0, right at the end": ~start & good,
            "spoiled: right at any step, wrong at the end": self.solved.any(-1) & ~good,
            "times lost again, of runs right at the end": _known(good, lost),
            "shows a wrong answer at any step, right at the end": self.shown.wrong.any(-1) & good,
            "step of correction": _known(good & ~start, self.solved_step),
            "step of the scene": _known(both, self.scene_step),
            "step of the answer": _known(both, self.answer_step),
            "answer later than the scene, steps": _known(both, later),
            "scene first": _known(both, later > 0),
            "scene and answer at once": _known(both, later == 0),
            "answer first": _known(both, later < 0),
        }


BASELINES = {
    "solved": "solved",
    "scene right": "scene",
    "answer right": "answer",
    "scene's gates": "gates",
}
MEDIANS = ("step of correction", "step of the scene", "step of the answer")
"""Readings whose median over puzzles stands in the table, a puzzle's seeds as their median; of the
others it is the mean."""


SPANS = {
    "times lost again, of runs right at the end": POSITIVE,
    "answer later than the scene, steps": UNBOUNDED,
}
"""What readings of a run lie within, where that is not 0..1."""


AXES = {
    "memory_tokens": "puzzle seed step@memory_steps layer place label control: memory in tokens",
    "memory_estimate": "puzzle seed step@memory_steps place label control: memory in x̂0",
    "place": "place",
    "label": "label",
    "control": "control",
}
"""Of the arrays below (`Experiment.axes`)."""


@dataclasses.dataclass
class Found:
    """All that was seen of P puzzles × K seeds × S steps, of the model and of the ideal denoiser
    from the same noise; memory: where it was asked for. forwards: passes of the first so many
    steps."""

    forwards: Callable[[int], int]
    samples: Samples
    model: Course
    ideal: Course
    memory: Memory | None

    @property
    def courses(self) -> dict[str, Course]:
        return {"": self.model, ", ideal denoiser": self.ideal}

    @property
    def looked(self) -> list[int]:
        return looked_at(self.model.steps, 5)

    def arrays(self) -> dict[str, np.ndarray]:
        found = {"task": np.array(self.samples.tasks), "several": self.samples.several}
        for name, course in (("", self.model), ("ideal_", self.ideal)):
            for part in (course.judged, course.shown):
                found |= {f"{name}{k}": v for k, v in part._asdict().items()}
        if self.memory is not None:
            found |= {f"memory_{k}": v for k, v in self.memory._asdict().items()}
            found |= {"place": np.array(PLACES), "label": np.array(list(LABELS))}
            found["control"] = np.array(["own labels", "shuffled labels"])
        return found

    def rows(self) -> Iterator[Row]:
        known = baselines(self.samples)
        for task, p in self.samples.groups.items():
            for whose, course in self.courses.items():
                for measure, values in course.readings().items():
                    base = known.get((task, BASELINES.get(measure, "")))
                    for s in self.looked:
                        cost = 0 if whose else self.forwards(s + 1)
                        case = f"step {s}{whose}"
                        found = estimate(values[p, :, s])
                        if found.n:
                            yield row(task, measure, case, found, cost, None if whose else base)
                cost = 0 if whose else self.forwards(course.steps)
                case = "ideal denoiser" if whose else "model"
                for measure, values in course.of_runs().items():
                    yield from _of_runs(task, measure, case, values[p], course.steps, cost)
        if self.memory is not None:
            yield from self._memory(self.memory)

    def _memory(self, memory: Memory) -> Iterator[Row]:
        for y, label in enumerate(LABELS):
            measure = f"{label} of the hidden object read off"
            for j, place in enumerate(PLACES):
                for i, s in enumerate(memory.steps.tolist()):
                    read = {
                        f"layer {layer}": memory.tokens[:, :, i, layer, j, y]
                        for layer in range(memory.tokens.shape[3])
                    }
                    read["x̂0"] = memory.estimate[:, :, i, j, y]
                    for what, values in read.items():
                        for c, control in enumerate(("", ", shuffled labels")):
                            case = f"{place}, step {s}, {what}{control}"
                            found = memory.estimate_of(values[..., c])
                            cost = self.forwards(s + 1)
                            yield _chance(row("returns", measure, case, found, cost), y)
                found = memory.estimate_of(memory.ideal[:, j, y, 0])
                case = f"{place}, x̂0 of the ideal denoiser"
                yield _chance(row("returns", measure, case, found, 0), y)


def _chance(line: Row, label: int) -> Row:
    return line._replace(chance=1 / len(list(LABELS.values())[label]))


def _of_runs(
    task: str,
    measure: str,
    case: str,
    values: Shaped[np.ndarray, "n K"],
    steps: int,
    cost: int,
) -> Iterator[Row]:
    """The line of a reading; none where no run can tell."""
    if measure in MEDIANS:
        rows = [v[np.isfinite(v)] for v in values]
        middle = np.array([np.median(v) for v in rows if len(v)])
        if len(middle):
            found = median_step(middle, steps)
            yield row(task, f"{measure}, median", case, found, cost)
    else:
        found = estimate(values, SPANS.get(measure, SCORES))
        if found.n:
            yield row(task, measure, case, found, cost)


def _known(mask: Bool[np.ndarray, "P K"], values: Shaped[np.ndarray, "P K"]) -> np.ndarray:
    """The values as numbers, nan where the mask is off."""
    return np.where(mask, values, np.nan)


def courses(samples: Samples, answers: Answers, seen: Seen) -> tuple[Course, Course]:
    """Of the model and of the ideal denoiser, from what was seen [P, K, S, …]."""
    return (
        Course(judge_parts(samples.puzzles, seen.video), shown(seen.on, answers)),
        Course(judge_parts(samples.puzzles, seen.ideal_video), shown(seen.ideal_run_on, answers)),
    )
