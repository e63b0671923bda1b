"""Shapes are written down wherever arrays are taken or returned, and cost nothing outside the tests."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from shape_checks import ROOMS

PACKAGE = Path(__file__).parents[1] / "sail_jax"
FILES = [path for room in ROOMS for path in sorted((PACKAGE / room).rglob("*.py"))]
_SHAPE = re.compile(r"\w+\[(?:np\.ndarray|Array), f?(?P<quote>['\"])(.*?)(?P=quote)\]")
_ARRAY = re.compile(r"\b(jax\.Array|np\.ndarray|Array)\b")


def annotations(tree: ast.AST) -> Iterator[ast.expr]:
    """Those of public functions, methods and fields, wherever they stand but inside functions."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from annotations(node)
        elif isinstance(node, ast.AnnAssign):
            yield node.annotation
        elif isinstance(node, ast.FunctionDef) and (
            not node.name.startswith("_") or node.name in ("__init__", "__call__")
        ):
            arguments = node.args
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
            yield from (one.annotation for one in every if one is not None and one.annotation is not None)
            if node.returns is not None:
                yield node.returns


every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


@every_file
def test_public_annotations_tell_the_shapes_of_arrays(path):
    bare = [
        f"{path}:{annotation.lineno}: {text}"
        for annotation in annotations(ast.parse(path.read_text(encoding="utf-8")))
        if _ARRAY.search(_SHAPE.sub("", text := ast.unparse(annotation)))
    ]
    assert not bare, 'Say which shape and type it is, as in Float32[Array, "B N D"]:\n' + "\n".join(bare)


@every_file
def test_letters_of_axes_are_explained_at_the_head_of_the_file(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    shapes = [found.group(2) for found in _SHAPE.finditer(path.read_text(encoding="utf-8"))]
    letters = {letter for shape in shapes for letter in re.findall(r"\b[A-Z]\w*\b", re.sub(r"{.*?}", "", shape))}
    legend = ast.get_docstring(tree).partition("Axis letters:")[2]
    unknown = sorted(letter for letter in letters if not re.search(rf"\b{letter}\b", legend))
    assert not unknown, f"{path}: say in its docstring, after 'Axis letters:', what {', '.join(unknown)} are."


@pytest.mark.slow
def test_nothing_is_checked_outside_the_tests():
    program = """
import sys
from sail_jax.models.transformer import attend
from sail_jax.objectives.info_nce import info_nce
from sail_jax.vectors.unit import normalize
wrapped = [f for f in (attend, info_nce, normalize) if hasattr(f, "__wrapped__")]
assert not wrapped, wrapped
assert "beartype" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
