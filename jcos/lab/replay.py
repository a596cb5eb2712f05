"""What a search would have chosen among runs that were made to the end."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from jcos.lab.methods import Method, Population


def replay(
    method: Method, scores: Mapping[str, Float[np.ndarray, "W N S"]], passes: int = 1
) -> tuple[Int[np.ndarray, " W"], Int[np.ndarray, " W"]]:
    """Return whom a method would choose among N runs that were made to the end, by position, and
    how many forwards it would have taken.

    scores: of every run after every step, by judge. passes: of a step. Without copies and noise a
    run does not depend on the others, so this is what `run` does. Raises ValueError where the
    method makes copies, or needs more runs than there are.
    """
    ((worlds, runs, steps),) = {a.shape for a in scores.values()}
    if method.eta or method.spread != 1 or any(row.count > row.keep for row in method.rows):
        raise ValueError("a method that draws noise or makes copies cannot be replayed")
    need = method.seeds * (1 + max((row.tries for row in method.rows), default=0))
    if need > runs:
        raise ValueError(f"the method may need {need} seeds; {runs} runs were made")
    people = Population(worlds, method.seeds, range(worlds))
    index = np.tile(np.arange(method.seeds), (worlds, 1))
    each, forwards, step = np.arange(worlds)[:, None], np.zeros(worlds, int), -1
    for number, row in enumerate(method.rows):
        at = row.at(steps)
        forwards += passes * (at - step) * people.alive.sum(1)
        step, read = at, scores[row.judge][each, index, at]
        while (lacking := people.lacking(row, read)).any():
            fresh = people.begun[:, None] + np.arange(method.seeds)
            people.begin(lacking)
            alive, before, now = np.repeat(lacking[:, None], method.seeds, 1), -1, read
            fresh = np.where(alive, fresh, 0)
            for last in (*(r for r in method.rows[:number] if r.tries), row):
                forwards += passes * (last.at(steps) - before) * alive.sum(1)
                before, now = last.at(steps), scores[last.judge][each, fresh, last.at(steps)]
                if last is not row:
                    alive = alive & (now >= last.least)
            people.join(alive)
            index = np.concatenate([index, fresh], 1)
            read = np.concatenate([read, now], 1)
        which = people.select(row, read, last=number == len(method.rows) - 1)
        index = np.take_along_axis(index, which, 1)
    forwards += passes * (steps - 1 - step) * people.alive.sum(1)
    best = np.where(people.alive, people.rank, -np.inf).argmax(1)
    return index[np.arange(worlds), best], forwards
