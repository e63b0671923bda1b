"""Counts the bytes that a compiled program moves between devices, from its HLO text with loop lengths.

The count is of the bytes that each device sends if every collective runs along a ring of its n devices: for a buffer of
s bytes, (n - 1) / n s for its all-gather, reduce-scatter or all-to-all, twice that for an all-reduce, and s for a
permutation. If a ring spans several nodes, every device of a node begins one, with its share of the buffer, so that
only a part of the bytes leaves the node.
"""

import math
import re
from collections.abc import Iterable, Sequence

import numpy as np

# (Kind, link, channel) -> bytes that a device sends.
Collectives = dict[tuple[str, str, str], float]
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
_PAIRS = re.compile(r"source_target_pairs=\{(.*?)\}\}")
_CONSTANT = re.compile(r" = [su]\d+\[\]\S* constant\((\d+)\)")
_GROUPS_LISTED = re.compile(r"replica_groups=\{(\{[\d,{}]*\})\}")
_GROUPS_COUNTED = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_GROUPS_OF_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
_PART = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")
_WITHIN, _BETWEEN = "within", "between"


def collective_bytes(hlo: str, devices: int) -> dict[str, float]:
    """Counts the bytes that each device sends in one run of a program, by kind of collective.

    Args:
        hlo: the optimised program, `compiled.as_text()`.
        devices: the number of devices of the program.

    Returns:
        Kind (one of `KINDS`) -> bytes; 0 for a kind that does not occur.
    """
    return {kind: sum(sent) for kind, sent in bytes_by_link(hlo, [0] * devices).items()}


def bytes_by_link(hlo: str, nodes: Sequence[int]) -> dict[str, tuple[float, float]]:
    """Counts the bytes that a device sends within its node and to other nodes, by kind of collective.

    Args:
        hlo: the optimised program, `compiled.as_text()`.
        nodes: the node of each device of the program, in the order of the mesh.

    Returns:
        Kind (one of `KINDS`) -> (bytes within a node, bytes between nodes), of the device that sends most.
    """
    program, total = _Program(hlo, np.asarray(nodes)), {kind: dict.fromkeys((_WITHIN, _BETWEEN), 0.0) for kind in KINDS}
    for (kind, link, _), count in program.collectives(program.entry).items():
        total[kind][link] += count
    return {kind: (sent[_WITHIN], sent[_BETWEEN]) for kind, sent in total.items()}


class _Program:
    """Returns the computations of a program by name, each as the lines of its instructions."""

    def __init__(self, hlo: str, nodes: np.ndarray) -> None:
        self._nodes, self._known = nodes, {}
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
            channel = name if channel is None or channel.group(1) == _SHARED else channel.group(1)
            groups = _groups(rest, len(self._nodes))
            size = _sent(kind, shape, groups.shape[1], is_start=opcode != kind)
            shares = _shares(kind, rest, self._nodes, groups)
            return {(kind, link, channel): share * size for link, share in shares.items()}
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
    return {(kind, link, f"{name}/{channel}"): times * count for (kind, link, channel), count in sent.items()}


def _scattered(sent: Collectives) -> Collectives:
    """Counts an all-reduce of which only a slice is kept as a reduce-scatter, as TPUs run it: half the bytes."""
    return {("reduce-scatter", link, channel): count / 2 for (_, link, channel), count in sent.items()}


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


def _shares(kind: str, rest: str, nodes: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """Returns the shares of the bytes that go to the own node and to others, of the device that sends most there."""
    if kind == "collective-permute":
        found = _PAIRS.search(rest)
        pairs = np.array(re.findall(r"\d+", found.group(1)), int).reshape(-1, 2)
        crosses = nodes[pairs[:, 0]] != nodes[pairs[:, 1]]
        return {_WITHIN: float(not crosses.all()), _BETWEEN: float(crosses.any())}
    others = groups.shape[1] - 1
    mates = (nodes[groups][:, :, None] == nodes[groups][:, None, :]).sum(2)  # in the node and in the group, with itself
    if kind == "all-to-all":
        return {_WITHIN: (mates.max() - 1) / max(1, others), _BETWEEN: (others + 1 - mates.min()) / max(1, others)}
    alone = (mates == groups.shape[1]).all()
    return {_WITHIN: 1.0, _BETWEEN: 0.0} if alone else {_WITHIN: 1 - 1 / mates.max(), _BETWEEN: 1 / mates.min()}


def _groups(rest: str, devices: int) -> np.ndarray:
    """Returns the devices of each group [groups, size]; one group of all devices if none are given."""
    everyone = np.arange(devices)
    if found := _GROUPS_LISTED.search(rest):
        return np.array([_numbers(group) for group in re.findall(r"\{([\d,]+)\}", found.group(1))])
    if found := _GROUPS_COUNTED.search(rest):
        shape, axes, order = (_numbers(part) for part in found.groups())
        return everyone.reshape(axes).transpose(order or range(len(axes))).reshape(shape)
    if found := _GROUPS_OF_MESH.search(rest):
        return _groups_of_mesh(everyone, *found.groups())
    return everyone[None]


def _groups_of_mesh(everyone: np.ndarray, mesh: str, grouped: str) -> np.ndarray:
    """Returns the groups along axes of a mesh, or along parts of them: 'x':(2)4 is the 4 in an axis of 2 * 4 * n."""
    chosen = [(axis, int(before or 1), int(size or 0)) for axis, before, size in _PART.findall(grouped)]
    shape, picked = [], []
    for axis, size in re.findall(r"'([^']+)'=(\d+)", mesh):
        parts = [(before, before * (part or int(size))) for name, before, part in chosen if name == axis]
        cuts = sorted({1, int(size), *(cut for part in parts for cut in part)})
        for start, stop in zip(cuts, cuts[1:], strict=False):
            if any(start >= first and stop <= last for first, last in parts):
                picked.append(len(shape))
            shape.append(stop // start)
    kept = [axis for axis in range(len(shape)) if axis not in picked]
    width = math.prod(shape[axis] for axis in picked)
    return everyone.reshape(shape).transpose(*kept, *picked).reshape(-1, width)


def _numbers(text: str | None) -> list[int]:
    return [int(part) for part in text.split(",")] if text else []


def _trips(rest: str, condition: list[str]) -> int:
    """Returns the trip count of a loop: from XLA if known, else the bound in its condition, else 1."""
    if found := _TRIPS.search(rest):
        return int(found.group(1))
    return max((int(found.group(1)) for line in condition for found in _CONSTANT.finditer(line)), default=1)
