"""What a compiled program moves between devices, read from its HLO text, loops counted by their length.

Counted are the bytes that each device sends when every collective runs along a ring of its n devices: for a buffer of s
bytes, (n - 1) / n s for an all-gather of it, a reduce-scatter of it and an all-to-all within it, twice that for an
all-reduce, and s for a permutation.
"""

import math
import re
from collections import Counter

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = (.*?) ([a-z][\w-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.-]+)")
_BRANCHES = re.compile(r"(?:branch_computations=\{|(?:true|false)_computation=)([^}]*?)(?:\}|, (?=\w+=)|$)")
_LOOP = re.compile(r"condition=%?([\w.-]+), body=%?([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONSTANT = re.compile(r" = [su]\d+\[\]\S* constant\((\d+)\)")
_GROUPS_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_GROUPS_COUNTED = re.compile(r"replica_groups=\[\d+,(\d+)\]<=")
_GROUPS_OF_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")


def collective_bytes(hlo: str, devices: int) -> dict[str, float]:
    """Bytes that each device sends in one run of a program, by kind of collective.

    Args:
        hlo: the optimised program, `compiled.as_text()`.
        devices: devices that it runs on.

    Returns:
        Kind (one of `KINDS`) -> bytes; 0 for a kind that does not occur.
    """
    program = _Program(hlo, devices)
    return dict.fromkeys(KINDS, 0.0) | program.sent(program.entry)


class _Program:
    """The computations of a program by name, each as the lines of its instructions."""

    def __init__(self, hlo: str, devices: int) -> None:
        self._devices, self._sent = devices, {}
        self._computations: dict[str, list[str]] = {}
        lines: list[str] = []
        for line in hlo.splitlines():
            if found := _COMPUTATION.match(line):
                is_entry, name = found.groups()
                lines = self._computations[name] = []
                if is_entry:
                    self.entry = name
            lines.append(line)

    def sent(self, name: str) -> Counter[str]:
        """Bytes by kind that a device sends in one run of a computation."""
        if name not in self._sent:
            self._sent[name] = sum(map(self._by_line, self._computations[name]), Counter())
        return self._sent[name]

    def _by_line(self, line: str) -> Counter[str]:
        found = _INSTRUCTION.match(line)
        if not found:
            return Counter()
        shape, opcode, rest = found.groups()
        kind = opcode.removesuffix("-start")
        if kind in KINDS:
            return Counter({kind: _sent(kind, shape, _group_size(rest, self._devices), is_start=opcode != kind)})
        if opcode == "while":
            condition, body = _LOOP.search(rest).groups()
            trips = _trips(rest, self._computations[condition])
            return Counter({kind: trips * count for kind, count in self.sent(body).items()})
        if opcode == "conditional":
            branches = re.findall(r"[\w.-]+", " ".join(_BRANCHES.findall(rest)))
            return max(map(self.sent, branches), key=Counter.total)
        return sum(map(self.sent, _CALLED.findall(rest)), Counter())


def _sent(kind: str, shape: str, n: int, *, is_start: bool) -> float:
    """Bytes that a device sends; the result of an asynchronous start holds its operand beside what will be the result."""
    size = _size(shape, scalars=not (is_start and kind == "collective-permute"))
    if is_start:
        size *= {"all-reduce": 1, "all-gather": n / (n + 1), "reduce-scatter": 1 / (n + 1)}.get(kind, 0.5)
    return (
        size
        * {
            "all-reduce": 2 * (n - 1) / n,
            "all-gather": (n - 1) / n,
            "reduce-scatter": n - 1,  # of the part that it leaves to each device
            "all-to-all": (n - 1) / n,
            "collective-permute": 1,
        }[kind]
    )


def _size(shape: str, *, scalars: bool) -> float:
    """Bytes of all arrays of a shape, which may be a tuple."""
    arrays = [(kind, axes) for kind, axes in _ARRAY.findall(shape) if axes or scalars]
    return sum(_bits(kind) / 8 * math.prod(int(axis) for axis in axes.split(",") if axis) for kind, axes in arrays)


def _bits(kind: str) -> int:
    digits = re.search(r"\d+", kind)  # bf16, f8e4m3fn, s4, c64; neither pred nor token has any
    return int(digits.group()) if digits else 8 * (kind == "pred")


def _group_size(rest: str, devices: int) -> int:
    """Devices that take part together; all of them where no groups are written."""
    if found := _GROUPS_LISTED.search(rest):
        return found.group(1).count(",") + 1
    if found := _GROUPS_COUNTED.search(rest):
        return int(found.group(1))
    if found := _GROUPS_OF_MESH.search(rest):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found.group(1)))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found.group(2))  # an axis, or a part of one: 'x':(2)4
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return devices


def _trips(rest: str, condition: list[str]) -> int:
    """How often a loop runs: as XLA knows it, else the bound in its condition, else once."""
    if found := _TRIPS.search(rest):
        return int(found.group(1))
    return max((int(found.group(1)) for line in condition for found in _CONSTANT.finditer(line)), default=1)
