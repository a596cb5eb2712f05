"""A program compiled for a GPU, read for its kernels: what they are and what they move through
memory.

On a GPU one kernel runs after the other, so a step takes the sum of what they take: attention and
matrix products as long as their arithmetic, all others as long as their bytes.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from jcos.plan.hlo import Traffic, array_bytes, computations, loop

KINDS = {
    "attention": "__cudnn$fmha",
    "matrix products": "__cublas",
    "convolutions": "__cudnn$conv",
}
"""How the program calls the libraries; "the rest" is XLA's own code."""

_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(?:,|$)")
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "after-all"}
"""Instructions that move nothing."""
_COLLECTIVE = re.compile(r"^(all-|reduce-scatter|collective-|async-)")


def kernels(text: str) -> dict[str, Traffic]:
    """Kernels that one device runs, by kind: how many, and the bytes that they read and write.
    Collectives are left out (`hlo.collectives` has them).

    text: `compiled.as_text()`. A slice that a kernel takes out of an array, or writes into one,
    counts by its own size.
    """
    bodies, entry = computations(text)
    counts: defaultdict[str, int] = defaultdict(int)
    moved: defaultdict[str, float] = defaultdict(float)
    for line, operation, read, written, times in _executed(bodies, entry, 1):
        call = line if operation == "custom-call" else ""
        kind = next((kind for kind, name in KINDS.items() if name in call), "the rest")
        if operation == "fusion" and (called := re.search(r"calls=%?([\w.\-]+)", line)):
            read, written = _fused(bodies[called[1]], read, written)
        counts[kind] += times
        moved[kind] += times * (sum(read) + written)
    return {kind: Traffic(counts[kind], moved[kind]) for kind in (*KINDS, "the rest")}


def _executed(
    bodies: Mapping[str, Sequence[str]], name: str, times: int
) -> Iterator[tuple[str, str, list[float], float, int]]:
    """Line, operation, bytes of every operand and of the result, how often: of every kernel."""
    sizes: dict[str, float] = {}
    for line in bodies.get(name, ()):
        if inner := loop(bodies, line):
            yield from _executed(bodies, inner[0], times * inner[1])
        if not (found := _INSTRUCTION.match(line)):
            continue
        result, shapes, operation, operands = found.groups()
        sizes[result] = array_bytes(shapes)
        if operation in ("call", "conditional"):
            for part in re.findall(r"(?:to_apply|computations?)=\{?%?([\w.\-]+)", line):
                yield from _executed(bodies, part, times)
        elif operation not in _FREE and not _COLLECTIVE.match(operation):
            read = [sizes.get(operand.strip(" %"), 0.0) for operand in operands.split(",")]
            yield line, operation, read, sizes[result], times


def _fused(
    lines: Sequence[str], read: Sequence[float], written: float
) -> tuple[Sequence[float], float]:
    """The same bytes, where parameters are only looked into, or only written into in places."""
    sizes: dict[str, float] = {}
    parameters: dict[str, int] = {}
    users: defaultdict[str, list[tuple[str, str, list[str]]]] = defaultdict(list)
    for line in lines:
        if not (found := _INSTRUCTION.match(line)):
            continue
        result, shapes, operation, inside = found.groups()
        sizes[result] = array_bytes(shapes)
        if operation == "parameter":
            parameters[result] = int(inside)
            continue
        operands = [operand.strip(" %") for operand in inside.split(",")]
        for operand in set(operands):
            users[operand].append((operation, result, operands))
    counted = list(read)
    for parameter, number in parameters.items():
        uses = users[parameter]
        first = {operation for operation, _, operands in uses if operands[0] == parameter}
        if first == {"dynamic-slice"}:
            counted[number] = sum(sizes[result] for _, result, _ in uses)
        for operation, result, operands in uses:
            if operation == "dynamic-update-slice" and operands[0] == parameter:
                counted[number] = 0.0
                written += sizes[operands[1]] - sizes[result]
    return counted, written
