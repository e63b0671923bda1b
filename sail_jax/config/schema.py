"""Functions to declare, build, check, override and list settings.

A group of settings is a frozen dataclass whose fields are made by `setting` and `section`.
"""

import ast
import dataclasses
import difflib
import math
import operator
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sail_jax.buckets import require_local
from sail_jax.config.suggestions import similar_keys
from sail_jax.errors import SailError

# The largest number that 32 bits hold: arrays on devices are counted with them.
_LARGEST = 2**31 - 1
# Characters of a value in a message.
_LONGEST = 200

# Other settings may begin with other addresses: an instruction is free text.
_BUCKET = re.compile(r"(gs|gcs|s3|s3a|s3n|az|abfss?|hdfs)://")


def setting(
    default: Any,
    meaning: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
    may_change: bool = False,
    bucket: bool = False,
) -> Any:
    """Declares a setting: a dataclass field with a default, a one-line meaning, and the allowed values.

    Args:
        default: the default.
        meaning: its meaning, in one line.
        low: minimum, of each entry if the setting is a sequence.
        high: maximum, of the same values.
        above: exclusive lower bound, of the same values.
        below: exclusive upper bound, of the same values.
        choices: the allowed values, if they are few.
        may_change: whether a resumed run may have another value.
        bucket: whether it is a path that may lie in a bucket (`sail_jax.buckets`).
    """
    limits = {"low": low, "high": high, "above": above, "below": below}
    metadata = {
        "meaning": meaning,
        "limits": {name: limit for name, limit in limits.items() if limit is not None},
        "choices": choices,
        "may_change": may_change,
        "bucket": bucket,
    }
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(cls: type, meaning: str, *, may_change: bool = False) -> Any:
    """Declares a field that is a group of settings; `may_change` as in `setting`, for all of them."""
    return dataclasses.field(default_factory=cls, metadata={"meaning": meaning, "may_change": may_change})


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a config dataclass as nested plain dicts; tuples stay tuples."""
    if dataclasses.is_dataclass(config):
        return {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {key: to_dict(value) for key, value in config.items()}
    return config


def build_settings(cls: Any, value: Any, path: str) -> Any:
    """Turns nested mappings into checked dataclasses.

    Args:
        cls: the dataclass, or the type of a single setting.
        value: nested plain values; keys left out take their defaults.
        path: dotted path of the value, for messages.

    Raises:
        SailError: a key is unknown (the message names the nearest valid ones), or a value has the wrong type or is
            outside its limits.
    """
    origin, arguments = typing.get_origin(cls), typing.get_args(cls)
    if dataclasses.is_dataclass(cls):
        if not isinstance(value, Mapping):
            raise SailError(f"{path} is a group of settings, not {_shown(value)}.")
        hints = typing.get_type_hints(cls)
        for key in value:
            if key not in hints:
                raise SailError(unknown_key(f"{path}.{_cut(str(key))}", str(key), hints))
        built = {key: build_settings(hints[key], entry, f"{path}.{key}") for key, entry in value.items()}
        for field in dataclasses.fields(cls):
            if field.name in built:
                _check_value(field, built[field.name], f"{path}.{field.name}")
        return cls(**built)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise SailError(f"{path} takes a mapping such as {{'name': value}}, not {_shown(value)}.")
        return {
            str(key): build_settings(arguments[1], entry, f"{path}.{_cut(str(key))}") for key, entry in value.items()
        }
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise SailError(f"{path} takes a sequence such as ('a', 'b'), not {_shown(value)}.")
        return tuple(build_settings(arguments[0], entry, f"{path}[{i}]") for i, entry in enumerate(value))
    if cls is int and isinstance(value, int) and abs(value) > _LARGEST:
        raise SailError(f"{path} is {_shown(value)}; write a whole number of at most {_LARGEST:,}.")
    if cls is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise SailError(f"{path} is {_shown(value)}; write a finite number.") from error
    if not isinstance(value, cls) or (cls is int and isinstance(value, bool)):
        raise SailError(f"{path} takes a value of type {cls.__name__}, not {_shown(value)}.")
    return value


def _shown(value: Any) -> str:
    """Returns a value for a message, on one line and cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of over 4,300 digits, a list in a list in a list
        text = f"a {type(value).__name__}"
    return _cut(text)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 40]}... ({len(text):,} characters)"


def _check_value(field: dataclasses.Field, value: Any, path: str) -> None:
    """Checks a value against the limits and choices of its setting; numbers must be finite."""
    for entry in value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else (value,):
        # A description of what was written, which is no setting, may name an address.
        if isinstance(entry, str) and _BUCKET.match(entry) and not field.metadata.get("bucket", True):
            require_local(entry, path)
        if isinstance(entry, float) and not math.isfinite(entry):
            raise SailError(f"{path} is {_shown(value)}; write a finite number.")
        limits = field.metadata.get("limits", {})
        if not all(_LIMITS[name][1](entry, limit) for name, limit in limits.items()):
            wanted = " and ".join(f"{_LIMITS[name][0]} {limit}" for name, limit in limits.items())
            raise SailError(f"{path} is {_shown(value)}; it must be {wanted}.")
        choices = field.metadata.get("choices")
        if choices and entry not in choices:
            raise SailError(f"{path} is {_shown(value)}; choose one of {', '.join(choices)}.")


_LIMITS = {
    "low": ("at least", operator.ge),
    "high": ("at most", operator.le),
    "above": ("above", operator.gt),
    "below": ("below", operator.lt),
}


