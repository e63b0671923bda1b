"""A setting that nothing reads misleads whoever sets it: each is read by name somewhere in the code."""

import ast
import dataclasses

import tiny

from sail_jax.config import Config
from sail_jax.config.schema import declared, setting
from sail_jax.objectives.objective import LOSSES
from sail_jax.sharding.mesh import AXES

PACKAGE = tiny.REPO / "sail_jax"
# Groups that are read as a whole, by names that stand in a tuple.
BY_TUPLE = {"config.mesh": set(AXES), "config.objective.weights": set(LOSSES)}


def read_attributes(source: str) -> set[str]:
    """Names of the attributes that a source file reads."""
    nodes = ast.walk(ast.parse(source))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


def unread_settings(rows, sources: list[str]) -> list[str]:
    """A message for each setting that no source reads."""
    read = set().union(*map(read_attributes, sources))
    messages = []
    for row in rows:
        group, _, name = row.key.rpartition(".")
        if name not in read and name not in BY_TUPLE.get(group, ()):
            messages.append(
                f"{row.key}: nothing in sail_jax/ reads .{name}. Read it where it counts, or remove the setting."
            )
    return messages


def sources() -> list[str]:
    # Of the declarations themselves, methods count: `media_chunks` is how the code reads `media_chunk`.
    return [path.read_text() for path in PACKAGE.rglob("*.py") if "exported_code" not in path.parts]


def test_every_setting_is_read():
    assert not unread_settings(declared(Config), sources())


def test_a_setting_that_nothing_reads_is_named():
    @dataclasses.dataclass
    class Other:
        read: float = setting(0.0, "a setting")
        written: float = setting(0.0, "a setting")

    (message,) = unread_settings(declared(Other, "config.other"), ["def f(w):\n    w.written = w.read"])
    assert message.startswith("config.other.written: nothing") and "remove the setting" in message
