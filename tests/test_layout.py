"""Tests are in the room of the module that they test."""

import tiny

PACKAGE, TESTS = tiny.REPO / "sail_jax", tiny.REPO / "tests"


def test_a_test_with_the_name_of_a_module_is_in_its_room():
    """tests/ROOM/test_NAME.py, where a module or drawer NAME exists, is about that of sail_jax/ROOM."""
    modules = [
        path.relative_to(PACKAGE).with_suffix("").parts for path in PACKAGE.rglob("*") if path.suffix in ("", ".py")
    ]
    crossed = {}
    for path in TESTS.glob("*/test_*.py"):
        room, name = path.parent.name, path.stem.removeprefix("test_")
        rooms = {parts[0] for parts in modules if parts[-1] == name}
        if rooms and room not in rooms:
            crossed[str(path.relative_to(TESTS))] = sorted(rooms)
    assert not crossed, f"Move these tests to the rooms of their modules, or name them after what they test: {crossed}"
