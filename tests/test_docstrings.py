"""Every module, class and public function of the library says in its first line what it does or returns."""

import ast

import tiny

PACKAGE = tiny.REPO / "sail_jax"
LONGEST = 100  # characters of the first line, without its quotes and its indentation
ENDS = (".", "?", ":")
DOCUMENTED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
FILES = sorted(PACKAGE.rglob("*.py"))


def documented_nodes(tree, path=""):
    """(name, node) of a module, its classes, its public functions and their public methods."""
    if isinstance(tree, ast.Module):
        yield "the module", tree
    for node in tree.body:
        if isinstance(node, DOCUMENTED) and not node.name.startswith("_") and not is_setter(node):
            yield path + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from documented_nodes(node, f"{path}{node.name}.")


def is_setter(node):
    """Whether a node is the setter of a property, which the property's docstring covers."""
    return any(isinstance(mark, ast.Attribute) and mark.attr in ("setter", "deleter") for mark in node.decorator_list)


def fault(docstring):
    """The fault of a docstring's first line, with the remedy; None if it has none."""
    if not docstring:
        return "has no docstring: say in one line what it does or returns."
    first = docstring.splitlines()[0]
    if len(first) > LONGEST:
        return f"has a first line of {len(first)} characters: say it in {LONGEST}, and the rest below a blank line."
    if not first.endswith(ENDS):
        return "has a first line without an end: end the sentence on it, and put the rest below a blank line."
    return None


def line_of(node):
    """The line of the docstring, or of the definition if there is none."""
    body = node.body
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        return body[0].lineno
    return getattr(node, "lineno", 1)


def faults_of(source):
    """(line, message) of every docstring of a source text that needs mending."""
    for name, node in documented_nodes(ast.parse(source)):
        if message := fault(ast.get_docstring(node)):
            yield line_of(node), f"{name} {message}"


def test_first_lines_are_short_sentences():
    wrong = [
        f"sail_jax/{path.relative_to(PACKAGE)}:{line}: {message}"
        for path in FILES
        for line, message in faults_of(path.read_text())
    ]
    assert not wrong, "\n".join(wrong)


def test_faults_name_line_and_remedy():
    source = '"""A module."""\n\n\ndef one():\n    pass\n\n\nclass Two:\n    """No end\n    here."""\n'
    source += f'\n    def three(self):\n        """{"x" * 101}."""\n\n    def _four(self):\n        pass\n'
    found = list(faults_of(source))
    assert [line for line, _ in found] == [4, 9, 13]
    assert [message.split(":")[0] for _, message in found] == [
        "one has no docstring",
        "Two has a first line without an end",
        "Two.three has a first line of 102 characters",
    ]
