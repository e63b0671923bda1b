"""Counts the bytes that a compiled program moves between devices, from its HLO text with loop lengths.

The count is of the bytes that each device sends if every collective runs along a ring of its n devices: for a buffer of
s bytes, (n - 1) / n s for its all-gather, reduce-scatter or all-to-all, twice that for an all-reduce, and s for a
permutation.
"""

import math
import re
from collections.abc import Iterable

# (Kind, channel) -> bytes that a device sends.
Collectives = dict[tuple[str, str], float]
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_SHARED = "1"  # the channel that JAX gives to all collectives written within a `shard_map`
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.-]+)")
_BRANCHES = re.compile(r"(?:branch_computations=\{|(?:true|false)_computation=)([^}]*?)(?:\}|, (?=\w+=)|$)")
_SCATTER = "all-reduce-scatter"  # in the name that TPUs give to such a fusion
_LOOP = re.compile(r"condition=%?([\w.-]+), body=%?([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONSTANT = re.compile(r" = [su]\d+\[\]\S* constant\((\d+)\)")
_GROUPS_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_GROUPS_COUNTED = re.compile(r"replica_groups=\[\d+,(\d+)\]<=")
_GROUPS_OF_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")


def collective_bytes(hlo: str, devices: int) -> dict[str, float]:
    """Counts the bytes that each device sends in one run of a program, by kind of collective.

    Args:
        hlo: the optimised program, `compiled.as_text()`.
        devices: the number of devices of the program.

    Returns:
        Kind (one of `KINDS`) -> bytes; 0 for a kind that does not occur.
    """
    program, total = _Program(hlo, devices), dict.fromkeys(KINDS, 0.0)
    for (kind, _), count in program.collectives(program.entry).items():
        total[kind] += count
    return total


class _Program:
    """Returns the computations of a program by name, each as the lines of its instructions."""

    def __init__(self, hlo: str, devices: int) -> None:
        self._devices, self._known = devices, {}
        self._computations: dict[str, list[str]] = {}
        lines: list[str] = []
        for line in hlo.splitlines():
            if found := _COMPUTATION.match(line):
                is_entry, name = found.groups()
                lines = self._computations[name] = []
                if is_entry:
                    self.entry = name
            lines.append(line)

    def collectives(self, name: str) -> Collectives:
        """Returns the bytes that a device sends in one run of a computation."""
        if name not in self._known:
            # On TPUs the start, the middle and the end of an asynchronous collective are fusions that each contain it,
            # so a channel counts once.
            self._known[name] = _once(map(self._of_line, self._computations[name]))
        return self._known[name]

    def _of_line(self, line: str) -> Collectives:
        found = _INSTRUCTION.match(line)
        if not found:
            return {}
        name, shape, opcode, rest = found.groups()
        kind = opcode.removesuffix("-start")
        if kind in KINDS:
            channel = _CHANNEL.search(rest)
            size = _sent(kind, shape, _group_size(rest, self._devices), is_start=opcode != kind)
            return {(kind, name if channel is None or channel.group(1) == _SHARED else channel.group(1)): size}
        if opcode == "while":
            condition, body = _LOOP.search(rest).groups()
            return _of_site(name, self.collectives(body), _trips(rest, self._computations[condition]))
        if opcode == "conditional":
            branches = re.findall(r"[\w.-]+", " ".join(_BRANCHES.findall(rest)))
            return _of_site(name, max(map(self.collectives, branches), key=lambda sent: sum(sent.values())))
        called = _CALLED.findall(rest)
        if opcode == "call":
            return _of_site(name, self.collectives(called[0]))
        return _once(_scattered(self.collectives(n)) if _SCATTER in n else self.collectives(n) for n in called)


def _once(parts: Iterable[Collectives]) -> Collectives:
    merged: Collectives = {}
    for part in parts:
        for key, count in part.items():
            merged[key] = max(count, merged.get(key, 0.0))
    return merged


def _of_site(name: str, sent: Collectives, times: int = 1) -> Collectives:
    """Returns the bytes of a computation at one call site, with keys that differ from its other call sites."""
    return {(kind, f"{name}/{channel}"): times * count for (kind, channel), count in sent.items()}


def _scattered(sent: Collectives) -> Collectives:
    """Counts an all-reduce of which only a slice is kept as a reduce-scatter, as TPUs run it: half the bytes."""
    return {("reduce-scatter", channel): count / 2 for (_, channel), count in sent.items()}


def _sent(kind: str, shape: str, n: int, *, is_start: bool) -> float:
    """Bytes that a device sends; the shape of an asynchronous start includes the operand and the result."""
    size = _size(shape, scalars=not (is_start and kind == "collective-permute"))
    if is_start:
        size *= {"all-reduce": 1, "all-gather": n / (n + 1), "reduce-scatter": 1 / (n + 1)}.get(kind, 0.5)
    return (
        size
        * {
            "all-reduce": 2 * (n - 1) / n,
            "all-gather": (n - 1) / n,
            "reduce-scatter": n - 1,  # of the part that each device keeps
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
    """Returns the number of devices in a group; all devices if no groups are given."""
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
    """Returns the trip count of a loop: from XLA if known, else the bound in its condition, else 1."""
    if found := _TRIPS.search(rest):
        return int(found.group(1))
    return max((int(found.group(1)) for line in condition for found in _CONSTANT.finditer(line)), default=1)
