"""Who may import whom: no import runs upwards, none is hidden in a function, and the core needs no PyTorch."""

import ast
import subprocess
import sys

import tiny

PACKAGE = tiny.REPO / "sail_jax"
# A room may import from the rooms below it and from its own.
TIERS = [
    {"errors", "items", "schema", "config", "vectors", "placement"}
    | {"model_config", "data_config", "log_config", "builder_config", "sequence_config"},
    {"data", "models", "objectives"},
    {"parallel", "checkpoint", "embedder"},
    {"curation", "training", "evaluation", "deploy", "convert"},
    {"cli", "__main__", "__init__"},
]
TIER = {room: number for number, tier in enumerate(TIERS) for room in tier}
SEPARATE = {"data", "models", "objectives"}  # these know nothing of each other


def modules():
    return [(path, path.relative_to(PACKAGE).parts[0].removesuffix(".py")) for path in sorted(PACKAGE.rglob("*.py"))]


def imported_rooms(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sail_jax":
            rooms = node.module.split(".")[1:2] or [alias.name for alias in node.names]
            yield from ((room, node.lineno) for room in rooms)


def test_every_module_has_a_room():
    assert {room for _, room in modules()} <= set(TIER)


def test_imports_run_downwards():
    wrong = []
    for path, room in modules():
        for target, line in imported_rooms(ast.parse(path.read_text())):
            upwards = TIER[target] > TIER[room]
            sideways = room in SEPARATE and target in SEPARATE and target != room
            if upwards or sideways:
                wrong.append(f"{path.relative_to(PACKAGE)}:{line} imports {target}")
    assert not wrong


def test_no_import_cycle():
    graph = {}
    for path, _ in modules():
        name = ".".join(["sail_jax", *path.relative_to(PACKAGE).with_suffix("").parts])
        graph[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sail_jax"):
                graph[name] |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    done, active = set(), []

    def visit(name):
        assert name not in active, " -> ".join([*active[active.index(name) :], name])
        if name in done or name not in graph:
            return
        active.append(name)
        for target in sorted(graph[name]):
            visit(target)
        active.pop()
        done.add(name)

    for name in graph:
        visit(name)


def test_the_core_needs_no_torch_and_no_tensorflow():
    # Making find_spec blind is what an environment without them looks like to libraries that ask first.
    code = (
        "import importlib.machinery as machinery, sys\n"
        "find = machinery.PathFinder.find_spec\n"
        "absent = ('torch', 'tensorflow', 'sentence_transformers')\n"
        "machinery.PathFinder.find_spec = classmethod(\n"
        "    lambda cls, name, *rest: None if name.split('.')[0] in absent else find(name, *rest))\n"
        "import sail_jax.cli\n"
        "assert not set(absent) & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
