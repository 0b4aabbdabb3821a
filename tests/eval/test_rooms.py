"""The rooms of `owl2/eval` build on each other in one order."""

import ast
from pathlib import Path

import pytest

import owl2.eval

ROOT = Path(owl2.eval.__file__).parent
ORDER = (
    "hashing",
    "locate",
    "task",
    "formats",
    "metrics",
    "tasks",
    "questions",
    "sampling",
    "engines",
    "answers",
    "judge",
    "runner",
    "inference",
    "scoring",
    "report",
    "adapters",
)


def test_every_room_has_its_place() -> None:
    rooms = {path.stem for path in ROOT.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert rooms - {"__init__", "__pycache__"} == set(ORDER)


@pytest.mark.parametrize("room", ORDER)
def test_a_room_imports_only_rooms_before_it(room: str) -> None:
    files = [ROOT / f"{room}.py", *(ROOT / room).glob("*.py")]
    for file in (file for file in files if file.exists()):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("owl2.eval."):
                other = str(node.module).split(".")[2]
                assert ORDER.index(other) <= ORDER.index(room), f"{file.name} imports {node.module}"
