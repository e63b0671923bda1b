"""Compares two configs setting by setting."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Difference(NamedTuple):
    """A setting with two values.

    Attributes:
        key: its dotted key.
        first: its value in the first config; None where that has no such data set, stage, task, ...
        second: its value in the second one, likewise.
    """

    key: str
    first: Any
    second: Any


def differences(first: Any, second: Any, prefix: str = "") -> Iterator[Difference]:
    """Yields the settings in which two configs differ, in the order of their declaration.

    An entry of the user's choice (a data set, a task) that one of them lacks is one difference; of its settings, those
    that are not the defaults are given.
    """
    if dataclasses.is_dataclass(first) and dataclasses.is_dataclass(second):
        left, right = (_entries(config) for config in (first, second))
    elif isinstance(first, Mapping) and isinstance(second, Mapping):
        left, right = first, second
    else:
        if first != second:
            yield Difference(prefix, changed(first), changed(second))
        return
    for name in dict.fromkeys([*left, *right]):
        yield from differences(left.get(name), right.get(name), f"{prefix}.{name}" if prefix else name)


def changed(value: Any) -> Any:
    """Returns a value in which a group of settings is a dict of those that are not the defaults."""
    if dataclasses.is_dataclass(value):
        plain = _entries(type(value)())
        return {name: changed(entry) for name, entry in _entries(value).items() if entry != plain[name]}
    return value


def _entries(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
