"""A compiled program's text, read for what it sends between devices.

XLA's own cost analysis counts the body of a loop once; here every instruction counts as often as it
runs.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

_SENT = {
    "all-gather": lambda size, group: size * (group - 1) / group,
    "all-reduce": lambda size, group: 2 * size * (group - 1) / group,
    "reduce-scatter": lambda size, group: size * (group - 1),
    "all-to-all": lambda size, group: size * (group - 1) / group,
    "collective-permute": lambda size, group: size,
}
"""Bytes that a device of a group sends, by those of the result that stays with it."""
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_SHAPE = re.compile(r"\b[a-z]+(\d*)\w*\[([\d,]*)\]")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(_SENT)})(-start)?\(")
_CHAIN = re.compile(r"\bchain_id=\"(\d+)\"")
_WHILE = re.compile(r"\bwhile\(.*?condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|branch_computations|called_computations)=\{?([^}\s]+)")
_ENDS = re.compile(r" async-(?:done|update)\(")
_CONSTANT = re.compile(r"\bs32\[\]\S* constant\((\d+)\)")
_KNOWN_TRIPS = re.compile(r"known_trip_count\W+n\W+(\d+)")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind: how many are run, and the bytes that one device sends in them."""

    count: int
    bytes: float


def collectives(text: str) -> dict[str, Traffic]:
    """Return what the devices of a compiled program send to each other, by kind of collective,
    those that do not occur left out.

    text: `compiled.as_text()`. A collective that XLA has cut into a start, steps beside arithmetic
    and an end stands in each of them, and counts once.
    """
    bodies, entry = _computations(text)
    counts: defaultdict[str, int] = defaultdict(int)
    sent: defaultdict[str, float] = defaultdict(float)
    chains: set[str] = set()
    for line, times in _run(bodies, entry, 1):
        match, chain = _COLLECTIVE.search(line), _CHAIN.search(line)
        if not match or (chain and chain[1] in chains):
            continue
        chains |= {chain[1]} if chain else set()
        # Of every array in a shape as the program writes it, `(f32[2,3]{1,0}, bf16[8])`.
        sizes = [
            math.prod(map(int, filter(None, dims.split(",")))) * int(bits or 8) / 8
            for bits, dims in _SHAPE.findall(match[1])
        ]
        # An asynchronous start names its input beside its result: the larger is meant.
        size = max(sizes, default=0.0) if match[3] else sum(sizes)
        counts[match[2]] += times
        sent[match[2]] += times * _SENT[match[2]](size, _group(line))
    return {kind: Traffic(counts[kind], sent[kind]) for kind in _SENT if counts[kind]}


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of a compiled program by computation, and the name of the one that is run."""
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            name = match[2]
            bodies[name] = []
            entry = name if match[1] else entry
        elif name:
            bodies[name].append(line)
    return bodies, entry


def _run(bodies: Mapping[str, Sequence[str]], name: str, times: int) -> Iterator[tuple[str, int]]:
    """Every instruction that is reached from a computation, with how often it runs."""
    for line in bodies.get(name, ()):
        yield line, times
        if loop := _WHILE.search(line):
            yield from _run(bodies, loop[2], times * _trips(bodies, loop[1], line))
        elif not _ENDS.search(line) and (called := _CALLED.search(line)):
            for part in called[1].rstrip(",").split(","):
                yield from _run(bodies, part.strip(" %"), times)


def _trips(bodies: Mapping[str, Sequence[str]], condition: str, line: str) -> int:
    """How often a loop's body runs. A scan counts up to a constant of its condition; others:
    once."""
    if known := _KNOWN_TRIPS.search(line):
        return int(known[1])
    inside = (line for line, _ in _run(bodies, condition, 1))
    return max((int(n) for line in inside for n in _CONSTANT.findall(line)), default=1)


def _group(line: str) -> int:
    """How many devices exchange data with each other."""
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{('[^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    return 2  # only permutations come without groups, and for them it does not matter
