"""Who may import whom: no import runs upwards or sideways, none goes in a circle, and the core needs no PyTorch."""

import ast
import subprocess
import sys

import pytest
import tiny

PACKAGE = tiny.REPO / "sail_jax"
# From the lowest tier up. A room may import from lower tiers, but not from rooms of its own tier. Only files of the
# hall (the first tier) may import each other.
TIERS = (
    ("errors", "buckets", "files", "terminal", "progress", "items", "patterns", "batch", "config"),
    ("sharding", "vectors"),
    ("data", "models", "objectives"),
    ("runs", "logs"),
    ("embedding", "semantic_ids"),
    ("convert",),
    ("atlas", "curation", "evaluation", "search"),
    ("training",),
    ("aot", "sweeps"),
    ("cli",),
    ("__init__", "__main__"),
)
TIER = {room: number for number, tier in enumerate(TIERS) for room in tier}
HALL = TIERS[0]
# What exports ship with is never imported from here.
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "exported_code" not in path.parts)


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imported_modules(path):
    """(module of this package, line) of every import of a file, those inside of functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            # `from package import name` may name a module.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in names]
        elif isinstance(node, ast.ImportFrom):
            pytest.fail(f"{path}:{node.lineno}: import from sail_jax, not relatively.")
        else:
            continue
        yield from ((name, node.lineno) for name in names if name.split(".")[0] == "sail_jax" and name != "sail_jax")


def test_every_file_is_in_a_room_of_the_plan():
    strangers = {room_of(path) for path in FILES} - set(TIER)
    assert not strangers, f"Give {sorted(strangers)} a place in TIERS, and in the map of the house in README.md."


def test_imports_run_downwards():
    wrong = []
    for path in FILES:
        room = room_of(path)
        for module, line in imported_modules(path):
            target = module.split(".")[1]
            sideways = TIER[target] == TIER[room] and target != room and room not in HALL
            if TIER[target] > TIER[room] or sideways:
                wrong.append(
                    f"{path}:{line}: {room} may not import {target}; move the shared code into a lower room, or pass "
                    "it as an argument."
                )
    assert not wrong, "\n".join(wrong)


def test_no_import_goes_in_a_circle():
    graph = {module: sorted({name for name, _ in imported_modules(path)}) for module, path in MODULES.items()}
    done, active = set(), []

    def visit(module):
        assert module not in active, "Break the circle " + " -> ".join([*active[active.index(module) :], module])
        if module not in done:
            active.append(module)
            for target in graph[module]:
                visit(target)
            done.add(active.pop())

    for module in graph:
        visit(module)


@pytest.mark.slow
def test_the_core_needs_no_torch_and_no_tensorflow():
    # Making find_spec blind is what an environment without them looks like to libraries that ask first.
    code = (
        "import importlib, importlib.machinery as machinery, sys\n"
        "find = machinery.PathFinder.find_spec\n"
        "absent = ('torch', 'tensorflow', 'sentence_transformers', 'mteb')\n"
        "machinery.PathFinder.find_spec = classmethod(\n"
        "    lambda cls, name, *rest: None if name.split('.')[0] in absent else find(name, *rest))\n"
        "for module in sys.argv[1:]: importlib.import_module(module)\n"
        "assert not set(absent) & set(sys.modules)\n"
    )
    without = [
        m
        for m in MODULES
        if "exported_code" not in m and m not in ("sail_jax.evaluation.mteb_model", "sail_jax.__main__")
    ]
    subprocess.run([sys.executable, "-c", code, *without], check=True)
