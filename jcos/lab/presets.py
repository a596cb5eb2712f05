"""Methods of search by name, and what they cost."""

import inspect
from collections.abc import Sequence

from jcos.config import Sampling
from jcos.lab.methods import PRESETS, Method


def named(
    name: str,
    seeds: int,
    judge: str,
    judges: Sequence[str],
    *,
    at: float | None = None,
    least: float | None = None,
) -> Method:
    """Return the method of a preset, or, of a judge, early screening by it.

    judge: of a preset. judges: that there are. at: the step of a preset that has one. least: the
    score that a threshold asks for. Raises ValueError, in one sentence, for any other name, and
    for a setting that the preset does not have.
    """
    if name in judges:
        name, judge = "epbs", name
    if name not in PRESETS:
        known = ", ".join([*PRESETS, *judges])
        raise ValueError(f"there is no search {name!r}; there are the presets and judges {known}")
    if judge not in judges:
        raise ValueError(f"there is no judge {judge!r}; there are {', '.join(judges)}")
    preset, asked = PRESETS[name], {"at": at, "least": least}
    settings = {key: value for key, value in asked.items() if value is not None}
    takes = inspect.signature(preset).parameters
    for key, value in settings.items():
        if key not in takes or takes[key].annotation is not float:
            raise ValueError(f"the search {name} takes no {key}; {value} is given")
    return preset(seeds, judge, **settings)


def forwards(method: Method, sampling: Sampling) -> int:
    """Return the passes through the transformer that a method takes for a video, at most."""
    steps = method.steps or sampling.steps
    total, step, alive = 0, -1, method.seeds
    for row in method.rows:
        at = row.at(steps)
        total += (at - step) * alive + row.tries * (at + 1) * method.seeds
        anew = {"prefix": -1, "chain": -1, "renoise": row.back}
        step, alive = anew.get(row.copy, at), row.count
    return (1 if sampling.guidance is None else 2) * (total + (steps - 1 - step) * alive)


def plan_in_words(method: Method, sampling: Sampling) -> str:
    """Return what a method will do and cost, in one line."""
    steps, alive, told = method.steps or sampling.steps, method.seeds, []
    for row in method.rows:
        then = {"prefix": " as prefix", "chain": " for the next clip"}.get(row.copy, "")
        then = then or (f", {row.count} with copies" if row.count > row.keep else "")
        kind = "threshold" if row.select == "threshold" else row.judge
        told.append(
            f"after step {row.at(steps) + 1} of {steps} {kind} keeps {row.keep} of {alive}{then}"
        )
        alive = row.count
    most = forwards(method, sampling)
    one = sampling.steps * (1 if sampling.guidance is None else 2)
    return (
        f"{'; '.join(told)}; at most {most} forwards, {most / one:.1f} times one run of "
        f"{sampling.steps} steps ({one})"
    )
