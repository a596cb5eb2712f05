"""What parameters of experiments may be, as their types say: `steps: AtSteps`, `puzzles: Count`."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple, get_args, get_type_hints

from jcos.sampling.interventions import Place, places


class Rule(NamedTuple):
    """What a value, or each value of a tuple, has to be; and that in words."""

    holds: Callable[[Any], bool]
    words: str


NONEMPTY = "nonempty"
"""Of a tuple that must not be empty."""
NonNegative = Annotated[int, Rule(lambda n: n >= 0, "at least 0")]
Count = Annotated[int, Rule(lambda n: n >= 1, "at least 1")]
AtLeastTwo = Annotated[int, Rule(lambda n: n >= 2, "at least 2 to compare")]
Positive = Annotated[float, Rule(lambda x: 0 < x < math.inf, "a positive number")]
AtSteps = Annotated[tuple[Place, ...], "step"]
AtLayers = Annotated[tuple[Place, ...], "layer"]
AtFrames = Annotated[tuple[Place, ...], "frame"]
"""Places in a run: whole numbers from 0, or fractions of it or of the depth."""


def check_parameters(owner: Any, sizes: Mapping[str, int]) -> None:
    """Raise ValueError for a field that is not what its type says, IndexError for a place out of
    range. sizes: of a run, `step`, `layer` and `frame`."""
    for name, hint in get_type_hints(type(owner), include_extras=True).items():
        value = getattr(owner, name)
        for rule in _rules(hint) if value is not None else ():
            _check(name, value, rule, sizes)


def _rules(hint: Any) -> Iterator[Rule | str]:
    yield from getattr(hint, "__metadata__", ())
    for part in get_args(hint):
        yield from _rules(part)


def _check(name: str, value: Any, rule: Rule | str, sizes: Mapping[str, int]) -> None:
    if rule == NONEMPTY and not value:
        raise ValueError(f"{name} is empty; name at least one")
    if isinstance(rule, str):
        places(value if rule in sizes else (), sizes.get(rule, 0), rule)
    elif isinstance(value, tuple) and not all(map(rule.holds, value)):
        raise ValueError(f"{name} are {value}; each is {rule.words}")
    elif not isinstance(value, tuple) and not rule.holds(value):
        raise ValueError(f"{name} is {value}; it is {rule.words}")