def unknown_key(path: str, key: str, valid: Sequence[str] | Mapping[str, Any]) -> str:
    """Returns the message for a mistyped key, with the nearest valid names."""
    return f"There is no setting {path}. Did you mean {nearest(key, valid)}?"


def nearest(name: str, valid: Iterable[str]) -> str:
    """Returns the valid names nearest to a mistyped one, or all of them, as "a or b"."""
    return " or ".join(difflib.get_close_matches(name, list(valid), n=3, cutoff=0.5) or sorted(valid))


def override(cls: type, values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Changes nested values by words of the form "a.b=value".

    A value is a Python literal, or else a string.

    Raises:
        SailError: a key is unknown (the message names similar ones), or a word has no value.
    """
    for word in overrides:
        dotted, equals, literal = word.partition("=")
        if not equals:
            raise SailError(f"--config.{word} has no value; write --config.{word}=VALUE.")
        if len(dotted) > _LONGEST:
            raise SailError(f"There is no setting config.{_cut(dotted)}.")
        *parents, key = dotted.split(".")
        node, owner = values, cls
        for depth, name in enumerate(parents):
            path = ".".join(["config", *parents[: depth + 1]])
            # A word may only change an existing data set, stage or task: a mistyped name must not add one.
            if typing.get_origin(owner) is dict and node and name not in node:
                raise SailError(unknown_key(path, name, node))
            owner = _field_type(owner, name, path) or _fail_unknown(cls, dotted, path, owner)
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise SailError(f"There is no setting config.{dotted}: {path} is a single value, {_shown(node)}.")
        leaf = _field_type(owner, key, f"config.{dotted}") or _fail_unknown(cls, dotted, f"config.{dotted}", owner)
        node[key] = literal if leaf is str else _literal(literal)
    return values


def _fail_unknown(root: type, dotted: str, path: str, owner: type) -> typing.NoReturn:
    """Raises SailError for a word whose key is no setting.

    Args:
        root: the group of all settings.
        dotted: the key.
        path: its first unknown part, from `config.` on.
        owner: the group that has no such entry.
    """
    keys = [_with_names(key.removeprefix("config."), dotted) for key, *_ in meanings(root)]
    likely = [f"config.{key}" for key in similar_keys(dotted, keys)]
    if not likely:
        raise SailError(unknown_key(path, path.rpartition(".")[2], typing.get_type_hints(owner)))
    raise SailError(f"There is no setting config.{dotted}. Did you mean {' or '.join(likely)}?")


def _with_names(key: str, dotted: str) -> str:
    """Returns a key such as "data.datasets.NAME.weight" with NAME replaced by the name in `dotted`."""
    mapping, _, rest = key.partition(".NAME.")
    if not rest or not dotted.startswith(mapping + "."):
        return key
    return f"{mapping}.{dotted.removeprefix(mapping + '.').partition('.')[0]}.{rest}"


def _field_type(cls: Any, name: str, path: str) -> Any:
    """Returns the type of an entry of a group or a mapping; None if the group has no such entry."""
    if typing.get_origin(cls) is dict:
        return typing.get_args(cls)[1]
    if not dataclasses.is_dataclass(cls):
        raise SailError(f"There is no setting {path}: {path.rpartition('.')[0]} is a single value.")
    return typing.get_type_hints(cls).get(name)


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # `{[]: 1}`, brackets nested too deep
        return text


class Declared(NamedTuple):
    """The declaration of a setting.

    Attributes:
        key: its dotted key; NAME stands for keys of the user's choice.
        type: its type.
        field: its dataclass field.
        may_change: whether a resumed run may have another value.
    """

    key: str
    type: Any
    field: dataclasses.Field
    may_change: bool


def declared(cls: type, prefix: str = "config", may_change: bool = False) -> Iterator[Declared]:
    """Yields every setting of a group and of its nested groups, in the order of declaration."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        key, hint = f"{prefix}.{field.name}", hints[field.name]
        free = may_change or field.metadata["may_change"]
        if dataclasses.is_dataclass(hint):
            yield from declared(hint, key, free)
            continue
        yield Declared(key, hint, field, free)
        if typing.get_origin(hint) is dict and dataclasses.is_dataclass(typing.get_args(hint)[1]):
            yield from declared(typing.get_args(hint)[1], f"{key}.NAME", free)


def meanings(cls: type) -> list[tuple[str, str, Any, str]]:
    """Returns rows (key, type, default, meaning) of every setting, as `describe --settings` prints them."""
    rows = []
    for key, hint, field, may_change in declared(cls):
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
        name = str(hint) if isinstance(hint, types.GenericAlias) else hint.__name__
        meaning = field.metadata["meaning"] + " (may change when a run is resumed)" * may_change
        rows.append((key, re.sub(r"sail_jax\.[\w.]+\.", "", name), default, meaning))
    return rows


def fixed_values(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns {dotted key: value} of the settings that a resumed run may not change.

    An empty mapping counts as a value.
    """
    if dataclasses.is_dataclass(config):
        fields = [field for field in dataclasses.fields(config) if not field.metadata["may_change"]]
        entries = {field.name: getattr(config, field.name) for field in fields}
    elif isinstance(config, Mapping) and config:
        entries = config
    else:
        return {prefix: config}
    values = {}
    for name, entry in entries.items():
        values |= fixed_values(entry, f"{prefix}.{name}" if prefix else name)
    return values
