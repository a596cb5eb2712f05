"""Pairs of puzzles that differ in one thing: a swap between their runs can flip an answer."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from jcos.experiments.answers import Answers, answers_of
from jcos.experiments.samples import SEARCHED
from jcos.lab.tasks import Puzzle, Task, get
from jcos.lab.tasks.returns import MODES, Outcome
from jcos.lab.tasks.tictactoe import MOVER, OTHER, winning_cells
from jcos.wan import Wan

TRIES = 10_000
"""Puzzles drawn in search of one that fits another's scene."""


class Pair(NamedTuple):
    """Two puzzles that differ in one thing, named by `kind`.

    puzzles: the receiver's and the donor's. crossed: the same scenes, each with the other's
    answers: what a run shows that has taken over the other's answer. The receiver's puzzle is held
    out; the donor's may be any.
    """

    kind: str
    puzzles: tuple[Puzzle, Puzzle]
    crossed: tuple[Puzzle, Puzzle]


def _other_angle(puzzle: Puzzle, rng: np.random.Generator) -> Puzzle | None:
    """Same picture; the prompt asks for an angle that ends in another pose."""

    def fits(other: Puzzle) -> bool:
        apart = other.answers[0] - puzzle.answers[0]
        return other.scene.mirrored == puzzle.scene.mirrored and apart % 4 != 0

    other = _drawn(get("rotation"), rng, fits)
    return dataclasses.replace(puzzle, prompt=other.prompt, answers=other.answers)


def _other_mover(puzzle: Puzzle, rng: np.random.Generator) -> Puzzle | None:
    """Same board; the prompt names the other colour, which can win too. None where it cannot."""
    colours, mover = puzzle.scene.colours, puzzle.scene.mover
    board = tuple(0 if c is None else OTHER if c == mover else MOVER for c in colours)
    cells = winning_cells(board, MOVER)
    if not cells or board.count(MOVER) != board.count(OTHER):
        return None
    other = _drawn(get("tictactoe"), rng, lambda other: other.scene.mover != mover)
    scene = puzzle.scene._replace(mover=other.scene.mover)
    answers = tuple(divmod(cell, 3) for cell in cells)
    return dataclasses.replace(puzzle, prompt=other.prompt, scene=scene, answers=answers)


def _other_way(puzzle: Puzzle, rng: np.random.Generator) -> Puzzle | None:
    """Same picture; the prompt lets the object come out on the other side."""
    (answer,) = puzzle.answers
    (mode,) = set(MODES) - {answer.mode}
    answers = (Outcome(answer.thing, mode),)
    return dataclasses.replace(puzzle, prompt=MODES[mode], answers=answers)


def _other_object(puzzle: Puzzle, rng: np.random.Generator) -> Puzzle | None:
    """Same prompt; another object goes behind the block, of another colour and shape."""
    (answer,) = puzzle.answers

    def fits(other: Puzzle) -> bool:
        return all(a != b for a, b in zip(other.scene.thing, answer.thing, strict=True))

    thing = _drawn(get("returns"), rng, fits).scene.thing
    scene = puzzle.scene._replace(thing=thing)
    return dataclasses.replace(puzzle, scene=scene, answers=(Outcome(thing, answer.mode),))


def _other_size(puzzle: Puzzle, rng: np.random.Generator) -> Puzzle | None:
    """Same prompt, slots and colours; two sizes change places, one of them the asked one."""
    scene, (answer,) = puzzle.scene, puzzle.answers

    def fits(other: Puzzle) -> bool:
        moved = sum(a != b for a, b in zip(scene.sides, other.scene.sides, strict=True))
        same = other.scene._replace(sides=scene.sides) == scene
        return same and moved == 2 and other.answers[0].side != answer.side

    return _drawn(get("pattern"), rng, fits)


