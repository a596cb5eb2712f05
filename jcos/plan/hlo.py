"""A compiled program's text, read for what it sends between devices.

XLA's own cost analysis counts the body of a loop once; here every instruction counts as often as it
runs.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_WIDTHS = {"bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "pred": 1}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(-start)?\(")
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
    """What the devices of a compiled program send to each other, by kind of collective, those that
    do not occur left out.

    text: `compiled.as_text()`. A device of a group of n sends (n−1)/n of what a gather or an
    exchange leaves with it, twice that in a reduction. One that XLA has cut into a start, steps
    beside arithmetic and an end stands in each of them, and counts once.
    """
    bodies, entry = computations(text)
    counts: defaultdict[str, int] = defaultdict(int)
    sent: defaultdict[str, float] = defaultdict(float)
    chains: set[str] = set()
    for line, times in _run(bodies, entry, 1):
        if found := _COLLECTIVE.search(line):
            if chain := _CHAIN.search(line):
                if chain[1] in chains:
                    continue
                chains.add(chain[1])
            kind = found[2]
            counts[kind] += times
            sent[kind] += times * _sent(kind, _result(found[1], bool(found[3])), _group(line))
    return {kind: Traffic(counts[kind], sent[kind]) for kind in KINDS if counts[kind]}


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of a compiled program by computation, and the name of the one that is run."""
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            name = found[2]
            bodies[name] = []
            entry = name if found[1] else entry
        elif name:
            bodies[name].append(line)
    return bodies, entry


def _run(bodies: Mapping[str, Sequence[str]], name: str, times: int) -> Iterator[tuple[str, int]]:
    """Every instruction that is reached from a computation, with how often it runs."""
    for line in bodies.get(name, ()):
        yield line, times
        if inner := loop(bodies, line):
            yield from _run(bodies, inner[0], times * inner[1])
        elif not _ENDS.search(line) and (called := _CALLED.search(line)):
            for part in called[1].rstrip(",").split(","):
                yield from _run(bodies, part.strip(" %"), times)


def loop(bodies: Mapping[str, Sequence[str]], line: str) -> tuple[str, int] | None:
    """The body of the loop that an instruction is, and how often it runs; None for others."""
    found = _WHILE.search(line)
    return (found[2], _trips(bodies, found[1], line)) if found else None


def _trips(bodies: Mapping[str, Sequence[str]], condition: str, line: str) -> int:
    """How often a loop's body runs. A scan counts from 0 up to a constant of its condition; a loop
    that does not is counted once."""
    if known := _KNOWN_TRIPS.search(line):
        return int(known[1])
    found = [
        int(constant)
        for inner, _ in _run(bodies, condition, 1)
        for constant in _CONSTANT.findall(inner)
    ]
    return max(found, default=1)


def _result(shapes: str, start: bool) -> float:
    """Bytes of a collective's result on one device. The start of an asynchronous one names its
    input beside it: the larger of both is meant."""
    return max(_sizes(shapes), default=0.0) if start else array_bytes(shapes)


def array_bytes(shapes: str) -> float:
    """Of all arrays in a shape as the program writes it, `(f32[2,3]{1,0}, bf16[8])`."""
    return sum(_sizes(shapes))


def _sizes(shapes: str) -> list[float]:
    return [
        math.prod(map(int, filter(None, dims.split(",")))) * _WIDTHS.get(kind, _digits(kind) / 8)
        for kind, dims in _SHAPE.findall(shapes)
    ]


def _digits(kind: str) -> int:
    """Bits of s32, u8, f8e4m3 and their like."""
    found = re.search(r"\d+", kind)
    return int(found[0]) if found else 0


def _group(line: str) -> int:
    """How many devices exchange data with each other."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(found[1])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{('[^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        group = 1
        for axis in re.findall(r"'(\w+)'", found[2]):
            group *= int(sizes[axis])
        return group
    return 2  # only permutations come without groups, and for them it does not matter


def _sent(kind: str, result: float, group: int) -> float:
    share = (group - 1) / group
    return {
        "all-gather": result * share,
        "all-reduce": 2 * result * share,
        "reduce-scatter": result * (group - 1),
        "all-to-all": result * share,
        "collective-permute": result,
    }[kind]
