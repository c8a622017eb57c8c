"""The text of a compiled program (HLO): its instructions, how often each runs, its collectives."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

COLLECTIVE = re.compile(r"= (.*?) ((?:all|reduce-scatter|collective)[\w-]*)\((?:.*?%([\w.-]+))?")
"""Result, kind and first operand of a collective."""
COMPUTE = re.compile(r"= (.*?) (?:fusion|custom-call|dot|convolution)\(")


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind, per step and chip.

    bytes: of their results, which for an all-reduce are those of the arrays that a chip hands over.
    overlapped: whether the program computes between the start of each and the wait for it; if not,
    the chip waits for the whole collective.
    """

    kind: str
    count: int
    bytes: int
    overlapped: bool


def collectives(text: str) -> tuple[Collective, ...]:
    """The collectives that a program executes, by kind, those of the most bytes first.

    A collective is overlapped if what is computed between its start and its end is at least as
    large as its own result. A separate start alone proves nothing: compilers also use one where
    only a single number is left to compute.
    """
    sizes: dict[tuple[str, bool], list[int]] = defaultdict(list)
    computed = 0
    started: dict[str, int] = {}
    for line, times in instructions(text):
        if found := COLLECTIVE.search(line):
            result, kind, operand = found.groups()
            if kind.endswith("-start"):
                started[_name(line)] = computed
                continue
            size = _bytes(result)
            overlapped = kind.endswith("-done") and computed - started[operand] >= times * size
            sizes[kind.removesuffix("-done"), overlapped] += [size] * times
        elif found := COMPUTE.search(line):
            computed += times * _bytes(found[1])
    by_kind = (Collective(kind, len(of), sum(of), late) for (kind, late), of in sizes.items())
    return tuple(sorted(by_kind, key=lambda found: -found.bytes))


def _name(line: str) -> str:
    return line.split("=")[0].strip().removeprefix("ROOT ").lstrip("%")


def instructions(text: str) -> Iterator[tuple[str, int]]:
    """Yields every executed instruction of an HLO module and how often it runs.

    The trip counts of the loops around an instruction determine how often it runs.
    """
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if found := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line):
            name = found[2]
            bodies[name] = []
            entry = name if found[1] else entry
        elif line.startswith(" ") and name:
            bodies[name].append(line)

    def walk(computation: str, times: int) -> Iterator[tuple[str, int]]:
        for line in bodies.get(computation, ()):
            yield line, times
            if " while(" in line:
                condition, body = (
                    re.findall(rf"{name}=%?([\w.-]+)", line)[0] for name in ("condition", "body")
                )
                yield from walk(body, times * _trips(line, bodies.get(condition, [])))
            elif inner := re.search(
                r" (?:call|async-start)\(.*(?:to_apply|calls)=%?([\w.-]+)", line
            ):
                yield from walk(inner[1], times)

    yield from walk(entry, 1)


def _trips(loop: str, condition: list[str]) -> int:
    """The trip count of a loop: from the compiler, or else the constant that the loop counts up to.

    Returns 1 if neither is known.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop):
        return int(known[1])
    text = "\n".join(condition)
    if end := re.search(r"ROOT .* compare\(\S+, %?([\w.-]+)\), direction=LT", text):
        constant = re.search(rf"%?{re.escape(end[1])} = s32\[\]\S* constant\((\d+)\)", text)
        return int(constant[1]) if constant else 1
    return 1


def _bytes(shapes: str) -> int:
    sizes = {"f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "pred": 1, "f64": 8, "s8": 1}
    return sum(
        sizes.get(kind, 4) * math.prod(int(n) for n in dims.split(",") if n)
        for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    )