PARTNERS: dict[str, tuple[str, Callable[[Puzzle, np.random.Generator], Puzzle | None]]] = {
    "rotation, other angle": ("rotation", _other_angle),
    "tictactoe, other mover": ("tictactoe", _other_mover),
    "returns, other way": ("returns", _other_way),
    "returns, other object": ("returns", _other_object),
    "pattern, other size": ("pattern", _other_size),
}
"""What the two of a pair differ in, the task, and how a puzzle gets its partner. In the first three
the pictures are the same and the prompts differ; in the others it is the pictures."""


def pairs_of(task: str, n: int, seed: int = 0) -> list[Pair]:
    """Return n pairs of each kind that a task has, the receiver's puzzles held out.

    Raises ValueError for a task without any.
    """
    kinds = {kind: partner for kind, (name, partner) in PARTNERS.items() if name == task}
    if not kinds:
        known = ", ".join(dict.fromkeys(name for name, _ in PARTNERS.values()))
        raise ValueError(f"{task} has no pairs that differ in one thing; the tasks are {known}")
    return [pair for kind in kinds for pair in _pairs(kind, n, seed)]


def _pairs(kind: str, n: int, seed: int) -> list[Pair]:
    name, partner = PARTNERS[kind]
    pairs: list[Pair] = []
    for i in range(SEARCHED * n):
        puzzle = get(name).sample((seed, i), "test")
        donor = partner(puzzle, np.random.default_rng((seed, i)))
        if donor is not None:
            crossed = _crossed(puzzle, donor), _crossed(donor, puzzle)
            pairs.append(Pair(kind, (puzzle, donor), crossed))
        if len(pairs) == n:
            return pairs
    raise ValueError(f"there are {len(pairs)} pairs of {kind}; {n} are asked for: take fewer")


def _crossed(puzzle: Puzzle, other: Puzzle) -> Puzzle:
    """Return the puzzle's scene with the other's answers. Where the pictures are the same that is
    the other puzzle itself (the scene of tic-tac-toe names the mover)."""
    task = get(puzzle.task)
    same = (task.first_frame(puzzle) == task.first_frame(other)).all()
    return other if same else dataclasses.replace(puzzle, answers=other.answers)


def _drawn(task: Task, rng: np.random.Generator, fits: Callable[[Puzzle], bool]) -> Puzzle:
    for _ in range(TRIES):
        puzzle = task.make(rng)
        if fits(puzzle):
            return puzzle
    raise ValueError(f"no puzzle of {task.name} that fits among {TRIES}")


def candidates(model: Wan, pairs: Sequence[Pair]) -> Answers:
    """Return the answers of each pair and world [P, W = 2]: a world's are the right ones, the
    other's in the same scene the wrong ones."""
    room = max(len(puzzle.answers) for pair in pairs for puzzle in (*pair.puzzles, *pair.crossed))
    worlds = []
    for w in (0, 1):
        mine, other = (
            answers_of(model, puzzles, room=room)
            for puzzles in ([p.puzzles[w] for p in pairs], [p.crossed[w] for p in pairs])
        )
        none = np.zeros_like(mine.right)
        latents = np.concatenate([mine.latents, other.latents], 1)
        right, wrong = ([mine.right, none], [none, other.right])
        worlds.append(Answers(latents, np.concatenate(right, 1), np.concatenate(wrong, 1)))
    return Answers(*(np.stack(sides, 1) for sides in zip(*worlds, strict=True)))


def object_tokens(model: Wan, answers: Answers) -> Bool[np.ndarray, "P N"]:
    """Return which tokens show anything that the answers of a pair differ in, in the receiver's
    scene."""
    known = np.asarray(answers.right | answers.wrong)[:, 0]
    latents = np.asarray(answers.latents)[:, 0]
    # The room that is left is filled with the first answer, which differs from none.
    latents = np.where(known[..., None, None, None, None], latents, latents[:, :1])
    differs = latents.max(1) - latents.min(1) > 1e-4
    patches = jax.vmap(model.experts[0].patchify)(jnp.asarray(differs, jnp.float32))
    return np.asarray((patches > 0).any(-1))
