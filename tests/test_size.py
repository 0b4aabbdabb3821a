"""Files stay readable in one sitting and functions on one screen; every file says what it is for."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(file for folder in ("owl2", "bench", "tests") for file in (ROOT / folder).rglob("*.py"))
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", FILES, ids=name)
def test_a_file_is_short_its_functions_too_and_it_opens_with_its_purpose(file: Path) -> None:
    source = file.read_text()
    lines = len(source.splitlines())
    assert lines <= MAX_FILE_LINES, f"{name(file)} has {lines} lines: split it"
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{name(file)}:{node.lineno} {node.name} has {length} lines"
    assert not tree.body or ast.get_docstring(tree), f"{name(file)} does not say what it is for"
