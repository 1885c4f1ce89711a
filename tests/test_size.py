"""Functions that one can see at a glance: none of the package has more than 80 lines."""

import ast
from collections.abc import Iterator
from pathlib import Path

import lightning_cfg

PACKAGE = Path(lightning_cfg.__file__).parent
LIMIT = 80


def lengths(source: str) -> Iterator[tuple[str, int]]:
    """Each function's name and lines, from its decorators to its end, its docstring left out."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            start = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            lines = node.end_lineno - start + 1
            if ast.get_docstring(node) is not None:
                lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            yield node.name, lines


def test_no_function_is_longer_than_one_can_see():
    longer = {
        f"{path.relative_to(PACKAGE).as_posix()}: {name}": lines
        for path in PACKAGE.rglob("*.py")
        for name, lines in lengths(path.read_text())
        if lines > LIMIT
    }
    assert longer == {}


SOURCE = '''
@one
@two
def f(
    x,
):
    """Said

    at length."""
    def g():
        return x
    return g
'''


def test_lengths():
    assert dict(lengths(SOURCE)) == {"f": 8, "g": 2}
